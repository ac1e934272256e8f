"""A few thousand images, one GPU or a CPU: MAE with a small encoder, many epochs.

  mimjax train --config=configs/recipes/small_data.py --workdir=DIR
    --config.data.path=FOLDER
  arguments: size=ti|s|b, res=96, patch=8, labels (FOLDER has class sub-folders: adds k-NN and a
  linear probe to every evaluation)

No published recipe stands behind it as a whole; each number says where it comes from. Hardware:
3.0 GFLOP per image and step at ViT-Ti, so an epoch of 5,000 images is minutes on a few CPU cores
and seconds on a GPU (calculated, not timed). Watch the held-out masked error:
while it falls beside the training loss, more epochs help; where it turns, stop there.
"""

from mimjax.evaluators.probes import Probes
from mimjax.run.sections import arguments, load, section


def get_config(arg=None):
    a = arguments(arg, size="ti", res=96, patch=8, labels=False)
    # A small encoder: MAE of ViT-Ti still learns more than no pretraining (MAE-Lite, README).
    c = load(f"mae:size={a.size},res={a.res}")

    # networks
    encoder, decoder = c.method.encoder, c.method.decoder
    encoder.patch = a.patch
    # As wide as the encoder at most (ours): the published decoder, 512 wide, would outgrow ViT-Ti.
    decoder.width, decoder.heads = min(encoder.width, 512), min(encoder.heads, 8)
    decoder.depth = 4

    # optimizer
    c.batch_size = 256  # solo-learn, scripts/pretrain/cifar/mae.yaml
    c.optimizer.base_lr = 2e-4  # there, for 256 images; also weight decay 0.05, betas 0.9 and 0.95
    c.epochs = 800.0  # supmae issue 1: CIFAR-10, 192 wide; solo-learn has 1000
    c.optimizer.schedule.warmup_epochs = 40.0  # MAE's

    # data: whole objects fill small images; crops of a fifth, as of ImageNet's, show little (ours)
    c.data.augment.scale = (0.4, 1.0)

    # An epoch has some twenty steps (ours): look every 50 epochs or so, lose minutes at most.
    c.log_every, c.checkpoint_every, c.eval.every = 20, 250, 1000
    c.eval.probes = section(Probes()) if a.labels else None
    return c.lock()
