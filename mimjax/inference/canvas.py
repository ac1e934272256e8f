"""Values of patches laid out as images: what the columns of a picture are painted on."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from mimjax.task import ByPlace, Prepared, Student, gather_rows

GRAY = 0.5  # of patches of which nothing is known


class Canvas:
    """The images of a prepared batch and the places of their patches.

    Attributes:
      prepared: ids, weights and true values.
      original: the images, float32 [b h w c] in [0, 1].
      hidden: the patches that are masked, bool [b n].
    """

    def __init__(
        self, encoder: Student, prepared: Prepared, mean: tuple[float, ...], std: tuple[float, ...]
    ):
        self.prepared, self.encoder = prepared, encoder
        self.original = in_colors(prepared.image, mean, std)
        shape = len(prepared.image), encoder.num_patches
        rows = jnp.arange(shape[0])[:, None]
        masked = jnp.zeros(shape, bool).at[rows, prepared.ids_m].set(True)
        self.hidden = masked if prepared.mask is None else prepared.mask

    def spread(self, values: jax.Array) -> jax.Array:
        """Return one value or color per patch in raster order, [b n c], as images [b h w c]."""
        grid = values.reshape(len(values), *self.encoder.grid, -1)
        shape = (len(values), *self.encoder.image_size, grid.shape[-1])
        return jax.image.resize(grid, shape, "nearest")

    def fit(self, images: jax.Array) -> jax.Array:
        """Return images at the size of the originals."""
        return jax.image.resize(images, (*self.original.shape[:3], images.shape[-1]), "nearest")

    def keep(self, patches: jax.Array, images: jax.Array, other: Any = GRAY) -> jax.Array:
        """Return `images` at `patches`, bool [b n], and `other` elsewhere."""
        return jnp.where(self.spread(patches.astype(jnp.float32)[..., None]) > 0, images, other)

    def lay(
        self, values: ByPlace, rows: ByPlace, start: jax.Array | None = None
    ) -> tuple[jax.Array, jax.Array]:
        """Lay values of visible and masked patches out by raster.

        Args:
          values: by place, [b k ...]; class tokens have no place in an image.
          rows: see `Known`.
          start: what stands at other patches and at those of weight 0, [b n ...]; None = zeros, and
            weights do not matter.

        Returns:
          The values of all patches, [b n ...], and which of them were laid, bool [b n].
        """
        p, out = self.prepared, start
        laid, images = jnp.zeros_like(self.hidden), jnp.arange(len(self.hidden))[:, None]
        for place in ("visible", "masked"):
            if place not in values:
                continue
            x, ids = values[place], p.ids_v if place == "visible" else p.ids_m
            counts = jnp.ones(ids.shape, bool)
            if place == "masked" and start is not None and p.weight is not None:
                counts = p.weight > 0
            if place in rows:
                ids, counts = gather_rows(ids, rows[place]), gather_rows(counts, rows[place])
            if out is None:
                out = jnp.zeros((*self.hidden.shape, *x.shape[2:]), x.dtype)
            wide = counts.reshape(*counts.shape, *(1,) * (x.ndim - 2))
            out = out.at[images, ids].set(jnp.where(wide, x, gather_rows(out, ids)))
            laid = laid.at[images, ids].set(counts | gather_rows(laid, ids))
        return (self.hidden if out is None else out), laid


def in_colors(images: jax.Array, mean: Any, std: Any) -> jax.Array:
    """Return normalized images as colors in [0, 1]."""
    return jnp.clip(images * jnp.asarray(std) + jnp.asarray(mean), 0, 1)
