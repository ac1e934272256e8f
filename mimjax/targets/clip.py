"""CLIP features as targets (CAE v2's `CLIP target`; MR-MAE's and MILAN's teacher).

The teacher reads a view of its own, normalized by CLIP's statistics, with one token per patch of
the student. Losses normalize the features; nothing is normalized here.
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp

from mimjax import errors
from mimjax.models.attention_maps import with_cls_attention
from mimjax.models.clip import CLIPVision
from mimjax.patches import normalize
from mimjax.targets.base import Path, Student, Target, target_view
from mimjax.task import Key, PyTree, View
from mimjax.values import Mean, Size, Std

# openai/CLIP, `clip/clip.py`, _transform
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
Feature = Literal["proj", "post_norm", "pre_norm"]


@dataclasses.dataclass(frozen=True)
class CLIP(Target):
    """Tokens of CLIP's visual tower, by default after its last norm and projection; CLS first.

    Attributes:
      network: ViT-B/16 by default; `models.clip.CLIP_SIZES` has the published sizes.
      project: into the joint space with text (CAE v2: 512 numbers for B/16); False = the normed
        features of the tower's own width (768), and the file needs no projection.
      feature: None = as `project` says; else in its place "proj", "post_norm" (MR-MAE: the normed
        features of the tower's own width) or "pre_norm" (the last block's output).
      size: (height, width) of the teacher's view; None = the student's grid times the patch.
      mean, std: of the teacher's input, per channel.
      path: file or workdir of its weights, 'random' = noise, for tests.
    """

    num_prefix: ClassVar[int] = 1
    has_attention: ClassVar[bool] = True

    network: CLIPVision = CLIPVision()
    project: bool = True
    size: Size | None = None
    mean: Mean = CLIP_MEAN
    std: Std = CLIP_STD
    feature: Feature | None = None
    path: Path | None = None

    def check(self, key: str, encoder: Student) -> None:
        errors.statistics(key, self.mean, self.std)
        net = self.network
        errors.heads(f"{key}.network", net.clone(heads=net.num_heads))
        target_view(key, self.size, net.patch, encoder, "bicubic")

    @property
    def stage(self) -> Feature:
        """The feature that is read."""
        return self.feature or ("proj" if self.project else "post_norm")

    @property
    def tower(self) -> CLIPVision:
        """The network that is computed, without its projection if that is not wanted."""
        return self.network if self.stage == "proj" else self.network.clone(proj_dim=None)

    def width(self, encoder: Student) -> int:
        return self.tower.out_dim

    def views(self, encoder: Student) -> dict[str, View]:
        return target_view("target", None, self.network.patch, encoder, "bicubic")

    def init_frozen(self, key: Key, encoder: Student) -> PyTree:
        side = self.network.patch
        images = jnp.zeros((1, side, side, 3))
        return {"clip": self.tower.init(key, images)["params"]}

    def encode(self, frozen: PyTree, images: jax.Array, encoder: Student) -> jax.Array:
        """Return the last block's output before the final norm, [b 1+n d], CLS first."""
        return self.apply(frozen, "encode", normalize(images, self.mean, self.std))

    def encode_with_attention(self, frozen, images, encoder) -> tuple[jax.Array, jax.Array]:
        images = normalize(images, self.mean, self.std)
        return with_cls_attention(self.tower, frozen["clip"], images, "encode")

    def read(self, frozen: PyTree, hidden: jax.Array, key: Key | None = None) -> jax.Array:
        """Return features, float32 [b k p], after final norm and projection as asked for."""
        if self.stage == "pre_norm":
            return hidden.astype(jnp.float32)
        return self.apply(frozen, "read", hidden)

    def apply(self, frozen: PyTree, method: str, x: jax.Array) -> Any:
        """Return what one method of the tower returns, with its frozen parameters."""
        return self.tower.apply({"params": frozen["clip"]}, x, method=method)
