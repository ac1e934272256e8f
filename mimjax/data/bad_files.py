"""Files that cannot be read or decoded: others stand in for them, and they are listed and counted.

What stands in is a pure function of (seed, epoch, index), so the global batch of a step stays the
same for any number of hosts and workers, and after a restart. Makers of batches put what was bad
under a key of its own into the batch; the process that trains takes it out again, so that nothing
but the batches themselves has to reach it.
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

KEY = "bad_files"  # in a batch: [path, reason] rows, objects [k 2]
LEAST = 1000  # files that the share is taken of at least, so that few do not decide
SAID = 10  # bad files that get a line of the log; the list has all
REMOTE_PAUSE = 60.0  # seconds: a remote list is written as a whole
NumpyBatch = dict[str, np.ndarray]


def readable(source: Any, places: Iterable[int], skip: bool) -> tuple[Any, int, list[list[str]]]:
    """The first image that can be had.

    Args:
      places: in the source, in the order in which they are tried.
      skip: False = the first one that cannot be had is an error.

    Returns:
      The image, its place, and [path, reason] of those before it.

    Raises:
      BadImage: with `skip` False; ConfigError: none of all places.
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
    """Lines that count and name all files that a program left out.

    Args:
      bad: path and reason of each.
      total: how many files were asked for.

    Raises:
      ConfigError: all of them are bad.
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


def as_array(rows: list[list[str]]) -> np.ndarray:
    """What a batch holds under KEY."""
    return np.asarray(rows, object).reshape(-1, 2)


class BadFiles:
    """The list of a run's bad files, and the judge of whether there are too many.

    Attributes:
      max_fraction: allowed share; 0 = the first bad file is an error, and none is skipped.
      paths: all that are listed, those of earlier starts too.
    """

    def __init__(self, max_fraction: float = 0.0):
        if not 0 <= max_fraction < 1:
            raise ConfigError(f"data.max_bad_fraction: {max_fraction}; allowed: 0 up to below 1")
        self.max_fraction = max_fraction
        self.paths: set[str] = set()
        self._workdir: Workdir | None = None
        self._name, self._said, self._text, self._written = "", 0, "", 0.0
        self._say: Callable[[str], None] = lambda text: None

    def __getstate__(self) -> dict[str, Any]:
        return BadFiles(self.max_fraction).__dict__ | {"_say": None}  # workers skip, and no more

    @property
    def skip(self) -> bool:
        return self.max_fraction > 0

    def open(self, workdir: Workdir, name: str, say: Callable[[str], None]) -> None:
        """Goes on with the list `name` of a workdir, which this process must be allowed to write.

        The list is the run's history: a file that was repaired stays in it, and counts for
        nothing.
        """
        self._workdir, self._name, self._say = workdir, name, say
        place = workdir.file(name)
        self._text = os.fsdecode(place.read_bytes()) if place.exists() else ""
        self.paths = {line.split("\t")[0] for line in self._text.split("\n") if line}

    def counts(self) -> dict[str, int]:
        """For the log: how many are listed; nothing if none."""
        return {"bad_files": len(self.paths)} if self.paths else {}

    def checker(self, total: int) -> Checker | None:
        """Takes what is bad out of the batches of one pass over a source of `total` files."""
        return Checker(self, total) if self.skip else None

    def add(self, rows: list[list[str]]) -> None:
        """Lists the rows whose paths are new."""
        new = {path: reason for path, reason in rows if _field(path) not in self.paths}
        lines = "".join(f"{_field(path)}\t{_field(reason)}\n" for path, reason in new.items())
        self.paths.update(map(_field, new))
        self._text += lines
        for path, reason in list(new.items())[: SAID - self._said]:
            self._said += 1
            more = f"; others only in {self._name}" if self._said == SAID else ""
            self._say(f"skipped a bad file: {shown(path)} ({reason}){more}")
        if lines and self._workdir is not None and self._workdir.is_local:
            with self._workdir.file(self._name).open("ab") as file:
                file.write(os.fsencode(lines))
        elif lines and time.monotonic() > self._written + REMOTE_PAUSE:
            self.flush()

    def flush(self) -> None:
        """Writes what a remote list lacks."""
        if self._workdir is not None and not self._workdir.is_local and self._text:
            self._workdir.write_bytes(self._name, os.fsencode(self._text))
            self._written = time.monotonic()

    def judge(self, bad: int, seen: int, total: int, last: list[str]) -> None:
        """Stops the run where more than `max_fraction` are bad.

        Of the files that this process has opened since it started, but of LEAST files at least
        (or all, if there are fewer); one bad file is always allowed.

        Raises:
          ConfigError: too many.
        """
        of = max(seen, min(total, LEAST))
        if bad > max(1, int(self.max_fraction * of)):
            listed = f", all in {self._workdir.file(self._name)}" if self._workdir else ""
            raise ConfigError(
                f"data.max_bad_fraction: {bad} of {seen:,} files cannot be read or decoded{listed} "
                f"(the last: {shown(last[0])}: {last[1]}); allowed: {self.max_fraction:g} of "
                f"{of:,} files; repair or remove them, or raise it"
            )


class Checker:
    """Counts the files of one pass over a source; call it with each batch, then close it."""

    def __init__(self, files: BadFiles, total: int):
        self.files, self.total = files, total
        self._seen, self._bad = np.zeros(total, bool), set()

    def __call__(self, batch: NumpyBatch) -> NumpyBatch:
        """The batch without what is under KEY."""
        rows = batch.pop(KEY).tolist()
        self._seen[batch["index"]] = True
        if rows:
            self._bad.update(path for path, _ in rows)
            self.files.add(rows)
            bad = len(self._bad)
            self.files.judge(bad, int(self._seen.sum()) + bad, self.total, rows[-1])
        return batch

    def close(self) -> None:
        self.files.flush()


def _field(text: str) -> str:
    """Without what separates fields and lines."""
    return text.replace("\t", "\\t").replace("\n", "\\n").replace("\r", "\\r")
