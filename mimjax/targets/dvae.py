"""Codes of a discrete VAE trained by `configs/dvae.py`, or of CAE's "customized" tokenizer.

`teacher.path` names the workdir of such a run or an official file. A file may hold the encoder
alone (all that a target needs); then `with_decoder` is to be False and nothing can be decoded.
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from einops import rearrange

from mimjax import errors, patches, values
from mimjax.errors import ConfigError
from mimjax.models.dvae import DVAEDecoder, DVAEEncoder
from mimjax.models.layers import Resample
from mimjax.rng import named
from mimjax.targets.base import Student, Target, target_image, target_view
from mimjax.task import Batch, Key, PyTree, Reader, View
from mimjax.values import Mean, Size, Std


@dataclasses.dataclass(frozen=True)
class DVAE(Target):
    """The code with the largest logit at each token.

    Attributes:
      encoder, decoder: as in the config that trained them; their defaults are CAE's sizes.
      size: (height, width) of the view; None = 2^num_layers pixels per patch of the student.
      resample: "lanczos": CAE's `--second_interpolation` holds for every tokenizer.
      mean, std: 0.5 (CAE's furnace/datasets.py for "customized").
      with_decoder: whether the decoder is read too, for pictures; `decodes` follows it.
    """

    discrete: ClassVar[bool] = True
    decodes: ClassVar[bool] = True

    encoder: DVAEEncoder = DVAEEncoder()
    decoder: DVAEDecoder = DVAEDecoder()
    size: Size | None = None
    resample: Resample = "lanczos"
    mean: Mean = patches.HALF
    std: Std = patches.HALF
    with_decoder: bool = True

    def __post_init__(self):
        values.check(self, "method.target")
        errors.statistics("method.target", self.mean, self.std)
        decoder = self.decoder.matching(self.encoder, len(self.mean))
        object.__setattr__(self, "decoder", decoder)  # derived fields of a frozen dataclass
        object.__setattr__(self, "decodes", self.with_decoder)

    @property
    def channels(self) -> int:
        return len(self.mean)

    def out_dim(self, encoder: Student) -> int:
        return self.encoder.vocab

    def views(self, encoder: Student) -> dict[str, View]:
        return target_view("method.target", self.size, self.encoder.step, encoder, self.resample)

    def init_frozen(self, key: Key, encoder: Student) -> PyTree:
        """{"encoder", "decoder"}: names and shapes of `methods.dvae.DiscreteVAE`'s parameters."""
        side, channels = self.encoder.step, len(self.mean)
        images, codes = jnp.zeros((1, side, side, channels)), jnp.zeros((1, 1, 1), jnp.int32)
        out = {"encoder": self.encoder.init(named(key, "encoder"), images)["params"]}
        if self.with_decoder:
            out["decoder"] = self.decoder.init(named(key, "decoder"), codes)["params"]
        return out

    def readers(self) -> dict[str, Reader]:
        names = ("encoder", "decoder") if self.with_decoder else ("encoder",)
        return {name: Reader(getattr(self, name), self.mean, self.std) for name in names}

    def encode(self, frozen: PyTree, batch: Batch, encoder: Student) -> jax.Array:
        """[b n d] in raster order, before the last convolution."""
        images = patches.normalize(target_image(batch), self.mean, self.std)
        x: Any = self.encoder.apply({"params": frozen["encoder"]}, images, method="features")
        return rearrange(x, "b h w d -> b (h w) d")

    def read(self, frozen: PyTree, hidden: jax.Array, key: Key | None = None) -> jax.Array:
        """int32 [b k]; `key` is not used, nothing is drawn."""
        logits: Any = self.encoder.apply({"params": frozen["encoder"]}, hidden, method="logits")
        return logits.argmax(-1).astype(jnp.int32)

    def decode(
        self, frozen: PyTree, values: jax.Array, encoder: Student, image: jax.Array | None = None
    ) -> jax.Array:
        """Codes [b n] to images [b h w c] in [0, 1], 2^num_layers pixels per code."""
        if frozen.get("decoder") is None:
            raise ConfigError("method.target.with_decoder: False; allowed for pictures: True")
        height, width = encoder.grid
        codes = rearrange(values, "b (h w) -> b h w", h=height, w=width)
        images: Any = self.decoder.apply({"params": frozen["decoder"]}, codes)
        return jnp.clip(images * jnp.asarray(self.std) + jnp.asarray(self.mean), 0.0, 1.0)
