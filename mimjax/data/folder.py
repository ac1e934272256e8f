"""Source of a folder of images for training: any depth, with or without class folders.

The folder is local or on a store. Its files are listed once at construction (`index.py`) and the
paths kept as one block of bytes, so that a million of them pickle quickly; images are read and
decoded one by one. What the folders' names mean is decided in `layout.py`. TFDS' `ImageFolder` is
not used, since it needs TensorFlow.
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
from typing import Any, Literal

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

# suffixes of the formats in `decoding.FORMATS`; browsers save JPEG as .jfif
JPEGS = (".jfif", ".jif", ".jpe", ".jpeg", ".jpg")
EXTENSIONS = (".bmp", ".gif", *JPEGS, ".png", ".tif", ".tiff", ".webp")
# arrays are read only for other than three channels: beside photographs they are rarely images
ARRAYS = (".npy",)
SPLITS = ("auto", "none")

KEY = "data.path"
# seconds before new attempts: a short failure of a network disk must not change the data
PAUSES = 0.1, 1.0
# errors after which a new attempt would fail as well
LASTING = {errno.ENOENT, errno.EACCES, errno.EPERM, errno.EISDIR, errno.ENOTDIR, errno.ELOOP}
# limit of a file's size: 32 bytes per allowed pixel (four channels of 64 bits), or 256 MiB
PIXEL_BYTES, MIN_BYTES = 32, 1 << 28


def is_image(name: str) -> bool:
    """Return whether a file name has an image's suffix and no leading dot."""
    return is_file_of(name, EXTENSIONS)


def extensions(channels: int) -> tuple[str, ...]:
    """Return the suffixes of files that are read as images of so many channels."""
    return EXTENSIONS if channels == 3 else tuple(sorted((*EXTENSIONS, *ARRAYS)))


def list_images(
    root: str, channels: int = 3, others: Counter[str] | None = None
) -> list[tuple[str, int]]:
    """Return (path, size in bytes) of all images below `root`, sorted by path.

    Args:
      root: local or remote folder.
      channels: number of channels, which decides the suffixes.
      others: receives counts of the files that are not listed, by suffix.

    Returns:
      Paths relative to `root`, with "/" separators.
    """
    files = scan(root, extensions(channels), others)
    return list(zip(files.names, files.sizes))


def _in_test(path: str, fraction: float) -> bool:
    """Return whether the hash of a path lies in the test share.

    A path has the same hash whatever other images there are, so adding images moves none of the
    old ones between the splits.
    """
    number = hashlib.blake2b(os.fsencode(path), digest_size=8).digest()
    return int.from_bytes(number, "big") < fraction * 2**64


def hash_split(files: list[tuple[str, int]], split: str, fraction: float) -> list[tuple[str, int]]:
    """Return the part of `files` in one split, chosen by a hash of the path.

    Neither split is empty if there are two files or more, except the test split for fraction 0.

    Args:
      files: (path, size) pairs.
      split: "train" or "test".
      fraction: share of the test split.
    """
    test = {path for path, _ in files if _in_test(path, fraction)}
    if len(test) == len(files) and files:
        test.remove(files[0][0])
    elif not test and fraction > 0 and len(files) > 1:
        test.add(files[-1][0])
    return [file for file in files if (file[0] in test) == (split == "test")]


def names_at(root: str) -> list[str]:
    """Return the names of files and folders at the top of `root`, sorted, without hidden ones.

    Raises:
      ConfigError: the folder cannot be listed.
    """
    try:
        names = [e.name for e in epath.Path(root).iterdir()] if "://" in root else os.listdir(root)
    except OSError as err:
        raise ConfigError(f"data.path: cannot list {root} ({err.strerror or err})") from err
    return sorted(name for name in names if not name.startswith("."))


def folders_at(root: str) -> list[str]:
    """Return the names of the folders at the top of `root`, sorted, without hidden ones."""
    names = names_at(root)
    if "://" in root:
        # each request to a store is slow, so a name with an image's suffix counts as a file
        return [n for n in names if not is_image(n) and (epath.Path(root) / n).is_dir()]
    return [name for name in names if os.path.isdir(os.path.join(root, name))]


