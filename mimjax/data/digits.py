"""Sources of scikit-learn's 1,797 handwritten digits: the scans, and the scans on larger images.

Both are bundled: nothing is downloaded. On the scans, 8x8 pixels, raw pixels already tell the
digits apart. `ShiftedDigitsSplit` draws each scan at random places, sizes and angles on a black
image of 24x24 pixels; a linear classifier of raw pixels fails there (21 %), while their nearest
neighbors still work (85 %).
"""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Literal

import numpy as np
from PIL import Image

from mimjax.data.bands import Bands
from mimjax.data.bundled import package_file
from mimjax.data.images import Lazy, fingerprint

# what scikit-learn's load_digits reads: 64 values of 0 to 16, then the label
TABLE = "sklearn/datasets/data/digits.csv.gz"
NAMES = tuple("0123456789")

SIDE, FINE = 24, 2  # pixels of an image, and rendered pixels that are averaged to one, per side
SCAN = 8  # pixels of a scan, per side
SIZES, TURN, STRETCH, SHIFT = (13.0, 17.0), 15.0, 0.1, 6.0  # see `ShiftedDigitsSplit`
PARTS = {"train": (0, 0, 1300, 6), "a": (1, 1300, 1548, 4), "b": (2, 1548, 1797, 4)}


def scans(source: str) -> tuple[np.ndarray, np.ndarray]:
    """Return all scans, uint8 [1797 8 8] of 0 to 16, and their digits, int32 [1797].

    Args:
      source: name of the data source, for errors.

    Raises:
      ConfigError: scikit-learn is missing, or has no such file.
    """
    table = np.loadtxt(package_file(TABLE, source), np.uint8, delimiter=",")
    return table[:, :-1].reshape(-1, SCAN, SCAN), table[:, -1].astype(np.int32)


@dataclasses.dataclass
class DigitsSplit(Lazy):
    """scikit-learn's 1,797 handwritten 8x8 digits, gray replicated to RGB.

    The split is 80 % / 20 % per digit by a fixed permutation, the same for every run seed.
    """

    split: str

    name = "digits"
    num_classes = 10
    class_names = NAMES
    label_name = "digit"

    @functools.cached_property
    def _data(self) -> tuple[np.ndarray, np.ndarray]:
        values, labels = scans(self.name)
        rng = np.random.default_rng(0)
        keep = []
        for digit in range(10):
            indices = rng.permutation(np.flatnonzero(labels == digit))
            cut = round(0.8 * len(indices))
            keep.append(indices[:cut] if self.split == "train" else indices[cut:])
        indices = np.sort(np.concatenate(keep))
        # 0..16 -> 0..255
        return np.rint(values[indices] * (255 / 16)).astype(np.uint8), labels[indices]

    @functools.cached_property
    def fingerprint(self) -> str:
        images, labels = self._data
        return fingerprint([self.name, self.split, images.tobytes(), labels.tobytes()])

    def __len__(self) -> int:
        return len(self._data[1])

    def image(self, index: int) -> Image.Image:
        return Image.fromarray(self._data[0][index]).convert("RGB")

    def label(self, index: int) -> int:
        return int(self._data[1][index])


@dataclasses.dataclass
class ShiftedDigitsSplit(Lazy):
    """Scans of digits at random places of a black image of 24x24 pixels, gray.

    All renderings of one scan lie in one part: 6 of each of 1,300 scans are the training images
    (7,800), 4 of each of 248 and 249 others the test parts a (992) and b (996). Rendering r of a
    scan draws, from a generator seeded by (part, r, scan): the scan's size of 13 to 17 pixels, a
    turn of up to 15 degrees, a stretch of exp(-0.1) to exp(0.1) in one direction and by the inverse
    in the other, and a shift of the center of up to 6 pixels in x and in y. Strokes may be cut at
    the border. The cubic spline of the scan is read at 48x48 places and averaged 2x2.

    An image is rendered when it is first read, in half a millisecond, and kept.

    Attributes:
      part: "a" or "b", which images are the test split.
      channels: 1 = gray; 3 = the same in red, green and blue.
    """

    split: str
    part: Literal["a", "b"] = "a"
    channels: int = 1

    name = "shifted_digits"
    num_classes = 10
    class_names = NAMES
    label_name = "digit"

    @property
    def _part(self) -> tuple[int, int, int, int]:
        """Number of the part, its first and last scan in the fixed order, and the renderings."""
        return PARTS["train" if self.split == "train" else self.part]

    @functools.cached_property
    def _data(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """All scans, all digits, and the numbers of this part's scans."""
        _, first, last, _ = self._part
        values, labels = scans(self.name)
        return values, labels, np.random.default_rng(0).permutation(len(labels))[first:last]

    @functools.cached_property
    def _rendered(self) -> dict[int, np.ndarray]:
        return {}

    @functools.cached_property
    def fingerprint(self) -> str:
        """A digest of the scans and the recipe, so that no start of a run renders images."""
        values, labels, chosen = self._data
        recipe = (SIDE, FINE, SIZES, TURN, STRETCH, SHIFT, self._part)
        arrays = [x.tobytes() for x in (values[chosen], labels[chosen])]
        return fingerprint([self.name, *recipe, self.channels, *arrays])

    def __len__(self) -> int:
        _, first, last, renderings = self._part
        return renderings * (last - first)

    def image(self, index: int) -> Image.Image | Bands:
        if not 0 <= index < len(self):
            raise IndexError(index)
        # Two threads may both render an image; the second assignment changes nothing.
        if index not in self._rendered:
            values, _, chosen = self._data
            rendering, number = divmod(index, len(chosen))
            scan = int(chosen[number])
            rng = np.random.default_rng([self._part[0], rendering, scan])
            self._rendered[index] = render(values[scan] / 16, rng)
        gray = Image.fromarray(self._rendered[index])
        return Bands([gray]) if self.channels == 1 else gray.convert("RGB")

    def label(self, index: int) -> int:
        _, labels, chosen = self._data
        return int(labels[chosen[index % len(chosen)]])


def render(scan: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return a scan at a place, a size and an angle that are drawn; see `ShiftedDigitsSplit`.

    Args:
      scan: [8 8] of 0 to 1.
      rng: generator of this rendering.

    Returns:
      uint8 [24 24].
    """
    from scipy import ndimage  # only this source needs it

    size, turn = rng.uniform(*SIZES), math.radians(rng.uniform(-TURN, TURN))
    stretch = math.exp(rng.uniform(-STRETCH, STRETCH))
    right, down = rng.uniform(-SHIFT, SHIFT), rng.uniform(-SHIFT, SHIFT)
    at = (np.arange(SIDE * FINE) + 0.5) / FINE - SIDE / 2  # pixels from the image's center
    x, y = at[None, :] - right, at[:, None] - down
    cos, sin = math.cos(turn), math.sin(turn)
    across, along = (cos * x + sin * y) / stretch, (cos * y - sin * x) * stretch
    # The places in the scan's pixels. Its spline overshoots beyond the border, where zeros end it.
    margin = SCAN // 2
    middle = margin + (SCAN - 1) / 2
    places = [middle + along * (SCAN / size), middle + across * (SCAN / size)]
    fine = ndimage.map_coordinates(np.pad(scan, margin), places, order=3)
    image = fine.reshape(SIDE, FINE, SIDE, FINE).mean((1, 3))
    return np.rint(255 * np.clip(image, 0, 1)).astype(np.uint8)
