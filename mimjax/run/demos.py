"""The demos' settings: runs that a laptop CPU finishes in minutes, on data that is bundled.

No published recipe stands behind their numbers. A config calls `small_run` in its function `demo`
and then sets what its method needs.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from mimjax.data.sources import Digits, Photos, ShiftedDigits, SourceConfig
from mimjax.errors import ConfigError
from mimjax.evaluators.probes import Probes
from mimjax.models.dvae import DVAEDecoder, DVAEEncoder
from mimjax.models.vit import ViT
from mimjax.run.sections import Eval, find_target
from mimjax.schema import Config, section
from mimjax.targets.base import Target
from mimjax.targets.dvae import DVAE
from mimjax.targets.encoder import EncoderFeatures
from mimjax.targets.pixels import Pixels

Encoders = dict[str, dict[str, Any]]  # settings of the encoder for each data set
STAGES = {"stage_widths": (32, 64), "stage_depths": (1, 1)}


@dataclasses.dataclass(frozen=True)
class Demo:
    """A data set of the demos and the settings that suit it.

    Attributes:
      source: its class and settings.
      vit, conv_vit: settings of the encoders.
      tokenizer: of configs/dvae.py:demo: vocabulary, width, layers, width of a code.
      tokenizer_batch: images per update of the tokenizer.
      steps, batch_size, lr: of all other demos, the tokenizer's steps too.
      every: steps between two evaluations.
      mask_ratio: share of the patches that is hidden at random, in place of the method's; None =
        the method's.
      augment: settings of `data.augment` in place of the method's.
      channels, mean, std: of its images; None = the method's statistics.
      probes: whether its labels say anything, so that k-NN and a linear probe are measured.
      max_images: images that are evaluated of each split.
    """

    source: SourceConfig
    vit: dict[str, Any]
    conv_vit: dict[str, Any]
    tokenizer: tuple[int, int, int, int]
    tokenizer_batch: int
    steps: int
    batch_size: int
    lr: float
    every: int
    mask_ratio: float | None = None
    augment: dict[str, Any] = dataclasses.field(default_factory=dict)
    channels: int = 3
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    probes: bool = False
    max_images: int = Eval.max_images

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return self.vit["image_size"]

    @property
    def few_patches(self) -> bool:
        """Whether a grid is smaller than 8x8 patches.

        Then small decoders make the encoder work, and a block leaves little to predict from.
        """
        return math.prod(side // self.vit["patch"] for side in self.image_size) < 64

    @property
    def decoder_width(self) -> int:
        """Width of a decoder that predicts pixels."""
        return 48 if self.few_patches else 96


# Digits stay whole and unmirrored: a mirrored digit, or a fifth of one, is another shape.
WHOLE = {"flip": 0.0, "scale": (0.8, 1.0)}
DEMOS = {
    "digits": Demo(
        source=Digits(),
        vit={"width": 96, "depth": 4, "heads": 4, "patch": 2, "image_size": (8, 8)},
        conv_vit=STAGES
        | {"width": 96, "depth": 3, "heads": 4, "strides": (1, 2, 1), "image_size": (8, 8)},
        tokenizer=(16, 32, 1, 32),  # 64 codes draw finer shades than a context can tell
        tokenizer_batch=128,
        steps=1500,
        batch_size=128,
        lr=2e-3,
        every=500,
        augment=WHOLE,
        probes=True,
    ),
    "shifted_digits": Demo(
        source=ShiftedDigits(),
        vit={"width": 96, "depth": 4, "heads": 4, "patch": 4, "image_size": (24, 24)},
        conv_vit=STAGES
        | {"width": 96, "depth": 3, "heads": 4, "strides": (2, 2, 1), "image_size": (24, 24)},
        tokenizer=(16, 32, 2, 32),
        tokenizer_batch=64,
        steps=1500,
        batch_size=64,
        lr=2e-3,
        every=500,
        # 9 of 36 patches say little of a digit: after 1,000 updates of 128 images MAE's linear
        # probe had 64.8 % with 0.75 hidden, 73.3 % with a half (one seed; untrained 62.5 %)
        mask_ratio=0.5,
        augment=WHOLE,
        channels=1,
        mean=(0.5,),
        std=(0.25,),
        probes=True,
        max_images=8000,  # all labels
    ),
    "photos": Demo(
        source=Photos(),
        vit={"width": 128, "depth": 4, "heads": 4, "patch": 8, "image_size": (64, 64)},
        conv_vit=STAGES  # twice the patch of the ViT
        | {"width": 128, "depth": 3, "heads": 4, "strides": (4, 2, 2), "image_size": (64, 64)},
        tokenizer=(128, 32, 3, 32),
        tokenizer_batch=32,
        steps=800,
        batch_size=64,
        lr=1e-3,
        every=400,
    ),
}
LABELED = tuple(name for name, demo in DEMOS.items() if demo.probes)  # whose labels mean something
DATA = tuple(DEMOS)  # words of a config's argument `data`; the first is the default
VITS: Encoders = {name: demo.vit for name, demo in DEMOS.items()}
CONV_VITS: Encoders = {name: demo.conv_vit for name, demo in DEMOS.items()}


def find_demo(data: str) -> Demo:
    """Return the data set of this name.

    Raises:
      ConfigError: there is none.
    """
    if data not in DEMOS:
        raise ConfigError(f"config argument data={data!r}; allowed: {', '.join(DEMOS)}")
    return DEMOS[data]


def small_run(c: Config, data: str, encoders: Encoders = VITS) -> Demo:
    """Set the data, the encoder's sizes, the length and the evaluations of a demo.

    A demo that predicts pixels leaves them as they are, where the published recipes normalize: a
    patch of a digit is mostly flat, so its own statistics say almost all there is to say, and a
    picture convinces only if it needs no true statistics.

    Args:
      data: a name of DEMOS.
      encoders: settings of the encoder for each.

    Returns:
      The data set, by whose properties a config sets the rest.
    """
    demo = find_demo(data)
    c.method.encoder.update(encoders[data])
    c.optimizer.lr = demo.lr
    c.optimizer.schedule.warmup_epochs, c.optimizer.schedule.warmup_steps = 0.0, 100
    c.batch_size = demo.batch_size
    if demo.probes:
        c.eval.probes = section(Probes())
    on_data(c, demo)
    return demo


def small_tokenizer(c: Config, data: str) -> None:
    """Set a discrete VAE whose grid of codes is the grid of the other demos' patches."""
    demo, m = find_demo(data), c.method
    m.encoder.vocab, m.encoder.hidden, m.encoder.num_layers, width = demo.tokenizer
    m.decoder.codebook_dim, m.image_size = width, demo.image_size
    on_data(c, demo)
    c.batch_size = demo.tokenizer_batch
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
    demo = find_demo(data)
    images: Any = {"mean": demo.mean, "std": demo.std}
    vocab, hidden, layers, codebook = demo.tokenizer
    encoder = DVAEEncoder(vocab=vocab, hidden=hidden, num_layers=layers)
    known: dict[str, Target] = {
        # bicubic: the student's own view serves both
        "dvae": DVAE(encoder, DVAEDecoder(codebook_dim=codebook), resample="bicubic", **images),
        "encoder": EncoderFeatures(network=ViT(**demo.vit), **images),
        "pixels": Pixels(norm="none"),
    }
    if name not in known:
        raise ConfigError(
            f"config argument tokenizer={name!r} with demo; allowed: {', '.join(known)}"
        )
    return find_target(name, path, known)


