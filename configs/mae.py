"""MAE pretraining of ViT-B/16 on ImageNet-1k (He et al. 2022), as in the official code.

  mimjax train --config=configs/mae.py --workdir=DIR --config.data.path=IMAGENET
  (IMAGENET holds train/ and val/; a folder without them is split, 10 % held out)
  arguments: configs/mae.py:size=l  size=ti|s|b|l|h, res=224, demo,
  data=digits|shifted_digits|photos

Hardware: the authors used 64 V100 (about 42 h for ViT-L, 800 epochs); 58.5 GFLOP per image and
step for B. Expected (published, not reproduced by this project) after 800 epochs: ViT-B fine-tuned
83.4 % (BootMAE, Table 1) or 83.3 % (mmpretrain's run), ViT-L 85.4 % (slides, ablation d; BootMAE,
Table 6) or 85.5 % (PRETRAIN.md). After 1600 epochs B 83.66 %, L 85.95 % (FINETUNE.md) and linear
probes of 67.8 % and 76.0 % (README).
"""

from mimjax.methods.mae import MAE
from mimjax.rules import VECTORS
from mimjax.run.demos import DATA, small_run
from mimjax.run.sections import arguments, base, section
from mimjax.schedules import MAECosine

SIZES = {  # width, depth, heads, patch
    "ti": (192, 12, 3, 16),  # Ti and S: DeiT's; MAE published B, L and H
    "s": (384, 12, 6, 16),
    "b": (768, 12, 12, 16),
    "l": (1024, 24, 16, 16),
    "h": (1280, 32, 16, 14),
}
DECAY = (  # MAE's code decays cls_token and mask_token: only 1-D tensors and biases are spared
    (VECTORS, 0.0),
    (".*", 1.0),
)


def get_config(arg=None):
    a = arguments(arg, size=SIZES, default="b", res=224, demo=False, data=DATA)
    c = base()
    c.task = "mimjax.methods.mae:MAE"
    c.method = m = section(MAE)

    # networks: one decoder for encoders of all sizes
    m.encoder.width, m.encoder.depth, m.encoder.heads, m.encoder.patch = SIZES[a.size]
    m.encoder.image_size = (a.res, a.res)
    m.decoder.width, m.decoder.depth, m.decoder.heads = 512, 8, 16  # models_mae.py

    # what is hidden, what is learned
    m.masking.ratio = 0.75  # 147 of 196 patches (section 3)
    m.pixel_target.norm = "patch"  # --norm_pix_loss of PRETRAIN.md

    # optimizer: PRETRAIN.md and main_pretrain.py
    c.epochs = 800.0  # PRETRAIN.md; the paper's best runs have 1600
    c.batch_size = 4096  # 64 GPUs x 64
    c.optimizer.base_lr = 1.5e-4  # --blr
    c.optimizer.schedule = section(MAECosine)
    c.optimizer.schedule.warmup_epochs = 40.0  # --warmup_epochs
    c.optimizer.weight_decay = 0.05
    c.optimizer.rule.b1, c.optimizer.rule.b2 = 0.9, 0.95
    c.optimizer.decay = DECAY

    # data
    c.data.augment.scale = (0.2, 1.0)  # RandomResizedCrop of main_pretrain.py
    c.data.augment.flip = 0.5
    return (demo(c, a.data) if a.demo else c).lock()


def demo(c, data):
    """Minutes on two CPU cores; no published number stands behind these settings."""
    d = small_run(c, data)  # data set, sizes of the encoder, steps, evaluations
    m = c.method
    m.masking.ratio = d.mask_ratio or m.masking.ratio
    m.pixel_target.norm = "none"  # see `small_run`
    m.decoder.width, m.decoder.depth, m.decoder.heads = d.decoder_width, 2, 4
    return c
