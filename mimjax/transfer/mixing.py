"""Mixup, CutMix, label smoothing and random erasing of normalized images, on the device.

They are timm's, which the fine-tuning codes of MAE, BootMAE, BEiT, CAE and MCMAE call, with the
order of those: each image is erased by itself, then pairs are mixed, then labels become targets.

  mixup   x = keep x + (1 - keep) x'              Zhang et al. 2017, https://arxiv.org/abs/1710.09412
  CutMix  x = x' in a box, its share is 1 - keep  Yun et al. 2019, https://arxiv.org/abs/1905.04899
  target  y = keep y + (1 - keep) y'              y = (1 - s) one-hot + s / classes

x' is the image at the mirrored place, from the end of the group. All are pure functions of a key;
what is drawn and what is done to the images are apart.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from mimjax.errors import ConfigError
from mimjax.rng import named
from mimjax.task import Key
from mimjax.values import Count, NonNegative, Share, Some

ATTEMPTS = 10  # boxes that are tried for one image until one fits


# ------------------------------------------------------------------ labels
def targets(
    labels: Int[Array, "b"], classes: int, smoothing: float = 0.0
) -> Float[Array, "b classes"]:
    """Return what the logits' softmax is compared with.

    Args:
      labels: classes; -1 = none.
      smoothing: share of a target that is spread evenly over all classes.

    Returns:
      Rows that sum to 1, and rows of zeros for images without a label: the cross entropy
      -sum(target * log p) of these is zero, and a mixed image counts by its labeled share.
    """
    known = (labels >= 0)[:, None]
    return known * (jax.nn.one_hot(labels, classes) * (1 - smoothing) + smoothing / classes)


# ------------------------------------------------------------------ mixup and CutMix
class Mix(NamedTuple):
    """How each image is mixed with that at the mirrored place.

    Attributes:
      keep: share of the image itself, from 0 to 1; where a box is cut, before the box is clipped.
      cut: whether a box is taken from the other image; False = the images are averaged.
      center: row and column of the box's center, in pixels.
    """

    keep: Float[Array, "b"]
    cut: Bool[Array, "b"]
    center: Int[Array, "b 2"]


@dataclasses.dataclass(frozen=True)
class Mixing:
    """Mixup and CutMix.

    The official codes mix on each GPU alone what it reads at once, a micro-batch, with one draw for
    all its images. Here the whole batch of an update is mixed, before it is divided among devices
    and accumulation steps, so that neither changes a number; `group` says how many images share a
    draw: with the images at once on one GPU of the published run it is as there.

    Attributes:
      mixup: both parameters of the Beta distribution that `keep` is drawn from; 0 = no mixup.
      cutmix: the same for CutMix; 0 = no CutMix.
      probability: how often there is any mixing.
      switch: how often it is CutMix, where there are both.
      mode: what shares a draw: all images of a group ("batch"), the two of a pair, or none
        ("elem").
      group: images, next to each other in the batch, that are mixed among themselves; None = all,
        as in a batch that is no larger.
    """

    mixup: NonNegative = 0.8
    cutmix: NonNegative = 1.0
    probability: Some = 1.0
    switch: Share = 0.5
    mode: Literal["batch", "pair", "elem"] = "batch"
    group: Count | None = None

    def check(self, key: str, batch_size: int) -> None:
        """Check that the batch can be mixed.

        Args:
          key: names the section in errors.
          batch_size: images per update.

        Raises:
          ConfigError: nothing would be mixed; groups are odd, where an image would be mixed with
            itself; or they do not divide the batch.
        """
        if not self.mixup and not self.cutmix:
            raise ConfigError(
                f"{key}.mixup, {key}.cutmix: both 0; allowed: one above 0, or {key}=None"
            )
        if batch_size % 2:
            raise ConfigError(
                f"batch_size: {batch_size} with {key}; allowed: even numbers (images are mixed in "
                "pairs)"
            )
        if self.group is not None and (self.group % 2 or batch_size % self.grouped(batch_size)):
            raise ConfigError(
                f"{key}.group: {self.group} with batch_size {batch_size}; allowed: even numbers "
                "that divide it, or None"
            )

    def grouped(self, count: int) -> int:
        """Return how many of `count` images are mixed among themselves."""
        return min(self.group or count, count)

    def __call__(
        self,
        key: Key,
        images: Float[Array, "b h w c"],
        labels: Int[Array, "b"],
        classes: int,
        smoothing: float = 0.0,
    ) -> tuple[Float[Array, "b h w c"], Float[Array, "b classes"]]:
        """Return mixed images and their targets.

        Args:
          images: normalized; their number is one that `check` allows.
          labels: classes; -1 = none, see `targets`.
          smoothing: see `targets`; labels are smoothed before they are mixed.
        """
        count, height, width, _ = images.shape
        mix = self.draw(key, count, (height, width))
        return self.apply(mix, images, labels, classes, smoothing)

    def draw(self, key: Key, count: int, size: tuple[int, int]) -> Mix:
        """Return how `count` images of a size (height, width) are mixed."""
        group = self.grouped(count)
        draws = {"batch": count // group, "pair": count // 2, "elem": count}[self.mode]
        uniform = lambda name, *shape: jax.random.uniform(named(key, name), (draws, *shape))
        cut = uniform("switch") < self.switch if self.mixup else jnp.ones(draws, bool)
        cut &= self.cutmix > 0
        keep = jnp.ones(draws)
        for alpha, name, chosen in ((self.mixup, "mixup", ~cut), (self.cutmix, "cutmix", cut)):
            if alpha:
                drawn = jax.random.beta(named(key, name), alpha, alpha, (draws,))
                keep = jnp.where(chosen, drawn, keep)
        keep = jnp.where(uniform("probability") < self.probability, keep, 1.0)
        center = jnp.floor(uniform("center", 2) * jnp.asarray(size)).astype(jnp.int32)
        mix = Mix(keep, cut, jnp.minimum(center, jnp.asarray(size) - 1))
        if self.mode == "batch":
            return jax.tree.map(lambda x: jnp.repeat(x, group, 0), mix)
        if self.mode == "pair":
            return jax.tree.map(lambda x: both_halves(x, group), mix)
        return mix

    def apply(
        self,
        mix: Mix,
        images: Float[Array, "b h w c"],
        labels: Int[Array, "b"],
        classes: int,
        smoothing: float = 0.0,
    ) -> tuple[Float[Array, "b h w c"], Float[Array, "b classes"]]:
        """Return images and targets after the mixing that was drawn; see `__call__`."""
        _, height, width, _ = images.shape
        inside = boxes(mix, (height, width))
        keep = jnp.where(mix.cut, 1 - inside.mean((1, 2)), mix.keep)
        own = jnp.where(mix.cut[:, None, None], 1.0 - inside, mix.keep[:, None, None])[..., None]
        other = lambda x: mirrored(x, self.grouped(len(x)))
        y = targets(labels, classes, smoothing)
        mixed = images * own + other(images) * (1 - own)
        return mixed.astype(images.dtype), y * keep[:, None] + other(y) * (1 - keep[:, None])


def mirrored(x: Array, group: int) -> Array:
    """Return the rows in the reverse order within each group of neighbors."""
    return jnp.flip(x.reshape(-1, group, *x.shape[1:]), 1).reshape(x.shape)


def both_halves(x: Array, group: int) -> Array:
    """Return what was drawn for the pairs, [b/2 ...], for both images of each, [b ...]."""
    first = x.reshape(-1, group // 2, *x.shape[1:])
    return jnp.concatenate([first, jnp.flip(first, 1)], 1).reshape(-1, *x.shape[1:])


def boxes(mix: Mix, size: tuple[int, int]) -> Bool[Array, "b h w"]:
    """Return where the images' boxes are: of the image's proportions, clipped at its borders."""
    inside = []
    for axis, side in enumerate(size):
        length = jnp.floor(side * jnp.sqrt(1 - mix.keep)).astype(jnp.int32)
        low = mix.center[:, axis] - length // 2
        inside.append(spans(low, low + length, side))
    return inside[0][:, :, None] & inside[1][:, None, :]


def spans(low: Int[Array, "b"], high: Int[Array, "b"], side: int) -> Bool[Array, "b side"]:
    """Return which of the places 0 to side - 1 are in [low, high)."""
    place = jnp.arange(side)
    return (place >= low[:, None]) & (place < high[:, None])


# ------------------------------------------------------------------ random erasing
class Draws(NamedTuple):
    """Numbers from 0 to below 1 that decide where images are erased.

    Attributes:
      happens: whether an image is erased.
      area, aspect: of each box that is tried.
      place: where the first that fits lies, of the room that it has up and down, left and right.
    """

    happens: Float[Array, "b"]
    area: Float[Array, "b tries"]
    aspect: Float[Array, "b tries"]
    place: Float[Array, "b 2"]


def erase(
    key: Key,
    images: Float[Array, "b h w c"],
    rate: float,
    area: tuple[float, float] = (0.02, 1 / 3),
    aspect: tuple[float, float] = (0.3, 1 / 0.3),
) -> Float[Array, "b h w c"]:
    """Return images in which some have noise in a box, a standard normal number at each value.

    Source: Zhong et al. 2017 (https://arxiv.org/abs/1708.04896), with timm's "pixel" mode and one
    box. Each image is drawn for alone.

    Args:
      images: normalized.
      rate: share of the images that are erased.
      area: range of the box relative to the image, drawn uniformly.
      aspect: range of height / width, drawn log-uniformly.
    """
    sizes = {"happens": (), "area": (ATTEMPTS,), "aspect": (ATTEMPTS,), "place": (2,)}
    count, height, width, _ = images.shape
    draws = Draws(**{k: jax.random.uniform(named(key, k), (count, *v)) for k, v in sizes.items()})
    inside = erased(draws, (height, width), rate, area, aspect)[..., None]
    noise = jax.random.normal(named(key, "noise"), images.shape, images.dtype)
    return jnp.where(inside, noise, images)


def erased(
    draws: Draws,
    size: tuple[int, int],
    rate: float,
    area: tuple[float, float],
    aspect: tuple[float, float],
) -> Bool[Array, "b h w"]:
    """Return where images are erased; a box fits if it is smaller than the image in both sides.

    Where none of the boxes fits, the image stays.
    """
    height, width = size
    pixels = (area[0] + (area[1] - area[0]) * draws.area) * (height * width)
    low, high = math.log(aspect[0]), math.log(aspect[1])
    ratio = jnp.exp(low + (high - low) * draws.aspect)
    h, w = jnp.round(jnp.sqrt(pixels * ratio)), jnp.round(jnp.sqrt(pixels / ratio))
    fits = (h < height) & (w < width)
    first = fits.argmax(1)[:, None]
    happens = (draws.happens < rate) & fits.any(1)
    inside = []
    for axis, (side, lengths) in enumerate(((height, h), (width, w))):
        length = jnp.take_along_axis(lengths, first, 1)[:, 0].astype(jnp.int32)
        room = side - length
        start = jnp.minimum(jnp.floor(draws.place[:, axis] * (room + 1)).astype(jnp.int32), room)
        inside.append(spans(start, start + length, side))
    return happens[:, None, None] & inside[0][:, :, None] & inside[1][:, None, :]
