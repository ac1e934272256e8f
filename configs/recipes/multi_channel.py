"""Images of many channels (satellite bands, microscopy, stacks of slices): MAE from scratch.

  mimjax stats --images=FOLDER --channels=12
  mimjax train --config=configs/recipes/multi_channel.py:channels=12 --workdir=DIR
    --config.data.path=FOLDER '--config.method.mean=(...)' '--config.method.std=(...)'
  arguments: channels=12, size=ti|s|b, res=128, patch=8, bits=16 (12-bit scanners: 12), flip

The first command prints the two overrides to paste; without them every channel is taken to have
mean 0.5 and deviation 0.25. FOLDER holds arrays [h w 12] (`.npy`) or TIFFs of 12 pages. One gray
channel (X-rays, CT, MR slices) is channels=1. Published weights know three channels only. All
numbers are ours but those of configs/mae.py.
"""

from mimjax.errors import ConfigError
from mimjax.run.sections import arguments, load


def get_config(arg=None):
    a = arguments(arg, channels=12, size="s", res=128, patch=8, bits=16, flip=False)
    if a.channels < 1 or not 8 <= a.bits <= 16:
        raise ConfigError(
            f"config argument channels={a.channels}, bits={a.bits}; allowed: 1 or more, 8 to 16"
        )
    c = load(f"mae:size={a.size},res={a.res}")
    m = c.method

    # networks
    m.encoder.patch = a.patch
    # A patch has patch x patch x channels values to predict: the published width.
    m.decoder.width, m.decoder.depth, m.decoder.heads = 512, 4, 8

    # what is learned
    m.mean, m.std = (0.5,) * a.channels, (0.25,) * a.channels
    # Bands differ in brightness by orders: each is normalized by its own patch statistics.
    m.pixel_target.norm = "channel"

    # optimizer
    c.batch_size = 512  # one accelerator
    c.epochs, c.optimizer.schedule.warmup_epochs = 400.0, 20.0  # half of MAE's, for smaller data

    # data
    c.data.channels = a.channels
    if a.bits < 16:  # stored in 16 bits, of which the upper ones are empty
        c.data.value_range = (0.0, float(2**a.bits - 1))
    # Left and right are not alike in a body; `flip` for satellites and cells.
    c.data.augment.flip = 0.5 if a.flip else 0.0

    c.checkpoint_every, c.eval.every = 500, 1000
    return c.lock()
