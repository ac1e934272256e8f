"""Linear maps from tokens to predictions: of pretraining methods, and of published classifiers."""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from mimjax.models.layers import Dtype, InitScheme, LayerNorm, dense, kernel_init
from mimjax.task import Features, Network


class LinearHead(Network):
    """A linear layer.

    Attributes:
      out: derived by the method, the width of its target.
      init_scheme: see `kernel_init`; BEiT draws it as all its layers.
    """

    out: int = 0
    init_scheme: InitScheme = "beit"
    dtype: Dtype = jnp.float32

    DERIVED = ("out",)

    @nn.compact
    def __call__(self, x: Float[Array, "b t w"]) -> Float[Array, "b t o"]:
        return dense(self.out, "linear", self.dtype, init=kernel_init(self.init_scheme))(x)


class Classifier(nn.Module):
    """The head of a published fine-tuned or linearly probed model.

    Reads either the mean of the last block's patch tokens through a norm of its own (MAE and
    ConvMAE with --global_pool, BootMAE, BEiT, CAE), or the first token after the encoder's norm:
    CLS, or for ConvMAE, which has none, the top left patch (its --cls_token). A linear probe has a
    BatchNorm without parameters in front of the linear layer.

    Attributes:
      classes: outputs.
      pooled: which of the two it reads.
      probe: whether there is a BatchNorm; its running statistics are used.
    """

    classes: int
    pooled: bool = True
    probe: bool = False
    dtype: Dtype = jnp.float32

    def setup(self):
        if self.pooled:
            self.norm = LayerNorm(self.dtype)
        if self.probe:
            self.batch_norm = nn.BatchNorm(True, epsilon=1e-6, use_bias=False, use_scale=False)
        self.linear = nn.Dense(self.classes)

    def __call__(self, features: Features) -> Float[Array, "b c"]:
        """Logits in float32."""
        x = self.read(features).astype(jnp.float32)
        return self.linear(self.batch_norm(x) if self.probe else x)

    def read(self, features: Features) -> Float[Array, "b d"]:
        """What the head sees of an image."""
        if not self.pooled:
            return features.tokens[:, 0]
        return self.norm(features.read("mean", layer=-1))
