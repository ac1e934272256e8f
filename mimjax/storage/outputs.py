"""Outputs that a user names: made beside their place, moved there when whole, and listed.

A program may write at any path that a user types, so it replaces nothing that it cannot prove to be
its own. What was written at `out` is listed with sizes and checksums in `.out.mimjax.json` beside
it. An output whose list is there, that holds nothing else and that nobody changed may be replaced;
everything else belongs to the user and is refused by name.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import pathlib
import shutil
from collections.abc import Iterator
from typing import Any

from etils import epath

from mimjax import __version__, stopping
from mimjax.errors import ConfigError
from mimjax.storage import files

Contents = dict[str, Any]  # relative path -> (size, sha256); "" for an output that is one file
FREE = "a path where nothing is yet"
STAGED = {"new", "old", "list"}  # what a stage may hold
# What a run keeps in its workdir. Its pictures/ may hold pictures that programs draw.
RUN_FILES = {
    *("checkpoints", "broken", "pictures", "wandb", "config.json", "parameters.txt", "train.log"),
    *("metrics.jsonl", "table.md", "report.html", "data_index.npz", "teacher.json", "run.lock"),
}


def check(
    path: str,
    overwrite: bool = False,
    flag: str = "--output",
    spare: dict[str, str | None] | None = None,
    hint: str = "",
) -> str:
    """Find out whether a program may write at `path`, before it does any work.

    Args:
      overwrite: whether an earlier output of ours may be replaced.
      flag: what named the path, for errors.
      spare: further places that must survive, {"the folder of the images": path}; None = not given.
      hint: the flag that sets `overwrite`. Messages propose it only where it would be obeyed.

    Returns:
      The absolute path.

    Raises:
      ConfigError: the path is remote or protected, or holds what no program of mimjax has written.
    """
    path = os.path.abspath(files.checked_path(path, flag, stores=()))
    check_place(path, flag, spare or {})
    check_contents(path, overwrite, flag, hint)
    return path


def check_place(path: str, flag: str, spare: dict[str, str | None]) -> None:
    """Refuse links, the folders that a user works in, and those of a run.

    Raises:
      ConfigError: the path is one of these, or holds one of them.
    """
    if os.path.islink(path):
        target = os.readlink(path)
        raise ConfigError(f"{flag}: {path} is a link to {target}; allowed: {FREE}")
    real = os.path.realpath(path)
    kept = {"the current folder": os.getcwd(), "the home folder": "~", **spare}
    for name, place in kept.items():
        if place is None or "://" in place:
            continue
        place = os.path.realpath(os.path.expanduser(place))
        if os.path.commonpath([place, real]) == real:
            holds = "is" if place == real else "holds"
            raise ConfigError(f"{flag}: {path} {holds} {name}; allowed: {FREE}")
    for run in pathlib.Path(real).parents:
        first, *rest = pathlib.Path(real).relative_to(run).parts
        drawn = first == "pictures" and len(rest) == 1
        writable = not rest or (run / first).is_dir()
        if first in RUN_FILES and writable and not drawn and _is_run(run):
            raise ConfigError(
                f"{flag}: {path} is where the run of {run} keeps its files; allowed: {FREE}"
            )


def _is_run(folder: pathlib.Path) -> bool:
    return (folder / "config.json").exists() and (folder / "checkpoints").exists()


def check_contents(path: str, overwrite: bool, flag: str, hint: str = "") -> None:
    """Refuse to replace what is not listed, or what was changed since it was.

    Raises:
      ConfigError: nothing at `path` may be replaced, or only with the flag `hint`.
    """
    if not os.path.lexists(path) or (os.path.isdir(path) and not os.listdir(path)):
        return
    if foreign := _foreign(path, _listed(path)):
        raise ConfigError(f"{flag}: {foreign}; it is never replaced; allowed: {FREE}")
    if not overwrite:
        raise ConfigError(
            f"{flag}: {path} exists (an earlier output, unchanged); allowed: "
            f"{f'{hint} to replace it, or ' if hint else ''}{FREE}"
        )


@contextlib.contextmanager
def staged(
    path: str,
    overwrite: bool = False,
    flag: str = "--output",
    spare: dict[str, str | None] | None = None,
    listed: bool = True,
) -> Iterator[str]:
    """A path to write a file or folder at; it gets to `path` when the body has succeeded.

    Whatever ends the body early, the old output stays as it was and nothing lies beside it. What a
    killed program left is cleared by the next one that writes at this path.

    Args:
      listed: False for a folder that changes later and is nobody's to replace, such as a workdir.

    Raises:
      ConfigError: see `check`; another program is writing there; it cannot be written (the body's
        OSErrors too).
    """
    path = os.path.abspath(files.checked_path(path, flag, stores=()))
    check_place(path, flag, spare or {})
    parent, name = os.path.split(path)
    try:
        with _parents(parent), _stage(path, flag) as stage:
            check_contents(path, overwrite, flag)
            new = os.path.join(stage, "new", name)
            os.mkdir(os.path.dirname(new))
            yield new
            check_contents(path, overwrite, flag)  # somebody else may have written meanwhile
            with stopping.whole():
                if listed:
                    _put_listed(new, path, stage)
                else:
                    _put(new, path, stage)
    except OSError as error:
        reason = error.strerror or error
        raise ConfigError(f"{flag}: cannot write {path} ({reason})") from None


def write_bytes(path: str, data: bytes, flag: str = "--output") -> None:
    """Write a file whose earlier version, if it is ours and unchanged, may go.

    Args:
      path: local, or on a store, where a file appears whole or not at all.

    Raises:
      ConfigError: see `check` and `staged`.
    """
    if "://" not in files.checked_path(path, flag):
        with staged(path, overwrite=True, flag=flag) as new, open(new, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        return
    target, record = epath.Path(path), epath.Path(_list_of(path))
    check_remote(path, flag)
    entry = {"": [len(data), hashlib.sha256(data).hexdigest()]}
    target.parent.mkdir(parents=True, exist_ok=True)
    record.write_text(_text([entry, *_listed(path)]))
    target.write_bytes(data)
    record.write_text(_text([entry]))


def check_bytes(path: str, flag: str = "--output") -> None:
    """What `write_bytes` would refuse, before any work is done.

    Raises:
      ConfigError: see `check`.
    """
    if "://" in files.checked_path(path, flag):
        check_remote(path, flag)
    else:
        check(path, overwrite=True, flag=flag)


def check_remote(path: str, flag: str) -> None:
    """Refuse to replace a store's file that is not listed as ours.

    Raises:
      ConfigError: it is somebody else's.
    """
    target = epath.Path(path)
    if target.exists():
        data = target.read_bytes()
        if {"": [len(data), hashlib.sha256(data).hexdigest()]} not in _listed(path):
            raise ConfigError(
                f"{flag}: {path} exists, and mimjax has no record of writing it as it is now; "
                f"it is never replaced; allowed: {FREE}"
            )


def _list_of(path: str) -> str:
    """Where the list of an output lies."""
    parent, name = os.path.split(path)
    return os.path.join(parent, f".{name}.mimjax.json")


def _listed(path: str) -> list[Contents]:
    """What an output may hold to count as ours; [] without a list that can be read.

    There are two possibilities while one output takes the place of another, else one.
    """
    try:
        found = json.loads(epath.Path(_list_of(path)).read_text())["contents"]
        return [{name: [int(e[0]), str(e[1])] for name, e in one.items()} for one in found]
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return []


def _text(contents: list[Contents]) -> str:
    return json.dumps({"written by": f"mimjax {__version__}", "contents": contents}) + "\n"


def _entries(path: str) -> dict[str, int | None]:
    """Sizes in bytes of the files below a folder, or of the file itself as ""; None: no file."""
    if not os.path.isdir(path) or os.path.islink(path):
        return {"": os.lstat(path).st_size if os.path.isfile(path) else None}
    out: dict[str, int | None] = {}
    with os.scandir(path) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                below = _entries(entry.path) or {"": None}  # an empty folder is somebody's too
                out |= {os.path.join(entry.name, n).rstrip("/"): s for n, s in below.items()}
            else:
                is_file = entry.is_file(follow_symlinks=False)
                out[entry.name] = entry.stat(follow_symlinks=False).st_size if is_file else None
    return out


def _contents(path: str) -> Contents:
    """Size and sha256 of every file."""
    return {name: [size, _sha256(path, name)] for name, size in _entries(path).items()}


def _sha256(path: str, name: str) -> str:
    with open(os.path.join(path, name) if name else path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _foreign(path: str, listed: list[Contents]) -> str:
    """What at `path` is not ours, in words; "" = all of it is one of the listed contents."""
    if not listed and os.path.isdir(path):  # perhaps a large one: one name is enough
        return f"{path} holds {min(os.listdir(path))}, which mimjax has no record of writing"
    found, said = _entries(path), ""
    for contents in listed or [{}]:
        unknown = sorted(found.keys() - contents.keys())
        if not unknown:  # names and sizes first: these cost no reading
            changed = [n for n, size in found.items() if size != contents[n][0]]
            changed = changed or [n for n in found if _sha256(path, n) != contents[n][1]]
            if not changed:
                return ""
            place = os.path.join(path, changed[0]) if changed[0] else path
            said = said or f"{place} was changed after mimjax wrote it"
        elif not unknown[0]:
            said = said or f"{path} exists, and mimjax has no record of writing it"
        else:
            said = said or f"{path} holds {unknown[0]}, which mimjax has no record of writing"
    return said


@contextlib.contextmanager
def _parents(folder: str) -> Iterator[None]:
    """The folder, made with those above it; what was made goes again if the body fails."""
    made = []
    while not os.path.lexists(folder):
        made.append(folder)
        folder = os.path.dirname(folder)
    try:
        os.makedirs(made[0] if made else folder, exist_ok=True)
        yield
    except BaseException:
        with contextlib.suppress(OSError):
            for one in made:
                os.rmdir(one)  # only while it is empty
        raise


@contextlib.contextmanager
def _stage(path: str, flag: str) -> Iterator[str]:
    """An empty folder beside `path`, held by a lock that the system drops when we die.

    Raises:
      ConfigError: another program holds it.
    """
    import fcntl

    parent, name = os.path.split(path)
    stage = os.path.join(parent, f".{name}.mimjax")
    try:
        os.mkdir(stage)
        ours = True
    except FileExistsError:
        ours = False
    handle = os.open(stage, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:  # some network disks cannot lock: then an old stage is left alone
            if not ours or isinstance(error, BlockingIOError):
                raise ConfigError(
                    f"{flag}: another program is writing {path}; allowed: to wait for its end (if "
                    f"none is, remove the folder {stage})"
                ) from None
        if unknown := set(os.listdir(stage)) - STAGED:
            raise ConfigError(f"{flag}: {stage} holds {min(unknown)}; allowed: no such folder")
        _clear(stage, path)  # of a program that was killed
        try:
            with stopping.undoing(lambda: _empty(stage, path)):
                yield stage
        finally:
            _empty(stage, path)
    finally:
        os.close(handle)


def _empty(stage: str, path: str) -> None:
    """Remove a stage with what it holds."""
    _clear(stage, path)
    os.rmdir(stage)


def _clear(stage: str, path: str) -> None:
    """Empty a stage; an output that had left its place for another one returns to it first."""
    old = os.path.join(stage, "old")
    if os.path.lexists(old) and not os.path.lexists(path):
        os.rename(old, path)
    for name in STAGED:
        place = os.path.join(stage, name)
        if os.path.isdir(place) and not os.path.islink(place):
            shutil.rmtree(place)
        elif os.path.lexists(place):
            os.unlink(place)


def _put_listed(new: str, path: str, stage: str) -> None:
    """Move `new` to its place, and its list beside it: at any instant the two belong together."""
    before, after = _listed(path) if os.path.lexists(path) else [], _contents(new)
    _write_list(path, [after, *before], stage)
    try:
        _put(new, path, stage)
    except BaseException:
        if before:
            _write_list(path, before, stage)
        else:
            os.unlink(_list_of(path))
        raise
    _write_list(path, [after], stage)


def _put(new: str, path: str, stage: str) -> None:
    """Move `new` to its place; what was there leaves it first, where a folder is concerned."""
    if not os.path.lexists(path) or not (os.path.isdir(path) or os.path.isdir(new)):
        os.replace(new, path)
        return
    old = os.path.join(stage, "old")
    os.rename(path, old)
    try:
        os.rename(new, path)
    except BaseException:
        os.rename(old, path)
        raise


def _write_list(path: str, contents: list[Contents], stage: str) -> None:
    """Write the list of an output as a whole or not at all."""
    new = os.path.join(stage, "list")
    with open(new, "w") as file:
        file.write(_text(contents))
        file.flush()
        os.fsync(file.fileno())
    os.replace(new, _list_of(path))
