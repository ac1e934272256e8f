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
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent import futures
from typing import Any, NamedTuple

import numpy as np
from etils import epath

from mimjax import stopping
from mimjax.task import ConfigError

THREADS, CHUNK = 32, 512  # of one listing; local files per task
INDEX_FILE = "data_index.npz"  # in the workdir
OURS = {"prepare.json"}  # what programs of this project leave beside images
LONGEST = 10  # letters of what is called an ending
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


def scan(root: str, endings: Sequence[str], others: Counter[str] | None = None) -> Listing:
    """All files below `root` with one of the extensions.

    Follows links to folders (a data set is often a tree of links), each real folder once. A link
    that leads nowhere is listed: reading it will fail, and that is not to be passed over.

    Args:
      others: counts the files of other endings, see `note_other`.

    Raises:
      ConfigError: a folder cannot be listed.
    """
    others = Counter() if others is None else others
    if "://" in root:
        return scan_remote(epath.Path(root), endings, others)
    try:
        found = list(_walk_local(root, "", endings, set(), others))
    except OSError as err:
        raise ConfigError(
            f"data.path: cannot list {err.filename or root} ({err.strerror or err})"
        ) from err
    return _sorted(found, _stat_local, CHUNK)


def scan_remote(
    root: epath.Path, endings: Sequence[str], others: Counter[str] | None = None
) -> Listing:
    """As `scan` lists a remote folder; it works on local ones too."""
    others = Counter() if others is None else others
    return _sorted(list(_walk_remote(root, "", endings, others)), _stat_remote, 1)


def holds_image(root: str, endings: Sequence[str]) -> bool:
    """Whether there is a file below `root` that `scan` would list; the first one ends the search.

    Raises:
      ConfigError: a folder cannot be listed.
    """
    remote, none = "://" in root, Counter()
    try:
        found = (
            _walk_remote(epath.Path(root), "", endings, none)
            if remote
            else _walk_local(root, "", endings, set(), none)
        )
        return next(iter(found), None) is not None
    except OSError as err:
        raise ConfigError(
            f"data.path: cannot list {err.filename or root} ({err.strerror or err})"
        ) from err


def note_other(name: str, endings: Sequence[str], others: Counter[str]) -> None:
    """Counts a file that is not listed: by its ending, or as hidden if that is an image's.

    Files that systems leave in every folder ("._a.jpg", ".DS_Store") count for nothing.
    """
    if name.startswith("."):
        if name.lower().endswith(tuple(endings)) and not name.startswith("._"):
            others["hidden"] += 1
    elif name not in OURS:
        ending = os.path.splitext(name)[1].lower()
        short = 1 < len(ending) <= LONGEST and ending[1:].isalnum()
        others[ending if short else "without an ending"] += 1


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


def _is(test: Callable[[], bool]) -> bool:
    """What an entry is; False for a link in a circle or into a closed folder."""
    try:
        return test()
    except OSError:
        return False


def _walk_local(
    root: str, below: str, endings: Sequence[str], seen: set[str], others: Counter[str]
) -> Iterator[tuple[str, os.DirEntry]]:
    real = os.path.realpath(os.path.join(root, below))
    if real in seen:  # a link back to a parent would never end
        return
    seen.add(real)
    stopping.check()
    with os.scandir(real) as entries:
        for entry in entries:
            path = f"{below}/{entry.name}" if below else entry.name
            if _is(entry.is_dir):
                if not entry.name.startswith("."):
                    yield from _walk_local(root, path, endings, seen, others)
            elif not is_file_of(entry.name, endings):
                note_other(entry.name, endings, others)
            elif _is(entry.is_file) or not os.path.exists(entry.path):
                yield path, entry
            else:
                others["no regular file"] += 1


def _walk_remote(
    folder: epath.Path, below: str, endings: Sequence[str], others: Counter[str]
) -> Iterator[tuple[str, epath.Path]]:
    for entry in folder.iterdir():
        path = f"{below}/{entry.name}" if below else entry.name
        if is_file_of(entry.name, endings):
            yield path, entry
        elif entry.name.startswith(".") or not entry.is_dir():
            note_other(entry.name, endings, others)
        else:
            yield from _walk_remote(entry, path, endings, others)


class Index:
    """Listings by root, each made once and then shared by the splits below it.

    Attributes:
      listings: (root, extensions) -> its files.
      others: counts the files that are not listed, by the same keys; nothing where a kept list
        was trusted.
    """

    def __init__(self, known: Index | None = None):
        """`known`: an index to be trusted where it has the root."""
        self.listings: dict[tuple[str, tuple[str, ...]], Listing] = {}
        self.others: dict[tuple[str, tuple[str, ...]], Counter[str]] = {}
        if known is not None:
            self.listings.update(known.listings)

    def files(self, root: str, endings: Sequence[str]) -> Listing:
        key = root, tuple(endings)
        if key not in self.listings:
            self.listings[key] = scan(root, endings, self.others.setdefault(key, Counter()))
        return self.listings[key]

    def left_out(self, root: str, endings: Sequence[str]) -> Counter[str]:
        """Files below a root that are not listed, by ending."""
        return self.others.get((root, tuple(endings)), Counter())

    def to_bytes(self) -> bytes:
        """A NumPy archive without pickled objects."""
        keys = [[root, list(endings)] for root, endings in self.listings]
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
        roots = {root: files for (root, _), files in old.listings.items()}  # with other endings
        for key, files in self.listings.items():
            before = old.listings.get(key, roots.get(key[0]))
            if before is not None and files != before:
                for kind, names in _compare(before, files).items():
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
