"""Codes of a discrete VAE trained by `configs/dvae.py`, or of CAE's "customized" tokenizer.

`path` names the workdir of such a run or an official file. A file may hold the encoder alone, which
is all that a target needs; then `with_decoder` is to be False and nothing can be decoded.
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from einops import rearrange

from mimjax import errors, patches
from mimjax.errors import ConfigError
from mimjax.models.dvae import DVAEDecoder, DVAEEncoder
from mimjax.models.layers import Resample
from mimjax.rng import named
from mimjax.targets.base import Path, Student, Target, target_view
from mimjax.task import Key, PyTree, Reader, View
from mimjax.values import Mean, Size, Std


@dataclasses.dataclass(frozen=True)
class DVAE(Target):
    """The code with the largest logit at each token.

    `encoder`, `decoder`, `mean` and `std` are filled in from the workdir that `path` names before a
    run begins. What is still None then, as with a file or random weights, is CAE's.

    Attributes:
      encoder, decoder: sizes, as in the config that trained them.
      size: (height, width) of the view; None = 2^num_layers pixels per patch of the student.
      resample: "lanczos": CAE's `--second_interpolation` holds for every tokenizer.
      mean, std: of its images, per channel; CAE's are 0.5 (furnace/datasets.py, "customized").
      with_decoder: whether the decoder is read too, for pictures; `decodes` follows it.
      path: file or workdir of its weights, 'random' = noise, for tests.
    """

    kind: ClassVar[str] = "codes"
    standard: ClassVar[dict[str, Any]] = {
        "encoder": DVAEEncoder(),
        "decoder": DVAEDecoder(),
        "mean": patches.HALF,
        "std": patches.HALF,
    }
    brings: ClassVar[dict[str, str]] = {name: name for name in standard}

    encoder: DVAEEncoder | None = None
    decoder: DVAEDecoder | None = None
    size: Size | None = None
    resample: Resample = "lanczos"
    mean: Mean | None = None
    std: Std | None = None
    with_decoder: bool = True
    path: Path | None = None

    @property
    def decodes(self) -> bool:
        return self.with_decoder

    @property
    def statistics(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and standard deviation of its images."""
        mean = self.standard["mean"] if self.mean is None else self.mean
        return mean, self.standard["std"] if self.std is None else self.std

    @property
    def tokenizer(self) -> DVAEEncoder:
        """The encoder."""
        return self.standard["encoder"] if self.encoder is None else self.encoder

    @property
    def matched(self) -> DVAEDecoder:
        """The decoder with the sizes that the encoder and the channels of the images fix."""
        decoder = self.standard["decoder"] if self.decoder is None else self.decoder
        return decoder.matching(self.tokenizer, len(self.statistics[0]))

    def check(self, key: str, encoder: Student) -> None:
        errors.statistics(key, *self.statistics)
        target_view(key, self.size, self.tokenizer.step, encoder, self.resample)

    def channels(self, encoder: Student) -> int:
        return len(self.statistics[0])

    def width(self, encoder: Student) -> int:
        return self.tokenizer.vocab

    def views(self, encoder: Student) -> dict[str, View]:
        step, channels = self.tokenizer.step, self.channels(encoder)
        return target_view("target", None, step, encoder, self.resample, channels)

    def init_frozen(self, key: Key, encoder: Student) -> PyTree:
        """Return random weights, {"encoder", "decoder"} as `methods.dvae.DiscreteVAE` has them."""
        side, channels = self.tokenizer.step, self.channels(encoder)
        images, codes = jnp.zeros((1, side, side, channels)), jnp.zeros((1, 1, 1), jnp.int32)
        out = {"encoder": self.tokenizer.init(named(key, "encoder"), images)["params"]}
        if self.with_decoder:
            out["decoder"] = self.matched.init(named(key, "decoder"), codes)["params"]
        return out

    def readers(self) -> dict[str, Reader]:
        networks: dict[str, Any] = {"encoder": self.tokenizer}
        if self.with_decoder:
            networks["decoder"] = self.matched
        return {name: Reader(net, *self.statistics) for name, net in networks.items()}

    def encode(self, frozen: PyTree, images: jax.Array, encoder: Student) -> jax.Array:
        """Return vectors [b n d] in raster order, before the last convolution."""
        images = patches.normalize(images, *self.statistics)
        x: Any = self.tokenizer.apply({"params": frozen["encoder"]}, images, method="features")
        return rearrange(x, "b h w d -> b (h w) d")

    def read(self, frozen: PyTree, hidden: jax.Array, key: Key | None = None) -> jax.Array:
        """Return codes, int32 [b k]; nothing is drawn, so that `key` is not used."""
        logits: Any = self.tokenizer.apply({"params": frozen["encoder"]}, hidden, method="logits")
        return logits.argmax(-1).astype(jnp.int32)

    def decode(self, frozen, values, encoder, colors) -> jax.Array:
        """Return images, float32 [b h w c] in [0, 1], of codes [b n]; 2^num_layers pixels each."""
        if frozen.get("decoder") is None:
            raise ConfigError("DVAE.with_decoder: False; allowed for pictures: True")
        height, width = encoder.grid
        codes = rearrange(values, "b (h w) -> b h w", h=height, w=width)
        images: Any = self.matched.apply({"params": frozen["decoder"]}, codes)
        mean, std = self.statistics
        return jnp.clip(images * jnp.asarray(std) + jnp.asarray(mean), 0.0, 1.0)
