"""A folder of images as a source: any depth, with or without class sub-folders, local or gs://.

Own code and not TFDS' `ImageFolder`, which needs TensorFlow. The listing is read once at
construction and kept as one block of bytes, so that a million paths pickle quickly; images are
read and decoded one by one.
"""

from __future__ import annotations

import bisect
import dataclasses
import hashlib
import os

import numpy as np
from etils import epath
from PIL import Image

from mimjax.data.images import Lazy, check_option, decode, fingerprint
from mimjax.task import ConfigError

EXTENSIONS = (".bmp", ".jpeg", ".jpg", ".png", ".webp")
# "val" comes before "test": where both exist (ImageNet), the test images have no labels.
TEST_FOLDERS = ("val", "validation", "test")


def is_image(name: str) -> bool:
    """By extension; names with a leading dot are left out (macOS writes ._copies)."""
    return name.lower().endswith(EXTENSIONS) and not name.startswith(".")


def list_images(root: str) -> list[tuple[str, int]]:
    """(path relative to `root` with "/" separators, size in bytes) of all images, sorted.

    Follows links to folders (a data set is often a tree of links), each real folder once.
    """
    found: list[tuple[str, int]] = []
    if "://" in root:
        _list_remote(epath.Path(root), "", found)
    else:
        seen: set[str] = set()
        _list_local(root, "", found, seen)
    return sorted(found)


def _list_local(root: str, below: str, found: list[tuple[str, int]], seen: set[str]) -> None:
    real = os.path.realpath(os.path.join(root, below))
    if real in seen:  # a link back to a parent would never end
        return
    seen.add(real)
    with os.scandir(real) as entries:
        for entry in entries:
            path = f"{below}/{entry.name}" if below else entry.name
            if entry.is_dir():
                if not entry.name.startswith("."):
                    _list_local(root, path, found, seen)
            elif is_image(entry.name) and entry.is_file():
                found.append((path, entry.stat().st_size))


def _list_remote(folder: epath.Path, below: str, found: list[tuple[str, int]]) -> None:
    for entry in folder.iterdir():
        path = f"{below}/{entry.name}" if below else entry.name
        if is_image(entry.name):
            found.append((path, entry.stat().length))
        elif not entry.name.startswith(".") and entry.is_dir():
            _list_remote(entry, path, found)


def _in_test(path: str, fraction: float) -> bool:
    """By a hash of the path, so that adding images never moves one between the splits."""
    number = hashlib.blake2b(path.encode(), digest_size=8).digest()
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
    """JPEG, PNG, WebP and BMP files below `path`.

    `path/train` and `path/val` (or `validation`, `test`) are the splits where both exist; else
    the images below `path/train`, or below `path`, are split by a hash of their relative path.
    The label is the number of the first folder below the split's root among the sorted class
    folders if every image lies in one, else -1.

    Attributes:
      path: local or gs:// folder.
      test_fraction: share of the test split where no folders define one.
    """

    split: str
    path: str
    test_fraction: float = 0.1
    num_classes: int = dataclasses.field(init=False, default=0)
    class_names: list[str] = dataclasses.field(init=False, default_factory=list)
    fingerprint: str = dataclasses.field(init=False, default="")
    _root: str = dataclasses.field(init=False, default="")
    _names: bytes = dataclasses.field(init=False, default=b"", repr=False)
    _ends: np.ndarray = dataclasses.field(init=False, default_factory=lambda: np.zeros(0, np.int64))

    name = "folder"
    label_name = "class folder"

    def __post_init__(self):
        self.path = os.path.expanduser(os.fspath(self.path))
        ok = 0 <= self.test_fraction < 1
        check_option("test_fraction", self.test_fraction, ok, "0 <= test_fraction < 1")
        if not epath.Path(self.path).is_dir():
            raise ConfigError(f"data.path: {self.path!r} is no folder; allowed: a folder of images")
        roots, by_hash = self._find_roots()
        self._root = roots[-1 if self.split == "test" else 0]
        files = list_images(self._root)
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
                f"allowed: files that end in {', '.join(EXTENSIONS)}"
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
        self.fingerprint = fingerprint([self.name, self.split, *self.class_names, *flat])

    def __len__(self) -> int:
        return len(self._ends)

    def relative_path(self, index: int) -> str:
        """The path below the split's root, with "/" separators."""
        if not 0 <= index < len(self):
            raise IndexError(index)
        start = self._ends[index - 1] if index else 0
        return os.fsdecode(self._names[start : self._ends[index]])

    def image(self, index: int) -> Image.Image:
        path = os.path.join(self._root, self.relative_path(index))
        return decode(read_bytes(path), f"data.path: {path}")

    def label(self, index: int) -> int:
        if not self.class_names:
            return -1
        return bisect.bisect_left(self.class_names, self.relative_path(index).split("/", 1)[0])


def read_bytes(path: str, key: str = "data.path") -> bytes:
    """The content of a local or remote file; `key` is what named it, for errors."""
    try:
        if "://" in path:
            return epath.Path(path).read_bytes()
        with open(path, "rb") as file:
            return file.read()
    except OSError as err:
        raise ConfigError(f"{key}: cannot read {path} ({err.strerror or err})") from err
