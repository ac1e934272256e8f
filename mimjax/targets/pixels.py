"""Pixels of patches as a pluggable target: nothing frozen, nothing learned."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
from einops import rearrange

from mimjax import errors, values
from mimjax import patches as pixels
from mimjax.patches import patchify
from mimjax.targets.base import Student, Target
from mimjax.task import Batch, PyTree
from mimjax.values import Mean, Std


@dataclasses.dataclass(frozen=True)
class Pixels(Target):
    """Normalized pixels of each patch.

    Attributes:
      norm: patch normalization, see `pixels.normalize_patches`.
      mean, std: of the image; they should be the student's.
    """

    decodes: ClassVar[bool] = True

    norm: pixels.PatchNorm = "none"
    mean: Mean = pixels.IMAGENET_MEAN
    std: Std = pixels.IMAGENET_STD

    def __post_init__(self):
        values.check(self, "method.target")
        errors.statistics("method.target", self.mean, self.std)

    @property
    def channels(self) -> int:
        return len(self.mean)

    def out_dim(self, encoder: Student) -> int:
        return encoder.patch**2 * len(self.mean)

    def encode(self, frozen: PyTree, batch: Batch, encoder: Student) -> jax.Array:
        patches = patchify(pixels.normalize(batch["image"], self.mean, self.std), encoder.patch)
        return pixels.normalize_patches(patches, self.norm, len(self.mean))

    def read(self, frozen: PyTree, hidden: jax.Array, key=None) -> jax.Array:
        return hidden

    def decode(self, frozen: PyTree, values: jax.Array, encoder: Student, image=None) -> jax.Array:
        """With a normalization, the TRUE statistics of each patch of `image` are put back."""
        if self.norm != "none":
            assert image is not None
            values = pixels.restore_patches(
                values, patchify(image, encoder.patch), self.norm, len(self.mean)
            )
        h, w = encoder.grid
        p = encoder.patch
        out = rearrange(values, "b (h w) (p q c) -> b (h p) (w q) c", h=h, w=w, p=p, q=p)
        return jnp.clip(out * jnp.asarray(self.std) + jnp.asarray(self.mean), 0, 1)

    @property
    def story(self) -> str:
        return "the pixels" if self.norm == "none" else "the pixels, normalized in each patch,"

    @property
    def picture_note(self) -> str:
        true = "" if self.norm == "none" else ", un-normalized with the true patch statistics"
        return f"Masked patches: predicted{true}. Visible patches: pasted from the original."
