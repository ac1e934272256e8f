"""The list of files that a program adds to a folder, so that it replaces these and no others.

It lies beside the folder, as `.NAME.mimjax.jsonl`, a line per file. A file is listed before it
appears: what a killed program leaves is known to the next one.
"""

from __future__ import annotations

import json
import os
import threading

from mimjax import outputs
from mimjax.files import Workdir
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
        if self.is_local:
            outputs.check_place(self.folder, key, {})
            lines = Workdir(self.parent, writer=False).read_lines(self.file)
            self.listed = {(line.get("file"), line.get("bytes")) for line in lines}

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
                Workdir(self.parent).append(self.file, line)
                self.listed.add((name, size))
