"""Training of a discrete VAE on ImageNet-1k, whose encoder is then a tokenizer (as in CAE, G.1).

  mimjax train --config=configs/dvae.py --workdir=DIR --config.data.path=IMAGENET
  (IMAGENET holds train/ and val/; a folder without them is split, 10 % held out)
  arguments: configs/dvae.py:res=112, demo, data=digits|photos
  then: the workdir as `teacher.path` of a method whose target is mimjax.targets.dvae

No published recipe: CAE's paper (appendix G.1) says only that a d-VAE was trained on ImageNet-1k.
Sizes are CAE's code's; temperature and optimizer are those of DALL-E's d-VAE (Ramesh et al. 2021,
appendix A.2), which saw 250 million other images for 3 million updates. The length is ours, and
with it the temperature's: 0.6 of the run, which are DALL-E's 150,000 updates on ImageNet.
"""

from configs import common
from mimjax.data.sources import find_source
from mimjax.errors import ConfigError
from mimjax.methods.dvae import DiscreteVAE
from mimjax.rules import VECTORS
from mimjax.schema import section

DECAY = ((VECTORS, 0.0), (".*", 1.0))


def get_config(arg=None):
    a = common.parse_arg(arg, res=112, demo=False, data="digits")
    c = common.base()
    c.task = "mimjax.methods.dvae:DiscreteVAE"
    # 8192 codes of 512 values, width 256, 3 layers: `get_d_vae` of CAE's furnace/utils.py
    c.method = section(DiscreteVAE, image_size=(a.res, a.res))
    # the same shares of a run of any length: 150,000 and 5,000 updates (DALL-E A.2) of the 250,000
    c.method.temperature_steps = c.method.kl_steps = None
    c.batch_size = 512  # DALL-E A.2: 8 on each of 64 GPUs
    c.epochs = 100.0  # ours: 250,000 updates
    c.optimizer.lr = 1e-4  # DALL-E A.2: 1e-4 to 1.25e-6 on a cosine, without warm-up
    c.optimizer.schedule.min_lr = 1.25e-6
    c.optimizer.schedule.warmup_epochs = 0.0
    c.optimizer.weight_decay = 1e-4  # DALL-E A.2
    c.optimizer.rule.b1, c.optimizer.rule.b2 = 0.9, 0.999  # DALL-E A.2
    c.optimizer.decay = DECAY
    c.data.augment.scale = (0.2, 1.0)  # ours
    if a.demo:
        demo(c, a.data)
    return c.lock()


def demo(c, data):
    """Digits or photographs; the grid of codes is that of the other demos' patches."""
    if data not in common.DEMO_DVAE:
        raise ConfigError(f"config argument data={data!r}; allowed: {', '.join(common.DEMO_DVAE)}")
    m = c.method
    vocab, m.encoder.hidden, layers, m.decoder.codebook_dim = common.DEMO_DVAE[data]
    m.encoder.vocab, m.encoder.num_layers = vocab, layers
    m.image_size = common.DEMO_ENCODER[data]["image_size"]
    c.data.source = section(find_source(data))
    c.steps = 1500 if data == "digits" else 800
    c.batch_size = 128 if data == "digits" else 32
    c.optimizer.lr, c.optimizer.schedule.min_lr = 2e-3, 1e-5
    c.optimizer.schedule.warmup_steps = 100
    # the relaxed codes harden within the run
    m.temperature_steps, m.temperature_end = c.steps, 0.1
    m.kl_weight, m.kl_steps = 0.002, 1
    c.log_every, c.checkpoint_every = 100, 500
    c.eval.every, c.eval.batch_size = 500 if data == "digits" else 400, 256
    if data == "digits":
        c.data.augment.flip = 0.0  # a mirrored digit is another shape,
        c.data.augment.scale = (0.8, 1.0)  # and a fifth of one is none
