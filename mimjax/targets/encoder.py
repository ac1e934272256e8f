"""Features of a frozen encoder of this project as a target: any earlier run can be a teacher.

It is no CLIP and is not called one; it stands where a method needs a teacher and none can be had.
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from mimjax import errors, patches
from mimjax.models.attention_maps import with_cls_attention
from mimjax.models.vit import at_size
from mimjax.targets.base import Path, Student, Target, target_view
from mimjax.task import PLACES, EncoderNetwork, Key, Known, PyTree, Reader, Seen, View
from mimjax.values import Index, Mean, Size, Std


@dataclasses.dataclass(frozen=True)
class EncoderFeatures(Target):
    """Tokens of a pretrained encoder on the full image.

    `network`, `mean` and `std` are filled in from the workdir that `path` names before a run
    begins. What is still None then, as with a file or random weights, follows the student.

    Attributes:
      network: the teacher's settings; they must be those of its run. None = those of the workdir,
        else those of the student's encoder without mask token, drop path and projection.
      layer: block whose output is read (negative counts from the end: -1 = the last block's, as
        in BootMAE's Tables 3 and 9); None = the tokens after the final norm.
      size: (height, width) of its view; None = derived from the student's grid.
      mean, std: of its images, per channel. None = those of the workdir, else the student's. A
        target does not know the student's: if nobody filled them in, they are ImageNet's.
      path: file or workdir of its weights, 'random' = noise, for tests.
    """

    brings: ClassVar[dict[str, str]] = {"network": "encoder", "mean": "mean", "std": "std"}
    follows: ClassVar[bool] = True

    network: EncoderNetwork | None = None
    layer: Index | None = None
    size: Size | None = None
    mean: Mean | None = None
    std: Std | None = None
    path: Path | None = None

    @property
    def num_prefix(self) -> int:
        """Tokens before the patches; 1 where only the student tells, see `values`."""
        network: Any = self.network
        return 1 if network is None else network.num_prefix

    @property
    def has_attention(self) -> bool:
        return self.num_prefix > 0

    @property
    def statistics(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and standard deviation of its images; ImageNet's where they are None."""
        mean = patches.IMAGENET_MEAN if self.mean is None else self.mean
        return mean, patches.IMAGENET_STD if self.std is None else self.std

    def teacher(self, encoder: Student) -> Any:
        """Return the network that is computed."""
        network: Any = self.network
        if network is None:
            network = encoder.plain().clone(dtype=encoder.dtype)
        size = encoder.grid[0] * network.patch, encoder.grid[1] * network.patch
        if tuple(network.image_size) != size:  # its run had images of another size
            network = at_size(network, size)
        return network.clone(channels=self.channels(encoder))

    def check(self, key: str, encoder: Student) -> None:
        if self.mean is not None and self.std is not None:
            errors.statistics(key, self.mean, self.std)
        network = self.teacher(encoder)
        if self.network is not None:
            network.check(f"{key}.network")
        if self.layer is not None:
            errors.block_index(f"{key}.layer", self.layer, network.depth)
        target_view(key, self.size, network.patch, encoder, "bicubic")

    def channels(self, encoder: Student) -> int:
        return encoder.channels if self.mean is None else len(self.mean)

    def width(self, encoder: Student) -> int:
        network = self.teacher(encoder)
        return network.out_width if self.layer is None else network.width

    def places(self, encoder: Student) -> tuple[str, ...]:
        return PLACES if self.teacher(encoder).num_prefix else PLACES[1:]

    def views(self, encoder: Student) -> dict[str, View]:
        step, channels = self.teacher(encoder).patch, self.channels(encoder)
        return target_view("target", None, step, encoder, "bicubic", channels)

    def init_frozen(self, key: Key, encoder: Student) -> PyTree:
        """Return random weights, {"encoder": ...} as any run of this project has them."""
        network = self.teacher(encoder)
        images = jnp.zeros((1, *network.image_size, network.channels))
        return {"encoder": network.init(key, images)["params"]}

    def readers(self) -> dict[str, Reader]:
        return {"encoder": Reader(self.network, self.mean, self.std)}

    def values(self, encoder: Student, seen: Seen, at: tuple[str, ...]) -> Known:
        known = dataclasses.replace(self, network=self.teacher(encoder))  # it tells `num_prefix`
        return Target.values(known, encoder, seen, at)

    def encode(self, frozen: PyTree, images: jax.Array, encoder: Student) -> jax.Array:
        """Return the tokens of the layer that is read, [b p+n d]."""
        images = patches.normalize(images, *self.statistics)
        features = self.teacher(encoder).apply({"params": frozen["encoder"]}, images)
        return features.read("all", self.layer)

    def encode_with_attention(self, frozen, images, encoder) -> tuple[jax.Array, jax.Array]:
        network = self.teacher(encoder)
        if not network.num_prefix:
            return super().encode_with_attention(frozen, images, encoder)  # raises
        images = patches.normalize(images, *self.statistics)
        features, attention = with_cls_attention(network, frozen["encoder"], images)
        return features.read("all", self.layer), attention

    def read(self, frozen: PyTree, hidden: jax.Array, key: Key | None = None) -> jax.Array:
        """Return the tokens in float32, [b k d]."""
        return hidden.astype(jnp.float32)
