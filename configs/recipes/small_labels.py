"""Hundreds or thousands of labeled images: a pretrained encoder becomes their classifier.

  mimjax train --config=configs/recipes/small_labels.py --model=WORKDIR_OR_FILE --workdir=DIR
    --config.data.path=FOLDER
  arguments: method=mae|bootmae|beit|cae|caev2|mcmae|mrmae (whose rule of layer-wise decay),
  size=ti|s|b|l|h (FOLDER has class sub-folders, in train/ and val/)

The papers fine-tune with batches of 1,024 on a million images, and their rate follows the batch:
with 32 images it is a 32nd of theirs, and a run of some hundred steps learns nothing. This recipe
has a small batch at a rate of its own and no mixing of images. Its rate, batch and number of
updates are near those of `configs/fine_tune.py:demo`: on shifted digits with 701 labels (600
updates of 40 images at 1.25e-3, MAE, three seeds) these reached 87.0 % where the same network from
random weights reached 62.9 %. The recipe itself was tried once, on 212 crops of six photographs:
100 % of 90 test crops, where `fine_tune` with 25 epochs of batch 32 had 33 %. Another rate may be
better; the protocol fine_tune of `mimjax evaluate` tries several (`--rates`).
"""

from mimjax.run.sections import arguments, load

METHODS = ("mae", "bootmae", "beit", "cae", "caev2", "mcmae", "mrmae")


def get_config(arg=None):
    a = arguments(arg, method=METHODS, size=("ti", "s", "b", "l", "h"))
    c = load(f"fine_tune:method={a.method},size={a.size}")
    m = c.method

    # what is learned: labels as they are; mixed images want hundreds of epochs
    m.mixing, m.erase, m.smoothing = None, 0.0, 0.1
    m.average = None  # its 5,000 steps are longer than the run

    # optimizer
    c.epochs, c.batch_size = 50.0, 32
    c.optimizer.lr = 1e-3  # 1.25e-3 for 40 images, see above
    c.optimizer.schedule.warmup_epochs = 5.0

    # data: whole objects fill small images (as in small_data.py)
    c.data.augment.scale, c.data.augment.rand_augment = (0.4, 1.0), None

    c.log_every, c.checkpoint_every, c.eval.every = 20, 250, 500
    return c.lock()
