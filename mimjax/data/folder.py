"""A folder of images as a source: any depth, with or without class sub-folders, local or gs://.

Own code and not TFDS' `ImageFolder`, which needs TensorFlow. The listing is read once at
construction (`index.py`) and kept as one block of bytes, so that a million paths pickle quickly;
images are read and decoded one by one.
"""

from __future__ import annotations

import bisect
import dataclasses
import errno
import hashlib
import io
import os
import time

import numpy as np
from etils import epath
from PIL import Image

from mimjax.data.bands import Bands
from mimjax.data.decoding import (
    MAX_PIXELS,
    BadImage,
    Decoding,
    Range,
    decode,
    load_array,
)
from mimjax.data.images import Lazy, fingerprint
from mimjax.data.index import Index, is_file_of, scan
from mimjax.task import ConfigError
from mimjax.values import Count, Rate, fit

EXTENSIONS = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
ARRAYS = (".npy",)  # only where channels are not three: beside photographs they hold other things
# "val" comes before "test": where both exist (ImageNet), the test images have no labels.
TEST_FOLDERS = ("val", "validation", "test")

KEY = "data.path"
PAUSES = 0.1, 1.0  # seconds; network disks have short failures, which must not change the data
LASTING = {errno.ENOENT, errno.EACCES, errno.EPERM, errno.EISDIR, errno.ENOTDIR, errno.ELOOP}


def is_image(name: str) -> bool:
    """By extension; names with a leading dot are left out."""
    return is_file_of(name, EXTENSIONS)


def extensions(channels: int) -> tuple[str, ...]:
    """Of the files that are images of so many channels."""
    return EXTENSIONS if channels == 3 else tuple(sorted((*EXTENSIONS, *ARRAYS)))


def list_images(root: str, channels: int = 3) -> list[tuple[str, int]]:
    """(path relative to `root` with "/" separators, size in bytes) of all images, sorted."""
    files = scan(root, extensions(channels))
    return list(zip(files.names, files.sizes))


def _in_test(path: str, fraction: float) -> bool:
    """By a hash of the path, so that adding images never moves one between the splits."""
    number = hashlib.blake2b(os.fsencode(path), digest_size=8).digest()
    return int.from_bytes(number, "big") < fraction * 2**64


def hash_split(files: list[tuple[str, int]], split: str, fraction: float) -> list[tuple[str, int]]:
    """The part of `files` in "train" or "test"; neither is empty while there are two files.

    A fraction of 0 leaves the test split empty.
    """
    test = {path for path, _ in files if _in_test(path, fraction)}
    if len(test) == len(files) and files:
        test.remove(files[0][0])
    elif not test and fraction > 0 and len(files) > 1:
        test.add(files[-1][0])
    return [file for file in files if (file[0] in test) == (split == "test")]


def _class_names(roots: list[str]) -> list[str]:
    """All folders at the top of the train and test trees, so that both number them alike."""
    names = set()
    for root in roots:
        for entry in epath.Path(root).iterdir():
            if not entry.name.startswith(".") and not is_image(entry.name) and entry.is_dir():
                names.add(entry.name)
    return sorted(names)


