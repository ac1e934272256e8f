"""Codes of a frozen VQGAN as targets, and the way from codes back to pictures.

The tokenizer reads a view of its own, scaled to [-1, 1], with one code per patch of the student:
112 px for the f8 one and a 14x14 grid.
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from mimjax.errors import ConfigError
from mimjax.models.vqgan import GROUPS, VQGANModel
from mimjax.patches import HALF, normalize
from mimjax.targets.base import Path, Student, Target, target_view
from mimjax.task import Key, PyTree, View
from mimjax.values import Size


@dataclasses.dataclass(frozen=True)
class VQGAN(Target):
    """Gumbel f8 with 8192 codes by default; `models.vqgan.VQGAN_SIZES` has the published sizes.

    Attributes:
      network: encoder, quantizer and decoder.
      size: (height, width) of the tokenizer's view; None = the student's grid times 8 (f8).
      sample: draw codes from softmax(logits), as the official GumbelVQ does even in evaluation;
        False = the most probable code.
      path: file or workdir of its weights, 'random' = noise, for tests.
    """

    kind: ClassVar[str] = "codes"
    decodes: ClassVar[bool] = True

    network: VQGANModel = VQGANModel()
    size: Size | None = None
    sample: bool = False
    path: Path | None = None

    def check(self, key: str, encoder: Student) -> None:
        net, where = self.network, f"{key}.network"
        if net.kind == "gumbel" and net.embed_dim != net.z_channels:
            raise ConfigError(
                f"{where}.embed_dim: {net.embed_dim}, but kind 'gumbel' reads z_channels = "
                f"{net.z_channels} numbers; allowed: the same"
            )
        if bad := [net.ch * m for m in net.ch_mult if net.ch * m % GROUPS]:
            raise ConfigError(f"{where}.ch: gives width {bad[0]}; allowed: multiples of {GROUPS}")
        if self.sample and net.kind != "gumbel":
            raise ConfigError(
                f"{key}.sample: True, but {where}.kind {net.kind!r} has no logits; allowed: False, "
                "or kind 'gumbel'"
            )
        target_view(key, self.size, net.step, encoder, "bicubic")

    def width(self, encoder: Student) -> int:
        return self.network.n_embed

    def views(self, encoder: Student) -> dict[str, View]:
        return target_view("target", None, self.network.step, encoder, "bicubic")

    def init_frozen(self, key: Key, encoder: Student) -> PyTree:
        images = jnp.zeros((1, self.network.step, self.network.step, 3))
        return {"vqgan": self.network.init(key, images)["params"]}

    def encode(self, frozen: PyTree, images: jax.Array, encoder: Student) -> jax.Array:
        """Return vectors before quantization, [b n d] in raster order."""
        return self.apply(frozen, "encode", normalize(images, HALF, HALF))

    def read(self, frozen: PyTree, hidden: jax.Array, key: Key | None = None) -> jax.Array:
        """Return codes, int32 [b k].

        Args:
          key: needed for `sample`.

        Raises:
          ValueError: the codes are to be drawn and there is no key.
        """
        scores = self.apply(frozen, "scores", hidden)
        if not self.sample:
            return scores.argmax(-1).astype(jnp.int32)
        if key is None:
            raise ValueError("VQGAN.read: sample=True draws the codes and needs a key")
        return jax.random.categorical(key, scores).astype(jnp.int32)

    def decode(self, frozen, values, encoder, colors) -> jax.Array:
        """Return pictures, float32 [b h w c] in [0, 1], of the codes of all patches [b n]."""
        images = self.apply(frozen, "decode", values, encoder.grid)
        return jnp.clip((images + 1) / 2, 0, 1)

    def apply(self, frozen: PyTree, method: str, *args: Any) -> Any:
        """Return what one method of the network returns, with its frozen parameters."""
        return self.network.apply({"params": frozen["vqgan"]}, *args, method=method)
