"""All input and output in a workdir goes through here, so that `gs://` paths are the same code.

A reader never sees half a file: a local one is put in its place by a rename, and a remote store
shows an object only when it is whole. Nothing remote is appended to, renamed or locked.
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

STORES = {"gs": ("gcsfs", "gcs"), "s3": ("s3fs", "s3")}  # address -> its package, and our extra
# orbax has no driver of s3://, so no checkpoint can lie there
RUNS, IMAGES = ("gs",), ("gs", "s3")
# flags of programs, and settings, that name places; which stores each may name
FLAGS = {"workdir": RUNS, "images": IMAGES, "model": RUNS, "output": IMAGES, "hlo": IMAGES}
WRITTEN = ("workdir", "output", "hlo")
KEYS = {"init_from": RUNS, "resume": RUNS, "teacher.path": RUNS, "data.path": IMAGES}


def checked_path(path: str, key: str, stores: Sequence[str] = IMAGES, opened: bool = True) -> str:
    """A path as it can be opened, with `~` expanded; nothing is looked up.

    Args:
      key: the flag or setting that named it, for errors.
      stores: schemes of STORES that can be used here.
      opened: whether the store's package must be there; False only looks at the text.

    Raises:
      ConfigError: an address that cannot be used here, a mistyped one, or a missing package.
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
        os.environ.setdefault("EPATH_USE_TF", "false")  # etils would prefer TensorFlow to it
    elif scheme != "gs" or importlib.util.find_spec("tensorflow") is None:
        raise ConfigError(
            f'{key}: {path!r} needs {package}: pip install "mimjax[{extra}]"; allowed without it: '
            "a path on this machine"
        )
    return path


def found(path: str, key: str, stores: Sequence[str]) -> str:
    """The result of `checked_path`; a store is asked, so that missing rights are found early.

    Raises:
      ConfigError: see `checked_path`; or the store does not answer, or refuses.
    """
    path = checked_path(path, key, stores)
    if "://" not in path:
        return path
    try:
        epath.Path(path).exists()
    except Exception as error:  # each store's client has its own
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise ConfigError(
            f"{key}: {path!r} cannot be reached ({reason}); allowed: a bucket that this machine's "
            "credentials may use"
        ) from None
    return path


def _registered(scheme: str) -> bool:
    """Whether somebody taught `epath` this address; its own (hf, az) have no extra here."""
    if scheme in ("hf", "az"):
        return False
    try:
        epath.Path(f"{scheme}://x")
    except KeyError:
        return False
    return True


class Workdir:
    """A run's folder. Only process 0 writes; every process may read.

    Attributes:
      path: local or remote folder.
      is_local: whether files can be appended to and renamed.
      writer: whether this process writes.

    Raises:
      ConfigError: an address that no run can use, or no folder can be made there; `key` begins
        the line.
    """

    def __init__(self, path: str, writer: bool = True, key: str = "--workdir"):
        path = checked_path(path, key, RUNS, opened=writer)
        # orbax takes absolute paths only
        self.is_local = "://" not in path
        self.path = epath.Path(os.path.abspath(path) if self.is_local else path)
        self.writer = writer
        if writer:
            try:
                self.path.mkdir(parents=True, exist_ok=True)
            except (FileExistsError, FileNotFoundError, NotADirectoryError, PermissionError) as e:
                raise ConfigError(
                    f"{key}: {self.path}: {e.strerror}; allowed: a place that can be written, with "
                    "space left"
                ) from None

    def file(self, name: str) -> epath.Path:
        return self.path / name

    def read_text(self, name: str) -> str:
        """The file's text, "" if there is none; bytes that are no UTF-8 are replaced."""
        if not self.file(name).exists():
            return ""
        return self.file(name).read_bytes().decode(errors="replace")

    def read_json(self, name: str) -> dict[str, Any]:
        """The object in a JSON file, {} if there is none.

        Raises:
          ConfigError: the file is broken.
        """
        text = self.read_text(name)
        try:
            found = json.loads(text) if text else {}
            if not isinstance(found, dict):
                raise ValueError(f"a {type(found).__name__}")
            return found
        except ValueError as error:
            raise ConfigError(
                f"--workdir: {self.file(name)} is damaged ({error}); allowed: the file as a run "
                "wrote it (restore it from a copy; other readers of its checkpoints need it)"
            ) from None

    def write_text(self, name: str, text: str) -> None:
        self.write_bytes(name, text.encode())

    def write_bytes(self, name: str, data: bytes) -> None:
        """Writes a new file beside the old one, then puts it in its place.

        Raises:
          OSError: it cannot be written; the old file is as it was, and nothing lies beside it.
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
        """Adds one line; remote stores cannot append, there the file is written anew."""
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
          The lines that can be read, and how many cannot. A last line that a crash cut short does
          not count.
        """
        if not self.file(name).exists():
            return [], 0
        text = self.file(name).read_bytes().decode(errors="replace")
        out, bad = [], 0
        for line in text.splitlines(keepends=True):
            try:
                row = json.loads(line)
            except ValueError:
                row = None
            step = row.get("step") if isinstance(row, dict) else None
            if isinstance(step, int) and not isinstance(step, bool):
                out.append(row)
            elif line.strip() and line.endswith("\n"):
                bad += 1
        return out, bad

    def move_aside(self, name: str, to: str) -> str:
        """Move a file or folder within the workdir to a name that is free; nothing is replaced.

        Returns:
          Where it is now: `to`, or `to` with a number.
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
        """Copy a file within the workdir to a name that is free, and return that name."""
        free = self._free_name(to)
        self.write_bytes(free, self.file(name).read_bytes())
        return free

    def _free_name(self, name: str) -> str:
        free, count = name, 1
        while self.file(free).exists():
            count += 1
            free = f"{name}_{count}"
        return free

    def free(self) -> float:
        """Bytes that are free where the folder lies; infinity for remote stores."""
        return shutil.disk_usage(self.path).free if self.is_local else math.inf

    def remove(self, name: str) -> None:
        """Deletes a file, if it is there."""
        if self.writer:
            self.file(name).unlink(missing_ok=True)


@contextlib.contextmanager
def naming(path: Any) -> Iterator[None]:
    """Gives errors of writing (a full disk) the file's name, which only those of opening have."""
    try:
        yield
    except OSError as error:
        if error.errno is not None and error.filename is None:
            error.filename = os.fspath(path)
        raise


def _move(source: epath.Path, target: epath.Path) -> None:
    """Copies file by file, then deletes: what a rename is on an object store."""
    if source.is_dir():
        target.mkdir(parents=True, exist_ok=True)
        for entry in source.iterdir():
            _move(entry, target / entry.name)
        source.rmtree()
    else:
        target.write_bytes(source.read_bytes())
        source.unlink()
