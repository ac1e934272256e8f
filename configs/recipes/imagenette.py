"""Imagenette (9,469 photographs of ten classes): ViT-S/16, 200 epochs, any method on its own.

  mimjax train --config=configs/recipes/imagenette.py --workdir=DIR --config.data.path=IMAGENETTE
    (IMAGENETTE holds train/ and val/, as imagenette2-320 does), then
  mimjax evaluate --model=DIR --protocols=knn,linear
  arguments: method=mae|bootmae, epochs=200

Size, length and data are those of stable-pretraining's benchmark (benchmarks/imagenet10), whose
numbers after 200 epochs on one A100 are 84.1 % (linear) and 72.1 % (k-NN) for MAE, measured by
probes that train beside it; docs/evaluation.md lists the others. Not run by this project. The rest
is the method's published recipe with the batch of one GPU: the rate follows the batch. MAE takes
38.6 GFLOP per image and step, four minutes of an A100 at its peak in all (calculated).
"""

from mimjax.evaluators.probes import Probes
from mimjax.run.sections import arguments, load, section


def get_config(arg=None):
    a = arguments(arg, method=("mae", "bootmae"), epochs=200)
    c = load(f"{a.method}:size=s")

    # length and batch
    c.epochs = float(a.epochs)  # benchmarks/imagenet10: 200
    c.batch_size = 256  # of one GPU (ours); the rate is per 256 images
    c.optimizer.lr = None
    c.optimizer.base_lr = 1.5e-4  # --blr of MAE's PRETRAIN.md; BootMAE's script has the same rate
    c.optimizer.schedule.warmup_epochs = a.epochs / 20  # 40 of 800 epochs (MAE)
    c.optimizer.schedule.min_lr *= c.batch_size / 4096  # absolute, of the published batch

    # 37 steps per epoch: look and save every 20 epochs or so
    c.log_every, c.checkpoint_every, c.eval.every = 20, 740, 740
    c.eval.probes = section(Probes())
    c.eval.max_images = 10_000  # all labels
    return c.lock()
