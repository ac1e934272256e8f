"""Where images come from: one small protocol and the sources that need no folder of files.

`make_source` is the only entry. `folder` lives in `folder.py`, `photos` in `photos.py`, `tfds` in
`array_records.py`. A source gives whole images (RGB, or `Bands` of another number of channels) and
labels by index; it never crops, shuffles or batches. Pickling one is cheap: arrays are loaded on
demand in each process.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, Protocol

import numpy as np
from PIL import Image

from mimjax.data.bands import Bands
from mimjax.data.bundled import Photos
from mimjax.data.folder import Folder
from mimjax.data.images import Lazy, check_split, fingerprint
from mimjax.data.index import Index
from mimjax.data.records import ArrayRecords
from mimjax.task import ConfigError
from mimjax.values import Count, Whole, fit


class Source(Protocol):
    """Random access to the images of one split.

    Attributes:
      name: the name in the config, "folder".
      num_classes: 0 = no labels.
      label_name: what a label means: "digit", "class folder", "source picture".
      fingerprint: short hex that changes when the data change.

    A source of files also has `file(index)`, the path, `how` it is decoded, and `notes`, which are
    said at the start.
    """

    name: str
    num_classes: int
    label_name: str

    @property
    def fingerprint(self) -> str: ...

    def __len__(self) -> int: ...

    def image(self, index: int) -> Image.Image | Bands:
        """The whole image.

        Raises:
          BadImage: its file cannot be read or decoded.
        """
        ...

    def label(self, index: int) -> int:
        """The class, or -1 where there is none."""
        ...


@dataclasses.dataclass
class Digits(Lazy):
    """scikit-learn's 1,797 handwritten 8x8 digits, gray replicated to RGB.

    The split is 80 % / 20 % per digit by a fixed permutation, the same for every run seed.
    """

    split: str

    name = "digits"
    num_classes = 10
    label_name = "digit"

    @functools.cached_property
    def _data(self) -> tuple[np.ndarray, np.ndarray]:
        from sklearn.datasets import load_digits  # slow to import, and only this source needs it

        values, labels = load_digits(return_X_y=True)
        rng = np.random.default_rng(0)
        keep = []
        for digit in range(10):
            indices = rng.permutation(np.flatnonzero(labels == digit))
            cut = round(0.8 * len(indices))
            keep.append(indices[:cut] if self.split == "train" else indices[cut:])
        indices = np.sort(np.concatenate(keep))
        # 0..16 -> 0..255
        images = np.rint(values[indices] * (255 / 16)).astype(np.uint8).reshape(-1, 8, 8)
        return images, labels[indices].astype(np.int32)

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
class Synthetic(Lazy):
    """Smooth colored waves made from the index alone: for tests, benchmarks and dry runs.

    The label sets the main direction and hue of the waves, so that a classifier has something to
    learn. Train and test draw from different random streams.

    Attributes:
      length: number of images.
      num_classes: label = index % num_classes; 0 = no labels.
      side: height and width in pixels.
    """

    split: str
    length: Count = 1024
    num_classes: Whole = 10
    side: Count = 64

    name = "synthetic"
    label_name = "wave"

    def __post_init__(self):
        for name, hint in (("length", Count), ("num_classes", Whole), ("side", Count)):
            fit(hint, getattr(self, name), f"data.{name}")

    @property
    def fingerprint(self) -> str:
        return fingerprint([self.name, self.split, self.length, self.num_classes, self.side])

    def __len__(self) -> int:
        return self.length

    def image(self, index: int) -> Image.Image:
        if not 0 <= index < self.length:
            raise IndexError(index)
        rng = np.random.default_rng([index, int(self.split == "test")])
        axis = np.arange(self.side, dtype=np.float32) / self.side
        turn = max(self.label(index), 0) / max(self.num_classes, 1)
        angles = np.pi * turn + rng.normal(0, 0.15, size=3)
        cycles, shifts = rng.uniform(1, 4, size=3), rng.uniform(0, 2 * np.pi, size=3)
        waves = np.zeros((self.side, self.side, 3), np.float32)
        for angle, cycle, shift in zip(angles, cycles, shifts):
            along = np.cos(angle) * axis[None, :] + np.sin(angle) * axis[:, None]
            hue = 2 * np.pi * (turn + np.arange(3) / 3) + rng.normal(0, 0.3)
            wave = np.sin(2 * np.pi * cycle * along + shift)
            waves += (wave[..., None] * (1 + np.cos(hue))).astype(np.float32)
        return Image.fromarray(np.clip(128 + 28 * waves, 0, 255).astype(np.uint8))

    def label(self, index: int) -> int:
        return index % self.num_classes if self.num_classes else -1


_SOURCES = {
    "digits": Digits,
    "folder": Folder,
    "photos": Photos,
    "synthetic": Synthetic,
    "tfds": ArrayRecords,
}


def make_source(name: str, split: str, *, index: Index | None = None, **options: Any) -> Source:
    """The source called `name`.

    Args:
      name: "digits", "folder", "photos", "synthetic" or "tfds".
      split: "train" or "test".
      index: of the source's files, see `Folder`; other sources have none.
      **options: the fields of the source's dataclass besides `split`.

    Raises:
      ConfigError: an unknown name or option, a wrong value, missing files or packages.
    """
    if name not in _SOURCES:
        raise ConfigError(f"data.source: found {name!r}; allowed: {', '.join(_SOURCES)}")
    check_split(split)
    kind = _SOURCES[name]
    fields = [f for f in dataclasses.fields(kind) if f.init and f.name != "split"]
    allowed = [f.name for f in fields]
    for option, value in options.items():
        if option == "channels" and option not in allowed:
            raise ConfigError(
                f"data.channels: {value}, but source {name!r} has 3; allowed: 3, or source folder"
            )
        if option not in allowed:
            raise ConfigError(
                f"data.{option}: unknown for source {name!r}; allowed: {', '.join(allowed) or '-'}"
            )
    for field in fields:
        required = field.default is dataclasses.MISSING
        if required and options.get(field.name) in (None, ""):
            raise ConfigError(f"data.{field.name}: missing; source {name!r} needs it")
    shared = {"index": index} if kind is Folder else {}
    return kind(split=split, **shared, **options)
