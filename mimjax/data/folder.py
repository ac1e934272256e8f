"""A folder of images as a source: any depth, with or without class sub-folders, local or gs://.

Own code and not TFDS' `ImageFolder`, which needs TensorFlow. The listing is read once at
construction (`index.py`) and kept as one block of bytes, so that a million paths pickle quickly;
images are read and decoded one by one.
"""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import io
import os
import stat
import time
from collections import Counter
from typing import Literal

import numpy as np
from etils import epath
from PIL import Image

from mimjax.data import layout
from mimjax.data.bands import Bands
from mimjax.data.decoding import (
    MAX_PIXELS,
    BadImage,
    Decoding,
    Range,
    decode,
    load_array,
    refuse,
)
from mimjax.data.images import Lazy, fingerprint
from mimjax.data.index import Index, holds_image, is_file_of, scan, shown
from mimjax.storage.files import checked_path
from mimjax.task import ConfigError
from mimjax.values import Count, fit

# of the formats in `decoding.FORMATS`; a browser saves JPEG as .jfif
JPEGS = (".jfif", ".jif", ".jpe", ".jpeg", ".jpg")
EXTENSIONS = (".bmp", ".gif", *JPEGS, ".png", ".tif", ".tiff", ".webp")
ARRAYS = (".npy",)  # only where channels are not three: beside photographs they hold other things
SPLITS = ("auto", "none")

KEY = "data.path"
PAUSES = 0.1, 1.0  # seconds; network disks have short failures, which must not change the data
LASTING = {errno.ENOENT, errno.EACCES, errno.EPERM, errno.EISDIR, errno.ENOTDIR, errno.ELOOP}
# a file's bytes are bounded too: 32 for each pixel allowed are four channels of 64 bits
PIXEL_BYTES, LEAST_BYTES = 32, 1 << 28


def is_image(name: str) -> bool:
    """By extension; names with a leading dot are left out."""
    return is_file_of(name, EXTENSIONS)


def extensions(channels: int) -> tuple[str, ...]:
    """Of the files that are images of so many channels."""
    return EXTENSIONS if channels == 3 else tuple(sorted((*EXTENSIONS, *ARRAYS)))


def list_images(
    root: str, channels: int = 3, others: Counter[str] | None = None
) -> list[tuple[str, int]]:
    """(path relative to `root` with "/" separators, size in bytes) of all images, sorted.

    Args:
      others: counts the files that are not listed, by ending.
    """
    files = scan(root, extensions(channels), others)
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


def names_at(root: str) -> list[str]:
    """Names at the top of `root`, sorted, without hidden ones.

    Raises:
      ConfigError: the folder cannot be listed.
    """
    try:
        found = [e.name for e in epath.Path(root).iterdir()] if "://" in root else os.listdir(root)
    except OSError as err:
        raise ConfigError(f"data.path: cannot list {root} ({err.strerror or err})") from err
    return sorted(name for name in found if not name.startswith("."))


def folders_at(root: str) -> list[str]:
    """The folders among `names_at`.

    A remote store answers one question at a time slowly: what is called like an image is taken
    for one there.
    """
    names = names_at(root)
    if "://" in root:
        return [n for n in names if not is_image(n) and (epath.Path(root) / n).is_dir()]
    return [name for name in names if os.path.isdir(os.path.join(root, name))]


