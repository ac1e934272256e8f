"""Codes of DALL-E's tokenizer (Ramesh et al. 2021), the target of BEiT and CAE.

The tokenizer reads a view of its own, 8 pixels per token: 112 pixels for a student of 224 with
patches of 16. Weights: facebook/flava-image-codebook, the same network as OpenAI's pickled
`encoder.pkl`, as tensors.
"""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any, ClassVar

import jax
import jax.numpy as jnp
from einops import rearrange

from mimjax import errors, patches
from mimjax.models.dalle import STEP, DallEEncoder
from mimjax.models.layers import Resample
from mimjax.targets.base import Path, Student, Target, target_view
from mimjax.task import Key, PyTree, View
from mimjax.values import Range, Size


@dataclasses.dataclass(frozen=True)
class DallE(Target):
    """The code with the largest logit at each token, without Gumbel noise (as BEiT and CAE).

    Attributes:
      network: its sizes are those of OpenAI's file.
      size: (height, width) of the view; None = 8 pixels per patch of the student.
      resample: "lanczos" (`--second_interpolation` of BEiT and CAE).
      mean, std: DALL-E's map_pixels, 0.8 x + 0.1 for x in [0, 1], in the form (x - mean) / std.
      path: file or workdir of its weights, 'random' = noise, for tests.
    """

    kind: ClassVar[str] = "codes"

    network: DallEEncoder = DallEEncoder()
    size: Size | None = None
    resample: Resample = "lanczos"
    mean: tuple[Annotated[float, Range(-1, 1)], ...] = (-0.125,) * 3
    std: tuple[Annotated[float, Range(0, 2, low_open=True)], ...] = (1.25,) * 3
    path: Path | None = None

    def check(self, key: str, encoder: Student) -> None:
        errors.statistics(key, self.mean, self.std)
        target_view(key, self.size, STEP, encoder, self.resample)

    def width(self, encoder: Student) -> int:
        return self.network.vocab

    def views(self, encoder: Student) -> dict[str, View]:
        return target_view("target", None, STEP, encoder, self.resample)

    def init_frozen(self, key: Key, encoder: Student) -> PyTree:
        """Return random weights, {"dalle": {"body", "output"}}."""
        images = jnp.zeros((1, STEP, STEP, len(self.mean)))
        return {"dalle": self.network.init(key, images)["params"]}

    def encode(self, frozen: PyTree, images: jax.Array, encoder: Student) -> jax.Array:
        """Return vectors [b n d] in raster order, before the last ReLU and convolution."""
        images = patches.normalize(images, self.mean, self.std)
        x: Any = self.network.apply({"params": frozen["dalle"]}, images, method="features")
        return rearrange(x, "b h w d -> b (h w) d")

    def read(self, frozen: PyTree, hidden: jax.Array, key: Key | None = None) -> jax.Array:
        """Return codes, int32 [b k]; nothing is drawn, so that `key` is not used."""
        logits: Any = self.network.apply({"params": frozen["dalle"]}, hidden, method="logits")
        return logits.argmax(-1).astype(jnp.int32)
