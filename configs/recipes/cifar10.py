"""CIFAR-10 (50,000 images of 32x32 pixels): ViT-T with patches of 2 pixels, MAE or BootMAE.

  mimjax train --config=configs/recipes/cifar10.py --workdir=DIR
    --config.data.source.data_dir=TFDS
  mimjax evaluate --model=DIR --protocols=knn,linear,attentive,ep
  arguments: method=mae|bootmae, epochs=800, patch=2

TFDS holds cifar10 as ArrayRecord files; a folder with class folders in train/ and test/ does as
well, `--config.data.source=folder --config.data.path=FOLDER`.
No published run has this size; docs/evaluation.md lists the rows that are near. Not run by this
project. 256 patches of 2 pixels cost as much as those of an image of 256 pixels in patches of 16:
5.5 GFLOP per image and step for MAE, twelve minutes of an A100 at its peak in all (calculated).
"""

from mimjax.data.sources import Tfds
from mimjax.evaluators.probes import Probes
from mimjax.run.sections import arguments, load, section


def get_config(arg=None):
    a = arguments(arg, method=("mae", "bootmae"), epochs=800, patch=2)
    c = load(f"{a.method}:size=ti,res=32")

    # networks: decoders as wide as the encoder at most (ours)
    c.method.encoder.patch = a.patch
    if a.method == "mae":
        c.method.decoder.width, c.method.decoder.heads, c.method.decoder.depth = 192, 3, 4

    # optimizer: solo-learn, scripts/pretrain/cifar/mae.yaml
    c.batch_size = 256
    c.optimizer.lr = None
    c.optimizer.base_lr = 2e-4  # there, for 256 images
    c.epochs = float(a.epochs)  # supmae issue 1: 800, with ViT of this width; solo-learn has 1000
    c.optimizer.schedule.warmup_epochs = a.epochs / 20  # 40 of 800 epochs (MAE)
    c.optimizer.schedule.min_lr *= c.batch_size / 4096  # absolute, of the published batch

    # data: mean and standard deviation are ImageNet's, as everywhere here
    c.data.source = section(Tfds(dataset="cifar10"))
    c.data.augment.scale = (0.2, 1.0)  # MAE's

    # 195 steps per epoch
    c.log_every, c.checkpoint_every, c.eval.every = 100, 3900, 3900
    c.eval.probes = section(Probes())
    c.eval.max_images = 10_000
    return c.lock()
