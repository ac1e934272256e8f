"""Tables of features as files: NumPy's .npz, or Parquet; neither is ever held in memory whole.

Rows come in batches; every column but path and label is float32 of one shape per row.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import zipfile
from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np

from mimjax.errors import ConfigError
from mimjax.storage import outputs

SUFFIXES = (".npz", ".parquet")
GROUP_BYTES = 64 << 20  # of features in one row group of a Parquet file
Columns = dict[str, np.ndarray]


class Table(Protocol):
    """What features are written into; `close` completes it."""

    def add(self, paths: list[str], labels: np.ndarray, columns: Columns) -> None: ...

    def close(self) -> None: ...


def check(path: str, overwrite: bool, spare: dict[str, str | None] | None = None) -> None:
    """Before any work is done.

    Args:
      spare: see `outputs.check`.

    Raises:
      ConfigError: another suffix, a file that may not be replaced, Parquet without pyarrow.
    """
    if not path.endswith(SUFFIXES):
        raise ConfigError(f"--output: {path!r}; allowed: file names that end in .npz or .parquet")
    if path.endswith(".parquet"):
        import_parquet(path)
    outputs.check(path, overwrite, spare=spare, hint="--overwrite")


@contextlib.contextmanager
def create(path: str, overwrite: bool, about: dict[str, str]) -> Iterator[Table]:
    """A table that is at `path` when the body has succeeded; otherwise nothing is.

    Args:
      about: text by name, kept in the file.

    Raises:
      ConfigError: it cannot be written; the line names --output.
    """
    with outputs.staged(path, overwrite) as new:
        table = Parquet(new, about) if path.endswith(".parquet") else Npz(new, about)
        yield table
        table.close()
        with open(new, "rb") as file:
            os.fsync(file.fileno())  # so that a full disk is noticed


class Npz:
    """Arrays `path`, `label`, one per feature, and `about` (JSON); nothing is pickled.

    Features are collected in files beside `path`, since the head of an array says its length.
    """

    def __init__(self, path: str, about: dict[str, str]):
        self.path, self.about = path, about
        self.paths: list[str] = []
        self.labels: list[np.ndarray] = []
        self.parts: dict[str, Any] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}

    def add(self, paths: list[str], labels: np.ndarray, columns: Columns) -> None:
        """More rows; `columns` float32 [k ...] by name."""
        self.paths += paths
        self.labels.append(labels)
        for name, x in columns.items():
            if name not in self.parts:
                self.parts[name] = open(f"{self.path}.{name}", "w+b")  # noqa: SIM115
                self.shapes[name] = x.shape[1:]
            self.parts[name].write(np.ascontiguousarray(x, "<f4").tobytes())

    def close(self) -> None:
        small = {
            "path": np.asarray(self.paths, np.str_),
            "label": np.concatenate(self.labels),
            "about": np.asarray(json.dumps(self.about)),
        }
        with zipfile.ZipFile(self.path, "w") as archive:
            for name, part in self.parts.items():
                shape = len(self.paths), *self.shapes[name]
                head = {"descr": "<f4", "fortran_order": False, "shape": shape}
                with part, archive.open(f"{name}.npy", "w", force_zip64=True) as out:
                    np.lib.format.write_array_header_1_0(out, head)
                    part.seek(0)
                    shutil.copyfileobj(part, out, 1 << 20)
            for name, x in small.items():
                with archive.open(f"{name}.npy", "w", force_zip64=True) as out:
                    np.lib.format.write_array(out, x, allow_pickle=False)


class Parquet:
    """Columns `path`, `label` and lists of fixed length, row group by row group.

    `about` is the schema's metadata; tokens [t d] are lists of t * d numbers, and the column's own
    metadata has their shape.
    """

    def __init__(self, path: str, about: dict[str, str]):
        self.path, self.about = path, about
        self.arrow, self.parquet = import_parquet(path)
        self.writer: Any = None
        self.held: list[tuple[list[str], np.ndarray, Columns]] = []
        self.size = 0

    def add(self, paths: list[str], labels: np.ndarray, columns: Columns) -> None:
        """More rows; `columns` float32 [k ...] by name."""
        if self.writer is None:
            self.writer = self.parquet.ParquetWriter(self.path, self._schema(columns))
        self.held.append((paths, labels, columns))
        self.size += sum(x.nbytes for x in columns.values())
        if self.size >= GROUP_BYTES:
            self._flush()

    def close(self) -> None:
        self._flush()
        self.writer.close()

    def _schema(self, columns: Columns) -> Any:
        pa = self.arrow
        fields = [pa.field("path", pa.string()), pa.field("label", pa.int64())]
        for name, x in columns.items():
            kind = pa.list_(pa.float32(), int(np.prod(x.shape[1:])))
            fields.append(pa.field(name, kind, metadata={"shape": json.dumps(x.shape[1:])}))
        return pa.schema(fields, metadata=self.about)

    def _flush(self) -> None:
        """What is held becomes a row group."""
        if not self.held:
            return
        pa, schema = self.arrow, self.writer.schema
        # names that are no UTF-8 are escaped: Parquet's strings are
        escaped = lambda path: path.encode("utf-8", "backslashreplace").decode()
        paths = [escaped(path) for part, _, _ in self.held for path in part]
        arrays = [pa.array(paths, pa.string())]
        arrays.append(pa.array(np.concatenate([labels for _, labels, _ in self.held])))
        for field in list(schema)[2:]:
            values = np.concatenate([columns[field.name].ravel() for *_, columns in self.held])
            arrays.append(pa.FixedSizeListArray.from_arrays(values, field.type.list_size))
        self.writer.write_table(pa.Table.from_arrays(arrays, schema=schema))
        self.held, self.size = [], 0


def import_parquet(path: str) -> tuple[Any, Any]:
    """Pyarrow and its module for Parquet.

    Raises:
      ConfigError: it is not installed.
    """
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise ConfigError(
            f"--output: {path!r} needs pyarrow: pip install mimjax[parquet]; allowed without it: "
            "a file name that ends in .npz"
        ) from None
    return pyarrow, parquet
