"""BootMAE on MCMAE's convolutional encoder: two methods joined by settings alone.

  mimjax train --config=configs/recipes/bootmae_conv.py --workdir=DIR --config.data.path=IMAGENET
  arguments: size=s|b|l|h (and the other readings of configs/mcmae.py), res=224, demo,
  data=digits|shifted_digits|photos

BootMAE's decoders read blocks of one width and one grid: those of the transformer stage, not the
convolutional stages before it. Pixels are predicted with the transformer's first block, features
with its last. There is no class token. No paper has this combination, and nobody has measured it:
optimizer, masks and losses are those of configs/bootmae.py, the encoder that of configs/mcmae.py.
"""

from mimjax.run.demos import DATA
from mimjax.run.sections import arguments, load


def get_config(arg=None):
    a = arguments(arg, size="b", res=224, demo=False, data=DATA)
    own = f"demo,data={a.data}" if a.demo else f"res={a.res}"
    conv = load(f"mcmae:size={a.size},{own}")
    c = load(f"bootmae:size={a.size[0]},{own}")  # "l12" is a reading of "l"

    # networks
    c.method.encoder = conv.method.encoder
    c.method.pixel_decoder.inject = 0  # the transformer's first block
    c.method.feature_decoder.inject = -1

    # optimizer: without a class token there is none to spare
    c.optimizer.decay = conv.optimizer.decay
    return c.lock()
