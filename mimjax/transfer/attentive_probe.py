"""Attentive probes: learned queries pool an encoder's tokens before a linear layer."""

from __future__ import annotations

from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from mimjax.errors import ConfigError
from mimjax.models.attention import attend_by_heads
from mimjax.models.layers import LayerNorm, torch_uniform
from mimjax.models.regressor import CrossAttention
from mimjax.networks import Student
from mimjax.transfer.head import BatchNorm, Head
from mimjax.values import Count, Index, Positive

CAE_BN_EPS = 1e-5  # of the BatchNorm in CAE's attentive probe; its linear one has 1e-6


class AttentiveProbe(Head):
    """CAE's attentive probe: one query attends to all tokens, then BatchNorm and a linear layer.

    Queries, keys and values have norms of their own. There is no residual and no MLP.

    Attributes:
      pool: "all", the tokens with the class token (the code), or "patches" without it.
      heads: of the attention; None = the encoder's.
      official_bn: whether evaluation normalizes by the statistics of its batch, as the released
        code does, which never tells the probe that it evaluates. What an image is classified as
        then depends on the others of its batch.
      init_std: of the last layer's weights; its biases start at zero.
    """

    pool: Literal["all", "patches"] = "all"
    heads: Count | None = None
    official_bn: bool = False
    init_std: Positive = 0.01

    @property
    def of_batch(self) -> bool:
        return self.official_bn

    def sized(self, encoder: Student, classes: int) -> AttentiveProbe:
        return self.clone(classes=classes, heads=self.heads or encoder.heads)

    def check(self, key: str, encoder: Student) -> None:
        super().check(key, encoder)
        heads, width = self.heads or encoder.heads, self.width(encoder)
        if width % heads:
            raise ConfigError(f"{key}.heads: {heads}; allowed: divisors of the width {width}")

    @nn.compact
    def __call__(self, x: Float[Array, "b n d"], train: bool = False) -> Float[Array, "b c"]:
        if self.heads is None:
            raise ValueError("heads: None; allowed: a head that `sized` returned")
        x = x.astype(jnp.float32)
        query = self.param("query", nn.initializers.zeros, (1, x.shape[-1]))
        query = jnp.broadcast_to(LayerNorm(name="norm_q")(query), (len(x), 1, x.shape[-1]))
        k, v = LayerNorm(name="norm_k")(x), LayerNorm(name="norm_v")(x)
        pooled = CrossAttention(self.heads, name="cross_attn")(query, k, v)[:, 0]
        norm = BatchNorm(CAE_BN_EPS, of_batch=self.official_bn, name="batch_norm")
        init = nn.initializers.normal(self.init_std)
        return nn.Dense(self.classes, kernel_init=init, name="linear")(norm(pooled, train))


class QueryProbe(Head):
    """CAPI's attentive probe: a learned query per head pools values, then comes a linear layer.

    There is no norm, no projection of queries or of the output, and no residual.

    Attributes:
      pool: the tokens that are read.
      head_width: numbers in each head.
      init_std: of all weights; biases start at zero. The code truncates at +-2, which no number
        reaches.
    """

    pool: Literal["patches", "all"] = "patches"
    head_width: Count = 64
    init_std: Positive = 0.02

    def check(self, key: str, encoder: Student) -> None:
        super().check(key, encoder)
        if (width := self.width(encoder)) % self.head_width:
            raise ConfigError(
                f"{key}.head_width: {self.head_width}; allowed: divisors of the width {width}"
            )

    @nn.compact
    def __call__(self, x: Float[Array, "b n d"], train: bool = False) -> Float[Array, "b c"]:
        x = x.astype(jnp.float32)
        width, init = x.shape[-1], nn.initializers.normal(self.init_std)
        query = self.param("query", init, (width,))
        k, v = jnp.split(nn.Dense(2 * width, kernel_init=init, name="kv")(x), 2, axis=-1)
        query = jnp.broadcast_to(query, (len(x), 1, width))
        pooled = attend_by_heads(query, k, v, width // self.head_width)[:, 0]
        return nn.Dense(self.classes, kernel_init=init, name="linear")(pooled)


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
        width = self.width(encoder)
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
