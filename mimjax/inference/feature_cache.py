"""Features of a frozen encoder on disk: computed once, continued after a kill, read as memory maps.

A cache is a folder whose name is a digest of all that decides the numbers: weights, network,
preprocessing and images; other models' features are never read. Each reading is a file of rows,
appended batch by batch, so that its length says how far it came.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from mimjax import progress, sharding
from mimjax.data.augment import Augment
from mimjax.data.pipeline import eval_batches
from mimjax.errors import RunError
from mimjax.inference.features import Readable
from mimjax.inference.samples import Subset
from mimjax.rules import path_name
from mimjax.storage.files import Workdir, naming
from mimjax.task import View
from mimjax.transfer.head import Reading
from mimjax.transfer.probing import feature_name

PyTree = Any
KEPT = "kept.u8"  # one byte per image: 1 = it could be read
ABOUT = "about.json"
# uint8 images [b h w c] -> float32 by `feature_name`, [b d] or [b n d]; compiled
Encode = Callable[[jax.Array], dict[str, jax.Array]]


@dataclasses.dataclass(frozen=True)
class Features:
    """Features of the labeled images of a split that could be read.

    Attributes:
      arrays: by reading, float32 [n d] or [n t d], as a rule memory maps of all images.
      rows: of the arrays, that belong to the images, int [k].
      labels: int32 [k].
      bad: path and reason of each file that could not be read.
    """

    arrays: Mapping[Reading, np.ndarray]
    rows: np.ndarray
    labels: np.ndarray
    bad: tuple[tuple[str, str], ...] = ()

    def __len__(self) -> int:
        return len(self.rows)

    def take(self, which: np.ndarray) -> Features:
        """Return the features of some of the images, given their places int [m]."""
        return dataclasses.replace(self, rows=self.rows[which], labels=self.labels[which])

    def read(self, reading: Reading, which: slice | np.ndarray = slice(None)) -> np.ndarray:
        """Return the features of some images in memory, float32."""
        return np.asarray(self.arrays[reading][self.rows[which]])


def digest(parts: Sequence[Any], params: PyTree) -> str:
    """Return 16 hex digits of texts and of every bit of a tree of arrays."""
    out = hashlib.sha256(json.dumps([str(p) for p in parts]).encode())
    for path, x in jax.tree_util.tree_leaves_with_path(params):
        x = np.ascontiguousarray(jax.device_get(x))
        out.update(f"{path_name(path)} {x.dtype} {x.shape}".encode())
        out.update(x.tobytes())
    return out.hexdigest()[:16]


@dataclasses.dataclass(frozen=True)
class Cache:
    """The features of one encoder on one split.

    Attributes:
      folder: where its files lie.
      encode: computes features of a batch.
      shapes: of one image's features by reading.
      view, augment: how images are brought to the encoder's size.
      mesh: the devices that encode.
      channels: of the images.
      batch_size, threads: images at once; threads that decode them.
    """

    folder: pathlib.Path
    encode: Encode
    shapes: dict[Reading, tuple[int, ...]]
    view: View
    augment: Augment
    mesh: Mesh
    channels: int = 3
    batch_size: int = 64
    threads: int = 8

    def file(self, reading: Reading) -> pathlib.Path:
        """Return the file of a reading's rows."""
        layer = "norm" if reading.layer is None else f"block_{reading.layer}"
        return self.folder / f"{reading.pool}_{layer}.f32"

    def bytes_of(self, reading: Reading) -> int:
        """Return the bytes of a row."""
        return 4 * int(np.prod(self.shapes[reading]))

    def done(self, reading: Reading) -> int:
        """Return how many images a reading's file holds."""
        file = self.file(reading)
        return file.stat().st_size // self.bytes_of(reading) if file.exists() else 0

    def missing(self, readings: Sequence[Reading], count: int) -> int:
        """Return the bytes that are still to be written for `count` images."""
        return sum((count - self.done(r)) * self.bytes_of(r) for r in readings)

    def read(
        self, subset: Subset, readings: Sequence[Reading], about: dict[str, Any], what: str
    ) -> Features:
        """Return features, after computing those that no earlier call computed.

        Args:
          subset: the images.
          about: said in the folder, for people.
          what: name of the progress bar.

        Raises:
          RunError: the disk is full.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        count = len(subset)
        source = Readable(subset, self.channels)
        try:
            self._write(source, self._lacking(readings, count), count, about, what)
        except OSError as error:
            need = self.missing(readings, count)
            raise RunError(
                f"{error.filename or self.folder}: {error.strerror or error}; the feature cache "
                f"lacks {need / 1e9:.3g} GB, what it holds is kept; allowed: the same command with "
                "space left, --output on another disk, fewer images (--count), or --augment (keeps "
                "no features)"
            ) from None
        kept = np.fromfile(self.folder / KEPT, np.uint8)[:count] > 0
        labels = np.asarray([subset.label(i) for i in range(count)], np.int32)
        rows = np.flatnonzero(kept & (labels >= 0))
        arrays = {
            r: np.memmap(self.file(r), np.float32, "r", shape=(count, *self.shapes[r]))
            for r in readings
        }
        return Features(arrays, rows, labels[rows], tuple(source.bad.values()))

    def _marked(self) -> int:
        """Return how many images are marked as readable or not."""
        file = self.folder / KEPT
        return file.stat().st_size if file.exists() else 0

    def _lacking(self, readings: Sequence[Reading], count: int) -> list[Reading]:
        """Return the readings that must be computed, also where only the marks are short."""
        found = [r for r in readings if self.done(r) < count]
        return found or ([] if self._marked() >= count else [min(readings, key=self.bytes_of)])

    def _write(
        self,
        source: Readable,
        readings: list[Reading],
        count: int,
        about: dict[str, Any],
        what: str,
    ) -> None:
        """Append the rows that readings lack, those of fewest rows first."""
        if not readings:
            return
        first = min(self._marked(), *(self.done(r) for r in readings))
        first -= first % self.batch_size
        Workdir(str(self.folder)).write_text(ABOUT, json.dumps(about, indent=2) + "\n")
        with contextlib.ExitStack() as stack:
            out = {r: stack.enter_context(self._opened(self.file(r), self.bytes_of(r), first))
                   for r in readings}  # fmt: skip
            marks = stack.enter_context(self._opened(self.folder / KEPT, 1, first))
            for batch in self._batches(source, first, count, what):
                rows = int((batch["index"] >= 0).sum())
                images = sharding.to_global(self.mesh, {"image": batch["image"]})["image"]
                values = jax.device_get(self.encode(images))
                good = ~np.isin(batch["index"][:rows], list(source.bad))
                for r, file in out.items():
                    with naming(self.file(r)):
                        file.write(
                            np.ascontiguousarray(
                                values[feature_name(r)][:rows], np.float32
                            ).tobytes()
                        )
                        file.flush()
                with naming(self.folder / KEPT):
                    marks.write(good.astype(np.uint8).tobytes())
                    marks.flush()

    @contextlib.contextmanager
    def _opened(self, path: pathlib.Path, size: int, rows: int) -> Iterator[Any]:
        """Open a file of rows behind its first `rows`; a torn or further row is cut off."""
        path.touch()
        with open(path, "r+b") as file:
            file.truncate(rows * size)
            file.seek(rows * size)
            yield file
            file.flush()
            os.fsync(file.fileno())

    def _batches(self, source: Readable, first: int, count: int, what: str) -> Iterator[Any]:
        """Yield batches from image `first`; "index" is -1 in rows that only fill the last one."""
        rest = Rest(source, first)
        size = min(self.batch_size, -(-len(rest) // self.mesh.size) * self.mesh.size)
        batches = eval_batches(
            rest, {"image": self.view}, size, None, 0, augment=self.augment, threads=self.threads
        )
        with batches:
            for batch in progress.track(batches, what, -(-len(rest) // size), "batch"):
                index = np.where(batch["weight"] > 0, batch["index"] + first, -1)
                yield batch | {"index": index}


@dataclasses.dataclass
class Rest:
    """A source without its first images."""

    source: Readable
    first: int

    def __post_init__(self):
        self.name, self.num_classes = self.source.name, self.source.num_classes
        self.label_name, self.fingerprint = self.source.label_name, self.source.fingerprint

    def __len__(self) -> int:
        return len(self.source) - self.first

    def image(self, index: int) -> Any:
        """Return an image as the source gives it."""
        return self.source.image(index + self.first)

    def label(self, index: int) -> int:
        """Return the label of an image."""
        return self.source.label(index + self.first)