@dataclasses.dataclass
class Folder(Lazy):
    """JPEG, PNG, WebP, GIF, TIFF and BMP files below `path`; NumPy arrays if not of 3 channels.

    `path/train` and `path/val` (or `validation`, `test`) are the splits where both exist; else
    the images below `path/train`, or below `path`, are split by a hash of their relative path.
    The label is the number of the first folder below the split's root among the sorted class
    folders if every image lies in one, else -1.

    Attributes:
      path: local or gs:// folder.
      test_fraction: share of the test split where no folders define one.
      channels, max_pixels, value_range: see `decoding.Decoding`.
      index: lists the files, and shares the list with the other split; None = one of its own.
    """

    split: str
    path: str
    test_fraction: Rate = 0.1
    channels: Count = 3
    max_pixels: Count = MAX_PIXELS
    value_range: Range | None = None
    index: dataclasses.InitVar[Index | None] = None
    num_classes: int = dataclasses.field(init=False, default=0)
    class_names: list[str] = dataclasses.field(init=False, default_factory=list)
    how: Decoding = dataclasses.field(init=False, default=Decoding())
    fingerprint: str = dataclasses.field(init=False, default="")
    _root: str = dataclasses.field(init=False, default="")
    _names: bytes = dataclasses.field(init=False, default=b"", repr=False)
    _ends: np.ndarray = dataclasses.field(init=False, default_factory=lambda: np.zeros(0, np.int64))

    name = "folder"
    label_name = "class folder"

    def __post_init__(self, index: Index | None):
        self.how = Decoding(self.channels, self.max_pixels, self.value_range)
        self.path = os.path.expanduser(os.fspath(self.path))
        fit(Rate, self.test_fraction, "data.test_fraction")
        if not epath.Path(self.path).is_dir():
            raise ConfigError(f"data.path: {self.path!r} is no folder; allowed: a folder of images")
        roots, by_hash = self._find_roots()
        self._root = roots[-1 if self.split == "test" else 0]
        endings = extensions(self.channels)
        found = (index or Index()).files(self._root, endings)
        files = list(zip(found.names, found.sizes))
        if files and all("/" in path for path, _ in files):
            self.class_names = _class_names(roots)
            self.num_classes = len(self.class_names)
        num_found = len(files)
        if by_hash:
            files = hash_split(files, self.split, self.test_fraction)
        if not files:
            where = f" ({num_found} in all splits)" if num_found else ""
            raise ConfigError(
                f"data.path: found no image for split {self.split!r} below {self._root!r}{where}; "
                f"allowed: files that end in {', '.join(endings)}"
            )
        self._keep(files)

    def _find_roots(self) -> tuple[list[str], bool]:
        """The folders of the train and test split, and whether one folder is split by hash."""
        base = epath.Path(self.path)
        if not (base / "train").is_dir():
            return [self.path], True
        for name in TEST_FOLDERS:
            if (base / name).is_dir():
                return [os.fspath(base / "train"), os.fspath(base / name)], False
        return [os.fspath(base / "train")], True

    def _keep(self, files: list[tuple[str, int]]) -> None:
        names = [os.fsencode(path) for path, _ in files]
        self._names = b"".join(names)
        self._ends = np.cumsum([len(name) for name in names], dtype=np.int64)
        flat = (part for path, size in files for part in (os.fsencode(path), size))
        # what is not the default changes pixels; the default's fingerprints stay those of old runs
        how = [] if self.how == Decoding() else [self.how.signature]
        names = map(os.fsencode, self.class_names)
        self.fingerprint = fingerprint([self.name, self.split, *names, *flat, *how])

    def __len__(self) -> int:
        return len(self._ends)

    def relative_path(self, index: int) -> str:
        """The path below the split's root, with "/" separators."""
        if not 0 <= index < len(self):
            raise IndexError(index)
        start = self._ends[index - 1] if index else 0
        return os.fsdecode(self._names[start : self._ends[index]])

    def image(self, index: int) -> Image.Image | Bands:
        path = os.path.join(self._root, self.relative_path(index))
        return read_image(path, KEY, self.how)

    def label(self, index: int) -> int:
        if not self.class_names:
            return -1
        return bisect.bisect_left(self.class_names, self.relative_path(index).split("/", 1)[0])


def read_image(path: str, key: str, how: Decoding) -> Image.Image | Bands:
    """The image in a local or remote file.

    Raises:
      BadImage: it cannot be read or decoded.
    """
    if not is_file_of(os.path.basename(path), ARRAYS):
        return decode(read_bytes(path, key), path, key, how)
    remote = "://" in path  # a local one is mapped: of a mistaken giant only the head is read
    return load_array(io.BytesIO(read_bytes(path, key)) if remote else path, path, key, how)


def read_bytes(path: str, key: str = KEY) -> bytes:
    """The content of a local or remote file; `key` is what named it, for errors.

    Raises:
      BadImage: it cannot be read; tried again after PAUSES unless the reason is lasting.
    """
    for pause in (*PAUSES, None):
        try:
            if "://" in path:
                return epath.Path(path).read_bytes()
            with open(path, "rb") as file:
                return file.read()
        except OSError as err:
            if pause is None or err.errno in LASTING:
                reason = str(err.strerror or err)
                message = f"{key}: cannot read {path} ({reason})"
                raise BadImage(message, path, f"cannot read: {reason}") from err
            time.sleep(pause)
    raise AssertionError  # the last pass returns or raises
