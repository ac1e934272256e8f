"""Files that cannot be read or decoded: they are replaced by other files, listed and counted.

The replacement is a pure function of (seed, epoch, index), so the global batch of a step is the
same for any number of hosts and workers, and after a restart. A worker puts the paths of bad files
into the batch under KEY, and the training process takes them out again (`Checker`); so workers
need no other channel to the training process. Decoding itself is in `decoding.py`.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from mimjax.data.decoding import BadImage
from mimjax.data.index import shown
from mimjax.errors import ConfigError
from mimjax.storage.files import Workdir

KEY = "bad_files"  # entry of a batch: rows of (path, reason), objects [k 2]
MIN_FILES = 1000  # the share of bad files is taken of at least so many files
LOGGED = 10  # number of bad files with a line in the log; the list has all
REMOTE_PAUSE = 60.0  # seconds between two writes of a remote list, which is written as a whole
NumpyBatch = dict[str, np.ndarray]


def readable(source: Any, places: Iterable[int], skip: bool) -> tuple[Any, int, list[list[str]]]:
    """Return the first readable image among some places of a source.

    Args:
      source: see `sources.Source`.
      places: indices into the source, in the order in which they are tried.
      skip: whether bad files are skipped; False = the first one is an error.

    Returns:
      The image, its index, and [path, reason] of each bad file before it.

    Raises:
      BadImage: a file is bad and `skip` is False.
      ConfigError: the files at all places are bad.
    """
    bad: list[list[str]] = []
    for place in places:
        try:
            return source.image(place), place, bad
        except BadImage as err:
            if not skip:
                raise
            bad.append([err.path, err.reason])
    raise ConfigError(
        f"data.max_bad_fraction: {len(bad)} files drawn at random, and none can be read; the last: "
        f"{shown(bad[-1][0])} ({bad[-1][1]})"
    )


def named(bad: Sequence[tuple[str, str]], total: int) -> list[str]:
    """Return lines that count and name the files that a program skipped.

    Args:
      bad: (path, reason) of each skipped file.
      total: number of requested files.

    Raises:
      ConfigError: all files are bad.
    """
    if bad and len(bad) >= total:
        raise ConfigError(
            f"--images: none of {len(bad):,} files can be read or decoded (the first: "
            f"{shown(bad[0][0])}: {bad[0][1]}); allowed: at least one that can"
        )
    if not bad:
        return []
    first = f"skipped {len(bad):,} of {total:,} files that cannot be read or decoded:"
    return [first, *(f"  {shown(path)} ({reason})" for path, reason in bad)]


class BadFiles:
    """List of a run's bad files, and the check that there are not too many.

    Attributes:
      max_fraction: allowed share of bad files; 0 = the first bad file is an error.
      paths: paths in the list, those of earlier starts included.
    """

    def __init__(self, max_fraction: float = 0.0):
        if not 0 <= max_fraction < 1:
            raise ConfigError(f"data.max_bad_fraction: {max_fraction}; allowed: 0 up to below 1")
        self.max_fraction = max_fraction
        self.paths: set[str] = set()
        self._workdir: Workdir | None = None
        self._name, self._logged, self._text, self._written = "", 0, "", 0.0
        self._say: Callable[[str], None] = lambda text: None

    def __getstate__(self) -> dict[str, Any]:
        # a worker process reads `skip` only; the list belongs to the training process
        return BadFiles(self.max_fraction).__dict__ | {"_say": None}

    @property
    def skip(self) -> bool:
        """Whether bad files are skipped."""
        return self.max_fraction > 0

    def open(self, workdir: Workdir, name: str, say: Callable[[str], None]) -> None:
        """Continue the list that a workdir has.

        The list is a history: a file that was repaired stays in it but is not counted by `judge`.

        Args:
          workdir: the run's folder; this process must be its writer.
          name: file name of the list.
          say: receives a line for each of the first LOGGED new files.
        """
        self._workdir, self._name, self._say = workdir, name, say
        file = workdir.file(name)
        self._text = os.fsdecode(file.read_bytes()) if file.exists() else ""
        self.paths = {line.split("\t")[0] for line in self._text.split("\n") if line}

    def counts(self) -> dict[str, int]:
        """Return the metric {"bad_files": number of listed files}; {} if the list is empty."""
        return {"bad_files": len(self.paths)} if self.paths else {}

    def checker(self, total: int) -> Checker | None:
        """Return the checker of one pass over a source of `total` files; None = nothing to skip."""
        return Checker(self, total) if self.skip else None

    def add(self, rows: list[list[str]]) -> None:
        """Add rows of (path, reason) to the list and the log, unless the path is listed."""
        new = {path: reason for path, reason in rows if _field(path) not in self.paths}
        lines = "".join(f"{_field(path)}\t{_field(reason)}\n" for path, reason in new.items())
        self.paths.update(map(_field, new))
        self._text += lines
        for path, reason in list(new.items())[: LOGGED - self._logged]:
            self._logged += 1
            more = f"; others only in {self._name}" if self._logged == LOGGED else ""
            self._say(f"skipped a bad file: {shown(path)} ({reason}){more}")
        if lines and self._workdir is not None and self._workdir.is_local:
            with self._workdir.file(self._name).open("ab") as file:
                file.write(os.fsencode(lines))
        elif lines and time.monotonic() > self._written + REMOTE_PAUSE:
            self.flush()

    def flush(self) -> None:
        """Write a remote list, to which single lines cannot be appended."""
        if self._workdir is not None and not self._workdir.is_local and self._text:
            self._workdir.write_bytes(self._name, os.fsencode(self._text))
            self._written = time.monotonic()

    def judge(self, bad: int, seen: int, total: int, last: list[str]) -> None:
        """Check that at most a share `max_fraction` of the files is bad.

        The share is taken of the files that were opened, but of no fewer than MIN_FILES (or all, if
        the source is smaller), so that a few early files do not decide. One bad file is allowed.

        Args:
          bad: number of bad files among the opened ones.
          seen: number of files that this process has opened since it started.
          total: number of files in the source.
          last: path and reason of the last bad file.

        Raises:
          ConfigError: too many files are bad.
        """
        base = max(seen, min(total, MIN_FILES))
        if bad > max(1, int(self.max_fraction * base)):
            listed = f", all in {self._workdir.file(self._name)}" if self._workdir else ""
            raise ConfigError(
                f"data.max_bad_fraction: {bad} of {seen:,} files cannot be read or decoded{listed} "
                f"(the last: {shown(last[0])}: {last[1]}); allowed: {self.max_fraction:g} of "
                f"{base:,} files; repair or remove them, or raise it"
            )


class Checker:
    """Counter of the opened and bad files in one pass over a source.

    Call it with each batch in order, then `close` it.
    """

    def __init__(self, files: BadFiles, total: int):
        self.files, self.total = files, total
        self._seen, self._bad = np.zeros(total, bool), set()

    def __call__(self, batch: NumpyBatch) -> NumpyBatch:
        """Return the batch without KEY, after counting and listing its bad files.

        Raises:
          ConfigError: too many files are bad, see `BadFiles.judge`.
        """
        rows = batch.pop(KEY).tolist()
        self._seen[batch["index"]] = True
        if rows:
            self._bad.update(path for path, _ in rows)
            self.files.add(rows)
            bad = len(self._bad)
            self.files.judge(bad, int(self._seen.sum()) + bad, self.total, rows[-1])
        return batch

    def close(self) -> None:
        """Write the list if it is remote."""
        self.files.flush()


def _field(text: str) -> str:
    """Return the text with the separators of fields and lines escaped."""
    return text.replace("\t", "\\t").replace("\n", "\\n").replace("\r", "\\r")
