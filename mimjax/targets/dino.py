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

from mimjax import errors, patches
from mimjax.errors import ConfigError
from mimjax.models.attention_maps import with_cls_attention
from mimjax.models.layers import normalize
from mimjax.models.positions import resize_absolute
from mimjax.models.vit import ViT
from mimjax.targets.base import Path, Student, Target, target_view
from mimjax.task import Key, PyTree, View
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
      path: file or workdir of its weights, 'random' = noise, for tests.
    """

    num_prefix: ClassVar[int] = 1
    has_attention: ClassVar[bool] = True

    network: ViT = ViT(pos_embed="learned")
    feature: Literal["post_norm", "pre_norm"] = "post_norm"
    size: Size | None = None
    mean: Mean = patches.IMAGENET_MEAN
    std: Std = patches.IMAGENET_STD
    path: Path | None = None

    def check(self, key: str, encoder: Student) -> None:
        errors.statistics(key, self.mean, self.std)
        self.backbone.check(f"{key}.network")
        if self.network.pos_embed != "learned":
            raise ConfigError(
                f"{key}.network.pos_embed: {self.network.pos_embed!r}; DINO's are learned; "
                "allowed: learned"
            )
        target_view(key, self.size, self.network.patch, encoder, "bicubic")

    @property
    def backbone(self) -> ViT:
        """The network for images of as many channels as the statistics have."""
        return self.network.clone(channels=len(self.mean))

    def width(self, encoder: Student) -> int:
        return self.network.width

    def views(self, encoder: Student) -> dict[str, View]:
        return target_view("target", None, self.network.patch, encoder, "bicubic")

    def init_frozen(self, key: Key, encoder: Student) -> PyTree:
        images = jnp.zeros((1, *self.network.image_size, len(self.mean)))
        return {"dino": self.backbone.init(key, images)["params"]}

    def encode(self, frozen: PyTree, images: jax.Array, encoder: Student) -> jax.Array:
        """Return the last block's output before the final norm, [b 1+n d], CLS first."""
        network, params, images = self.at_size(frozen, images)
        return network.apply({"params": params}, images).blocks[-1]

    def encode_with_attention(self, frozen, images, encoder) -> tuple[jax.Array, jax.Array]:
        features, attention = with_cls_attention(*self.at_size(frozen, images))
        return features.blocks[-1], attention

    def read(self, frozen: PyTree, hidden: jax.Array, key: Key | None = None) -> jax.Array:
        """Return features, float32 [b k d], after the final norm as asked for."""
        if self.feature == "pre_norm":
            return hidden.astype(jnp.float32)
        norm = frozen["dino"]["norm"]
        return normalize(hidden) * norm["scale"] + norm["bias"]

    def at_size(self, frozen: PyTree, images: jax.Array) -> tuple[ViT, PyTree, jax.Array]:
        """Return the network at the view's size, its parameters and the normalized images.

        The positions among the parameters are those of the view's grid.
        """
        images = patches.normalize(images, self.mean, self.std)
        network = self.backbone.clone(image_size=images.shape[1:3])
        pos = jnp.asarray(frozen["dino"]["pos_embed"])
        pos = resize_absolute(pos, self.network.grid, network.grid, EXTRA)
        return network, {**frozen["dino"], "pos_embed": pos}, images
