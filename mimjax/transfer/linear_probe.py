"""Linear probes: a linear layer on one vector of each image, behind a BatchNorm.

The BatchNorm without scale and bias is that of MAE's, BootMAE's, CAE's, MCMAE's and the
efficient-probing code; CAPI's probes have none. What is read differs: see `configs/linear_probe`.
"""

from __future__ import annotations

from typing import Any, Literal

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from mimjax.models.layers import normalize
from mimjax.transfer.head import BN_EPS, Affine, BatchNorm, Head
from mimjax.values import Positive


class LinearProbe(Head):
    """[LayerNorm without parameters,] BatchNorm without parameters, linear layer.

    Attributes:
      pool: which vector is read: "cls" (MAE, CAE), "mean" of the patch tokens (BootMAE), "first",
        the first token whichever it is (MCMAE's code reads the top left patch so), or "cls_mean",
        both side by side (CAPI).
      layer_norm: whether the vector is normalized first. BootMAE's and MCMAE's `fc_norm` has no
        weights in a pretrained file and is not trained, so that it is a norm without parameters.
      batch_norm: whether there is a BatchNorm (CAPI: False).
      init_std: of the layer's weights; its biases start at zero (CAPI: 0.02). The codes truncate
        at +-2, which no number reaches.
    """

    pool: Literal["cls", "mean", "first", "cls_mean"] = "cls"
    layer_norm: bool = False
    batch_norm: bool = True
    init_std: Positive = 0.01  # `trunc_normal_(head.weight, std=0.01)` of main_linprobe.py (MAE)

    def affine(self, params: Any, stats: Any) -> Affine:
        kernel, bias = params["linear"]["kernel"], params["linear"]["bias"]
        if self.batch_norm:  # its running statistics, as a part of the linear layer
            mean, var = (stats["batch_norm"][name] for name in ("mean", "var"))
            kernel = kernel / jnp.sqrt(var + BN_EPS)[:, None]
            bias = bias - mean @ kernel
        width = len(kernel)
        plain = {"scale": jnp.ones(width), "bias": jnp.zeros(width)}
        return Affine({"kernel": kernel, "bias": bias}, plain if self.layer_norm else {})

    @nn.compact
    def __call__(self, x: Float[Array, "b d"], train: bool = False) -> Float[Array, "b c"]:
        x = x.astype(jnp.float32)
        if self.layer_norm:
            x = normalize(x)
        if self.batch_norm:
            x = BatchNorm(name="batch_norm")(x, train)
        init = nn.initializers.normal(self.init_std)
        return nn.Dense(self.classes, kernel_init=init, name="linear")(x)
