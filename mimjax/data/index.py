"""Index of the files of a data set: listing them, storing the list, and comparing two lists.

Every start of a run lists all files and their sizes and times, by many threads, since a network
disk answers a single request slowly. The stored index (`data_index.npz` in the workdir) is compared
with the new one, so that changes of the data are reported. It replaces the listing only with
`data.trust_index`: a cheaper check would miss a file that was overwritten in place, since the time
of its folder does not change. No file is opened here.
"""

from __future__ import annotations

import io
import json
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent import futures
from typing import Any, NamedTuple

import numpy as np
from etils import epath

from mimjax import stopping
from mimjax.task import ConfigError

THREADS, CHUNK = 32, 512  # threads of one listing, and local files per task of a thread
INDEX_FILE = "data_index.npz"  # in the workdir
OURS = {"prepare.json"}  # files that programs of mimjax write beside images
MAX_SUFFIX = 10  # characters; a longer suffix is probably part of the name
Fact = tuple[int, int]  # size in bytes and time in ns


class Listing(NamedTuple):
    """Files below a root, sorted by name.

    Attributes:
      names: paths relative to the root, with "/" separators; bytes that are not UTF-8 are
        surrogates.
      sizes: sizes in bytes; 0 for a broken link.
      times: times of the last change of the content in ns; 0 = unknown.
    """

    names: list[str]
    sizes: list[int]
    times: list[int]


def is_file_of(name: str, suffixes: Sequence[str]) -> bool:
    """Return whether a file name has one of the suffixes (in any case) and no leading dot.

    macOS leaves a file "._a.jpg" beside each "a.jpg" on foreign disks.
    """
    return name.lower().endswith(tuple(suffixes)) and not name.startswith(".")


def scan(root: str, suffixes: Sequence[str], others: Counter[str] | None = None) -> Listing:
    """Return all files below `root` with one of the suffixes.

    Links to folders are followed (a data set is often a tree of links), each real folder once. A
    broken link is listed too, so that reading it reports the error.

    Args:
      root: local or remote folder.
      suffixes: allowed ends of file names, lower case: ".jpg".
      others: receives counts of the other files, see `note_other`.

    Raises:
      ConfigError: a folder cannot be listed.
    """
    entries = list(_walk(root, suffixes, Counter() if others is None else others))
    return _sorted(entries, *((_stat_remote, 1) if "://" in root else (_stat_local, CHUNK)))


def holds_image(root: str, suffixes: Sequence[str]) -> bool:
    """Return whether `scan` would list a file below `root`; the search ends at the first one.

    Raises:
      ConfigError: a folder cannot be listed.
    """
    return next(_walk(root, suffixes, Counter()), None) is not None


def note_other(name: str, suffixes: Sequence[str], others: Counter[str]) -> None:
    """Count a file that is not listed, by its suffix.

    A file with a leading dot counts as "hidden" if its suffix is one of `suffixes`. Files that
    operating systems leave in every folder ("._a.jpg", ".DS_Store") and mimjax's own are ignored.

    Args:
      name: file name without its folder.
      suffixes: those of the listed files.
      others: counts by suffix, which are increased.
    """
    if name.startswith("."):
        if name.lower().endswith(tuple(suffixes)) and not name.startswith("._"):
            others["hidden"] += 1
    elif name not in OURS:
        suffix = os.path.splitext(name)[1].lower()
        short = 1 < len(suffix) <= MAX_SUFFIX and suffix[1:].isalnum()
        others[suffix if short else "without an ending"] += 1


def _sorted(entries: list[tuple[str, Any]], stat: Callable[[Any], Fact], chunk: int) -> Listing:
    """Return the listing of (name, entry) pairs.

    Args:
      entries: pairs in any order; sorted in place.
      stat: size and time of an entry.
      chunk: number of files per task of a thread.
    """
    entries.sort(key=lambda item: item[0])
    chunks = [entries[i : i + chunk] for i in range(0, len(entries), chunk)]

    def job(part: list[tuple[str, Any]]) -> list[Fact]:
        stopping.check()
        return [stat(entry) for _, entry in part]

    if len(chunks) > 1:
        with futures.ThreadPoolExecutor(THREADS) as pool:
            parts = list(pool.map(job, chunks))
    else:
        parts = [job(part) for part in chunks]
    facts = [fact for part in parts for fact in part]
    return Listing([n for n, _ in entries], [s for s, _ in facts], [t for _, t in facts])


def _stat_local(entry: os.DirEntry) -> Fact:
    """Return size and time of a local file, (0, 0) for a broken link."""
    try:
        status = entry.stat()
    except OSError:
        return 0, 0
    return status.st_size, status.st_mtime_ns


def _stat_remote(entry: epath.Path) -> Fact:
    """Return size and time of a file on a store; its time has whole seconds."""
    status = entry.stat()
    return status.length, int(status.mtime or 0) * 10**9


def _is(test: Callable[[], bool]) -> bool:
    """Return `test()`, or False for a circular link or one into a folder without permission."""
    try:
        return test()
    except OSError:
        return False


def _walk(root: str, suffixes: Sequence[str], others: Counter[str]) -> Iterator[tuple[str, Any]]:
    """Yield (relative path, entry) of the files with one of the suffixes, in any order.

    Raises:
      ConfigError: a folder cannot be listed.
    """
    try:
        if "://" in root:
            yield from _walk_remote(epath.Path(root), "", suffixes, others)
        else:
            yield from _walk_local(root, "", suffixes, set(), others)
    except OSError as err:
        raise ConfigError(
            f"data.path: cannot list {err.filename or root} ({err.strerror or err})"
        ) from err


