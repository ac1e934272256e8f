"""Arithmetic of images and patches: normalization and its inverse, patchify, ids of patches.

Images arrive as uint8 and are normalized on the device. A patch is flattened in the order (row,
column, channel); pixel targets are patches normalized by their own statistics in one of the
published ways, or projected on a PCA basis.
"""

from __future__ import annotations

from typing import Any, Literal

import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jaxtyping import Array, Bool, Float, Int

from mimjax.losses import standardize

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # MAE
HALF = (0.5, 0.5, 0.5)  # BootMAE: mean = std = 0.5
PatchNorm = Literal["none", "patch", "channel"]  # see `normalize_patches`


def normalize(images, mean, std) -> Float[Array, "b h w c"]:
    """Return (x / 255 - mean) / std of uint8 images [b h w c], in float32.

    Floating-point images are taken as normalized already and returned as they are.
    """
    if jnp.issubdtype(images.dtype, jnp.floating):
        return images
    return (images.astype(jnp.float32) / 255.0 - jnp.asarray(mean)) / jnp.asarray(std)


def normalize_patches(
    patches: Float[Array, "b n d"], norm: str, channels: int = 3
) -> Float[Array, "b n d"]:
    """Return patches normalized by their own statistics, float32.

    Args:
      patches: values of each patch in (row, column, channel) order.
      norm: "none"; "patch" = over all values, sample variance, eps 1e-6 (MAE's code); "channel" =
        per color channel, population variance, eps 1e-5 (BootMAE's code).
    """
    if norm == "patch":
        return standardize(patches, eps=1e-6, ddof=1)
    if norm == "channel":
        x = rearrange(patches, "b n (p c) -> b n c p", c=channels)
        return rearrange(standardize(x, eps=1e-5), "b n c p -> b n (p c)")
    return patches.astype(jnp.float32)


def restore_patches(pred: Any, patches: Any, norm: str, channels: int = 3) -> Any:
    """Return predictions in target space as pixels, with the true statistics of each patch.

    The model does not know these statistics: a picture made with them must say so.

    Args:
      pred: [b n d] in the space of `normalize_patches`, numpy or jax.
      patches: the true patches [b n d].
    """
    if norm == "none":
        return pred
    c = channels if norm == "channel" else 1
    true = rearrange(patches, "b n (p c) -> b n c p", c=c)
    ddof, eps = (1, 1e-6) if norm == "patch" else (0, 1e-5)
    std = (true.var(-1, keepdims=True, ddof=ddof) + eps) ** 0.5
    out = rearrange(pred, "b n (p c) -> b n c p", c=c) * std + true.mean(-1, keepdims=True)
    return rearrange(out, "b n c p -> b n (p c)")


def unpatchify(patches: Any, grid: tuple[int, int], patch: int) -> Any:
    """Return flat patches [b n d] as images [b h w c], numpy or jax; the inverse of `patchify`."""
    return rearrange(
        patches, "b (h w) (p q c) -> b (h p) (w q) c", h=grid[0], w=grid[1], p=patch, q=patch
    )


def pca_basis(patches: np.ndarray, components: int) -> dict[str, np.ndarray]:
    """Compute mean and leading eigenvectors of patches [k d] (the MAE slides' target "PCA").

    Returns:
      {"mean": float32 [d], "basis": float32 [d components]}.
    """
    patches = patches.astype(np.float64)
    mean = patches.mean(0)
    _, vectors = np.linalg.eigh(np.cov(patches.T))
    basis = vectors[:, ::-1][:, :components]
    # An eigenvector's sign is arbitrary; fix it so that a restart gets the same target.
    basis = basis * np.sign(basis[np.abs(basis).argmax(0), np.arange(basis.shape[1])])
    return {"mean": mean.astype(np.float32), "basis": basis.astype(np.float32)}


def split(mask: Bool[Array, "b n"], num_masked: int) -> tuple[Int[Array, "b v"], Int[Array, "b m"]]:
    """Return the ids of visible and of masked patches, both in raster order.

    A stable argsort of each row of `mask` (True = masked); devices need not communicate.
    """
    order = jnp.argsort(mask, axis=1, stable=True)
    num_visible = mask.shape[1] - num_masked
    return order[:, :num_visible], order[:, num_visible:]


def mask_of(ids: Int[Array, "b m"], n: int) -> Bool[Array, "b n"]:
    """Return the mask of n patches that is True at `ids`; devices need not communicate."""
    return (ids[:, :, None] == jnp.arange(n)).any(axis=1)


def patchify(images: Float[Array, "b h w c"], patch: int) -> Float[Array, "b n d"]:
    """Return images as flat patches in raster order; inside a patch (row, column, channel)."""
    return rearrange(images, "b (h p) (w q) c -> b (h w) (p q c)", p=patch, q=patch)
