"""Training of a discrete VAE on ImageNet-1k, whose encoder is then a tokenizer (as in CAE, G.1).

  mimjax train --config=configs/dvae.py --workdir=DIR --config.data.path=IMAGENET
  (IMAGENET holds train/ and val/; a folder without them is split, 10 % held out)
  arguments: configs/dvae.py:res=112, demo, data=digits|shifted_digits|photos
  then: the workdir as `path` of a target DVAE: configs/beit.py:tokenizer=dvae,path=DIR

No published recipe: CAE's paper (appendix G.1) says only that a d-VAE was trained on ImageNet-1k.
Sizes are CAE's code's; temperature and optimizer are those of DALL-E's d-VAE (Ramesh et al. 2021,
appendix A.2), which saw 250 million other images for 3 million updates. The length is ours, and
with it the temperature's: 0.6 of the run, which are DALL-E's 150,000 updates on ImageNet.
"""

from mimjax.methods.dvae import DiscreteVAE
from mimjax.rules import VECTORS
from mimjax.run.demos import DATA, small_tokenizer
from mimjax.run.sections import arguments, base, section

DECAY = ((VECTORS, 0.0), (".*", 1.0))


def get_config(arg=None):
    a = arguments(arg, res=112, demo=False, data=DATA)
    c = base()
    c.task = "mimjax.methods.dvae:DiscreteVAE"
    c.method = m = section(DiscreteVAE)

    # networks: `get_d_vae` of CAE's furnace/utils.py
    m.image_size = (a.res, a.res)
    m.encoder.vocab, m.encoder.hidden, m.encoder.num_layers = 8192, 256, 3
    m.decoder.codebook_dim = 512

    # what is learned: codes that harden while the temperature falls
    m.temperature, m.temperature_end = 1.0, 1 / 16  # DALL-E A.2
    # the same shares of a run of any length: 150,000 and 5,000 updates (DALL-E A.2) of the 250,000
    m.temperature_steps = m.kl_steps = None

    # optimizer
    c.batch_size = 512  # DALL-E A.2: 8 on each of 64 GPUs
    c.epochs = 100.0  # ours: 250,000 updates
    c.optimizer.lr = 1e-4  # DALL-E A.2: 1e-4 to 1.25e-6 on a cosine, without warm-up
    c.optimizer.schedule.min_lr = 1.25e-6
    c.optimizer.schedule.warmup_epochs = 0.0
    c.optimizer.weight_decay = 1e-4  # DALL-E A.2
    c.optimizer.rule.b1, c.optimizer.rule.b2 = 0.9, 0.999  # DALL-E A.2
    c.optimizer.decay = DECAY

    # data
    c.data.augment.scale = (0.2, 1.0)  # ours
    c.data.augment.flip = 0.5
    return (demo(c, a.data) if a.demo else c).lock()


def demo(c, data):
    """Minutes on two CPU cores; the codes have the grid of the other demos' patches."""
    small_tokenizer(c, data)  # data set, sizes, steps, evaluations
    return c
