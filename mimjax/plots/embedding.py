"""Places of feature vectors in the plane, and what is drawn there. Reads no file and no flag.

t-SNE and PCA are scikit-learn's. Distances between far clusters of a t-SNE mean nothing.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from einops import rearrange
from PIL import Image

from mimjax.errors import ConfigError
from mimjax.plots import reconstructions, scatter
from mimjax.targets.colors import feature_colors

POINTS, SHOWN = 1000, 12  # points of a map; images beside their patches' colors
LEAST = 4  # points that a map needs
MOST_THUMBNAILS = 600
FROM_EACH = 16  # patches of an image, about, in a map of patches
INNER = 50  # dimensions that t-SNE works on
FEW = 2000  # points for which threads wait for each other longer than they work
COVER = 0.35  # of the map's area, by thumbnails
SIDES = 12, 64  # of a thumbnail, in pixels
WORDS = {"tsne": "t-SNE", "pca": "Two leading principal components"}
READ = {"mean": "the mean of their tokens", "cls": "their CLS tokens", "all": "their tokens"}


class Points(NamedTuple):
    """What is drawn.

    Attributes:
      vectors: float32 [n d]; for patches' colors [b p d].
      labels: int [n], -1 = none.
      images: uint8 [n h w c]: whole images, or patches.
      about: "300 images", "1,000 patches of 62 images".
    """

    vectors: np.ndarray
    labels: np.ndarray
    images: np.ndarray
    about: str


def words(pool: str, layer: str) -> str:
    """What represents images or patches: "their CLS tokens after block 3"."""
    return f"{READ[pool]} after {'the final norm' if layer == 'norm' else layer.replace('_', ' ')}"


def images_for(count: int, grid: tuple[int, int]) -> int:
    """How many images a map of `count` patches is drawn from."""
    return -(-count // min(FROM_EACH, grid[0] * grid[1]))


def gather(rows: list[Any], name: str, of: str, model: Any, count: int) -> Points:
    """Points from batches of `encoding.encode`.

    Args:
      name: of the feature; tokens for "patches".
      count: patches to draw at random from all; 0 = all, by image.

    Raises:
      ConfigError: too few.
    """
    vectors = np.concatenate([row.features[name] for row in rows])
    labels = np.concatenate([row.labels for row in rows])
    images = np.concatenate([row.images for row in rows])  # none where dots are drawn
    if of == "images":
        check_count(len(vectors), "images")
        return Points(vectors, labels, images, f"{len(vectors):,} images")
    vectors = vectors[:, model.num_prefix :]
    if not count:
        return Points(vectors, labels, images, f"patches of {len(vectors):,} images")
    h, w = model.grid
    patches = rearrange(images, "b (h p) (w q) c -> (b h w) p q c", h=h, w=w)
    flat = rearrange(vectors, "b n d -> (b n) d")
    check_count(len(flat), "patches")
    chosen = np.sort(np.random.default_rng(0).permutation(len(flat))[:count])
    about = f"{len(chosen):,} patches of {len(vectors):,} images"
    patches = patches[chosen] if len(patches) else patches
    return Points(flat[chosen], labels.repeat(h * w)[chosen], patches, about)


def check_count(count: int, what: str) -> None:
    """Raises ConfigError where there are too few for a map."""
    if count < LEAST:
        raise ConfigError(f"--images: {count} {what}; allowed: {LEAST} or more for a map")


def place(vectors: np.ndarray, method: str) -> np.ndarray:
    """Points in the plane, float [n 2], the same at every call.

    Args:
      vectors: [n d]; centered here, one scale for all dimensions.
      method: "tsne" or "pca".

    Raises:
      ConfigError: the vectors are not finite, or all the same.
    """
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE
    from threadpoolctl import threadpool_limits

    x = np.asarray(vectors, np.float64)
    if not np.isfinite(x).all():
        raise ConfigError("--model: features are not finite; allowed: a run that did not diverge")
    spread = x.std(0).max()
    if spread <= 1e-9 * max(np.abs(x).max(), 1e-30):
        raise ConfigError("--images: all features are the same; allowed: images that differ")
    x = (x - x.mean(0)) / spread
    if method == "pca":
        return PCA(2, svd_solver="full").fit_transform(x)
    if x.shape[1] > INNER and len(x) > INNER:
        x = PCA(INNER, random_state=0).fit_transform(x)
    tsne = TSNE(init="pca", random_state=0, perplexity=min(30.0, (len(x) - 1) / 3))
    with threadpool_limits(1 if len(x) <= FEW else None):
        return tsne.fit_transform(x)


def draw(
    found: Points,
    places: np.ndarray,
    caption: str,
    label_name: str,
    names: list[str] | None,
    thumbnails: bool,
) -> Image.Image:
    """The map with its caption.

    Args:
      label_name: what a label means; names: of the labels, None = numbers.
    """
    labels = found.labels if (found.labels >= 0).any() else None
    if labels is not None:
        caption += f" {'Frame' if thumbnails else 'Color'}: {label_name}."
    images = reconstructions.colors(found.images) if thumbnails else None
    side = thumbnail_side(len(places), max(found.images.shape[1:3]) if thumbnails else 1)
    return scatter.draw(places, labels, names, images, caption, side)


def thumbnail_side(count: int, pixels: int) -> int:
    """Pixels of a thumbnail's longer side, so that all of them cover about COVER of the map.

    Args:
      pixels: of the image's longer side; a small one is enlarged by a whole number.
    """
    side = round(scatter.SIDE * (COVER / count) ** 0.5)
    side = min(max(side, SIDES[0]), SIDES[1])
    return side // pixels * pixels if pixels <= side else side


def color_sheet(found: Points, grid: tuple[int, int], caption: str) -> Image.Image:
    """Images beside their patches' colors."""
    colors = np.asarray(feature_colors(*[jnp.asarray(found.vectors)] * 2)[0])
    maps = (rearrange(colors, "b (h w) c -> b h w c", h=grid[0]) * 255 + 0.5).astype(np.uint8)
    h, w = found.images.shape[1:3]
    maps = maps.repeat(h // grid[0], 1).repeat(w // grid[1], 2)
    caption += (
        " Colors: the three leading principal components of the directions of all these vectors, "
        "as red, green and blue."
    )
    return reconstructions.draw({"original": found.images, "features": maps}, caption)
