"""List of the files that `mimjax prepare` writes into a folder, so that it replaces no others.

The list lies beside a folder NAME as `.NAME.mimjax.jsonl`, one line per file. A file is listed
before it is written, so that the files of a killed program are known to the next one. Outputs that
are written as a whole have a list of another kind, see `storage/outputs.py`.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading

from mimjax.storage import outputs
from mimjax.storage.files import Workdir
from mimjax.task import ConfigError


class Prepared:
    """Folder to which a program adds files, with the list of these files.

    On a store, where files cannot be appended to, there is no list and every file may be replaced.

    Attributes:
      is_local: whether the folder is local.
      key: flag that named the folder, for errors.
      folder: the folder, an absolute path.
      listed: (path relative to the folder, size in bytes) of the listed files.

    Raises:
      ConfigError: no program may write to this folder (see `outputs.check_place`).
    """

    def __init__(self, folder: str, key: str = "output"):
        self.is_local, self.key = "://" not in folder, key
        self.folder, self.listed, self._lock = os.path.abspath(folder), set(), threading.Lock()
        self.parent, name = os.path.split(self.folder)
        self.file = f".{name}.mimjax.jsonl"
        self._break = "\n"  # ends a last line that a killed program may have cut short
        if self.is_local:
            outputs.check_place(self.folder, key, {})
            self.listed = _read(os.path.join(self.parent, self.file))

    def check(self, name: str) -> None:
        """Check that the file `name` may be written: it does not exist, or is listed and unchanged.

        Raises:
          ConfigError: the file is not listed, or its size has changed.
        """
        path = os.path.join(self.folder, name)
        if not self.is_local or not os.path.lexists(path):
            return
        if os.path.islink(path) or (name, os.lstat(path).st_size) not in self.listed:
            raise ConfigError(
                f"{self.key}: {path} was not written by prepare, or was changed since; it is never "
                "replaced; allowed: a folder without it"
            )

    def add(self, name: str, size: int) -> None:
        """Add a file to the list, before it is written.

        Args:
          name: path relative to the folder.
          size: size in bytes.

        Raises:
          OSError: the list cannot be written.
        """
        if self.is_local:
            with self._lock:
                line = json.dumps({"file": name, "bytes": size})
                Workdir(self.parent).append(self.file, self._break + line)
                self._break = ""
                self.listed.add((name, size))


def _read(path: str) -> set[tuple[str, int]]:
    """Return the (name, size) pairs of a list; lines that a crash cut short are skipped."""
    entries = set()
    if os.path.exists(path):
        with open(path, encoding="utf-8", errors="replace") as file:
            for line in file:
                with contextlib.suppress(ValueError, LookupError, TypeError):
                    entry = json.loads(line)
                    entries.add((entry["file"], entry["bytes"]))
    return entries
