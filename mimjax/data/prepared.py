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
      sizes: bytes of the files in the list, by path relative to the folder.

    Raises:
      ConfigError: the folder is one that no program writes to (`outputs.check_place`).
    """

    def __init__(self, folder: str, key: str = "output"):
        self.is_local, self.key = "://" not in folder, key
        self.folder, self.sizes, self._lock = os.path.abspath(folder), {}, threading.Lock()
        self.parent, name = os.path.split(self.folder)
        self.file = f".{name}.mimjax.jsonl"
        if self.is_local:
            outputs.check_place(self.folder, key, {})
            lines = Workdir(self.parent, writer=False).read_lines(self.file)
            self.sizes = {line["file"]: line["bytes"] for line in lines if "file" in line}

    def check(self, name: str) -> None:
        """Find out whether the file `name` may be written: there is none, or one of the list.

        Raises:
          ConfigError: it is not in the list, or was changed since.
        """
        path = os.path.join(self.folder, name)
        if self.is_local and os.path.lexists(path):
            if os.path.islink(path) or os.lstat(path).st_size != self.sizes.get(name):
                why = "was changed since" if name in self.sizes else "was not written by prepare"
                raise ConfigError(
                    f"{self.key}: {path} {why}; it is never replaced; allowed: a folder without it"
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
                self.sizes[name] = size
