"""Linear heads: from tokens to predictions of a pretraining method, and to published classes.

Decoders with blocks of their own stand in `models.decoders` and `models.regressor`. A classifier
here is one that somebody published beside an encoder; nothing in this file is trained on labels.
"""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from mimjax.models.layers import Dtype, InitScheme, LayerNorm, dense, kernel_init
from mimjax.task import ByPlace, Features, Predictor


class LinearHead(Predictor):
    """Linear map from tokens to predictions, [b k w] to [b k o], the same at every place.

    Attributes:
      init_scheme: see `kernel_init`; "beit" draws this layer as BEiT draws all its layers.
      out: width of the target; derived.
    """

    init_scheme: InitScheme = "beit"
    out: int = 0
    dtype: Dtype = jnp.float32

    DERIVED = ("out",)

    @nn.compact
    def __call__(self, tokens: ByPlace) -> dict[str, Float[Array, "b _ o"]]:
        """Return predictions by place from the tokens there."""
        layer = dense(self.out, "linear", self.dtype, init=kernel_init(self.init_scheme))
        return {place: layer(x) for place, x in tokens.items()}


class Classifier(nn.Module):
    """The head of a published fine-tuned or linearly probed model.

    It reads either the mean of the last block's patch tokens through a norm of its own (MAE and
    ConvMAE with --global_pool, BootMAE, BEiT, CAE), or the first token after the encoder's norm:
    CLS, or for ConvMAE, which has no CLS, the top left patch (its --cls_token). A linear probe has
    a BatchNorm without parameters in front of the linear layer.

    Attributes:
      classes: number of classes, c.
      pooled: True reads the mean of the patch tokens, False the first token.
      probe: whether there is a BatchNorm; it uses its running statistics.
      mean: without `pooled`, whether the mean of the normed patch tokens is read (timm's
        global_pool="avg" with fc_norm=False).
    """

    classes: int
    pooled: bool = True
    probe: bool = False
    mean: bool = False
    dtype: Dtype = jnp.float32

    def setup(self):
        if self.pooled:
            self.norm = LayerNorm(self.dtype)
        if self.probe:
            self.batch_norm = nn.BatchNorm(True, epsilon=1e-6, use_bias=False, use_scale=False)
        self.linear = nn.Dense(self.classes)

    def __call__(self, features: Features) -> Float[Array, "b c"]:
        """Return logits, float32."""
        x = self.read(features).astype(jnp.float32)
        return self.linear(self.batch_norm(x) if self.probe else x)

    @property
    def words(self) -> str:
        """What it reads, in words."""
        if self.pooled:
            return "a norm of the patches' mean"
        return "the mean of the normed patches" if self.mean else "the first token after the norm"

    def read(self, features: Features) -> Float[Array, "b d"]:
        """Return the vector of each image that the linear layer classifies, before a BatchNorm."""
        if not self.pooled:
            return features.read("mean") if self.mean else features.tokens[:, 0]
        return self.norm(features.read("mean", layer=-1))
