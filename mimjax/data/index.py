"""The files of a data set: listing them, keeping the list, and telling two lists apart.

Every start lists all files again and looks at the size and time of each, by many threads, since a
network disk answers one question at a time slowly. A kept index (`data_index.npz` in the workdir)
serves to say what changed; it replaces the listing only where `data.trust_index` says so, for no
cheaper check finds a file that was overwritten in place (its folder's time stays).
"""

from __future__ import annotations

import io
import json
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent import futures
from typing import Any, NamedTuple

import numpy as np
from etils import epath

from mimjax import stopping
from mimjax.task import ConfigError

THREADS, CHUNK = 32, 512  # of one listing; local files per task
INDEX_FILE = "data_index.npz"  # in the workdir
Fact = tuple[int, int]  # size and time


class Listing(NamedTuple):
    """Files below a root, sorted by name.

    Attributes:
      names: relative to the root, with "/" separators; bytes that are no UTF-8 as surrogates.
      sizes: in bytes; 0 where a link leads nowhere.
      times: of the last change of the content in ns; 0 = unknown.
    """

    names: list[str]
    sizes: list[int]
    times: list[int]


def is_file_of(name: str, endings: Sequence[str]) -> bool:
    """By extension; names with a leading dot are left out (macOS writes ._copies)."""
    return name.lower().endswith(tuple(endings)) and not name.startswith(".")


def scan(root: str, endings: Sequence[str]) -> Listing:
    """All files below `root` with one of the extensions.

    Follows links to folders (a data set is often a tree of links), each real folder once. A link
    that leads nowhere is listed: reading it will fail, and that is not to be passed over.

    Raises:
      ConfigError: a folder cannot be listed.
    """
    if "://" in root:
        return scan_remote(epath.Path(root), endings)
    try:
        found = list(_walk_local(root, "", endings, set()))
    except OSError as err:
        raise ConfigError(
            f"data.path: cannot list {err.filename or root} ({err.strerror or err})"
        ) from err
    return _sorted(found, _stat_local, CHUNK)


def scan_remote(root: epath.Path, endings: Sequence[str]) -> Listing:
    """As `scan` lists a remote folder; it works on local ones too."""
    return _sorted(list(_walk_remote(root, "", endings)), _stat_remote, 1)


def _sorted(found: list[tuple[str, Any]], stat: Callable[[Any], Fact], chunk: int) -> Listing:
    """Looks at all files; `chunk` = how many one thread takes at a time."""
    found.sort(key=lambda item: item[0])
    chunks = [found[i : i + chunk] for i in range(0, len(found), chunk)]

    def job(part: list[tuple[str, Any]]) -> list[Fact]:
        stopping.check()
        return [stat(entry) for _, entry in part]

    if len(chunks) > 1:
        with futures.ThreadPoolExecutor(THREADS) as pool:
            parts = list(pool.map(job, chunks))
    else:
        parts = [job(part) for part in chunks]
    facts = [fact for part in parts for fact in part]
    return Listing([n for n, _ in found], [s for s, _ in facts], [t for _, t in facts])


def _stat_local(entry: os.DirEntry) -> Fact:
    try:
        found = entry.stat()
    except OSError:  # a link that leads nowhere
        return 0, 0
    return found.st_size, found.st_mtime_ns


def _stat_remote(entry: epath.Path) -> Fact:
    found = entry.stat()
    return found.length, int(found.mtime or 0) * 10**9


def _walk_local(
    root: str, below: str, endings: Sequence[str], seen: set[str]
) -> Iterator[tuple[str, os.DirEntry]]:
    real = os.path.realpath(os.path.join(root, below))
    if real in seen:  # a link back to a parent would never end
        return
    seen.add(real)
    stopping.check()
    with os.scandir(real) as entries:
        for entry in entries:
            path = f"{below}/{entry.name}" if below else entry.name
            if entry.is_dir():
                if not entry.name.startswith("."):
                    yield from _walk_local(root, path, endings, seen)
            elif is_file_of(entry.name, endings) and (
                entry.is_file() or not os.path.exists(entry.path)
            ):
                yield path, entry


def _walk_remote(
    folder: epath.Path, below: str, endings: Sequence[str]
) -> Iterator[tuple[str, epath.Path]]:
    for entry in folder.iterdir():
        path = f"{below}/{entry.name}" if below else entry.name
        if is_file_of(entry.name, endings):
            yield path, entry
        elif not entry.name.startswith(".") and entry.is_dir():
            yield from _walk_remote(entry, path, endings)


class Index:
    """Listings by root, each made once and then shared by the splits below it.

    Attributes:
      listings: (root, extensions) -> its files.
    """

    def __init__(self, known: Index | None = None):
        """`known`: an index to be trusted where it has the root."""
        self.listings: dict[tuple[str, tuple[str, ...]], Listing] = {}
        if known is not None:
            self.listings.update(known.listings)

    def files(self, root: str, endings: Sequence[str]) -> Listing:
        key = root, tuple(endings)
        if key not in self.listings:
            self.listings[key] = scan(root, endings)
        return self.listings[key]

    def to_bytes(self) -> bytes:
        """A NumPy archive without pickled objects."""
        keys = [[root, list(endings)] for root, endings in self.listings]
        arrays = {"keys": _text(json.dumps(keys))}
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
        """What `to_bytes` gave; None if it cannot be read: then all is listed anew."""
        out = cls()
        try:
            with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
                for number, (root, endings) in enumerate(json.loads(bytes(arrays["keys"]))):
                    blob, start, names = bytes(arrays[f"names_{number}"]), 0, []
                    for end in arrays[f"ends_{number}"].tolist():
                        names.append(os.fsdecode(blob[start:end]))
                        start = end
                    facts = (arrays[f"{k}_{number}"].tolist() for k in ("sizes", "times"))
                    out.listings[root, tuple(endings)] = Listing(names, *facts)
        except Exception:  # zipfile, json and numpy each have their own errors for half a file
            return None
        return out

    def changes(self, old: Index) -> str:
        """What differs in the roots that both know, as a phrase; "" = nothing."""
        kinds: dict[str, list[str]] = {}
        for key, files in self.listings.items():
            if key in old.listings and files != old.listings[key]:
                for kind, names in _compare(old.listings[key], files).items():
                    kinds.setdefault(kind, []).extend(names)
        return ", ".join(f"{len(v):,} {k} ({shown(v[0])})" for k, v in kinds.items() if v)


def _compare(old: Listing, new: Listing) -> dict[str, list[str]]:
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
    """A path that any screen and one line can hold."""
    text = path.encode("utf-8", "backslashreplace").decode()
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)
