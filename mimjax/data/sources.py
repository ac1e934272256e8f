"""Sources of images: their protocol, the classes that a config names, and one without files.

`data.source` is a section of one of the `SourceConfig`s below, or of a user's own:

    @dataclasses.dataclass(frozen=True)
    class Tiles(SourceConfig):              # my.py; --config.data.source=my.py:Tiles
        size: Count = 64                    # --config.data.source.size=32

        def open(self, split, files):       # "train" or "test"
            return TilesSplit(split, self.size)

What `open` returns has the members of `Source`. A source gives whole images (RGB, or `Bands` of
another number of channels) and labels by index; it never crops, shuffles or batches. It is pickled
for worker processes (`data.workers`), so that large arrays are better loaded when they are first
read (`images.Lazy`). `folder` is read in `folder.py`, `digits` and `shifted_digits` in `digits.py`,
`photos` in `bundled.py`, `tfds` in `records.py`.
"""

from __future__ import annotations

import dataclasses
import re
from typing import Annotated, Any, ClassVar, Literal, Protocol

import numpy as np
from PIL import Image

from mimjax import values
from mimjax.data.bands import Bands
from mimjax.data.bundled import PhotosSplit
from mimjax.data.decoding import Decoding
from mimjax.data.digits import DigitsSplit, ShiftedDigitsSplit
from mimjax.data.folder import FolderSplit
from mimjax.data.images import Lazy, check_split, fingerprint
from mimjax.data.index import Index
from mimjax.data.records import RecordsSplit
from mimjax.errors import ConfigError
from mimjax.plugs import find_plug
from mimjax.values import Count, Rate, Text, Whole


class Source(Protocol):
    """Random access to the images of one split.

    Attributes:
      name: short, for messages: "folder".
      num_classes: 0 = no labels.
      label_name: what a label means: "digit", "class folder", "source picture".
      fingerprint: short hex that changes when the data change.

    A labeled source may have `class_names`, in the order of the labels (see `class_names`); one of
    files has `file(index)`, the path, `how` it is decoded, and `notes`, which are said at the
    start. `fingerprint` and `len` must be the same in every process.
    """

    name: str
    num_classes: int
    label_name: str

    @property
    def fingerprint(self) -> str: ...

    def __len__(self) -> int: ...

    def image(self, index: int) -> Image.Image | Bands:
        """Return the whole image.

        Raises:
          BadImage: its file cannot be read or decoded.
        """
        ...

    def label(self, index: int) -> int:
        """Return the class, or -1 where there is none."""
        ...


# ------------------------------------------------------------------ what a config names
@dataclasses.dataclass(frozen=True)
class Files:
    """Settings of the section `data` that all sources may read.

    Attributes:
      path: `data.path`; None = not given.
      splits: `data.splits`.
      how: channels, max_pixels and value_range.
      index: of the source's files, which both splits share; None = one of its own.
    """

    path: str | None = None
    splits: str = "auto"
    how: Decoding = Decoding()
    index: Index | None = None

    def named(self) -> dict[str, Any]:
        """Return the settings by name."""
        return {"path": self.path, "splits": self.splits, **dataclasses.asdict(self.how)}


@dataclasses.dataclass(frozen=True)
class SourceConfig:
    """Base class of the settings of a source.

    Attributes:
      READS: settings of `data` that the source reads, of path, splits, channels, max_pixels,
        value_range and trust_index; others must have their defaults.
    """

    PLUGGABLE: ClassVar[bool] = True
    HOME: ClassVar[tuple[str, ...]] = ("mimjax.data.sources",)
    READS: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self):
        values.check(self, "data.source")

    def open(self, split: str, files: Files) -> Source:
        """Return the images of a split, "train" or "test".

        Raises:
          ConfigError: files or packages are missing.
        """
        raise NotImplementedError(type(self).__name__)


@dataclasses.dataclass(frozen=True)
class Folder(SourceConfig):
    """Images below the folder `data.path`, local or gs://.

    Attributes:
      test_fraction: share of the test split where no folders define one.
    """

    READS = ("path", "splits", "channels", "max_pixels", "value_range", "trust_index")

    test_fraction: Rate = 0.1

    def open(self, split: str, files: Files) -> FolderSplit:
        if not files.path:
            raise ConfigError("data.path: missing; source 'folder' needs it")
        how = dataclasses.asdict(files.how)
        splits: Any = files.splits
        return FolderSplit(split, files.path, self.test_fraction, splits, index=files.index, **how)


@dataclasses.dataclass(frozen=True)
class Digits(SourceConfig):
    """scikit-learn's 1,797 handwritten digits of 8x8 pixels; it has no settings."""

    def open(self, split: str, files: Files) -> DigitsSplit:
        return DigitsSplit(split)


@dataclasses.dataclass(frozen=True)
class ShiftedDigits(SourceConfig):
    """10,000 images of 24x24 pixels: scans of digits at random places, see `digits.py`.

    Attributes:
      part: which images are the test split: "a", or "b" for a final measurement, where choices were
        made on "a". The training images are the same.
    """

    READS = ("channels",)

    part: Literal["a", "b"] = "a"

    def open(self, split: str, files: Files) -> ShiftedDigitsSplit:
        if files.how.channels not in (1, 3):
            raise ConfigError(
                f"data.channels: {files.how.channels}, but source 'shifted_digits' is gray; "
                "allowed: 1, or 3 (the same in red, green and blue)"
            )
        return ShiftedDigitsSplit(split, self.part, files.how.channels)


