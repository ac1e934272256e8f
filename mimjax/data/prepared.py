"""The list of files that a program adds to a folder, so that it replaces these and no others.

It lies beside the folder, as `.NAME.mimjax.jsonl`, a line per file. A file is listed before it
appears: what a killed program leaves is known to the next one.
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
    """A folder that is added to.

    On a store, where nothing can be appended to, there is no list, and every file counts as ours.

    Attributes:
      listed: (path relative to the folder, bytes) of the files in the list.

    Raises:
      ConfigError: the folder is one that no program writes to (`outputs.check_place`).
    """

    def __init__(self, folder: str, key: str = "output"):
        self.is_local, self.key = "://" not in folder, key
        self.folder, self.listed, self._lock = os.path.abspath(folder), set(), threading.Lock()
        self.parent, name = os.path.split(self.folder)
        self.file = f".{name}.mimjax.jsonl"
        self._break = "\n"  # the last line may have been cut short
        if self.is_local:
            outputs.check_place(self.folder, key, {})
            self.listed = _read(os.path.join(self.parent, self.file))

    def check(self, name: str) -> None:
        """Find out whether the file `name` may be written: there is none, or one of the list.

        Raises:
          ConfigError: it is not in the list, or was changed since.
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
        """Put a file of so many bytes on the list, before it is written.

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
    """The entries of a list; lines that a crash cut short are left out."""
    out = set()
    if os.path.exists(path):
        with open(path, encoding="utf-8", errors="replace") as file:
            for line in file:
                with contextlib.suppress(ValueError, LookupError, TypeError):
                    entry = json.loads(line)
                    out.add((entry["file"], entry["bytes"]))
    return out
