"""Maps of features: vectors projected to the plane by t-SNE or PCA, and the picture of them.

Vectors, labels and images come in as arrays; this module reads no file and no flag. t-SNE and PCA
are scikit-learn's. In a t-SNE the distance between far clusters has no meaning. `plots.scatter`
draws the points.
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

POINTS, SHOWN = 1000, 12  # defaults: points of a map; images beside their patches' colors
MIN_POINTS = 4  # that a map needs
MOST_THUMBNAILS = 600  # points up to which small images are drawn instead of dots
FROM_EACH = 16  # patches that a map of patches takes of an image, about
INNER = 50  # dimensions to which PCA reduces vectors before t-SNE
FEW = 2000  # points up to which t-SNE is faster on one thread
COVER = 0.35  # share of the map's area that thumbnails cover
SIDES = 12, 64  # smallest and largest side of a thumbnail, in pixels
WORDS = {"tsne": "t-SNE", "pca": "Two leading principal components"}
READ = {"mean": "the mean of their tokens", "cls": "their CLS tokens", "all": "their tokens"}


class Points(NamedTuple):
    """The points of a map, with what is drawn at each.

    Attributes:
      vectors: features, float32 [n d]; for patches' colors [b p d].
      labels: int [n], -1 = no label.
      images: whole images or patches, uint8 [n h w c].
      about: what the points are: "300 images", "1,000 patches of 62 images".
    """

    vectors: np.ndarray
    labels: np.ndarray
    images: np.ndarray
    about: str


def words(pool: str, layer: str) -> str:
    """Return what stands for an image or patch, in words: "their CLS tokens after block 3"."""
    return f"{READ[pool]} after {'the final norm' if layer == 'norm' else layer.replace('_', ' ')}"


def images_for(count: int, grid: tuple[int, int]) -> int:
    """Return how many images a map of `count` patches takes its patches from."""
    return -(-count // min(FROM_EACH, grid[0] * grid[1]))


def gather(rows: list[Any], name: str, of: str, model: Any, count: int) -> Points:
    """Return the points of a map from batches of encoded images.

    Args:
      rows: batches as `inference.features.encode` yields them.
      name: of the feature that is read; for patches, one that holds all tokens.
      of: "images" or "patches": what a point is.
      model: gives the encoder's grid and number of prefix tokens.
      count: patches to draw at random from all; 0 = all, [b p d] by image.

    Raises:
      ConfigError: there are fewer points than a map needs.
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
    """Check that a map has enough points.

    Raises:
      ConfigError: there are fewer than `MIN_POINTS`.
    """
    if count < MIN_POINTS:
        raise ConfigError(f"--images: {count} {what}; allowed: {MIN_POINTS} or more for a map")


def place(vectors: np.ndarray, method: str) -> np.ndarray:
    """Return the vectors' projections to the plane, float [n 2], the same at every call.

    Args:
      vectors: [n d]; they are centered here and divided by one scale for all dimensions.
      method: "tsne" or "pca".

    Raises:
      ConfigError: the vectors are not finite, or all are the same.
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
    points: Points,
    places: np.ndarray,
    caption: str,
    label_name: str,
    names: list[str] | None,
    thumbnails: bool,
) -> Image.Image:
    """Return the picture of a map with its caption.

    Args:
      places: coordinates of the points, [n 2].
      label_name: what a label means, for the caption.
      names: names of the labels; None = their numbers.
      thumbnails: draw the points' images instead of dots.
    """
    labels = points.labels if (points.labels >= 0).any() else None
    if labels is not None:
        caption += f" {'Frame' if thumbnails else 'Color'}: {label_name}."
    images = reconstructions.colors(points.images) if thumbnails else None
    side = thumbnail_side(len(places), max(points.images.shape[1:3]) if thumbnails else 1)
    return scatter.draw(places, labels, names, images, caption, side)


def thumbnail_side(count: int, pixels: int) -> int:
    """Return the longer side of a thumbnail in pixels; all together cover about COVER of the map.

    Args:
      count: number of thumbnails.
      pixels: longer side of the images; small images are enlarged by a whole number.
    """
    side = round(scatter.SIDE * (COVER / count) ** 0.5)
    side = min(max(side, SIDES[0]), SIDES[1])
    return side // pixels * pixels if pixels <= side else side


def color_sheet(points: Points, grid: tuple[int, int], caption: str) -> Image.Image:
    """Return the images beside their patches, each in a color that its features give.

    Args:
      points: with vectors [b p d] and whole images.
      grid: (height, width) in patches.
    """
    colors = np.asarray(feature_colors(*[jnp.asarray(points.vectors)] * 2)[0])
    maps = (rearrange(colors, "b (h w) c -> b h w c", h=grid[0]) * 255 + 0.5).astype(np.uint8)
    h, w = points.images.shape[1:3]
    maps = maps.repeat(h // grid[0], 1).repeat(w // grid[1], 2)
    caption += (
        " Colors: the three leading principal components of the directions of all these vectors, "
        "as red, green and blue."
    )
    return reconstructions.draw({"original": points.images, "features": maps}, caption)
