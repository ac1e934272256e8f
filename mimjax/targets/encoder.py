"""Features of a frozen encoder of this project as a target: any earlier run can be a teacher.

It is no CLIP and is not called one; it stands where a method needs a teacher and none can be had.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from mimjax import errors, patches, values
from mimjax.models.attention_maps import with_cls_attention
from mimjax.models.vit import ViT
from mimjax.targets.base import Student, Target, target_image, target_view
from mimjax.task import Batch, Key, PyTree, Reader, View
from mimjax.values import Mean, Size, Std


@dataclasses.dataclass(frozen=True)
class EncoderFeatures(Target):
    """Tokens after the final norm of a pretrained encoder, on the full image.

    Attributes:
      network: the teacher's settings; they must be those of its run.
      size: (height, width) of its view; None = derived from the student's grid.
      mean, std: of its images.
    """

    num_prefix: ClassVar[int] = 1
    has_attention: ClassVar[bool] = True

    network: ViT = ViT()
    size: Size | None = None
    mean: Mean = patches.IMAGENET_MEAN
    std: Std = patches.IMAGENET_STD

    def __post_init__(self):
        values.check(self, "method.target")
        errors.statistics("method.target", self.mean, self.std)
        network = self.network.clone(channels=len(self.mean))
        network.check("method.target.network")
        object.__setattr__(self, "network", network)  # derived field of a frozen dataclass

    @property
    def channels(self) -> int:
        return len(self.mean)

    def out_dim(self, encoder: Student) -> int:
        return self.network.width

    def views(self, encoder: Student) -> dict[str, View]:
        return target_view("method.target", self.size, self.network.patch, encoder, "bicubic")

    def init_frozen(self, key: Key, encoder: Student) -> PyTree:
        images = jnp.zeros((1, *self.network.image_size, len(self.mean)))
        return {"encoder": self.network.init(key, images)["params"]}

    def readers(self) -> dict[str, Reader]:
        return {"encoder": Reader(self.network, self.mean, self.std)}

    def encode(self, frozen: PyTree, batch: Batch, encoder: Student) -> jax.Array:
        images = patches.normalize(target_image(batch), self.mean, self.std)
        return self.network.apply({"params": frozen["encoder"]}, images).tokens

    def encode_with_attention(
        self, frozen: PyTree, batch: Batch, encoder: Student
    ) -> tuple[jax.Array, jax.Array]:
        images = patches.normalize(target_image(batch), self.mean, self.std)
        features, attention = with_cls_attention(self.network, frozen["encoder"], images)
        return features.tokens, attention

    def read(self, frozen: PyTree, hidden: jax.Array, key=None) -> jax.Array:
        return hidden.astype(jnp.float32)
