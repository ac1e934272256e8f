"""RandAugment as timm has it, by the text that the published fine-tuning codes give it.

  rand-m9-mstd0.5-inc1    two operations of 15, each applied half the time, strengths around 9 of 10

Cubuk et al. 2019 (https://arxiv.org/abs/1909.13719) draw operations of one strength; that each is
left out half the time, that strengths scatter, and operations that grow stronger with the strength
("inc") are timm's, which MAE, BootMAE, BEiT, CAE and MCMAE call. The operations are Pillow's. What
is drawn and what is done to an image are apart, so that all views of a crop are changed alike.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

from mimjax.errors import ConfigError

FULL = 10  # the strength at which an operation's amount is the end of its range
UNIFORM = 100  # a larger spread stands for strengths that are drawn uniformly
KEY = "data.augment.rand_augment"
ALLOWED = (
    "rand-m9-mstd0.5-inc1, with m = strength, n = operations, p = how often each is applied, mstd "
    "= spread of the strength, mmax = largest strength, inc = 0 or 1, each once"
)
PART = re.compile(r"(mstd|mmax|inc|m|n|p)(\d+(?:\.\d+)?)")


class Step(NamedTuple):
    """An operation that was drawn.

    Attributes:
      name: of `OPERATIONS`.
      amount: how much of it; 0 for those that have no amount.
    """

    name: str
    amount: float = 0


class Paint(NamedTuple):
    """What an operation needs beside its amount.

    Attributes:
      fill: color of pixels that come from outside of the image, 0 to 255.
      resample: Pillow's filter, bilinear or bicubic.
    """

    fill: tuple[int, ...]
    resample: Any


# ------------------------------------------------------------------ amounts, by the level 0 to 1
def sign(rng: np.random.Generator) -> int:
    """Return -1 or 1, each half the time."""
    return -1 if rng.random() > 0.5 else 1


def nothing(level: float, rng: np.random.Generator) -> float:
    """Return 0: the operation has no amount."""
    return 0


def up_to(most: float) -> Callable[[float, np.random.Generator], float]:
    """Return the amount of operations in two directions: at most `most`, of either sign."""
    return lambda level, rng: sign(rng) * (level * most)


def bits(level: float, rng: np.random.Generator) -> int:
    """Return how many bits of a color are kept, 0 to 4."""
    return int(level * 4)


def fewer_bits(level: float, rng: np.random.Generator) -> int:
    """Return how many bits of a color are kept, from 4 down to 0."""
    return 4 - bits(level, rng)


def threshold(level: float, rng: np.random.Generator) -> int:
    """Return the brightness from which pixels are inverted; 256 = none is."""
    return min(256, int(level * 256))


def lower_threshold(level: float, rng: np.random.Generator) -> int:
    """Return the brightness from which pixels are inverted, which falls with the level."""
    return 256 - threshold(level, rng)


def added(level: float, rng: np.random.Generator) -> int:
    """Return what is added to dark pixels."""
    return min(128, int(level * 110))


def factor(level: float, rng: np.random.Generator) -> float:
    """Return a factor of 0.1 to 1.9, where 1 changes nothing."""
    return level * 1.8 + 0.1


def away_from_one(level: float, rng: np.random.Generator) -> float:
    """Return a factor below or above 1, farther from it with the level."""
    return max(0.1, 1 + sign(rng) * (level * 0.9))


# ------------------------------------------------------------------ operations
def enhanced(kind: Any) -> Callable[[Image.Image, float, Paint], Image.Image]:
    """Return the operation of one of Pillow's enhancers."""
    return lambda image, amount, paint: kind(image).enhance(amount)


def moved(matrix: Callable[[Image.Image, float], tuple[float, ...]]) -> Any:
    """Return the operation of an affine map, from places in the new image to those in the old."""

    def move(image: Image.Image, amount: float, paint: Paint) -> Image.Image:
        return image.transform(
            image.size,
            Image.Transform.AFFINE,
            matrix(image, amount),
            resample=paint.resample,
            fillcolor=paint.fill,
        )

    return move


def brightened(image: Image.Image, amount: float, paint: Paint) -> Image.Image:
    """Return the image with `amount` added to values below 128."""
    table = [min(255, i + int(amount)) if i < 128 else i for i in range(256)]
    return image.point(table * len(image.getbands()))


def posterized(image: Image.Image, amount: float, paint: Paint) -> Image.Image:
    """Return the image with the upper `amount` bits of each value: 8 or more = all, 0 = black.

    The recipes draw 0 bits where the strength reaches 10, and Pillow 13 refuses that in a function
    of its own, with which older versions made the image black.
    """
    low = 255 >> max(0, min(8, int(amount)))
    return image.point([i & ~low for i in range(256)] * len(image.getbands()))


class Operation(NamedTuple):
    """One of the operations.

    Attributes:
      apply: from image, amount and `Paint` to the new image.
      amount: from the level and a generator to the amount.
      increasing: the same for "inc1", where a higher level always changes more; None = `amount`.
    """

    apply: Callable[[Image.Image, float, Paint], Image.Image]
    amount: Callable[[float, np.random.Generator], float] = nothing
    increasing: Callable[[float, np.random.Generator], float] | None = None


