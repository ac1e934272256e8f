"""Pictures of attention: probabilities in, images with a colored layer and a contour out.

The contour is that of CAE's Figure 6: the smallest set of patches that keeps a share of the
attention. Reads no file and runs no network.
"""

from __future__ import annotations

import numpy as np

from mimjax.plots import reconstructions

COLORS = ((24, 16, 92), (138, 26, 122), (236, 104, 60), (252, 236, 110))  # from none to most
CONTOUR = (0, 230, 255)
BLEND = 0.6  # of the colors, the rest is the image in gray


def on_patches(maps: np.ndarray, queries: str, num_prefix: int) -> np.ndarray:
    """Attention on patches from one query or from all, [... t t] -> [... n].

    Args:
      queries: "cls" (the first token) or "mean" (of all tokens).
      num_prefix: tokens before the patches; what goes to them is left out.
    """
    rows = maps[..., 0, :] if queries == "cls" else maps.mean(-2)
    return rows[..., num_prefix:]


def by_name(
    shares: np.ndarray, layers: list[int], heads: list[int] | None
) -> dict[str, np.ndarray]:
    """Maps by the name of their column, each [b n] with sum 1 per image.

    Args:
      shares: [l b h n], for each of `layers`.
      heads: numbers of the wanted ones; None = the mean of all.
    """
    out = {}
    for layer, share in zip(layers, shares, strict=True):
        if heads is None:
            out[f"block {layer}"] = share.mean(1)
        else:
            out |= {f"block {layer} head {head}": share[:, head] for head in heads}
    return {name: x / x.sum(-1, keepdims=True) for name, x in out.items()}


def smallest_set(share: np.ndarray, mass: float) -> np.ndarray:
    """The fewest patches that hold `mass` of each row of `share` [b n], bool [b n]."""
    order = np.argsort(-share, axis=-1, kind="stable")
    held = np.cumsum(np.take_along_axis(share, order, -1), axis=-1, dtype=np.float64)
    enough = mass * held[:, -1:] * (1 - 1e-6)  # the rounding of a sum asks for no patch more
    kept = np.zeros(share.shape, bool)
    # a patch is needed while those before it do not suffice
    np.put_along_axis(kept, order, np.pad(held, ((0, 0), (1, 0)))[:, :-1] < enough, -1)
    return kept


def overlay(
    images: np.ndarray, share: np.ndarray, grid: tuple[int, int], mass: float = 0.0
) -> np.ndarray:
    """The images in gray under the colors of their maps.

    Args:
      images: uint8 [b h w 3].
      share: [b n], patches in raster order; each map's largest value gets the brightest color.
      mass: share of the attention inside the contour; 0 = no contour.

    Returns:
      uint8 [b h w 3].
    """
    _, h, w, _ = images.shape
    fill = lambda x: _enlarge(x.reshape(-1, *grid), h // grid[0], w // grid[1])
    level = fill(share / share.max(-1, keepdims=True))
    stops = np.linspace(0, 1, len(COLORS))
    heat = np.stack([np.interp(level, stops, c) for c in np.transpose(COLORS)], axis=-1)
    out = BLEND * heat + (1 - BLEND) * images.mean(-1, keepdims=True)
    out = (out + 0.5).astype(np.uint8)
    if mass:
        out[contour(fill(smallest_set(share, mass)), max(1, min(h, w) // 64))] = CONTOUR
    return out


def contour(inside: np.ndarray, width: int) -> np.ndarray:
    """The outermost `width` pixels of `inside`, bool [b h w]; the image's border closes it."""
    padded = np.pad(inside, ((0, 0), (width, width), (width, width)))
    core = inside.copy()
    for shift in (-width, width):
        for axis in (1, 2):
            core &= np.roll(padded, shift, axis)[:, width:-width, width:-width]
    return inside & ~core


def columns(
    images: np.ndarray, shares: dict[str, np.ndarray], grid: tuple[int, int], mass: float
) -> dict[str, np.ndarray]:
    """The originals and one column per map; small images are enlarged first, for the contour."""
    zoom = reconstructions.zoom(*images.shape[1:3])
    images = _enlarge(images, zoom, zoom)
    maps = {name: overlay(images, share, grid, mass) for name, share in shares.items()}
    return {"original": images, **maps}


def caption(queries: str, heads: list[int] | None, mass: float) -> str:
    """What a reader of the columns must know."""
    whose = "CLS" if queries == "cls" else "all tokens, averaged,"
    text = f"Attention of {whose} to the patches of the full image"
    text += ", mean of the heads" if heads is None else ""
    text += ". Each map's largest value is the brightest."
    return text + (f" Contour: the fewest patches with {100 * mass:g} % of it." if mass else "")


def _enlarge(images: np.ndarray, rows: int, cols: int) -> np.ndarray:
    """Each pixel of [b h w ...] as a tile."""
    return images.repeat(rows, 1).repeat(cols, 2)