def small_probe(c: Config, data: str, lr: float) -> None:
    """Set a minute of probing of a demo's encoder.

    Args:
      data: a name of LABELED, on which the encoder was trained.
    """
    on_data(c, find_demo(data))
    c.data.augment.eval_crop = 1.0
    c.steps, c.batch_size, c.optimizer.lr = 600, 128, lr
    c.optimizer.schedule.warmup_epochs, c.optimizer.schedule.warmup_steps = 0.0, 60


def small_tuning(c: Config, data: str) -> None:
    """Set a fine-tuning of a demo's encoder that takes minutes.

    Args:
      data: a name of LABELED, on which the encoder was trained.
    """
    demo = find_demo(data)
    on_data(c, demo)
    c.data.augment.rand_augment, c.data.augment.eval_crop = None, 1.0
    c.steps, c.batch_size, c.optimizer.lr = 600, demo.batch_size, demo.lr
    c.optimizer.schedule.warmup_epochs, c.optimizer.schedule.warmup_steps = 0.0, 60
    c.eval.every = 300


def on_data(c: Config, demo: Demo) -> None:
    """Set the data of a demo, its length and its intervals."""
    c.data.source = section(demo.source)
    c.data.channels = demo.channels
    c.data.augment.update(demo.augment)
    if demo.mean is not None and c.method.get("mean"):  # a model brings its own
        c.method.mean, c.method.std = demo.mean, demo.std
    c.steps, c.eval.every, c.eval.max_images = demo.steps, demo.every, demo.max_images
    c.log_every, c.checkpoint_every, c.eval.batch_size = 100, 500, 256
