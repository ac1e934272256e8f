"""MCMAE (ConvMAE) pretraining on ImageNet-1k (Gao et al. 2022), as in the official code.

  mimjax train --config=configs/mcmae.py --workdir=DIR --config.data.path=IMAGENET
  (IMAGENET holds train/ and val/; a folder without them is split, 10 % held out)
  arguments: configs/mcmae.py:size=l  size=s|b|l|h (others below), res=224, fast, demo,
  data=digits|photos

Hardware: the authors used 24 GPUs; one iteration of their code took 0.55 s, of MAE's 0.41 s
(ConvMAE issue 5). Expected (published, not reproduced by this project): the encoder that they call
ConvMAE-Base, after 1600 epochs, 85.0 % fine-tuned and a linear probe of 70.9 % (README); MR-MAE's
Table 6 gives 82.6, 84.6, 84.9 and 86.2 % for S, B, L and H after 800. `fast` is FastConvMAE: 50
epochs, four views of each image.

Only B is in the official code. Public forks disagree on S and L, H stands in one of them, and
ConvMAE issue 32 says that the released files contradict the paper in the MLP ratios of L and H and
in the patch of H. The readings, of which s, l and h are no more certain than the others:
  size=s    depths 2, 2, 11; MLP ratios 4, 4, 4; 6 heads       size=s12   the same with 12 heads
  size=l    depths 2, 2, 23; MLP ratios 8, 8, 4; 16 heads      size=l4    ratios 4, 4, 4
  size=l20  depths 2, 2, 20; MLP ratios 4, 4, 4                size=l12   depths 4, 4, 12; 4, 4, 4
  size=h    depths 2, 2, 31; MLP ratios 8, 8, 4 (one fork)     size=h4    ratios 4, 4, 4
The patch is 16 in all; `--config.method.encoder.strides=(7,2,1)` makes it 14. Where you have a
file, `mimjax convert` takes depths, ratios and patch from it; no tensor shows the heads,
which are the config's or `--heads=`.
"""

from configs import common
from mimjax.errors import ConfigError
from mimjax.methods.mcmae import MCMAE
from mimjax.models.conv_vit import CONV_ALTERNATIVES, CONV_SIZES
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


def encoder_size(size, res) -> dict:
    """Settings of a published size at `res` x `res` pixels."""
    sizes = CONV_SIZES | CONV_ALTERNATIVES
    if size not in sizes:
        raise ConfigError(f"config argument size={size!r}; allowed: {', '.join(sizes)}")
    names = ("stage_widths", "stage_depths", "stage_mlp_ratios", "width", "depth", "heads")
    return dict(zip(names, sizes[size], strict=True)) | {"image_size": (res, res)}


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
