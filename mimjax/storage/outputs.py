"""Files and folders at paths that a user names: staged, renamed into place, and listed.

A program may write at any path that a user types, so it must replace only what mimjax wrote. An
output is made in a stage (a hidden folder beside its path) and renamed into its place when it is
complete. The file `.out.mimjax.json` beside an output `out` lists its files with sizes and SHA-256.
An output may be replaced only if it consists of exactly the listed, unchanged files; anything else
belongs to the user and is refused by name. Files of a run's workdir are in `storage/files.py`.
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
STAGED = {"new", "old", "list"}  # names that a stage may contain
# files and folders of a run in its workdir; programs may add pictures to pictures/
RUN_FILES = {
    *("checkpoints", "broken", "pictures", "wandb", "config.json", "classes.json", "train.log"),
    *("metrics.jsonl", "table.md", "report.html", "data_index.npz", "teacher.json", "run.lock"),
    *("parameters.txt", "tables"),
}


def check(
    path: str,
    overwrite: bool = False,
    flag: str = "--output",
    spare: dict[str, str | None] | None = None,
    hint: str = "",
) -> str:
    """Check that a program may write at `path`, before it does any work.

    Args:
      path: a local path.
      overwrite: whether an earlier output of mimjax may be replaced.
      flag: flag that named the path, for errors.
      spare: further places that must survive, {"the folder of the images": path}; a path None is
        ignored.
      hint: flag that sets `overwrite`; errors propose it only where it would help.

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
    """Refuse a path that is a link, contains a protected folder, or is a file of a run.

    Protected are the current folder, the home folder and the places in `spare` (see `check`).

    Raises:
      ConfigError: the path is one of these.
    """
    if os.path.islink(path):
        raise ConfigError(f"{flag}: {path} is a link to {os.readlink(path)}; allowed: {FREE}")
    real = os.path.realpath(path)
    protected = {"the current folder": os.getcwd(), "the home folder": "~", **spare}
    for name, place in protected.items():
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
    """Refuse to replace anything but an earlier output, listed and unchanged.

    Raises:
      ConfigError: what is at `path` may not be replaced, or only with the flag `hint`.
    """
    # an empty folder may always be filled
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
    """Yield a temporary path for a file or folder, which is renamed to `path` if the body succeeds.

    If the body fails, the old output is unchanged and nothing is left beside it. Leftovers of a
    killed program are removed by the next one that writes at this path.

    Args:
      path, overwrite, flag, spare: see `check`.
      listed: whether the output is listed, so that it may be replaced later; False for a folder
        whose files change, such as a workdir.

    Raises:
      ConfigError: see `check`; another program is writing there; an OSError in or after the body.
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
            check_contents(path, overwrite, flag)  # another program may have written meanwhile
            with stopping.whole():
                if listed:
                    _put_listed(new, path, stage)
                else:
                    _put(new, path, stage)
    except OSError as error:
        reason = error.strerror or error
        raise ConfigError(f"{flag}: cannot write {path} ({reason})") from None


def write_bytes(path: str, data: bytes, flag: str = "--output") -> None:
    """Write a file; an earlier version that mimjax wrote and nobody changed is replaced.

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
    # both versions are listed while one replaces the other, so that a crash leaves a known file
    record.write_text(_text([entry, *_listed(path)]))
    target.write_bytes(data)
    record.write_text(_text([entry]))


def check_bytes(path: str, flag: str = "--output") -> None:
    """Check that `write_bytes` may write at `path`, before any work is done.

    Raises:
      ConfigError: see `check`.
    """
    if "://" in files.checked_path(path, flag):
        check_remote(path, flag)
    else:
        check(path, overwrite=True, flag=flag)


def check_remote(path: str, flag: str) -> None:
    """Refuse to replace a file on a store, unless it is listed and unchanged.

    Raises:
      ConfigError: the file exists, and its list is missing or does not fit.
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
    """Return the path of an output's list."""
    parent, name = os.path.split(path)
    return os.path.join(parent, f".{name}.mimjax.json")


