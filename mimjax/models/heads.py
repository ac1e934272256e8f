"""Heads of pretraining methods: a linear map from tokens to predictions."""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from mimjax.models.layers import Dtype, dense, kernel_init


class LinearHead(nn.Module):
    """A linear layer.

    Attributes:
      out: derived by the method, the width of its target.
      init_scheme: see `kernel_init`; BEiT draws it as all its layers.
    """

    out: int = 0
    init_scheme: str = "beit"
    dtype: Dtype = jnp.float32

    DERIVED = ("out",)

    @nn.compact
    def __call__(self, x: Float[Array, "b t w"]) -> Float[Array, "b t o"]:
        return dense(self.out, "linear", self.dtype, init=kernel_init(self.init_scheme))(x)