@dataclasses.dataclass
class ImageFiles(Lazy):
    """What sources of image files have in common: names below a folder, classes, and reading.

    A subclass has `key`, the flag or setting that named the folder, and `how`, the settings of
    decoding.

    Attributes:
      num_classes: number of class folders; 0 = no labels.
      class_names: names of the class folders, sorted.
      notes: remarks for the user, as about images without a class and files not read.
      fingerprint: 16 hex digits over names and sizes.
    """

    num_classes: int = dataclasses.field(init=False, default=0)
    class_names: list[str] = dataclasses.field(init=False, default_factory=list)
    notes: list[str] = dataclasses.field(init=False, default_factory=list)
    fingerprint: str = dataclasses.field(init=False, default="")
    _root: str = dataclasses.field(init=False, default="")

    label_name = "class folder"

    def relative_path(self, index: int) -> str:
        """Return an image's path relative to the folder, with "/" separators."""
        raise NotImplementedError(type(self).__name__)

    def class_of(self, name: str) -> str:
        """Return the folder that names the class of a relative path, "" if there is none."""
        folder, slash, _ = name.partition("/")
        return folder if slash else ""

    def file(self, index: int) -> str:
        """Return an image's whole path."""
        return os.path.join(self._root, self.relative_path(index))

    def image(self, index: int) -> Image.Image | Bands:
        """Return a whole image; see `sources.Source`."""
        me: Any = self
        return read_image(self.file(index), me.key, me.how)

    def label(self, index: int) -> int:
        """Return an image's class, -1 = none."""
        return layout.Classes(self.class_names).number(self.class_of(self.relative_path(index)))


@dataclasses.dataclass
class FolderSplit(ImageFiles):
    """JPEG, PNG, WebP, GIF, TIFF and BMP files below a folder; NumPy arrays too if not RGB.

    Folders at the top of `path` with names like "train" and "val" are the splits (see
    `layout.find_splits`). Without a test folder the images are split by a hash of their relative
    path. The label of an image is the number of the first folder below the split's folder among the
    sorted class folders (see `layout.find_classes`).

    Attributes:
      split: "train" or "test".
      path: local or remote folder.
      test_fraction: share of the test split if no folder defines it.
      splits: "auto"; "none" = folders with names like "train" are classes like all others.
      channels, max_pixels, value_range: see `decoding.Decoding`.
      index: listing of the files, shared with the other split; None = the files are listed anew.
      unmatched: of the training split, the class folders that the test split alone has, in words;
        "" = there are none.
      empty: the class folders that have no image in either split, in words; "" = there are none.
      how: settings of decoding, which are in the fingerprint too.

    Raises:
      ConfigError: there is no such folder, no image in the split, or the splits are ambiguous.
    """

    split: str
    path: str
    test_fraction: float = 0.1
    splits: Literal["auto", "none"] = "auto"
    channels: Count = 3
    max_pixels: Count = MAX_PIXELS
    value_range: Range | None = None
    index: dataclasses.InitVar[Index | None] = None
    how: Decoding = dataclasses.field(init=False, default=Decoding())
    unmatched: str = dataclasses.field(init=False, default="")
    empty: str = dataclasses.field(init=False, default="")
    _names: bytes = dataclasses.field(init=False, default=b"", repr=False)
    _ends: np.ndarray = dataclasses.field(init=False, default_factory=lambda: np.zeros(0, np.int64))

    name, key = "folder", KEY

    def __post_init__(self, index: Index | None):
        self.how = Decoding(self.channels, self.max_pixels, self.value_range)
        self.path = checked_path(os.fspath(self.path), KEY)
        fit(Literal["auto", "none"], self.splits, "data.splits")
        if not epath.Path(self.path).is_dir():
            raise ConfigError(f"data.path: {self.path!r} is no folder; allowed: a folder of images")
        roots, by_hash = self._find_roots()
        self._root = roots[-1 if self.split == "test" else 0]
        index, suffixes = index or Index(), extensions(self.channels)
        listing = index.files(self._root, suffixes)
        unread = layout.left_out(index.left_out(self._root, suffixes))
        files = list(zip(listing.names, listing.sizes))
        self._find_classes(listing.names, roots)
        self.notes += [unread] * bool(unread)
        total = len(files)
        if by_hash:
            files = hash_split(files, self.split, self.test_fraction)
        if not files:
            where = f" ({total} in all splits)" if total else ""
            more = f"; {unread}" if unread and not total else ""
            raise ConfigError(
                f"data.path: found no image for split {self.split!r} below {self._root!r}{where}; "
                f"allowed: files that end in {', '.join(suffixes)}{more}"
            )
        self._keep(files)

    def _find_roots(self) -> tuple[list[str], bool]:
        """Return the folders of the splits (train, test), and whether one folder is split by hash.

        With a split by hash there is one folder for both splits.
        """
        base, suffixes = epath.Path(self.path), extensions(self.channels)
        names = names_at(self.path)
        named = [name for name in names if layout.role(name) is not None]
        if self.splits == "none" or not any((base / name).is_dir() for name in named):
            return [self.path], True
        folders = folders_at(self.path)
        stray = [n for n in names if is_file_of(n, suffixes) and n not in folders]
        below = lambda name: os.fspath(base / name)
        holds = lambda name: holds_image(below(name), suffixes)
        splits = layout.find_splits(self.path, folders, stray, holds)
        self.notes += [splits.note] * bool(splits.note)
        train = below(splits.train) if splits.train else self.path
        return ([train], True) if splits.test is None else ([train, below(splits.test)], False)

    def _find_classes(self, names: list[str], roots: list[str]) -> None:
        """Set the classes: all folders at the top of both splits, so that both number them alike.

        Args:
          names: images of this split.
          roots: folders of the splits.
        """
        classes = layout.find_classes(names, self.class_of)
        self.notes += [classes.note] * bool(classes.note)
        if not classes.names:
            return
        folders = {name for root in roots for name in folders_at(root)}
        self.class_names = sorted(folders.union(classes.names))
        self.num_classes = len(self.class_names)
        used = set(classes.names)
        empty = [n for n in self.class_names if n not in used and not self._holds_image(n, roots)]
        if empty:
            self.empty = f"class folders without an image: {layout.listed(empty)}"
            self.notes.append(self.empty)
        if self.split == "train" and len(roots) > 1:
            self._compare_classes(classes.names, *roots)

    def _compare_classes(self, names: list[str], train: str, test: str) -> None:
        """Compare the classes of the splits, which are matched by name; a difference is a note.

        Args:
          names: classes with a training image.
          train, test: folders of the splits.
        """
        there, known = folders_at(test), set(names)
        new = [n for n in there if n not in known and self._holds_image(n, [test])]
        if new:
            self.unmatched = layout.unmatched(new, names, train, test)
            self.notes.append(f"{self.unmatched} (what reads labels will refuse them)")
        lacking = sorted(known.difference(there)) if there else []
        if lacking:
            words = f"class folders of {shown(train)} that {shown(test)} lacks"
            self.notes.append(f"{words}: {layout.listed(lacking)}")

    def _holds_image(self, name: str, roots: list[str]) -> bool:
        """Return whether a class folder has an image in any split."""
        suffixes, places = extensions(self.channels), [epath.Path(root) / name for root in roots]
        return any(p.is_dir() and holds_image(os.fspath(p), suffixes) for p in places)

    def _keep(self, files: list[tuple[str, int]]) -> None:
        """Store the paths of (path, size) pairs as one block of bytes, and set the fingerprint."""
        names = [os.fsencode(path) for path, _ in files]
        self._names = b"".join(names)
        self._ends = np.cumsum([len(name) for name in names], dtype=np.int64)
        flat = (part for path, size in files for part in (os.fsencode(path), size))
        # the default decoding is left out, so that fingerprints of older runs stay valid
        how = [] if self.how == Decoding() else [self.how.signature]
        names = map(os.fsencode, self.class_names)
        self.fingerprint = fingerprint([self.name, self.split, *names, *flat, *how])

    def __len__(self) -> int:
        return len(self._ends)

    def relative_path(self, index: int) -> str:
        """Return an image's path relative to the split's folder, with "/" separators."""
        if not 0 <= index < len(self):
            raise IndexError(index)
        start = self._ends[index - 1] if index else 0
        return os.fsdecode(self._names[start : self._ends[index]])


