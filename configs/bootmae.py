"""BootMAE pretraining of ViT-B/16 on ImageNet-1k (Dong et al. 2022), as in the official code.

  mimjax train --config=configs/bootmae.py --workdir=DIR --config.data.path=IMAGENET
  (IMAGENET holds train/ and val/; a folder without them is split, 10 % held out)
  arguments: configs/bootmae.py:size=l  size=ti|s|b|l|h, res=224, demo, data=digits|photos

Hardware: the authors used 16 V100 (18 h for 200 epochs of ViT-B); 93.7 GFLOP per image and step
for B. Expected (published, not reproduced by this project): ViT-B fine-tuned 84.2 %, linear probe
66.1 %; ViT-L 85.9 % and 77.1 %; 800 epochs. Where code and paper differ this is the code; every
difference is an option of `mimjax.methods.bootmae.BootMAE`.
"""

from configs import common
from mimjax.methods.bootmae import BootMAE
from mimjax.rules import VECTORS
from mimjax.schedules import BEiTCosine
from mimjax.schema import section

DECAY = (  # BootMAE's code spares cls_token and pos_embed, but decays both mask tokens
    (VECTORS, 0.0),
    ("encoder/(cls_token|pos_embed)", 0.0),
    (".*", 1.0),
)


def get_config(arg=None):
    a = common.parse_arg(arg, size="b", res=224, demo=False, data="digits")
    large = a.size in ("l", "h")
    c = common.base()
    c.task = "mimjax.methods.bootmae:BootMAE"
    c.method = section(
        BootMAE,
        encoder=common.encoder_size(a.size, a.res),
        # the dynamic momentum is a flag of the Base script alone
        ema_end=0.9999 if large else 0.99999,
    )
    c.epochs = 801.0  # the schedule spans 801; the published checkpoint is epoch index 799
    c.batch_size = 4096  # 16 GPUs x 256 (Base) or 32 x 128 (Large), paper section 4.1
    c.optimizer.base_lr = 1.5e-4
    c.optimizer.schedule = section(BEiTCosine)
    c.optimizer.schedule.min_lr = 1e-5 if large else 1e-4  # absolute; 1e-4: the Base script alone
    c.optimizer.schedule.warmup_epochs = 40.0
    c.optimizer.weight_decay = 0.05
    c.optimizer.rule.b1, c.optimizer.rule.b2 = 0.9, 0.95
    c.optimizer.decay = DECAY
    c.data.augment.scale = (0.2, 1.0)  # RandomResizedCrop of datasets.py
    if a.demo:
        demo(c, a.data)
    return c.lock()


def demo(c, data):
    """Digits or photographs, minutes on two CPU cores."""
    common.demo(c, data)
    # 100 and 300 epochs of the EMA schedule are far longer than the demo: 0.99 all the way
    c.method.ema_start = c.method.ema_mid = c.method.ema_end = 0.99
    c.method.pixel_decoder.width = 96
    # Few patches leave little to predict from, and hundreds of steps are no 801 epochs.
    c.method.masking.ratio, c.method.feature_weight = 0.5, 0.3
    if data == "digits":
        # small decoders make the encoder work
        c.method.pixel_decoder.width = 32
        c.method.pixel_decoder.depth = c.method.feature_decoder.depth = 1
