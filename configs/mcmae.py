"""MCMAE (ConvMAE) pretraining on ImageNet-1k (Gao et al. 2022), as in the official code.

  python -m mimjax.main --config=configs/mcmae.py --workdir=DIR --config.data.path=IMAGENET
  (IMAGENET holds train/ and val/; a folder without them is split, 10 % held out)
  arguments: configs/mcmae.py:size=l  size=s|b|l|h, res=224, fast, demo, data=digits|photos

Hardware: the authors used 24 GPUs; one iteration of their code took 0.55 s, of MAE's 0.41 s
(ConvMAE issue 5). Expected (published, not reproduced by this project): the encoder that they call
ConvMAE-Base, after 1600 epochs, a linear probe of 70.9 % (README). Sizes s, l and h are not in the
official code. `fast` is FastConvMAE: 50 epochs, four views of each image.
"""

from configs import common
from mimjax.errors import ConfigError
from mimjax.methods.mcmae import MCMAE
from mimjax.models.conv_stages import CONV_SIZES
from mimjax.rules import VECTORS
from mimjax.schema import section

DECAY = (  # the code decays mask_token: only 1-D tensors and biases are spared
    (VECTORS, 0.0),
    (".*", 1.0),
)
STAGES = {"stage_widths": (32, 64), "stage_depths": (1, 1)}
DEMO_ENCODER = {  # the other demos' patch on digits, twice theirs on photographs
    "digits": STAGES
    | {"width": 96, "depth": 3, "heads": 4, "strides": (1, 2, 1), "image_size": (8, 8)},
    "photos": STAGES
    | {"width": 128, "depth": 3, "heads": 4, "strides": (4, 2, 2), "image_size": (64, 64)},
}


def encoder_size(size, res):
    """Settings of a published size at `res` x `res` pixels."""
    if size not in CONV_SIZES:
        raise ConfigError(f"config argument size={size!r}; allowed: {', '.join(CONV_SIZES)}")
    names = ("stage_widths", "stage_depths", "stage_mlp_ratios", "width", "depth", "heads")
    return dict(zip(names, CONV_SIZES[size], strict=True)) | {"image_size": (res, res)}


def get_config(arg=None):
    a = common.parse_arg(arg, size="b", res=224, fast=False, demo=False, data="digits")
    c = common.base()
    c.task = "mimjax.methods.mcmae:MCMAE"
    # Decoder 512 wide, 8 deep, 16 heads; normalized pixels: --norm_pix_loss of PRETRAIN.md
    c.method = section(MCMAE, encoder=encoder_size(a.size, a.res), fast=a.fast)
    c.epochs = 50.0 if a.fast else 1600.0  # PRETRAIN.md of each repository
    c.batch_size = 512 if a.fast else 3072  # 24 GPUs x 128 (ConvMAE issue 6 says 2048)
    c.optimizer.base_lr = 6e-4 if a.fast else 1.5e-4  # --blr
    c.optimizer.warmup_epochs = 10.0 if a.fast else 40.0
    c.optimizer.weight_decay = 0.05
    c.optimizer.b1, c.optimizer.b2 = 0.9, 0.95
    c.optimizer.schedule = "mae"
    c.optimizer.decay = DECAY
    c.data.augment.scale = (0.2, 1.0)  # RandomResizedCrop of main_pretrain.py
    if a.demo:
        demo(c, a.data)
    return c.lock()


def demo(c, data):
    """Digits or photographs, minutes on two CPU cores."""
    common.demo(c, data, DEMO_ENCODER)
    c.method.decoder.width, c.method.decoder.depth, c.method.decoder.heads = 48, 2, 4
    if data == "photos":
        c.method.decoder.width = 96
