"""Fine-tuning on ImageNet-1k of a pretrained encoder, by the recipe of its paper.

  mimjax train --config=configs/fine_tune.py:method=mae,size=b --model=WORKDIR_OR_FILE
  --workdir=DIR --config.data.path=IMAGENET
  (IMAGENET holds train/ and val/, each with a folder for every class)
  arguments: method=mae|bootmae|beit|cae|caev2|mcmae|mrmae, size=ti|s|b|l|h, scratch (random
  weights of that size, without --model), demo, data=digits|shifted_digits (with demo)

Sizes, heads, mean and std come from the model; `size` chooses the recipe alone. All read the norm
of the mean of the last block's patch tokens. What the papers got (percent, not reproduced by this
project):

  method   source of the recipe                 published
  mae      FINETUNE.md, main_finetune.py        B 83.66, L 85.95, H 86.93 (1600 epochs)
  bootmae  README, run_class_finetuning.py      B 84.2, L 85.9 (800 epochs)
  beit     README, run_class_finetuning.py      B 83.2, L 85.2 (800 epochs, BootMAE's Table 6)
  cae      appendix, run_class_finetuning.py    S 82.0 (300), B 83.6, 83.8, 83.9 (300, 800, 1600),
                                                L 86.3 (1600 epochs)
  caev2    scripts; L: Table 10 of the paper    Ti 77.8, S 83.1, B 85.5, L 87.6 (300 epochs)
  mcmae    FINETUNE.md, main_finetune.py        B 85.0 (1600 epochs)
  mrmae    section 4.1; else MCMAE's            S 83.6, B 85.5, L 86.8, H 88.0 (200 epochs)

A size that no paper fine-tuned has the recipe of B (Ti, S) or of L (H). Other images than those of
pretraining: `--config.method.size=384`; the class token instead of the mean:
`--config.method.head.pool=cls --config.method.head.layer=None --config.method.head.norm=False`.
The last k blocks alone (MAE, Figure 9): `--config.method.unfrozen=k`.
"""

import dataclasses

from mimjax.evaluators.accuracy import Accuracy
from mimjax.rules import VECTORS
from mimjax.run.demos import LABELED, small_tuning
from mimjax.run.sections import arguments, base, load, section
from mimjax.schedules import BEiTCosine, MAECosine
from mimjax.transfer.fine_tune import FineTune, LinearClassifier
from mimjax.transfer.mixing import Mixing

DECAY = (  # the codes spare 1-D tensors and biases, positions and CLS; relative tables are decayed
    (rf"{VECTORS}|encoder/(cls_token|pos_embed)", 0.0),
    (".*", 1.0),
)


@dataclasses.dataclass(frozen=True)
class Recipe:
    """What differs between the papers.

    Attributes:
      base_lr: learning rate per 256 images; lr: the absolute one in its place.
      layer_decay, drop_path: see `FineTune`.
      group: images on one GPU of the published command, which the code mixes among themselves;
        None = no source of ours says it, the whole batch is mixed.
    """

    epochs: float = 100.0
    warmup: float = 5.0
    batch_size: int = 1024
    base_lr: float = 5e-4
    lr: float | None = None
    layer_decay: float = 0.65
    drop_path: float = 0.1
    group: int | None = None


