"""Attentive probes: learned queries pool an encoder's tokens before a linear layer."""

from __future__ import annotations

from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from mimjax.errors import ConfigError
from mimjax.models.layers import torch_uniform
from mimjax.networks import Student
from mimjax.transfer.head import BatchNorm, Head
from mimjax.values import Count, Index


class EfficientProbe(Head):
    """Efficient probing (EP): each query pools a slice of the values' channels by a map of its own.

    Keys are the raw tokens. There is no key projection and nothing is averaged: the results of the
    queries stand side by side. That is the code's form; its README describes another one.

    Attributes:
      pool: "patches", or "all" with the class token, where pretraining had a loss on it ("ep_all").
      layer: the last block without the final norm, in whose place the BatchNorm stands.
      queries: their number, Q.
      d_out: the values' width is the tokens' width over d_out.
    """

    pool: Literal["patches", "all"] = "patches"
    layer: Index | None = -1
    queries: Count = 32
    d_out: Count = 1

    def check(self, key: str, encoder: Student) -> None:
        super().check(key, encoder)
        width = encoder.width if self.layer is not None else encoder.out_width
        if width % self.d_out:
            raise ConfigError(f"{key}.d_out: {self.d_out}; allowed: divisors of the width {width}")
        if width // self.d_out % self.queries:
            raise ConfigError(
                f"{key}.queries: {self.queries}; allowed: divisors of {width // self.d_out}, the "
                "width of the values"
            )

    @nn.compact
    def __call__(self, x: Float[Array, "b n d"], train: bool = False) -> Float[Array, "b c"]:
        x = x.astype(jnp.float32)
        width, values = x.shape[-1], x.shape[-1] // self.d_out
        query = self.param("query", nn.initializers.normal(0.02), (self.queries, width))
        attention = jax.nn.softmax(jnp.einsum("qd,bnd->bqn", query * width**-0.5, x), axis=-1)
        v = nn.Dense(values, use_bias=False, kernel_init=torch_uniform(width), name="value")(x)
        v = v.reshape(*v.shape[:2], self.queries, values // self.queries)
        pooled = jnp.einsum("bqn,bnqk->bqk", attention, v).reshape(len(x), values)
        init = torch_uniform(values)
        classifier = nn.Dense(self.classes, kernel_init=init, bias_init=init, name="linear")
        return classifier(BatchNorm(name="batch_norm")(pooled, train))