# in timm's order, which a draw by number reads
OPERATIONS = {
    "AutoContrast": Operation(lambda image, amount, paint: ImageOps.autocontrast(image)),
    "Equalize": Operation(lambda image, amount, paint: ImageOps.equalize(image)),
    "Invert": Operation(lambda image, amount, paint: ImageOps.invert(image)),
    "Rotate": Operation(
        lambda image, amount, paint: image.rotate(
            amount, resample=paint.resample, fillcolor=paint.fill
        ),
        up_to(30.0),  # degrees
    ),
    "Posterize": Operation(posterized, bits, fewer_bits),
    "Solarize": Operation(
        lambda image, amount, paint: ImageOps.solarize(image, int(amount)),
        threshold,
        lower_threshold,
    ),
    "SolarizeAdd": Operation(brightened, added),
    "Color": Operation(enhanced(ImageEnhance.Color), factor, away_from_one),
    "Contrast": Operation(enhanced(ImageEnhance.Contrast), factor, away_from_one),
    "Brightness": Operation(enhanced(ImageEnhance.Brightness), factor, away_from_one),
    "Sharpness": Operation(enhanced(ImageEnhance.Sharpness), factor, away_from_one),
    "ShearX": Operation(moved(lambda image, a: (1, a, 0, 0, 1, 0)), up_to(0.3)),
    "ShearY": Operation(moved(lambda image, a: (1, 0, 0, a, 1, 0)), up_to(0.3)),
    # shares of the width and of the height
    "TranslateX": Operation(moved(lambda image, a: (1, 0, a * image.width, 0, 1, 0)), up_to(0.45)),
    "TranslateY": Operation(moved(lambda image, a: (1, 0, 0, 0, 1, a * image.height)), up_to(0.45)),
}
NAMES = tuple(OPERATIONS)


# ------------------------------------------------------------------ the whole
@dataclasses.dataclass(frozen=True)
class RandAugment:
    """How many operations are drawn, and how strong they are.

    Attributes:
      strength: 0 to `largest` ("m").
      operations: number of draws, with replacement ("n").
      probability: how often a drawn operation is applied ("p").
      spread: standard deviation of the strength ("mstd"); infinite = uniform from 0 to `strength`.
      largest: strengths are cut off there ("mmax").
      increasing: whether every operation grows stronger with the strength ("inc").
    """

    strength: float = FULL
    operations: int = 2
    probability: float = 0.5
    spread: float = 0.0
    largest: int = FULL
    increasing: bool = False

    def draw(self, rng: np.random.Generator) -> tuple[Step, ...]:
        """Return the operations for one crop, in their order."""
        steps = []
        for number in rng.integers(len(NAMES), size=self.operations):
            if self.probability < 1 and rng.random() > self.probability:
                continue
            strength = self.strength
            if math.isinf(self.spread):
                strength = rng.uniform(0, strength)
            elif self.spread:
                strength = rng.normal(strength, self.spread)
            level = max(0.0, min(strength, self.largest)) / FULL
            _, amount, increasing = OPERATIONS[NAMES[number]]
            amount = (self.increasing and increasing) or amount
            steps.append(Step(NAMES[number], amount(level, rng)))
        return tuple(steps)


def apply(image: Image.Image, steps: tuple[Step, ...], paint: Paint) -> Image.Image:
    """Return an RGB image after the operations that were drawn."""
    for name, amount in steps:
        image = OPERATIONS[name].apply(image, amount, paint)
    return image


@functools.cache
def parse(text: str) -> RandAugment:
    """Return what a text of timm's form says, "rand-m9-mstd0.5-inc1".

    What is not said has timm's default: strength 10, two operations, each applied half the time,
    no spread, inc0. timm itself passes over parts that it cannot read and cuts off a strength above
    the largest; here both are errors, as are its other sets of operations.

    Raises:
      ConfigError: the text has another form, or a number that means nothing.
    """
    head, *words = text.split("-")
    found = [PART.fullmatch(word) for word in words]
    said = {match[1]: match[2] for match in found if match}
    whole = all("." not in said.get(key, "") for key in ("m", "n", "mmax", "inc"))
    if head != "rand" or len(said) < len(words) or not whole:
        raise ConfigError(f"{KEY}: {text!r}; allowed: {ALLOWED}, or None")
    number = {key: float(value) for key, value in said.items()}
    largest = int(number.get("mmax", FULL))
    strength, probability = int(number.get("m", FULL)), number.get("p", 0.5)
    for key, ok, allowed in (
        ("mmax", largest >= 1, "1 or more"),
        ("m", strength <= largest, f"0 to {largest} (mmax, which is {FULL} if not given)"),
        ("n", number.get("n", 2) >= 1, "1 or more"),
        ("p", 0 < probability <= 1, "above 0 up to 1"),
        ("inc", number.get("inc", 0) <= 1, "0 or 1"),
    ):
        if not ok:
            shown = f"{key}{said.get(key, FULL)}"
            raise ConfigError(f"{KEY}: {shown} in {text!r}; allowed: {allowed}")
    spread = number.get("mstd", 0.0)
    return RandAugment(
        strength=strength,
        operations=int(number.get("n", 2)),
        probability=probability,
        spread=math.inf if spread > UNIFORM else spread,
        largest=largest,
        increasing=bool(number.get("inc", 0)),
    )