MAE = {  # FINETUNE.md; 32 images on each of 32 GPUs
    "b": Recipe(group=32),
    "l": Recipe(50.0, base_lr=1e-3, layer_decay=0.75, drop_path=0.2, group=32),
    "h": Recipe(50.0, base_lr=1e-3, layer_decay=0.75, drop_path=0.3, group=32),
}
BOOTMAE = {  # the scripts, 8 GPUs with 256 or 128 images; rates are absolute
    "b": Recipe(warmup=20.0, batch_size=2048, lr=5e-3, layer_decay=0.6, group=256),
    "l": Recipe(50.0, lr=1.5e-3, layer_decay=0.75, group=128),
}
BEIT = {  # README, 8 GPUs with 128; L: its epochs, warm-up, rate and drop path are CAE's (ours)
    "b": Recipe(warmup=20.0, lr=4e-3, group=128),
    "l": Recipe(50.0, lr=2e-3, layer_decay=0.75, drop_path=0.2, group=128),
}
CAE = {  # appendix, "Fine-tuning on ImageNet", 32 GPUs with 128; drop path: the scripts
    "s": Recipe(200.0, batch_size=4096, lr=1.6e-2, layer_decay=0.75, group=128),
    "b": Recipe(batch_size=4096, lr=8e-3, group=128),
    "l": Recipe(50.0, batch_size=4096, lr=2e-3, layer_decay=0.75, drop_path=0.2, group=128),
}
CAEV2 = {  # project/CAEv2/scripts; S's layer decay, drop path and L: appendix and Table 10
    "ti": Recipe(lr=4e-3, layer_decay=0.85, drop_path=0.0),
    "s": Recipe(200.0, 20.0, lr=4e-4, layer_decay=0.8),
    "b": Recipe(lr=2e-4, layer_decay=0.75),
    "l": Recipe(50.0, lr=4e-4, layer_decay=0.8, drop_path=0.2),
}
MRMAE = {"b": Recipe(base_lr=3e-4, layer_decay=0.6, drop_path=0.2)}  # a rate per 256 images (ours)
RECIPES = {
    "mae": MAE,
    "bootmae": BOOTMAE,
    "beit": BEIT,
    "cae": CAE,
    "caev2": CAEV2,
    "mcmae": {"b": Recipe()},  # FINETUNE.md
    "mrmae": MRMAE,
}
OF_BEIT = {"bootmae", "beit", "cae", "caev2"}  # whose code is BEiT's


def recipe(method, size):
    """The recipe of a size, or of the nearest one that was published."""
    known = RECIPES[method]
    if size not in known and size == "h":
        size = "l"
    return known.get(size, known["b"])


def get_config(arg=None):
    sizes = ("b", "ti", "s", "l", "h")
    a = arguments(arg, method=tuple(RECIPES), size=sizes, scratch=False, demo=False, data=LABELED)
    r, beit = recipe(a.method, a.size), a.method in OF_BEIT
    c = base()
    c.task = "mimjax.transfer.fine_tune:FineTune"
    # the head's weights: 2e-5 (MAE, MCMAE); 0.02 times an init_scale of 0.001 (BEiT's code)
    c.method = m = section(FineTune, head=LinearClassifier(init_std=2e-5))

    # labels and images: all codes
    mixing = Mixing(mixup=0.8, cutmix=1.0, probability=1.0, switch=0.5, mode="batch", group=r.group)
    m.mixing = section(mixing)
    m.smoothing, m.erase = 0.1, 0.25  # --smoothing, --reprob
    if a.method == "caev2" and a.size == "ti":  # Table 10
        m.mixing.mixup, m.mixing.cutmix, m.smoothing = 0.2, 0.0, 0.0

    # networks
    m.drop_path, m.layer_decay = r.drop_path, r.layer_decay
    m.train_positions = not beit  # timm's parameter in MAE's and MCMAE's code
    if a.method in ("beit", "cae", "caev2"):
        m.rel_pos = "per_block"  # --rel_pos_bias
    if a.method == "bootmae":
        m.average = 0.9998  # --model_ema_decay, evaluated beside the weights
    if a.scratch:
        words = f"demo,data={a.data}" if a.demo else f"size={a.size}"
        source = load(f"{a.method}:{words}")
        m.encoder, m.mean, m.std = source.method.encoder, source.method.mean, source.method.std

    # optimizer: AdamW
    c.epochs, c.batch_size = r.epochs, r.batch_size
    c.optimizer.base_lr, c.optimizer.lr = r.base_lr, r.lr
    schedule = BEiTCosine if beit else MAECosine
    c.optimizer.schedule = section(schedule(warmup_epochs=r.warmup, min_lr=1e-6))
    c.optimizer.weight_decay = 0.05
    c.optimizer.rule.b1, c.optimizer.rule.b2 = 0.9, 0.999
    c.optimizer.decay = DECAY

    # data
    c.data.augment.scale = (0.08, 1.0)  # timm's default
    c.data.augment.flip = 0.5
    c.data.augment.rand_augment = "rand-m9-mstd0.5-inc1"  # --aa of all scripts
    c.data.augment.eval_crop = 0.875  # 256 to 224

    # what is measured: every image of val/
    c.eval.error = c.eval.health = c.eval.pictures = None
    c.eval.accuracy = section(Accuracy())
    return (demo(c, a.data) if a.demo else c).lock()


def demo(c, data):
    """Minutes on two CPU cores for a demo's encoder; no published number stands behind this."""
    small_tuning(c, data)
    # digits in one another, or without a part, are no digits
    c.method.mixing, c.method.smoothing, c.method.erase = None, 0.0, 0.0
    return c
