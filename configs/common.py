"""What all configurations share: the run's sections, argument parsing, the two demos.

A config holds every setting of every dataclass it configures, so that each can be overridden on
the command line and a mistyped key is an error.
"""

from __future__ import annotations

import ast
from typing import Any

from ml_collections import ConfigDict

from mimjax.errors import ConfigError
from mimjax.models.clip import CLIP_SIZES, CLIPVision
from mimjax.models.dvae import DVAEDecoder, DVAEEncoder
from mimjax.models.vit import SIZES, ViT
from mimjax.models.vqgan import VQGAN_SIZES, VQGANModel
from mimjax.run.sections import Settings
from mimjax.schema import Config, section
from mimjax.targets.base import Target
from mimjax.targets.clip import CLIP
from mimjax.targets.dalle import DallE
from mimjax.targets.dino import DINO
from mimjax.targets.dvae import DVAE
from mimjax.targets.encoder import EncoderFeatures
from mimjax.targets.pixels import Pixels
from mimjax.targets.vqgan import VQGAN
from mimjax.targets.vqkd import VQKD
from mimjax.values import split_commas


def parse_arg(arg: str | None, **defaults: Any) -> Config:
    """`size=l,demo` with typed defaults; a bare name means True.

    Raises:
      ConfigError: an unknown name or a value of another type.
    """
    values = dict(defaults)
    for part in filter(None, split_commas(arg or "")):
        name, _, text = part.partition("=")
        if name not in defaults:
            raise ConfigError(
                f"config argument {name!r}: unknown; allowed: {', '.join(sorted(defaults))}"
            )
        old = defaults[name]
        try:
            value = old if isinstance(old, str) else ast.literal_eval(text or "True")
        except (ValueError, SyntaxError):
            value = text
        value = text if isinstance(old, str) else value
        value = float(value) if isinstance(old, float) and type(value) is int else value
        if type(value) is not type(old):
            raise ConfigError(f"config argument {name}={text!r}: no {type(old).__name__}")
        values[name] = value
    return ConfigDict(values)


def encoder_size(size: str, res: int) -> dict[str, Any]:
    """Width, depth, heads, patch and image size of a published size."""
    if size not in SIZES:
        raise ConfigError(f"config argument size={size!r}; allowed: {', '.join(SIZES)}")
    width, depth, heads, patch = SIZES[size]
    return {
        "width": width,
        "depth": depth,
        "heads": heads,
        "patch": patch,
        "image_size": (res, res),
    }


def base() -> Config:
    """Everything but the task: data, optimizer, mesh, logging, evaluation; see `Settings`."""
    c = section(Settings)
    c.method = ConfigDict()
    return c


def beit_recipe(c: Config) -> None:
    """BEiT's optimizer, which CAE's and CAE v2's scripts take over."""
    c.batch_size = 2048
    c.optimizer.lr = 1.5e-3  # absolute; for 2048 images
    c.optimizer.min_lr = 1e-5
    c.optimizer.weight_decay = 0.05
    c.optimizer.b1, c.optimizer.b2 = 0.9, 0.999  # PyTorch's; CAE's scripts set none
    c.optimizer.clip_norm = 3.0
    c.optimizer.schedule = "beit"


TARGETS: dict[str, Target] = {
    "dalle": DallE(),
    "dvae": DVAE(),  # trained by configs/dvae.py, or CAE's "customized" file
    "vqkd": VQKD(),
    "vqgan": VQGAN(),  # Gumbel f8, 8192 codes (CAE, Table 7)
    "vqgan_f16_1024": VQGAN(network=VQGANModel(**VQGAN_SIZES["vq_f16_1024"])),
    "vqgan_f16_16384": VQGAN(network=VQGANModel(**VQGAN_SIZES["vq_f16_16384"])),
    "pixels": Pixels(norm="mae"),
    "clip": CLIP(),  # ViT-B/16
    "clip_l14": CLIP(network=CLIPVision(**CLIP_SIZES["l14"])),  # reads 196 px for a 14x14 grid
    "dino": DINO(),
    "encoder": EncoderFeatures(),  # an encoder of this project, ViT-B/16 as configs/mae.py's
}


def find_target(name: str) -> Target:
    """The target of this name, with its published settings."""
    if name not in TARGETS:
        raise ConfigError(f"config argument tokenizer={name!r}; allowed: {', '.join(TARGETS)}")
    return TARGETS[name]


DEMO_ENCODER = {
    "digits": {"width": 96, "depth": 4, "heads": 4, "patch": 2, "image_size": (8, 8)},
    "photos": {"width": 128, "depth": 4, "heads": 4, "patch": 8, "image_size": (64, 64)},
}


def demo(c: Config, data: str, encoders: dict[str, dict] = DEMO_ENCODER) -> None:
    """A run that a laptop CPU finishes in minutes; no published recipe stands behind its numbers.

    Args:
      data: "digits" (8x8, patch 2, labeled) or "photos" (64x64, patch 8).
      encoders: settings of the encoder for each.
    """
    if data not in encoders:
        raise ConfigError(f"config argument data={data!r}; allowed: {', '.join(encoders)}")
    c.data.source = data
    c.method.encoder.update(encoders[data])
    c.optimizer.lr = 2e-3 if data == "digits" else 1e-3
    c.optimizer.warmup_epochs, c.optimizer.warmup_steps = 0.0, 100
    c.batch_size = 128 if data == "digits" else 64
    c.steps = 1500 if data == "digits" else 800
    c.log_every, c.checkpoint_every = 100, 500
    c.eval.every = 500 if data == "digits" else 400
    c.eval.batch_size = 256
    # A 2x2 patch of a digit is mostly flat, its own statistics say almost all there is to say; and
    # a picture convinces only if it needs no true statistics. The published recipes normalize.
    if "pixel_norm" in c.method:
        c.method.pixel_norm = "none"
    if data == "digits":
        c.eval.probes = True
        c.data.augment.flip = 0.0  # a mirrored digit is another shape,
        c.data.augment.scale = (0.8, 1.0)  # and a fifth of one is none


# the other demos' tokenizer and teacher, with the sizes of their own demos
DEMO_DVAE = {  # vocabulary, width, layers, width of a code
    "digits": (16, 32, 1, 32),  # 64 codes draw finer shades than a context can tell
    "photos": (128, 32, 3, 32),
}


def demo_target(c: Config, data: str, name: str) -> None:
    """Replaces the target by one that a demo of this project can train; no file is needed.

    Args:
      name: "dvae" (a workdir of configs/dvae.py:demo), "encoder" (of configs/mae.py:demo) or
        "pixels".
    """
    if name == "dvae":
        vocab, hidden, layers, codebook = DEMO_DVAE[data]
        encoder = DVAEEncoder(vocab=vocab, hidden=hidden, num_layers=layers)
        # bicubic: the student's own view serves both
        target = DVAE(encoder, DVAEDecoder(codebook_dim=codebook), resample="bicubic")
    elif name == "encoder":
        target = EncoderFeatures(network=ViT(**DEMO_ENCODER[data]))
    elif name == "pixels":
        target = Pixels()
    else:
        raise ConfigError(
            f"config argument tokenizer={name!r} with demo; allowed: dvae, encoder, pixels"
        )
    c.method.target = section(target)
