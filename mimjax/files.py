"""All input and output in a workdir goes through here, so that `gs://` paths are the same code.

Writes are atomic where the file system can rename: a reader never sees half a file.
"""

from __future__ import annotations

import json
import os
from typing import Any

from etils import epath


class Workdir:
    """A run's folder. Only process 0 writes; every process may read.

    Attributes:
      path: local or remote folder.
      writer: whether this process writes.
    """

    def __init__(self, path: str, writer: bool = True):
        # orbax takes absolute paths only
        self.path = epath.Path(path if "://" in path else os.path.abspath(path))
        self.writer = writer
        if writer:
            self.path.mkdir(parents=True, exist_ok=True)

    @property
    def is_local(self) -> bool:
        return "://" not in os.fspath(self.path)

    def file(self, name: str) -> epath.Path:
        return self.path / name

    def read_text(self, name: str) -> str:
        """The file's text, "" if there is none."""
        return self.file(name).read_text() if self.file(name).exists() else ""

    def write_text(self, name: str, text: str) -> None:
        self.write_bytes(name, text.encode())

    def write_bytes(self, name: str, data: bytes) -> None:
        """Writes a new file beside the old one, then puts it in its place."""
        if not self.writer:
            return
        target = self.file(name)
        target.parent.mkdir(parents=True, exist_ok=True)
        new = target.parent / f".{target.name}.new"
        new.write_bytes(data)
        new.replace(target)

    def append(self, name: str, line: str) -> None:
        """Adds one line; remote stores cannot append, there the file is written anew."""
        if not self.writer:
            return
        if self.is_local:
            with self.file(name).open("a") as f:
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
            self.file(name).rename(target)
