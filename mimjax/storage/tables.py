"""Tables of features as .npz or Parquet files, written batch by batch.

A table has one row per image: its path, its label, and columns of features, float32 with one shape
per row. Neither writer keeps the whole table in memory. Checkpoints and pictures are written
elsewhere.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import zipfile
from collections.abc import Iterator
from typing import Any

import numpy as np

from mimjax.errors import ConfigError
from mimjax.storage import outputs

SUFFIXES = (".npz", ".parquet")
GROUP_BYTES = 64 << 20  # bytes of features in one row group of a Parquet file
Columns = dict[str, np.ndarray]


def check(path: str, overwrite: bool, spare: dict[str, str | None] | None = None) -> None:
    """Check that a table can be written at `path`, before any work is done.

    Args:
      path: file that ends in one of SUFFIXES.
      overwrite: whether an earlier table may be replaced.
      spare: see `outputs.check`.

    Raises:
      ConfigError: the suffix is another one, the file may not be replaced, or pyarrow is missing.
    """
    if not path.endswith(SUFFIXES):
        raise ConfigError(f"--output: {path!r}; allowed: file names that end in .npz or .parquet")
    if path.endswith(".parquet"):
        import_parquet(path)
    outputs.check(path, overwrite, spare=spare, hint="--overwrite")


@contextlib.contextmanager
def create(path: str, overwrite: bool, about: dict[str, str]) -> Iterator[Npz | Parquet]:
    """Yield a table to add rows to; the file appears at `path` if the body succeeds.

    Args:
      path: file that ends in one of SUFFIXES.
      overwrite: whether an earlier table may be replaced.
      about: {name: text}, stored in the file.

    Raises:
      ConfigError: the file cannot be written.
    """
    with outputs.staged(path, overwrite) as new:
        table = Parquet(new, about) if path.endswith(".parquet") else Npz(new, about)
        yield table
        table.close()
        with open(new, "rb") as file:
            os.fsync(file.fileno())  # so that a full disk is noticed


class Npz:
    """Writer of an .npz file: arrays `path`, `label`, one per feature, and `about` (JSON text).

    No array needs pickle. Each column is first collected in a file of its own beside `path`, since
    the header of an array states the number of rows.
    """

    def __init__(self, path: str, about: dict[str, str]):
        self.path, self.about = path, about
        self.paths: list[str] = []
        self.labels: list[np.ndarray] = []
        self.parts: dict[str, Any] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}

    def add(self, paths: list[str], labels: np.ndarray, columns: Columns) -> None:
        """Append b rows: `labels` int [b], `columns` {name: float32 [b ...]}."""
        self.paths += paths
        self.labels.append(labels)
        for name, x in columns.items():
            if name not in self.parts:
                self.parts[name] = open(f"{self.path}.{name}", "w+b")  # noqa: SIM115
                self.shapes[name] = x.shape[1:]
            self.parts[name].write(np.ascontiguousarray(x, "<f4").tobytes())

    def close(self) -> None:
        """Join the columns' files into one archive."""
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
    """Writer of a Parquet file: columns `path`, `label`, and a list of fixed length per feature.

    A feature [t d] is a list of t * d numbers; the metadata of its column has the shape. `about`
    becomes the metadata of the schema.
    """

    def __init__(self, path: str, about: dict[str, str]):
        self.path, self.about = path, about
        self.arrow, self.parquet = import_parquet(path)
        self.writer: Any = None
        self.pending: list[tuple[list[str], np.ndarray, Columns]] = []  # rows not yet written
        self.size = 0  # bytes of their features

    def add(self, paths: list[str], labels: np.ndarray, columns: Columns) -> None:
        """Append b rows: `labels` int [b], `columns` {name: float32 [b ...]}."""
        if self.writer is None:
            self.writer = self.parquet.ParquetWriter(self.path, self._schema(columns))
        self.pending.append((paths, labels, columns))
        self.size += sum(x.nbytes for x in columns.values())
        if self.size >= GROUP_BYTES:
            self._flush()

    def close(self) -> None:
        """Write the last row group and the file's footer."""
        self._flush()
        self.writer.close()

    def _schema(self, columns: Columns) -> Any:
        """Return the pyarrow schema of a table with these columns."""
        pa = self.arrow
        fields = [pa.field("path", pa.string()), pa.field("label", pa.int64())]
        for name, x in columns.items():
            kind = pa.list_(pa.float32(), int(np.prod(x.shape[1:])))
            fields.append(pa.field(name, kind, metadata={"shape": json.dumps(x.shape[1:])}))
        return pa.schema(fields, metadata=self.about)

    def _flush(self) -> None:
        """Write the pending rows as one row group."""
        if not self.pending:
            return
        pa, schema = self.arrow, self.writer.schema
        # Parquet's strings are UTF-8, but names of files may be any bytes
        escaped = lambda path: path.encode("utf-8", "backslashreplace").decode()
        paths = [escaped(path) for part, _, _ in self.pending for path in part]
        arrays = [pa.array(paths, pa.string())]
        arrays.append(pa.array(np.concatenate([labels for _, labels, _ in self.pending])))
        for field in list(schema)[2:]:
            values = np.concatenate([columns[field.name].ravel() for *_, columns in self.pending])
            arrays.append(pa.FixedSizeListArray.from_arrays(values, field.type.list_size))
        self.writer.write_table(pa.Table.from_arrays(arrays, schema=schema))
        self.pending, self.size = [], 0


def import_parquet(path: str) -> tuple[Any, Any]:
    """Return the modules `pyarrow` and `pyarrow.parquet`.

    Raises:
      ConfigError: pyarrow is not installed; the line names `path`.
    """
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise ConfigError(
            f"--output: {path!r} needs pyarrow: pip install 'mimjax[parquet]'; allowed without it: "
            "a file name that ends in .npz"
        ) from None
    return pyarrow, parquet
