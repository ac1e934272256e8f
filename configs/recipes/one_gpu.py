"""A published recipe on one GPU: the same batch, gathered from micro-batches, and fewer epochs.

  mimjax train --config=configs/recipes/one_gpu.py:method=bootmae --workdir=DIR
    --config.data.path=IMAGENET
  arguments: method=mae|bootmae|beit|cae|caev2|mcmae|mrmae, size=s|b|l (what the method has),
  images=256 (in memory at once), epochs=300, path=FILE (tokenizer or teacher, where one is read)

An update sums the gradients of batch / images micro-batches: the same update as on many devices.
Hardware, calculated and not measured, at 256 images in bfloat16: activations of MAE-B and BootMAE-B
take 10 to 15 GB, of CAE-B 13 to 20, of BEiT-B, whose encoder sees all patches, 16 to 24; of ViT-L
18 to 27, 27 to 40 and 40 to 60. Tokenizers and teachers run before them, on as many images at once,
and are freed: DALL-E's needs up to 8 GB, VQGAN 5, VQ-KD 4, CLIP 2. images=64 takes a quarter of all
these. The state takes 16 to 20 bytes per parameter in addition. `mimjax plan` prints what the step
takes on a TPU chip.
Expected for MAE-B (mmpretrain's runs): fine-tuned 83.1 % after 300 epochs, 83.3 %
after 800.
"""

from mimjax.errors import ConfigError
from mimjax.run.sections import arguments, load

METHODS = ("mae", "bootmae", "beit", "cae", "caev2", "mcmae", "mrmae")
TEACHERS = ("beit", "cae", "caev2", "mrmae")


def get_config(arg=None):
    a = arguments(arg, method=METHODS, size="b", images=256, epochs=300.0, path="")
    if a.path and a.method not in TEACHERS:
        raise ConfigError(
            f"config argument path={a.path!r} with method={a.method}; allowed with: "
            f"{', '.join(TEACHERS)}"
        )
    # CAE's scripts have a warm-up for each length, which its config knows.
    length = f",epochs={a.epochs}" if a.method == "cae" else ""
    path = f',path="{a.path}"' if a.path else ""
    c = load(f"{a.method}:size={a.size}{length}{path}")

    # The published batch stays, and with it the published rates; only its pieces are chosen here.
    if a.images < 1 or c.batch_size % a.images:
        raise ConfigError(
            f"config argument images={a.images}; allowed: divisors of the batch {c.batch_size}"
        )
    c.accum = c.batch_size // a.images

    # optimizer
    c.epochs = a.epochs  # mmpretrain: 0.2 % below 800 for MAE-B
    # Warm-up: what a method's scripts have for this length, or as published; at most a fifth of the
    # run, which is the longest that any of them has (MR-MAE: 80 of 400 epochs).
    warmup = c.optimizer.schedule.warmup_epochs
    c.optimizer.schedule.warmup_epochs = min(warmup, 0.2 * a.epochs)

    # A step is many passes (ours): save and look more often than a pod does.
    c.checkpoint_every, c.log_every, c.eval.every = 200, 10, 2000
    return c.lock()