def _walk_local(
    root: str, below: str, suffixes: Sequence[str], seen: set[str], others: Counter[str]
) -> Iterator[tuple[str, os.DirEntry]]:
    """Yield (relative path, entry) of the files with one of the suffixes, in any order.

    Args:
      root: folder of the data set.
      below: folder to list, relative to `root`.
      seen: real paths of listed folders; a link back to a parent would never end.
    """
    real = os.path.realpath(os.path.join(root, below))
    if real in seen:
        return
    seen.add(real)
    stopping.check()
    with os.scandir(real) as entries:
        for entry in entries:
            path = f"{below}/{entry.name}" if below else entry.name
            if _is(entry.is_dir):
                if not entry.name.startswith("."):
                    yield from _walk_local(root, path, suffixes, seen, others)
            elif not is_file_of(entry.name, suffixes):
                note_other(entry.name, suffixes, others)
            elif _is(entry.is_file) or not os.path.exists(entry.path):
                yield path, entry
            else:
                others["no regular file"] += 1


def _walk_remote(
    folder: epath.Path, below: str, suffixes: Sequence[str], others: Counter[str]
) -> Iterator[tuple[str, epath.Path]]:
    """Yield (path relative to the root, entry) as `_walk_local` does, for a remote folder."""
    for entry in folder.iterdir():
        path = f"{below}/{entry.name}" if below else entry.name
        # a name with a suffix counts as a file without asking the store
        if is_file_of(entry.name, suffixes):
            yield path, entry
        elif entry.name.startswith(".") or not entry.is_dir():
            note_other(entry.name, suffixes, others)
        else:
            yield from _walk_remote(entry, path, suffixes, others)


class Index:
    """Listings by root, each made once and shared by the splits.

    Attributes:
      listings: {(root, suffixes): files}.
      others: {(root, suffixes): counts of the files that are not listed}; no entry where a stored
        list was trusted.
    """

    def __init__(self, known: Index | None = None):
        """Make an index that trusts the listings of `known` and makes all others itself."""
        self.listings: dict[tuple[str, tuple[str, ...]], Listing] = {}
        self.others: dict[tuple[str, tuple[str, ...]], Counter[str]] = {}
        if known is not None:
            self.listings.update(known.listings)

    def files(self, root: str, suffixes: Sequence[str]) -> Listing:
        """Return the files below a root, see `scan`."""
        key = root, tuple(suffixes)
        if key not in self.listings:
            self.listings[key] = scan(root, suffixes, self.others.setdefault(key, Counter()))
        return self.listings[key]

    def left_out(self, root: str, suffixes: Sequence[str]) -> Counter[str]:
        """Return counts of the files below a root that are not listed, by suffix."""
        return self.others.get((root, tuple(suffixes)), Counter())

    def to_bytes(self) -> bytes:
        """Return the index as a NumPy archive without pickled objects."""
        keys = [[root, list(suffixes)] for root, suffixes in self.listings]
        arrays: dict[str, Any] = {"keys": _text(json.dumps(keys))}
        for number, files in enumerate(self.listings.values()):
            names = [os.fsencode(name) for name in files.names]
            arrays[f"names_{number}"] = np.frombuffer(b"".join(names), np.uint8)
            arrays[f"ends_{number}"] = np.cumsum([len(n) for n in names], dtype=np.int64)
            arrays[f"sizes_{number}"] = np.asarray(files.sizes, np.int64)
            arrays[f"times_{number}"] = np.asarray(files.times, np.int64)
        out = io.BytesIO()
        np.savez_compressed(out, **arrays)
        return out.getvalue()

    @classmethod
    def from_bytes(cls, data: bytes) -> Index | None:
        """Return the index that `to_bytes` stored; None if it cannot be read."""
        out = cls()
        try:
            with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
                for number, (root, suffixes) in enumerate(json.loads(bytes(arrays["keys"]))):
                    blob, start, names = bytes(arrays[f"names_{number}"]), 0, []
                    for end in arrays[f"ends_{number}"].tolist():
                        names.append(os.fsdecode(blob[start:end]))
                        start = end
                    facts = (arrays[f"{k}_{number}"].tolist() for k in ("sizes", "times"))
                    out.listings[root, tuple(suffixes)] = Listing(names, *facts)
        except Exception:  # zipfile, json and numpy raise different errors for a damaged file
            return None
        return out

    def changes(self, old: Index) -> str:
        """Return the differences from an older index in words; "" = none.

        Only roots in both indexes are compared.
        """
        kinds: dict[str, list[str]] = {}
        # an older version may have listed fewer suffixes of the same root
        roots = {root: files for (root, _), files in old.listings.items()}
        for key, files in self.listings.items():
            before = old.listings.get(key, roots.get(key[0]))
            if before is not None and files != before:
                for kind, names in _compare(before, files).items():
                    kinds.setdefault(kind, []).extend(names)
        return ", ".join(f"{len(v):,} {k} ({shown(v[0])})" for k, v in kinds.items() if v)


def _compare(old: Listing, new: Listing) -> dict[str, list[str]]:
    """Return {kind of change in words: names of files}."""
    before = {n: (s, t) for n, s, t in zip(*old)}
    after = {n: (s, t) for n, s, t in zip(*new)}
    both = [n for n in new.names if n in before]
    resized = [n for n in both if before[n][0] != after[n][0]]
    return {
        "added": [n for n in new.names if n not in before],
        "removed": [n for n in old.names if n not in after],
        "of another size": resized,
        "of the same size written again": [
            n for n in both if before[n][0] == after[n][0] and before[n][1] != after[n][1]
        ],
    }


def _text(text: str) -> np.ndarray:
    return np.frombuffer(text.encode(), np.uint8)


def shown(path: str) -> str:
    """Return a path for messages: one line, with all characters that cannot be printed escaped."""
    text = path.encode("utf-8", "backslashreplace").decode()
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)
