"""MCMAE / ConvMAE: a masked autoencoder whose encoder begins with masked convolutions.

Gao et al. 2022, arXiv:2205.03892; defaults are the official code's at Base. One mask on the grid
of patches serves all scales. Only masked patches are predicted, by MAE's decoder without CLS.
FastConvMAE, the authors' shorter recipe, learns from four complementary sets of visible patches of
each image at once; here these are four rows of the batch, which cost the stages no more than one
pass over the whole image, because masked positions are left out.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from mimjax import errors
from mimjax.methods.mae import MAE
from mimjax.models.conv_vit import ConvViT
from mimjax.rng import named
from mimjax.task import Batch, Key, PyTree


@dataclasses.dataclass(frozen=True)
class MCMAE(MAE):
    """Masked convolution meets masked autoencoders.

    Attributes:
      encoder: the hierarchical network. The decoder's MLP ratio is that of its first stage, as in
        the code (of which Base is the only size).
      masking: random 75 % of the patches that the last stage sees (paper section 3.2).
      fast: FastConvMAE: every image is seen with complementary visible sets, 4 at ratio 0.75, in
        training; evaluation reads the first alone.
    """

    encoder: ConvViT = ConvViT()  # pyright: ignore[reportIncompatibleVariableOverride]
    fast: bool = False

    def __post_init__(self):
        super().__post_init__()
        ratio = self.encoder.stage_mlp_ratios[0]
        decoder = self.decoder.clone(prefix=self.encoder.num_prefix, mlp_ratio=ratio)
        object.__setattr__(self, "decoder", decoder)  # derived fields of a frozen dataclass
        visible = self.encoder.num_patches - self.num_masked
        if self.fast and (self.masking.kind != "random" or self.num_masked % visible):
            raise errors.ConfigError(
                f"method.fast: masking {self.masking.kind} shows {visible} of "
                f"{self.encoder.num_patches} patches; allowed: random masking whose visible sets "
                "fill the image (ratio 0.75 of a number of patches divisible by 4)"
            )

    def prepare(
        self, ema: PyTree, frozen: PyTree, batch: Batch, key: Key, step, train: bool
    ) -> Batch:
        if self.fast and train:
            batch = self.all_views(batch, named(key, "views"))
        return super().prepare(ema, frozen, batch, key, step, train)

    def all_views(self, batch: Batch, key: Key) -> Batch:
        """Images and masks of all views, [b k ...] flattened: rows of an image stay together.

        The first view is the given mask's; the masked patches are dealt out to the others.
        """
        mask = batch["mask"]
        n, visible = mask.shape[1], mask.shape[1] - self.num_masked
        # the given view first, then the rest in random order
        order = jnp.argsort(mask + jax.random.uniform(key, mask.shape) * 0.5, axis=1)
        rank = jnp.argsort(order, axis=1)
        views = rank[:, None] // visible != jnp.arange(n // visible)[:, None]
        image = jnp.repeat(batch["image"], n // visible, axis=0)
        return {"image": image, "mask": views.reshape(-1, n)}
