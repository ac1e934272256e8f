"""All input and output in a workdir goes through here, so that `gs://` paths are the same code.

A reader never sees half a file: a local one is put in its place by a rename, and a remote store
shows an object only when it is whole. Nothing remote is appended to, renamed or locked.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import shutil
from collections.abc import Iterator
from typing import Any

from etils import epath

from mimjax import stopping
from mimjax.errors import ConfigError


class Workdir:
    """A run's folder. Only process 0 writes; every process may read.

    Attributes:
      path: local or remote folder.
      is_local: whether files can be appended to and renamed.
      writer: whether this process writes.
    """

    def __init__(self, path: str, writer: bool = True):
        # orbax takes absolute paths only
        self.is_local = "://" not in path
        self.path = epath.Path(os.path.abspath(path) if self.is_local else path)
        self.writer = writer
        if writer:
            self.path.mkdir(parents=True, exist_ok=True)

    def file(self, name: str) -> epath.Path:
        return self.path / name

    def read_text(self, name: str) -> str:
        """The file's text, "" if there is none."""
        return self.file(name).read_text() if self.file(name).exists() else ""

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

    def read_lines(self, name: str) -> list[dict[str, Any]]:
        """JSON lines; a last line that a crash cut short is left out."""
        out = []
        for line in self.read_text(name).splitlines():
            try:
                out.append(json.loads(line))
            except json.JSONDecodeError:
                break
        return out

    def move_aside(self, name: str, to: str) -> None:
        """Moves a file or folder within the workdir, replacing what was there."""
        if self.writer:
            target = self.file(to)
            target.parent.mkdir(parents=True, exist_ok=True)
            if target.exists():
                target.rmtree() if target.is_dir() else target.unlink()
            if self.is_local:
                self.file(name).rename(target)
            else:
                _move(self.file(name), target)

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
