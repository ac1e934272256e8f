"""The demos' settings: runs that a laptop CPU finishes in minutes, on digits or photographs.

No published recipe stands behind their numbers. A config calls `small_run` in its function `demo`
and then sets what its method needs.
"""

from __future__ import annotations

from typing import Any

from mimjax.data.sources import find_source
from mimjax.errors import ConfigError
from mimjax.evaluators.probes import Probes
from mimjax.models.dvae import DVAEDecoder, DVAEEncoder
from mimjax.models.vit import ViT
from mimjax.run.sections import find_target
from mimjax.schema import Config, section
from mimjax.targets.base import Target
from mimjax.targets.dvae import DVAE
from mimjax.targets.encoder import EncoderFeatures
from mimjax.targets.pixels import Pixels

Encoders = dict[str, dict[str, Any]]  # settings of the encoder for each data set

VITS: Encoders = {
    "digits": {"width": 96, "depth": 4, "heads": 4, "patch": 2, "image_size": (8, 8)},
    "photos": {"width": 128, "depth": 4, "heads": 4, "patch": 8, "image_size": (64, 64)},
}
STAGES = {"stage_widths": (32, 64), "stage_depths": (1, 1)}
CONV_VITS: Encoders = {  # the patch of VITS on digits, twice theirs on photographs
    "digits": STAGES
    | {"width": 96, "depth": 3, "heads": 4, "strides": (1, 2, 1), "image_size": (8, 8)},
    "photos": STAGES
    | {"width": 128, "depth": 3, "heads": 4, "strides": (4, 2, 2), "image_size": (64, 64)},
}
TOKENIZERS = {  # of configs/dvae.py:demo: vocabulary, width, layers, width of a code
    "digits": (16, 32, 1, 32),  # 64 codes draw finer shades than a context can tell
    "photos": (128, 32, 3, 32),
}


def small_run(c: Config, data: str, encoders: Encoders = VITS) -> None:
    """Set the data, the encoder's sizes, the length and the evaluations of a demo.

    A demo that predicts pixels leaves them as they are, where the published recipes normalize: a
    2x2 patch of a digit is mostly flat, so its own statistics say almost all there is to say, and a
    picture convinces only if it needs no true statistics.

    Args:
      data: "digits" (8x8 pixels, patch 2, labeled) or "photos" (64x64, patch 8).
      encoders: settings of the encoder for each.
    """
    check_data(data)
    c.method.encoder.update(encoders[data])
    c.optimizer.lr = 2e-3 if data == "digits" else 1e-3
    c.optimizer.schedule.warmup_epochs, c.optimizer.schedule.warmup_steps = 0.0, 100
    c.batch_size = 128 if data == "digits" else 64
    if data == "digits":
        c.eval.probes = section(Probes())
    on_data(c, data)


def small_tokenizer(c: Config, data: str) -> None:
    """Set a discrete VAE whose grid of codes is the grid of the other demos' patches."""
    check_data(data)
    m = c.method
    m.encoder.vocab, m.encoder.hidden, m.encoder.num_layers, width = TOKENIZERS[data]
    m.decoder.codebook_dim, m.image_size = width, VITS[data]["image_size"]
    on_data(c, data)
    c.batch_size = 128 if data == "digits" else 32
    c.optimizer.lr, c.optimizer.schedule.min_lr = 2e-3, 1e-5
    c.optimizer.schedule.warmup_steps = 100
    # the relaxed codes harden within the run
    m.temperature_steps, m.temperature_end = c.steps, 0.1
    m.kl_weight, m.kl_steps = 0.002, 1


def small_target(name: str, path: str, data: str) -> Target:
    """Return a target that a demo can train, so that no published file is needed.

    Args:
      name: "dvae" (a workdir of configs/dvae.py:demo), "encoder" (of configs/mae.py:demo) or
        "pixels".
      path: the workdir; "" = not given.
      data: as in `small_run`.

    Raises:
      ConfigError: another name, or a path for pixels.
    """
    check_data(data)
    vocab, hidden, layers, codebook = TOKENIZERS[data]
    encoder = DVAEEncoder(vocab=vocab, hidden=hidden, num_layers=layers)
    known: dict[str, Target] = {
        # bicubic: the student's own view serves both
        "dvae": DVAE(encoder, DVAEDecoder(codebook_dim=codebook), resample="bicubic"),
        "encoder": EncoderFeatures(network=ViT(**VITS[data])),
        "pixels": Pixels(norm="none"),
    }
    if name not in known:
        raise ConfigError(
            f"config argument tokenizer={name!r} with demo; allowed: {', '.join(known)}"
        )
    return find_target(name, path, known)


def on_data(c: Config, data: str) -> None:
    """Set the data of a demo, its length and its intervals.

    Digits stay whole and unmirrored: a mirrored digit, or a fifth of one, is another shape.
    """
    c.data.source = section(find_source(data))
    c.steps, c.eval.every = (1500, 500) if data == "digits" else (800, 400)
    c.log_every, c.checkpoint_every, c.eval.batch_size = 100, 500, 256
    if data == "digits":
        c.data.augment.flip, c.data.augment.scale = 0.0, (0.8, 1.0)


def check_data(data: str) -> None:
    """Raise a ConfigError where there is no demo on this data set."""
    if data not in VITS:
        raise ConfigError(f"config argument data={data!r}; allowed: {', '.join(VITS)}")
