"""Local and remote paths, and reading and writing in a run's workdir.

`checked_path` says which addresses may be used where; `Workdir` is used for all files of a run, so
that local and `gs://` workdirs share one code. A reader never sees half a file: a local file is
renamed into its place, and a remote store shows an object only when it is complete. Nothing remote
is appended to, renamed or locked. Checkpoints are in `storage/checkpoints.py`, files at paths that
a user names in `storage/outputs.py`.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import math
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from typing import Any

from etils import epath

from mimjax import stopping
from mimjax.errors import ConfigError

STORES = {"gs": ("gcsfs", "gcs"), "s3": ("s3fs", "s3")}  # scheme -> (package, extra of mimjax)
# orbax has no driver for s3://, so checkpoints cannot be stored there
RUNS, IMAGES = ("gs",), ("gs", "s3")
# stores that each path flag of the programs (FLAGS) and each path setting (KEYS) may name; those of
# frozen networks, settings of their targets, are as `init_from`
FLAGS = {"workdir": RUNS, "images": IMAGES, "model": RUNS, "output": IMAGES, "hlo": IMAGES}
WRITTEN = ("workdir", "output", "hlo")
KEYS = {"init_from": RUNS, "resume": RUNS, "data.path": IMAGES}


def checked_path(path: str, key: str, stores: Sequence[str] = IMAGES, opened: bool = True) -> str:
    """Return a path with `~` expanded, after checking its address; no disk or store is asked.

    Args:
      path: a local path, or an address of a store ("gs://bucket/folder").
      key: flag or setting that named it, for errors.
      stores: schemes of STORES that are allowed.
      opened: whether the store's package must be installed; False checks the text only.

    Raises:
      ConfigError: the store is not allowed here, the address is mistyped, or a package is missing.
    """
    allowed = ", ".join(["a path on this machine", *(f"{s}://BUCKET/..." for s in stores)])
    scheme, colon, rest = path.partition("://")
    if not colon:
        if re.match(r"(gs|gcs|s3|hf|az|https?|file):", path, re.IGNORECASE):
            raise ConfigError(f"{key}: {path!r} is no address of a store; allowed: {allowed}")
        return os.path.expanduser(path)
    if scheme not in STORES and _registered(scheme):
        return path
    if scheme not in stores:
        verb = "written" if key.lstrip("-") in WRITTEN else "read"
        why = f"nothing can be {verb} at {scheme}:// here"
        copy = " (download it first)" if verb == "read" else ""
        raise ConfigError(f"{key}: {path!r}: {why}; allowed: {allowed}{copy}")
    if not rest.strip("/") or rest.startswith("/"):
        raise ConfigError(f"{key}: {path!r} names no bucket; allowed: {allowed}")
    package, extra = STORES[scheme]
    if not opened:
        return path
    if importlib.util.find_spec(package) is not None:
        # where TensorFlow is installed, etils would use it instead of the store's package
        os.environ.setdefault("EPATH_USE_TF", "false")
    elif scheme != "gs" or importlib.util.find_spec("tensorflow") is None:
        raise ConfigError(
            f'{key}: {path!r} needs {package}: pip install "mimjax[{extra}]"; allowed without it: '
            "a path on this machine"
        )
    return path


def reachable_path(path: str, key: str, stores: Sequence[str]) -> str:
    """Return `checked_path(...)` after one request to the store, which shows missing rights early.

    Raises:
      ConfigError: see `checked_path`; or the store does not answer or refuses access.
    """
    path = checked_path(path, key, stores)
    if "://" not in path:
        return path
    try:
        epath.Path(path).exists()
    except Exception as error:  # each store's client has its own exceptions
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise ConfigError(
            f"{key}: {path!r} cannot be reached ({reason}); allowed: a bucket that this machine's "
            "credentials may use"
        ) from None
    return path


def _registered(scheme: str) -> bool:
    """Return whether a user registered a backend for this scheme with `epath`.

    The schemes hf and az are known to `epath` itself, but no extra of mimjax installs their
    packages.
    """
    if scheme in ("hf", "az"):
        return False
    try:
        epath.Path(f"{scheme}://x")
    except KeyError:
        return False
    return True


class Workdir:
    """Folder of a run; only process 0 writes, every process may read.

    Attributes:
      path: local or remote folder.
      is_local: whether files can be appended to and renamed.
      writer: whether this process writes; methods that write do nothing in the others.
      key: setting that names it, for errors.

    Raises:
      ConfigError: no run can use this address, or the folder cannot be made; `key` begins the
        line.
    """

    def __init__(self, path: str, writer: bool = True, key: str = "--workdir"):
        path = checked_path(path, key, RUNS, opened=writer)
        self.is_local = "://" not in path
        # orbax accepts absolute paths only
        self.path = epath.Path(os.path.abspath(path) if self.is_local else path)
        self.writer, self.key = writer, key
        if writer:
            try:
                self.path.mkdir(parents=True, exist_ok=True)
            except (FileExistsError, FileNotFoundError, NotADirectoryError, PermissionError) as e:
                raise ConfigError(
                    f"{key}: {self.path}: {e.strerror}; allowed: a place that can be written, with "
                    "space left"
                ) from None

    def file(self, name: str) -> epath.Path:
        """Return the path of a file or folder, given its path relative to the workdir."""
        return self.path / name

    def read_text(self, name: str) -> str:
        """Return a file's text, "" if there is no file; bytes that are not UTF-8 are replaced."""
        if not self.file(name).exists():
            return ""
        return self.file(name).read_bytes().decode(errors="replace")

    def read_json(self, name: str) -> dict[str, Any]:
        """Return the object in a JSON file, {} if there is no file.

        Raises:
          ConfigError: the file is no JSON or holds no object.
        """
        text = self.read_text(name)
        try:
            content = json.loads(text) if text else {}
            if not isinstance(content, dict):
                raise ValueError(f"a {type(content).__name__}")
            return content
        except ValueError as error:
            raise ConfigError(
                f"{self.key}: {self.file(name)} is damaged ({error}); allowed: the file as a run "
                "wrote it (restore it from a copy; other readers of its checkpoints need it)"
            ) from None

    def write_text(self, name: str, text: str) -> None:
        """Write a UTF-8 file as `write_bytes` does."""
        self.write_bytes(name, text.encode())

    def write_bytes(self, name: str, data: bytes) -> None:
        """Write a file as a whole: a local one under a temporary name, which is then renamed.

        Raises:
          OSError: the file cannot be written; the old one is unchanged, the temporary one removed.
        """
        if not self.writer:
            return
        target = self.file(name)
        target.parent.mkdir(parents=True, exist_ok=True)
        if not self.is_local:
            target.write_bytes(data)
            return
        new = target.parent / f".{target.name}.new"
        try:
            with stopping.whole(), naming(target):
                new.write_bytes(data)
                new.replace(target)
        except OSError:
            with contextlib.suppress(OSError):
                new.unlink(missing_ok=True)
            raise

    def append(self, name: str, line: str) -> None:
        """Append one line to a file; on a remote store the whole file is written again."""
        if not self.writer:
            return
        if self.is_local:
            with naming(self.file(name)), self.file(name).open("a") as f:
                f.write(line + "\n")
        else:
            self.write_text(name, self.read_text(name) + line + "\n")

    def read_lines(self, name: str) -> tuple[list[dict[str, Any]], int]:
        """Read a file of JSON lines, each an object with an integer "step".

        Returns:
          The rows, and the number of lines that are no such object. A last line without a line end,
          which a crash cut short, is not counted.
        """
        rows, bad = [], 0
        for line in self.read_text(name).splitlines(keepends=True):
            try:
                row = json.loads(line)
            except ValueError:
                row = None
            step = row.get("step") if isinstance(row, dict) else None
            # bool is a subclass of int
            if isinstance(step, int) and not isinstance(step, bool):
                rows.append(row)
            elif line.strip() and line.endswith("\n"):
                bad += 1
        return rows, bad

    def move_aside(self, name: str, to: str) -> str:
        """Move a file or folder within the workdir to an unused name; nothing is replaced.

        Returns:
          The new name: `to`, or `to` with a number behind it.
        """
        if not self.writer:
            return to
        free = self._free_name(to)
        target = self.file(free)
        target.parent.mkdir(parents=True, exist_ok=True)
        if self.is_local:
            self.file(name).rename(target)
        else:
            _move(self.file(name), target)
        return free

    def copy_aside(self, name: str, to: str) -> str:
        """Copy a file within the workdir to an unused name, and return that name."""
        free = self._free_name(to)
        self.write_bytes(free, self.file(name).read_bytes())
        return free

    def _free_name(self, name: str) -> str:
        """Return `name`, or the first of name_2, name_3, ... that does not exist."""
        free, count = name, 1
        while self.file(free).exists():
            count += 1
            free = f"{name}_{count}"
        return free

    def free(self) -> float:
        """Return the free bytes of the folder's disk; infinity for remote stores."""
        return shutil.disk_usage(self.path).free if self.is_local else math.inf

    def remove(self, name: str) -> None:
        """Delete a file if it exists."""
        if self.writer:
            self.file(name).unlink(missing_ok=True)


@contextlib.contextmanager
def naming(path: Any) -> Iterator[None]:
    """Add the file's name to OSErrors of writing (a full disk); only errors of opening have it."""
    try:
        yield
    except OSError as error:
        if error.errno is not None and error.filename is None:
            error.filename = os.fspath(path)
        raise


def _move(source: epath.Path, target: epath.Path) -> None:
    """Copy file by file, then delete the source, since object stores have no rename."""
    if source.is_dir():
        target.mkdir(parents=True, exist_ok=True)
        for entry in source.iterdir():
            _move(entry, target / entry.name)
        source.rmtree()
    else:
        target.write_bytes(source.read_bytes())
        source.unlink()