@dataclasses.dataclass(frozen=True)
class Photos(SourceConfig):
    """Crops of twelve photographs, see `bundled.py`.

    Attributes:
      length: number of crops; None = 2000 for train and 400 for test.
    """

    length: Count | None = None

    def open(self, split: str, files: Files) -> PhotosSplit:
        return PhotosSplit(split, self.length)


@dataclasses.dataclass(frozen=True)
class Synthetic(SourceConfig):
    """Smooth colored waves for tests, benchmarks and dry runs, see `SyntheticSplit`.

    Attributes:
      length: number of images.
      num_classes: label = index % num_classes; 0 = no labels.
      side: height and width in pixels.
    """

    length: Count = 1024
    num_classes: Whole = 10
    side: Count = 64

    def open(self, split: str, files: Files) -> SyntheticSplit:
        return SyntheticSplit(split, self.length, self.num_classes, self.side)


@dataclasses.dataclass(frozen=True)
class Tfds(SourceConfig):
    """A TensorFlow Datasets data set stored as array_record, see `records.py`.

    Attributes:
      dataset: the name, "imagenet2012" or "my_set/config:1.0.0".
      data_dir: the folder that holds it; None = TFDS' default.
    """

    READS = ("max_pixels",)

    dataset: Annotated[str, Text("the name of a data set")] | None = None
    data_dir: Annotated[str, Text("a folder")] | None = None

    def open(self, split: str, files: Files) -> RecordsSplit:
        if not self.dataset:
            raise ConfigError("data.source.dataset: missing; source 'tfds' needs it")
        return RecordsSplit(split, self.dataset, self.data_dir, files.how.max_pixels)


def find_source(name: str) -> type[SourceConfig]:
    """Return the class of a source: "digits", "module:Class" or "file.py:Class".

    Raises:
      ConfigError: there is none of this name.
    """
    return find_plug(SourceConfig, name, "data.source")


def short_name(config: SourceConfig) -> str:
    """Return how messages name a source: "folder", "shifted_digits"."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", type(config).__name__).lower()


def open_source(config: SourceConfig, split: str, files: Files) -> Source:
    """Return the images of a split, "train" or "test".

    Raises:
      ConfigError: a setting of `data` that the source does not read; missing files or packages.
    """
    check_split(split)
    name, default = short_name(config), Files().named()
    for key, value in files.named().items():
        if value == default[key] or key in config.READS:
            continue
        if key == "channels":
            raise ConfigError(
                f"data.channels: {value}, but source {name!r} has 3; allowed: 3, or source folder"
            )
        raise ConfigError(
            f"data.{key}: {value!r}, but source {name!r} does not read it; allowed: {default[key]}"
        )
    return config.open(split, files)


def class_names(source: Source) -> tuple[str, ...] | None:
    """Return the names of a source's classes, the name of label i at place i.

    Returns:
      None for a source without labels, or a user's own that names none.

    Raises:
      ConfigError: it does not name each class once.
    """
    names = getattr(source, "class_names", None)
    if not source.num_classes or names is None:
        return None
    names = tuple(map(str, names))
    if len(set(names)) != len(names) or len(names) != source.num_classes:
        raise ConfigError(
            f"class_names of source {source.name!r}: {len(set(names))} different names for "
            f"{source.num_classes} classes; allowed: one for each"
        )
    return names


def check_classes(source: Source) -> None:
    """Check that the test split has no class that the training split lacks.

    Sources of folders know both splits; their attribute `unmatched` names what has no partner.

    Raises:
      ConfigError: there is one.
    """
    if unmatched := getattr(source, "unmatched", ""):
        raise ConfigError(f"data.path: {unmatched}; allowed: folders of the same names")


def make_source(name: str, split: str, *, index: Index | None = None, **options: Any) -> Source:
    """Return the images of a split of the source called `name`.

    Args:
      name: "digits", "shifted_digits", "folder", "photos", "synthetic", "tfds", "module:Class" or
        "file.py:Class".
      split: "train" or "test".
      index: of the source's files, see `Files`.
      **options: settings of the source, and those of `data` that it reads.

    Raises:
      ConfigError: an unknown name or option, a wrong value, missing files or packages.
    """
    cls = find_source(name)
    own, shared = values.fields(cls), Files().named()
    for option in options:
        if option not in own and option not in shared:
            allowed = ", ".join([*own, *(key for key in shared if key in cls.READS)])
            raise ConfigError(
                f"data.source.{option}: unknown for source {name!r}; allowed: {allowed or '-'}"
            )
    config = cls(**{key: value for key, value in options.items() if key in own})
    rest = {key: value for key, value in options.items() if key not in own}
    path, splits = rest.pop("path", None), rest.pop("splits", "auto")
    return open_source(config, split, Files(path, splits, Decoding(**rest), index))


# ------------------------------------------------------------------ sources without files
@dataclasses.dataclass
class SyntheticSplit(Lazy):
    """Smooth colored waves made from the index alone: for tests, benchmarks and dry runs.

    The label sets the main direction and hue of the waves, so that a classifier has something to
    learn. Train and test draw from different random streams.

    Attributes:
      length: number of images.
      num_classes: label = index % num_classes; 0 = no labels.
      side: height and width in pixels.
    """

    split: str
    length: int = 1024
    num_classes: int = 10
    side: int = 64

    name = "synthetic"
    label_name = "wave"

    @property
    def class_names(self) -> tuple[str, ...]:
        """The numbers of the classes as text."""
        return tuple(map(str, range(self.num_classes)))

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
