"""Codes of VQ-KD, the tokenizer of BEiT v2 (Peng et al. 2022).

A ViT with learned positions, a small head (linear, tanh, linear) and 8192 codes on the unit sphere;
a token's code is the one nearest to its normalized output. It reads the student's image size. Its
own decoder predicts a teacher's features, not pixels, and is not built: nothing here decodes.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from mimjax import errors, patches
from mimjax.losses import unit
from mimjax.models.layers import Dtype, Resample
from mimjax.models.vit import ViT
from mimjax.rng import named
from mimjax.targets.base import Path, Student, Target, target_view
from mimjax.task import Key, Network, PyTree, View
from mimjax.values import Count, Mean, Size, Std


class CodeHead(Network):
    """A linear layer, tanh and another: [... d] to float32 [... c] (`encode_task_layer`).

    Attributes:
      code_dim: numbers in a code, c.
    """

    code_dim: int
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "*s d"]) -> Float[Array, "*s c"]:
        x = jnp.tanh(nn.Dense(x.shape[-1], dtype=self.dtype, name="fc1")(x))
        return nn.Dense(self.code_dim, dtype=self.dtype, name="fc2")(x).astype(jnp.float32)


@dataclasses.dataclass(frozen=True)
class VQKD(Target):
    """The nearest code of each patch token.

    Attributes:
      network: ViT-B/16 with q and v biases, learned positions and no layer scale
        (`vqkd_encoder_base_decoder_3x768x12_clip` of BEiT v2's modeling_vqkd.py). Its image size
        follows from `size`; a file's positions are resized bicubically to another grid.
      code_dim, vocab: 32 and 8192 in BEiT v2.
      size: (height, width) of the view; None = the network's patch for each of the student's.
      resample: "bicubic", as the student's image in BEiT v2's datasets.py.
      mean, std: 0.5 (`pre_process` of the official class: x / 127.5 - 1 for x up to 255).
      path: file or workdir of its weights, 'random' = noise, for tests.
    """

    kind: ClassVar[str] = "codes"

    network: ViT = ViT(pos_embed="learned", bias="qv", init_scheme="beit")
    code_dim: Count = 32
    vocab: Count = 8192
    size: Size | None = None
    resample: Resample = "bicubic"
    mean: Mean = patches.HALF
    std: Std = patches.HALF
    path: Path | None = None

    def check(self, key: str, encoder: Student) -> None:
        errors.statistics(key, self.mean, self.std)
        side = self.network.patch  # the image size follows from the student
        self.network.clone(image_size=(side, side)).check(f"{key}.network")
        target_view(key, self.size, side, encoder, self.resample)

    def width(self, encoder: Student) -> int:
        return self.vocab

    def views(self, encoder: Student) -> dict[str, View]:
        return target_view("target", None, self.network.patch, encoder, self.resample)

    def vit(self, encoder: Student) -> ViT:
        """Return the network at the size that gives the student's grid, as positions need it."""
        height, width = encoder.grid
        patch = self.network.patch
        return self.network.clone(
            image_size=(height * patch, width * patch), channels=len(self.mean)
        )

    def head(self) -> CodeHead:
        """Return the network between the encoder and the codes."""
        return CodeHead(self.code_dim, self.network.dtype)

    def init_frozen(self, key: Key, encoder: Student) -> PyTree:
        """Return random weights, {"vqkd": {"encoder", "head", "codebook"}}."""
        vit, width = self.vit(encoder), self.network.width
        images = jnp.zeros((1, *vit.image_size, len(self.mean)))
        codes = jax.random.normal(named(key, "codebook"), (self.vocab, self.code_dim))
        return {
            "vqkd": {
                "encoder": vit.init(named(key, "encoder"), images)["params"],
                "head": self.head().init(named(key, "head"), jnp.zeros((1, width)))["params"],
                "codebook": unit(codes),
            }
        }

    def encode(self, frozen: PyTree, images: jax.Array, encoder: Student) -> jax.Array:
        """Return patch tokens [b n d] after the final norm (BEiT v2's `fc_norm`)."""
        images = patches.normalize(images, self.mean, self.std)
        f = self.vit(encoder).apply({"params": frozen["vqkd"]["encoder"]}, images)
        return f.tokens[:, f.prefix :]

    def read(self, frozen: PyTree, hidden: jax.Array, key: Key | None = None) -> jax.Array:
        """Return codes, int32 [b k]; nothing is drawn, so that `key` is not used."""
        x = self.head().apply({"params": frozen["vqkd"]["head"]}, hidden)
        codes = frozen["vqkd"]["codebook"].astype(jnp.float32)
        # Nearest by distance, |c|^2 - 2 x c: for codes of length 1, the largest cosine.
        near = jnp.matmul(unit(x), codes.T, precision="highest")
        score = 2.0 * near - jnp.square(codes).sum(-1)
        return score.argmax(-1).astype(jnp.int32)
