"""The list of what `prepare` wrote into a folder: a later start adds to it and mixes nothing.

It lies beside the folder, as `.NAME.mimjax.jsonl`: the settings, then a line per file, appended
before that file appears. On a store, which appends to nothing, it holds the settings alone.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterable
from typing import Any

from etils import epath

from mimjax import outputs
from mimjax.files import Workdir
from mimjax.task import ConfigError


class Prepared:
    """A folder that is added to.

    Attributes:
      sizes: bytes of the files in the list, by path relative to the folder.

    Raises:
      ConfigError: the folder is one that no program writes to, or has images of other settings.
    """

    def __init__(self, folder: str, settings: dict[str, Any]):
        self.is_local = "://" not in folder
        self.folder = os.path.abspath(folder) if self.is_local else folder.rstrip("/")
        if self.is_local:
            outputs.check_place(self.folder, "output", {})
        self.parent, name = os.path.split(self.folder)
        self.file = f".{name}.mimjax.jsonl"
        self.settings, self._lock = settings, threading.Lock()
        there = epath.Path(self.folder).is_dir()  # a list outlives a folder that was deleted
        lines = Workdir(self.parent, writer=False).read_lines(self.file) if there else []
        self._begun = bool(lines)
        self.sizes = {line["file"]: line["bytes"] for line in lines if "file" in line}
        if lines and lines[0] != settings:
            words = lambda found: ", ".join(f"{key}={value}" for key, value in found.items())
            raise ConfigError(
                f"output: {folder} has images of {words(lines[0])}, not {words(settings)}; "
                "allowed: the same settings, or another folder"
            )

    def check(self, names: Iterable[str]) -> None:
        """Refuse a folder in which other files have the names of those that are to be written.

        Raises:
          ConfigError: one of them is not in the list, or was changed since.
        """
        if not self.is_local or not os.path.lexists(self.folder):
            return
        for name in names:
            path = os.path.join(self.folder, name)
            if os.path.lexists(path) and os.lstat(path).st_size != self.sizes.get(name):
                why = "was changed since" if name in self.sizes else "was not written by prepare"
                raise ConfigError(f"output: {path} {why}; allowed: a folder where it is not")

    def add(self, name: str, size: int) -> None:
        """Put a file of so many bytes on the list; before it is written, so that none is unknown.

        Raises:
          OSError: the list cannot be written.
        """
        with self._lock:
            place = Workdir(self.parent)
            if not self._begun:
                place.write_text(self.file, json.dumps(self.settings) + "\n")
                self._begun = True
            if self.is_local:
                place.append(self.file, json.dumps({"file": name, "bytes": size}))
