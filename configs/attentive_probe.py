"""Attentive probing on ImageNet-1k of an encoder that stays as it is, as in CAE's code.

  mimjax train --config=configs/attentive_probe.py:method=cae,size=b --model=WORKDIR_OR_FILE
  --workdir=DIR --config.data.path=IMAGENET
  (IMAGENET holds train/ and val/)
  arguments: method=mae|bootmae|beit|cae|caev2|mcmae|mrmae, size=ti|s|b|l|h, demo,
  data=digits|shifted_digits (with demo)

Sizes, heads, mean and std come from the model. One query attends to all tokens, then follow a
BatchNorm without parameters and a linear layer. CAE's paper proposed this probe and no other paper
here reports one, so that CAE's recipe stands in for all; method and size change nothing but the
number to compare with (percent, CAE's README and Table 1; not reproduced by this project):

  cae   S 65.0 (300 epochs), B 74.0, 75.9, 77.2 (300, 800, 1600 epochs; the paper: 73.8, 75.9,
        77.1), L 81.2
  mae   B 71.1 (300 epochs), 74.2 (1600), L 78.8
  beit  S 23.6, B 49.4 (300 epochs)
  bootmae, caev2, mcmae, mrmae   none published

Two things differ from the released code. Its evaluation normalizes by the statistics of each batch
(`--config.method.head.official_bn=True`). In its training a BatchNorm sees the images of one
device, here those of the whole batch. The paper's keys are patches alone (`--config.method.head.
pool=patches`), the code's all tokens.
"""

from mimjax.evaluators.accuracy import Accuracy
from mimjax.run.demos import LABELED, small_probe
from mimjax.run.sections import arguments, base, section
from mimjax.schedules import BEiTCosine
from mimjax.train.optimizers import SGD
from mimjax.transfer.attentive_probe import AttentiveProbe
from mimjax.transfer.probing import Probing

METHODS = ("cae", "mae", "bootmae", "beit", "caev2", "mcmae", "mrmae")


def get_config(arg=None):
    sizes = ("b", "ti", "s", "l", "h")
    a = arguments(arg, method=METHODS, size=sizes, demo=False, data=LABELED)
    c = base()
    c.task = "mimjax.transfer.probing:Probing"
    c.method = section(Probing, head=AttentiveProbe())

    # optimizer: run_attentive.py
    c.epochs = 90.0
    c.batch_size = 8192
    c.optimizer.lr = 0.4  # absolute; for 8192 images
    c.optimizer.rule = section(SGD(momentum=0.9, nesterov=True))  # --opt sgd is timm's Nesterov
    c.optimizer.schedule = section(BEiTCosine(warmup_epochs=10.0, min_lr=1e-6))
    c.optimizer.weight_decay = 0.0

    # data
    c.data.augment.scale = (0.08, 1.0)
    c.data.augment.flip = 0.5
    c.data.augment.eval_crop = 0.875  # 256 to 224

    # what is measured: every image of val/
    c.eval.error = c.eval.health = c.eval.pictures = None
    c.eval.accuracy = section(Accuracy())
    return (demo(c, a.data) if a.demo else c).lock()


def demo(c, data):
    """A minute on two CPU cores for a demo's encoder; no published number stands behind this."""
    small_probe(c, data, lr=0.1)
    return c
