"""DINO features as targets (Caron et al. 2021; facebookresearch/dino, `vision_transformer.py`).

The network is `models.vit.ViT` with learned positions: LayerNorm eps 1e-6, q, k and v biases, exact
GELU. The teacher reads a view with one token per patch of the student; where its grid is not that
of the stored positions, these are resized as DINO's code does it when it runs. transformers' ViT of
the same weights has eps 1e-12 by default, which moves features by about 1e-5.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar, Literal

import jax
import jax.numpy as jnp

from mimjax import errors, patches, values
from mimjax.errors import ConfigError
from mimjax.models.attention_maps import with_cls_attention
from mimjax.models.layers import normalize
from mimjax.models.positions import resize_absolute
from mimjax.models.vit import ViT
from mimjax.targets.base import Student, Target, target_image, target_view
from mimjax.task import Batch, Key, PyTree, View
from mimjax.values import Mean, Size, Std

# DINO's interpolate_pos_encoding asks for grid + 0.1 rows against rounding in `scale_factor`, which
# also moves every point (facebookresearch/dino, issue 8).
EXTRA = 0.1


@dataclasses.dataclass(frozen=True)
class DINO(Target):
    """Tokens of DINO's backbone, CLS first.

    Attributes:
      network: ViT-B/16 by default; `image_size` is that of the stored positions (224 px in every
        published file). S/16 has width 384 and 6 heads; S/8 and B/8 have patch 8.
      feature: "post_norm" (after the final norm) or "pre_norm" (the last block's output).
      size: (height, width) of the teacher's view; None = the student's grid times the patch.
      mean, std: of the teacher's input, per channel (ImageNet's in DINO's code).
    """

    num_prefix: ClassVar[int] = 1
    has_attention: ClassVar[bool] = True

    network: ViT = ViT(pos_embed="learned")
    feature: Literal["post_norm", "pre_norm"] = "post_norm"
    size: Size | None = None
    mean: Mean = patches.IMAGENET_MEAN
    std: Std = patches.IMAGENET_STD

    def __post_init__(self):
        key = "method.target"
        values.check(self, key)
        errors.statistics(key, self.mean, self.std)
        network = self.network.clone(channels=len(self.mean))
        network.check(f"{key}.network")
        object.__setattr__(self, "network", network)  # derived field of a frozen dataclass
        if self.network.pos_embed != "learned":
            raise ConfigError(
                f"{key}.network.pos_embed: {self.network.pos_embed!r}; DINO's are learned; "
                "allowed: learned"
            )

    def out_dim(self, encoder: Student) -> int:
        return self.network.width

    def views(self, encoder: Student) -> dict[str, View]:
        return target_view("method.target", self.size, self.network.patch, encoder, "bicubic")

    def init_frozen(self, key: Key, encoder: Student) -> PyTree:
        images = jnp.zeros((1, *self.network.image_size, len(self.mean)))
        return {"dino": self.network.init(key, images)["params"]}

    def encode(self, frozen: PyTree, batch: Batch, encoder: Student) -> jax.Array:
        """The last block's output before the final norm, [b 1+n d], CLS first."""
        network, params, images = self.at_size(frozen, batch)
        return network.apply({"params": params}, images).blocks[-1]

    def encode_with_attention(
        self, frozen: PyTree, batch: Batch, encoder: Student
    ) -> tuple[jax.Array, jax.Array]:
        features, attention = with_cls_attention(*self.at_size(frozen, batch))
        return features.blocks[-1], attention

    def read(self, frozen: PyTree, hidden: jax.Array, key: Key | None = None) -> jax.Array:
        """Features [b k d] in float32."""
        if self.feature == "pre_norm":
            return hidden.astype(jnp.float32)
        norm = frozen["dino"]["norm"]
        return normalize(hidden) * norm["scale"] + norm["bias"]

    def at_size(self, frozen: PyTree, batch: Batch) -> tuple[ViT, PyTree, jax.Array]:
        """The network at the view's size, its parameters with positions of its grid, and images."""
        images = patches.normalize(target_image(batch), self.mean, self.std)
        network = self.network.clone(image_size=images.shape[1:3])
        pos = jnp.asarray(frozen["dino"]["pos_embed"])
        pos = resize_absolute(pos, self.network.grid, network.grid, EXTRA)
        return network, {**frozen["dino"], "pos_embed": pos}, images