@dataclasses.dataclass
class FolderSplit(Lazy):
    """JPEG, PNG, WebP, GIF, TIFF and BMP files below `path`; NumPy arrays if not of 3 channels.

    Folders at the top of `path` with names as "train" and "val" are the splits, see
    `layout.find_splits`; else the images below the training folder, or below `path`, are split by
    a hash of their relative path. The label is the number of the first folder below the split's
    root among the sorted class folders, see `layout.find_classes`.

    Attributes:
      path: local or gs:// folder.
      test_fraction: share of the test split where no folders define one.
      splits: "auto", or "none" where names as "train" are classes like others.
      channels, max_pixels, value_range: see `decoding.Decoding`.
      index: lists the files, and shares the list with the other split; None = one of its own.
      notes: what is to be said of the folder: splits, images without a class, files left out.
    """

    split: str
    path: str
    test_fraction: float = 0.1
    splits: Literal["auto", "none"] = "auto"
    channels: Count = 3
    max_pixels: Count = MAX_PIXELS
    value_range: Range | None = None
    index: dataclasses.InitVar[Index | None] = None
    num_classes: int = dataclasses.field(init=False, default=0)
    class_names: list[str] = dataclasses.field(init=False, default_factory=list)
    notes: list[str] = dataclasses.field(init=False, default_factory=list)
    how: Decoding = dataclasses.field(init=False, default=Decoding())
    fingerprint: str = dataclasses.field(init=False, default="")
    _root: str = dataclasses.field(init=False, default="")
    _names: bytes = dataclasses.field(init=False, default=b"", repr=False)
    _ends: np.ndarray = dataclasses.field(init=False, default_factory=lambda: np.zeros(0, np.int64))

    name = "folder"
    label_name = "class folder"

    def __post_init__(self, index: Index | None):
        self.how = Decoding(self.channels, self.max_pixels, self.value_range)
        self.path = checked_path(os.fspath(self.path), KEY)
        fit(Literal["auto", "none"], self.splits, "data.splits")
        if not epath.Path(self.path).is_dir():
            raise ConfigError(f"data.path: {self.path!r} is no folder; allowed: a folder of images")
        roots, by_hash = self._find_roots()
        self._root = roots[-1 if self.split == "test" else 0]
        index, endings = index or Index(), extensions(self.channels)
        found = index.files(self._root, endings)
        others = layout.left_out(index.left_out(self._root, endings))
        files = list(zip(found.names, found.sizes))
        self._find_classes(found.names, roots)
        self.notes += [others] * bool(others)
        num_found = len(files)
        if by_hash:
            files = hash_split(files, self.split, self.test_fraction)
        if not files:
            where = f" ({num_found} in all splits)" if num_found else ""
            held = f"; {others}" if others and not num_found else ""
            raise ConfigError(
                f"data.path: found no image for split {self.split!r} below {self._root!r}{where}; "
                f"allowed: files that end in {', '.join(endings)}{held}"
            )
        self._keep(files)

    def _find_roots(self) -> tuple[list[str], bool]:
        """The folders of the train and test split, and whether one folder is split by hash."""
        base, names, endings = epath.Path(self.path), names_at(self.path), extensions(self.channels)
        named = [name for name in names if layout.role(name) is not None]
        if self.splits == "none" or not any((base / name).is_dir() for name in named):
            return [self.path], True
        folders = folders_at(self.path)
        stray = [n for n in names if is_file_of(n, endings) and n not in folders]
        below = lambda name: os.fspath(base / name)
        holds = lambda name: holds_image(below(name), endings)
        found = layout.find_splits(self.path, folders, stray, holds)
        self.notes += [found.note] * bool(found.note)
        train = below(found.train) if found.train else self.path
        return ([train], True) if found.test is None else ([train, below(found.test)], False)

    def _find_classes(self, names: list[str], roots: list[str]) -> None:
        """All folders at the top of both trees are classes, so that both number them alike."""
        found = layout.find_classes(names, _first_folder)
        self.notes += [found.note] * bool(found.note)
        if not found.names:
            return
        folders = {name for root in roots for name in folders_at(root)}
        self.class_names = sorted(folders.union(found.names))
        self.num_classes = len(self.class_names)
        held = set(found.names)
        empty = [n for n in self.class_names if n not in held and not self._holds_image(n, roots)]
        if empty:
            self.notes.append(f"class folders without an image: {layout.listed(empty)}")

    def _holds_image(self, name: str, roots: list[str]) -> bool:
        endings, places = extensions(self.channels), [epath.Path(root) / name for root in roots]
        return any(p.is_dir() and holds_image(os.fspath(p), endings) for p in places)

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
        return read_image(self.file(index), KEY, self.how)

    def label(self, index: int) -> int:
        folder = _first_folder(self.relative_path(index))
        return layout.Classes(self.class_names).number(folder)

    def file(self, index: int) -> str:
        """The whole path."""
        return os.path.join(self._root, self.relative_path(index))


def _first_folder(path: str) -> str:
    """Of a relative path; "" if there is none."""
    folder, slash, _ = path.partition("/")
    return folder if slash else ""


def read_image(path: str, key: str, how: Decoding) -> Image.Image | Bands:
    """The image in a local or remote file.

    Raises:
      BadImage: it cannot be read or decoded.
    """
    most = max(PIXEL_BYTES * how.max_pixels, LEAST_BYTES)
    if not is_file_of(os.path.basename(path), ARRAYS):
        return decode(read_bytes(path, key, most), path, key, how)
    remote = "://" in path  # a local one is mapped: of a mistaken giant only the head is read
    return load_array(io.BytesIO(read_bytes(path, key)) if remote else path, path, key, how)


def read_bytes(path: str, key: str = KEY, most: int = PIXEL_BYTES * MAX_PIXELS) -> bytes:
    """The content of a local or remote file; `key` is what named it, for errors.

    Args:
      most: bytes of a local file; a larger one is not read.

    Raises:
      BadImage: it cannot be read; tried again after PAUSES unless the reason is lasting.
    """
    for pause in (*PAUSES, None):
        try:
            if "://" in path:
                return epath.Path(path).read_bytes()
            with open(path, "rb", opener=_open_at_once) as file:
                found = os.fstat(file.fileno())
                if not stat.S_ISREG(found.st_mode):
                    refuse(key, path, "no regular file")
                if found.st_size > most:
                    refuse(key, path, f"{found.st_size:,} bytes; data.max_pixels allows {most:,}")
                return file.read()
        except OSError as err:
            if pause is None or err.errno in LASTING:
                reason = str(err.strerror or err)
                message = f"{key}: cannot read {shown(path)} ({reason})"
                raise BadImage(message, path, f"cannot read: {reason}") from err
            time.sleep(pause)
    raise AssertionError  # the last pass returns or raises


def _open_at_once(path: str, flags: int) -> int:
    """Opens without waiting for somebody to write into a pipe."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))
