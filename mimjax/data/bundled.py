"""Source of crops of twelve photographs that are bundled with scikit-image and scikit-learn.

It serves demonstrations on real pictures without a download; twelve photographs are far too few to
learn a representation from. Image i is a fixed random region of picture i % 12. Train regions lie
in the left 75 % of each picture and test regions in the right 25 %, so that they share no pixel.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
from pathlib import Path

import numpy as np
from PIL import Image

from mimjax.data.decoding import decode
from mimjax.data.images import Lazy, fingerprint
from mimjax.task import ConfigError

# Only files inside the wheels: scikit-image's other pictures would be downloaded.
PICTURES = (
    "skimage/data/astronaut.png",
    "skimage/data/brick.png",
    "skimage/data/camera.png",
    "skimage/data/chelsea.png",
    "skimage/data/coffee.png",
    "skimage/data/coins.png",
    "skimage/data/grass.png",
    "skimage/data/gravel.png",
    "skimage/data/motorcycle_left.png",
    "skimage/data/rocket.jpg",
    "sklearn/datasets/images/china.jpg",
    "sklearn/datasets/images/flower.jpg",
)
TRAIN_WIDTH = 0.75


def package_file(name: str, source: str) -> Path:
    """Return the path of a file inside a package, which is not imported: that would take seconds.

    Args:
      name: "sklearn/datasets/images/china.jpg", the package first.
      source: name of the data source that needs it, for errors.

    Raises:
      ConfigError: the package is missing, or has no such file.
    """
    package, _, rest = name.partition("/")
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise ConfigError(f"data.source: {source!r} needs {package}: pip install 'mimjax[demo]'")
    path = Path(spec.origin).parent / rest
    if not path.exists():
        raise ConfigError(
            f"data.source: {source!r} needs {name}, which this version of {package} does not have; "
            "allowed: the versions named in pyproject.toml"
        )
    return path


@dataclasses.dataclass
class PhotosSplit(Lazy):
    """Crops of twelve photographs; the label is the picture that a crop comes from.

    Attributes:
      length: number of crops; None = 2000 for train and 400 for test.
    """

    split: str
    length: int | None = None

    name = "photos"
    num_classes = len(PICTURES)
    class_names = tuple(Path(name).stem for name in PICTURES)
    label_name = "source picture"

    def __post_init__(self):
        if self.length is None:
            self.length = 2000 if self.split == "train" else 400
        for name in PICTURES:
            package_file(name, self.name)

    @functools.cached_property
    def _cache(self) -> dict[int, Image.Image]:
        return {}

    @functools.cached_property
    def fingerprint(self) -> str:
        sizes = [package_file(name, self.name).stat().st_size for name in PICTURES]
        return fingerprint([self.name, self.split, self.length, *PICTURES, *sizes])

    def __len__(self) -> int:
        return self.length or 0  # never None once made

    def box(self, index: int) -> tuple[int, int, int, int]:
        """Return (left, top, right, bottom) of crop `index` inside its picture, in pixels."""
        if not 0 <= index < len(self):
            raise IndexError(index)
        width, height = self._picture(self.label(index)).size
        cut = round(TRAIN_WIDTH * width)
        first, last = (0, cut) if self.split == "train" else (cut, width)
        rng = np.random.default_rng([index, int(self.split == "test")])
        side = rng.uniform(0.5, 1.0) * min(last - first, height)
        stretch = np.exp(rng.uniform(-0.15, 0.15))  # square-ish
        w = max(1, min(round(side * stretch), last - first))
        h = max(1, min(round(side / stretch), height))
        left = first + int(rng.integers(last - first - w + 1))
        top = int(rng.integers(height - h + 1))
        return left, top, left + w, top + h

    def image(self, index: int) -> Image.Image:
        return self._picture(self.label(index)).crop(self.box(index))

    def label(self, index: int) -> int:
        return index % len(PICTURES)

    def _picture(self, number: int) -> Image.Image:
        # Two threads may both load a picture; the second assignment changes nothing.
        if number not in self._cache:
            path = package_file(PICTURES[number], self.name)
            image = decode(path.read_bytes(), str(path))
            assert isinstance(image, Image.Image)  # three channels
            self._cache[number] = image
        return self._cache[number]
