"""Pixels of patches, as they are, normalized, or as coefficients of a principal component analysis.

They come from the student's own image: nothing is frozen but the basis of `PCA`, which is estimated
from the training images before the first step.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from mimjax import patches
from mimjax.errors import ConfigError
from mimjax.patches import patchify
from mimjax.targets.base import Colors, Student, Target
from mimjax.task import Frozen, Key, Known, PyTree, Seen, take
from mimjax.values import Count

SAMPLE = 512  # training images from which the basis of `PCA` is estimated


@dataclasses.dataclass(frozen=True)
class Pixels(Target):
    """The pixels of each patch of the student's normalized image.

    Attributes:
      norm: normalization of each patch by its own statistics, see `patches.normalize_patches`:
        "none", "patch" (MAE's code) or "channel" (BootMAE's code).
    """

    decodes: ClassVar[bool] = True

    norm: patches.PatchNorm = "patch"

    def channels(self, encoder: Student) -> int:
        return encoder.channels

    def width(self, encoder: Student) -> int:
        return encoder.patch**2 * encoder.channels

    def values(self, encoder: Student, seen: Seen, at: tuple[str, ...]) -> Known:
        x = patchify(seen.image, encoder.patch)
        x = patches.normalize_patches(x, self.norm, encoder.channels)
        return Known(take(x, 0, seen.ids, at))

    def decode(self, frozen, values, encoder, colors) -> jax.Array:
        """Return pixels; with a normalization the TRUE statistics of each patch are put back."""
        true = patchify(colors.image, encoder.patch)
        return picture(
            patches.restore_patches(values, true, self.norm, encoder.channels), encoder, colors
        )

    @property
    def story(self) -> str:
        return "the pixels" if self.norm == "none" else "the pixels, normalized in each patch,"

    @property
    def picture_note(self) -> str:
        if self.norm == "none":
            return ""
        return "Predictions are un-normalized with the true patch statistics."


@dataclasses.dataclass(frozen=True)
class PCA(Target):
    """Leading coefficients of the principal components of patches (MAE's slides, ablation d).

    Attributes:
      components: 96 in the MAE paper.
    """

    decodes: ClassVar[bool] = True

    components: Count = 96

    def channels(self, encoder: Student) -> int:
        return encoder.channels

    def width(self, encoder: Student) -> int:
        return self.components

    def check(self, key: str, encoder: Student) -> None:
        most = encoder.patch**2 * encoder.channels
        if self.components > most:
            raise ConfigError(f"{key}.components: {self.components}; allowed: 1 to {most}")

    def frozen(self, key: str) -> dict[str, Frozen]:
        return {"": Frozen("")}  # estimated, and read from no file

    def init_frozen(self, key: Key, encoder: Student) -> PyTree:
        size = encoder.patch**2 * encoder.channels
        return {"pca": {"mean": jnp.zeros(size), "basis": jnp.zeros((size, self.components))}}

    def fit(self, frozen: PyTree, encoder: Student, images: Callable[[int], jax.Array]) -> PyTree:
        x = np.asarray(patchify(images(SAMPLE), encoder.patch))
        return {"pca": patches.pca_basis(x.reshape(-1, x.shape[-1]), self.components)}

    def values(self, encoder: Student, seen: Seen, at: tuple[str, ...]) -> Known:
        pca = seen.frozen["pca"]
        x = (patchify(seen.image, encoder.patch) - pca["mean"]) @ pca["basis"]
        return Known(take(x, 0, seen.ids, at))

    def decode(self, frozen, values, encoder, colors) -> jax.Array:
        pca = frozen["pca"]
        return picture(values @ pca["basis"].T + pca["mean"], encoder, colors)

    @property
    def story(self) -> str:
        return f"the {self.components} leading principal components of the pixels"

    @property
    def picture_note(self) -> str:
        return f"Of each patch, {self.components} principal components are shown."


def picture(x: jax.Array, encoder: Student, colors: Colors) -> jax.Array:
    """Return flat patches [b n d] of normalized pixels as images, float32 [b h w c] in [0, 1]."""
    images = patches.unpatchify(x, encoder.grid, encoder.patch)
    return jnp.clip(images * jnp.asarray(colors.std) + jnp.asarray(colors.mean), 0, 1)