def read_image(path: str, key: str, how: Decoding) -> Image.Image | Bands:
    """Return the image in a local or remote file.

    Args:
      path: the file.
      key: setting that named it, for errors.
      how: settings of decoding.

    Raises:
      BadImage: the file cannot be read or decoded.
    """
    max_bytes = max(PIXEL_BYTES * how.max_pixels, MIN_BYTES)
    if not is_file_of(os.path.basename(path), ARRAYS):
        return decode(read_bytes(path, key, max_bytes), path, key, how)
    remote = "://" in path
    # a local array is mapped, so that only the header of one that is too large is read
    return load_array(io.BytesIO(read_bytes(path, key)) if remote else path, path, key, how)


def read_bytes(path: str, key: str = KEY, max_bytes: int = PIXEL_BYTES * MAX_PIXELS) -> bytes:
    """Return the content of a local or remote file.

    A failed read is repeated after each of PAUSES, unless the error is one of LASTING.

    Args:
      path: the file.
      key: setting that named it, for errors.
      max_bytes: largest allowed size of a local file.

    Raises:
      BadImage: the file cannot be read, is too large, or is not a regular file.
    """
    for pause in (*PAUSES, None):
        try:
            if "://" in path:
                return epath.Path(path).read_bytes()
            with open(path, "rb", opener=_open_at_once) as file:
                status = os.fstat(file.fileno())
                if not stat.S_ISREG(status.st_mode):
                    refuse(key, path, "no regular file")
                if (size := status.st_size) > max_bytes:
                    refuse(key, path, f"{size:,} bytes; data.max_pixels allows {max_bytes:,}")
                return file.read()
        except OSError as err:
            if pause is None or err.errno in LASTING:
                reason = str(err.strerror or err)
                message = f"{key}: cannot read {shown(path)} ({reason})"
                raise BadImage(message, path, f"cannot read: {reason}") from err
            time.sleep(pause)
    raise AssertionError  # the last attempt returns or raises


def _open_at_once(path: str, flags: int) -> int:
    """Open a file without blocking, as the opening of a pipe without a writer would."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))
