"""Pictures of attention: probabilities in, images under a heat map with a contour out.

The contour is that of CAE's Figure 6: it surrounds the smallest set of patches that keeps a share
of the attention. The colors are a map of matplotlib, which is imported when one is drawn. This
module reads no file and runs no network; `models.attention_maps` computes the probabilities.
"""

from __future__ import annotations

import numpy as np

from mimjax.plots import reconstructions

COLORS = ((24, 16, 92), (138, 26, 122), (236, 104, 60), (252, 236, 110))  # RGB, from none to most
CONTOUR = (0, 230, 255)
BLEND = 0.6  # weight of the heat map; the rest is the image in gray


def on_patches(maps: np.ndarray, queries: str, num_prefix: int) -> np.ndarray:
    """Return the attention that patches receive from one query or from all, [... n].

    Args:
      maps: attention probabilities, [... t t], query first.
      queries: "cls" (the first token) or "mean" (the mean of all tokens).
      num_prefix: tokens before the patches; the attention that they receive is left out.
    """
    rows = maps[..., 0, :] if queries == "cls" else maps.mean(-2)
    return rows[..., num_prefix:]


def by_name(
    shares: np.ndarray, layers: list[int], heads: list[int] | None
) -> dict[str, np.ndarray]:
    """Return maps by the name of their column, each [b n], with sum 1 per image.

    Args:
      shares: attention on patches, [l b h n].
      layers: numbers of the l blocks.
      heads: numbers of the heads to show; None = the mean of all heads.
    """
    out = {}
    for layer, share in zip(layers, shares, strict=True):
        if heads is None:
            out[f"block {layer}"] = share.mean(1)
        else:
            out |= {f"block {layer} head {head}": share[:, head] for head in heads}
    return {name: x / x.sum(-1, keepdims=True) for name, x in out.items()}


def smallest_set(share: np.ndarray, mass: float) -> np.ndarray:
    """Return the fewest patches whose attention sums to a share of the whole, bool [b n].

    Args:
      share: attention on patches, [b n].
      mass: the share, 0 to 1.
    """
    order = np.argsort(-share, axis=-1, kind="stable")
    total = np.cumsum(np.take_along_axis(share, order, -1), axis=-1, dtype=np.float64)
    enough = mass * total[:, -1:] * (1 - 1e-6)  # rounding of the sum must not add a patch
    kept = np.zeros(share.shape, bool)
    # a patch is needed while those before it do not suffice
    np.put_along_axis(kept, order, np.pad(total, ((0, 0), (1, 0)))[:, :-1] < enough, -1)
    return kept


def overlay(
    images: np.ndarray, share: np.ndarray, grid: tuple[int, int], mass: float = 0.0
) -> np.ndarray:
    """Return the images in gray under the colors of their maps.

    Args:
      images: uint8 [b h w 3].
      share: attention on patches in raster order, [b n]; each map's largest value gets the
        brightest color.
      grid: (height, width) in patches.
      mass: share of the attention inside the contour; 0 = no contour.

    Returns:
      uint8 [b h w 3].
    """
    from matplotlib.colors import LinearSegmentedColormap

    _, h, w, _ = images.shape
    fill = lambda x: _enlarge(x.reshape(-1, *grid), h // grid[0], w // grid[1])
    level = fill(share / share.max(-1, keepdims=True))
    colors = LinearSegmentedColormap.from_list("attention", np.divide(COLORS, 255))
    heat = 255 * colors(level)[..., :3]
    out = BLEND * heat + (1 - BLEND) * images.mean(-1, keepdims=True)
    out = (out + 0.5).astype(np.uint8)
    if mass:
        out[contour(fill(smallest_set(share, mass)), max(1, min(h, w) // 64))] = CONTOUR
    return out


def contour(inside: np.ndarray, width: int) -> np.ndarray:
    """Return the outermost `width` pixels of regions, bool [b h w].

    Args:
      inside: the regions, bool [b h w]; a region that touches the image's border ends there.
      width: of the contour, in pixels.
    """
    padded = np.pad(inside, ((0, 0), (width, width), (width, width)))
    core = inside.copy()
    for shift in (-width, width):
        for axis in (1, 2):
            core &= np.roll(padded, shift, axis)[:, width:-width, width:-width]
    return inside & ~core


def columns(
    images: np.ndarray, shares: dict[str, np.ndarray], grid: tuple[int, int], mass: float
) -> dict[str, np.ndarray]:
    """Return the columns of a picture: the originals, and one per map.

    Small images are enlarged first, so that the contour is thin compared with a patch.

    Args:
      images: uint8 [b h w 3].
      shares: maps by name, each [b n].
      grid, mass: see `overlay`.
    """
    zoom = reconstructions.zoom(*images.shape[1:3])
    images = _enlarge(images, zoom, zoom)
    maps = {name: overlay(images, share, grid, mass) for name, share in shares.items()}
    return {"original": images, **maps}


def caption(queries: str, heads: list[int] | None, mass: float) -> str:
    """Return the caption under the columns: whose attention they show, and what the contour is."""
    whose = "CLS" if queries == "cls" else "all tokens, averaged,"
    text = f"Attention of {whose} to the patches of the full image"
    text += ", mean of the heads" if heads is None else ""
    text += ". Each map's largest value is the brightest."
    return text + (f" Contour: the fewest patches with {100 * mass:g} % of it." if mass else "")


def _enlarge(images: np.ndarray, rows: int, cols: int) -> np.ndarray:
    """Return [b h w ...] with each pixel repeated to a tile of `rows` x `cols`."""
    return images.repeat(rows, 1).repeat(cols, 2)
