"""MAE pretraining of ViT-B/16 on ImageNet-1k (He et al. 2022), as in the official code.

  mimjax train --config=configs/mae.py --workdir=DIR --config.data.path=IMAGENET
  (IMAGENET holds train/ and val/; a folder without them is split, 10 % held out)
  arguments: configs/mae.py:size=l  size=ti|s|b|l|h, res=224, demo, data=digits|photos

Hardware: the authors used 64 V100 (about 42 h for ViT-L, 800 epochs); 58.5 GFLOP per image and
step for B. Expected (published, not reproduced by this project) after 800 epochs: ViT-B fine-tuned
83.4 % (BootMAE, Table 1) or 83.3 % (mmpretrain's run), ViT-L 85.4 % (slides, ablation d; BootMAE,
Table 6) or 85.5 % (PRETRAIN.md). After 1600 epochs B 83.66 %, L 85.95 % (FINETUNE.md) and linear
probes of 67.8 % and 76.0 % (README).
"""

from configs import common
from mimjax.methods.mae import MAE
from mimjax.rules import VECTORS
from mimjax.schedules import MAECosine
from mimjax.schema import section

DECAY = (  # MAE's code decays cls_token and mask_token: only 1-D tensors and biases are spared
    (VECTORS, 0.0),
    (".*", 1.0),
)


def get_config(arg=None):
    a = common.parse_arg(arg, size="b", res=224, demo=False, data="digits")
    c = common.base()
    c.task = "mimjax.methods.mae:MAE"
    # Decoder 512 wide, 8 deep, 16 heads for every size; normalized pixels: the published recipe.
    c.method = section(MAE, encoder=common.encoder_size(a.size, a.res))
    c.epochs = 800.0  # PRETRAIN.md; the paper's best runs have 1600
    c.batch_size = 4096  # 64 GPUs x 64
    c.optimizer.base_lr = 1.5e-4  # --blr
    c.optimizer.schedule = section(MAECosine)
    c.optimizer.schedule.warmup_epochs = 40.0  # --warmup_epochs
    c.optimizer.weight_decay = 0.05
    c.optimizer.rule.b1, c.optimizer.rule.b2 = 0.9, 0.95
    c.optimizer.decay = DECAY
    c.data.augment.scale = (0.2, 1.0)  # RandomResizedCrop of main_pretrain.py
    if a.demo:
        demo(c, a.data)
    return c.lock()


def demo(c, data):
    """Digits or photographs, minutes on two CPU cores."""
    common.demo(c, data)
    c.method.decoder.width, c.method.decoder.depth, c.method.decoder.heads = 48, 2, 4
    if data == "photos":
        c.method.decoder.width = 96
