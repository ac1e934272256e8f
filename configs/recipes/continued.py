"""Pretraining continued from weights, published or your own, on images of another kind.

  mimjax train --config=configs/recipes/continued.py:path=mae_visualize_vit_base.pth
    --workdir=DIR --config.data.path=FOLDER
  arguments: path=FILE or WORKDIR (needed), method=mae|bootmae|mcmae, size=b|l|h, epochs=100

The weights give encoder and, where the file holds one, decoder; optimizer slots are empty, so the
rate warms up again, to a third of the published peak, and decays to zero. Of MAE's published files
`mae_visualize_*` and `*_full` hold the decoder; with the others the first epochs mostly train a
new one. Watch the masked error of step 0, which an evaluation prints before the first update: far
below that of a random start, weights and image normalization fit together (`mae_visualize_*`
predict plain pixels: `--config.method.pixel_target.norm=none`). All numbers are ours but those of
the method's config. For other sizes than the published ones convert the file first
(`mimjax convert`), then path=WORKDIR.
"""

from mimjax.errors import ConfigError
from mimjax.run.sections import arguments, load

METHODS = ("mae", "bootmae", "mcmae")  # those that read no tokenizer or teacher beside


def get_config(arg=None):
    a = arguments(arg, path="", method=METHODS, size="b", epochs=100.0)
    if not a.path:
        raise ConfigError("config argument path: missing; allowed: a workdir, .safetensors, .pth")
    c = load(f"{a.method}:size={a.size}")
    c.init_from = a.path
    c.batch_size = 1024

    # optimizer
    c.epochs = a.epochs
    c.optimizer.schedule.warmup_epochs = min(
        5.0, a.epochs / 10
    )  # Adam's averages, not the weights, need it
    # A third of the peak, by 256 images where the method has it so: what was learned is kept.
    c.optimizer.base_lr = c.optimizer.base_lr / 3
    if c.optimizer.lr is not None:
        c.optimizer.lr = c.optimizer.lr / 3

    c.checkpoint_every, c.eval.every = 500, 1000
    return c.lock()