def _listed(path: str) -> list[Contents]:
    """Return the listed contents of an output; [] without a readable list.

    There are two contents while a new output replaces an old one, otherwise one.
    """
    try:
        entries = json.loads(epath.Path(_list_of(path)).read_text())["contents"]
        return [{name: [int(e[0]), str(e[1])] for name, e in one.items()} for one in entries]
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return []


def _text(contents: list[Contents]) -> str:
    return json.dumps({"written by": f"mimjax {__version__}", "contents": contents}) + "\n"


def _entries(path: str) -> dict[str, int | None]:
    """Return {relative path: size in bytes} of all files below a folder; None = not a file.

    A path that is a file itself has the one name "".
    """
    if not os.path.isdir(path) or os.path.islink(path):
        return {"": os.lstat(path).st_size if os.path.isfile(path) else None}
    sizes: dict[str, int | None] = {}
    with os.scandir(path) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                # an empty folder counts as an entry: a user made it
                below = _entries(entry.path) or {"": None}
                sizes |= {os.path.join(entry.name, n).rstrip("/"): s for n, s in below.items()}
            else:
                is_file = entry.is_file(follow_symlinks=False)
                sizes[entry.name] = entry.stat(follow_symlinks=False).st_size if is_file else None
    return sizes


def _contents(path: str) -> Contents:
    """Return {relative path: [size, SHA-256]} of all files."""
    return {name: [size, _sha256(path, name)] for name, size in _entries(path).items()}


def _sha256(path: str, name: str) -> str:
    """Return the SHA-256 of the file `name` below `path`, or of `path` if `name` is empty."""
    with open(os.path.join(path, name) if name else path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _foreign(path: str, listed: list[Contents]) -> str:
    """Return words about a file that is not as listed; "" if `path` has one of these contents."""
    # a folder without a list may be large; the first name is enough
    if not listed and os.path.isdir(path):
        return f"{path} holds {min(os.listdir(path))}, which mimjax has no record of writing"
    sizes, reason = _entries(path), ""
    for contents in listed or [{}]:
        unknown = sorted(sizes.keys() - contents.keys())
        if not unknown:
            # files are read only where all names and sizes are right
            changed = [n for n, size in sizes.items() if size != contents[n][0]]
            changed = changed or [n for n in sizes if _sha256(path, n) != contents[n][1]]
            if not changed:
                return ""
            place = os.path.join(path, changed[0]) if changed[0] else path
            reason = reason or f"{place} was changed after mimjax wrote it"
        elif not unknown[0]:
            reason = reason or f"{path} exists, and mimjax has no record of writing it"
        else:
            reason = reason or f"{path} holds {unknown[0]}, which mimjax has no record of writing"
    return reason


@contextlib.contextmanager
def _parents(folder: str) -> Iterator[None]:
    """Make a folder and those above it; if the body fails, the new ones are removed again."""
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
                os.rmdir(one)  # fails, as it should, if another program put a file there
        raise


@contextlib.contextmanager
def _stage(path: str, flag: str) -> Iterator[str]:
    """Yield an empty folder beside `path` under a `flock`, which ends with this process.

    Raises:
      ConfigError: another program has the lock, or the folder has files of a user.
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
        except OSError as error:
            # some network disks cannot lock: then an existing stage may be in use
            if not ours or isinstance(error, BlockingIOError):
                raise ConfigError(
                    f"{flag}: another program is writing {path}; allowed: to wait for its end (if "
                    f"none is, remove the folder {stage})"
                ) from None
        if unknown := set(os.listdir(stage)) - STAGED:
            raise ConfigError(f"{flag}: {stage} holds {min(unknown)}; allowed: no such folder")
        _clear(stage, path)  # leftovers of a program that was killed
        try:
            with stopping.undoing(lambda: _empty(stage, path)):
                yield stage
        finally:
            _empty(stage, path)
    finally:
        os.close(handle)


def _empty(stage: str, path: str) -> None:
    """Remove a stage and its contents."""
    _clear(stage, path)
    os.rmdir(stage)


def _clear(stage: str, path: str) -> None:
    """Empty a stage; an old output that was moved into it returns to its place first."""
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
    """Rename `new` to `path` and write its list, so that the list is right at every instant."""
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
    """Rename `new` to `path`, and an old output into the stage before."""
    # the system replaces a file by a file in one step; a folder must be moved away first
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
