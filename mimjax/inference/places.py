"""What lies at a path that is given as a trained model and is none, in words.

A run without a checkpoint, a folder of images, or one of files with other names: the line says what
is there, so that the user sees which path was meant.
"""

from __future__ import annotations

from mimjax.data.folder import is_image
from mimjax.errors import ConfigError
from mimjax.storage.files import RUNS, Workdir, checked_path
from mimjax.torch_io.read import files

SHOWN = 5  # names in a line
ALLOWED = f"the workdir of a run with a checkpoint, or a folder with {' or '.join(files.IN_FOLDER)}"


def existing(path: str, key: str) -> Workdir:
    """Return the workdir at `path`, which must exist; `key` is the setting that names it.

    Raises:
      ConfigError: there is no folder, or a file.
    """
    workdir = Workdir(checked_path(path, key, RUNS), writer=False, key=key)
    if not workdir.path.is_dir():
        allowed = "a workdir of an earlier run"
        if workdir.path.is_file():
            allowed += f", or weights: {', '.join(files.SUFFIXES[:-2])}"
        raise ConfigError(f"{key}: {path} is no folder; allowed: {allowed}")
    return workdir


def check_source(path: str, key: str) -> None:
    """Check that weights can come from a path: a file of them, or a run with a checkpoint.

    Raises:
      ConfigError: it is a folder of something else, or none.
    """
    if not files.is_weights(path) and not has_checkpoints(workdir := existing(path, key)):
        raise nothing_in(workdir, path, key)


def has_checkpoints(workdir: Workdir) -> bool:
    """Return whether a folder holds a checkpoint of any step, readable or not."""
    folder = workdir.file("checkpoints")
    return folder.is_dir() and any(entry.name.isdigit() for entry in folder.iterdir())


def nothing_in(workdir: Workdir, path: str, key: str) -> ConfigError:
    """Return the error about a folder without a checkpoint and without a file of weights.

    Args:
      path: the folder as it was given; key: the setting that names it.
    """
    weights = [e.name for e in workdir.path.iterdir() if e.name.endswith(files.SUFFIXES)]
    if shards := [name for name in weights if name.endswith(".index.json")]:
        allowed = f"one file instead of the shards of {shards[0]} ({files.UNSHARDED})"
        return ConfigError(f"{key}: {path} {content(workdir)}; allowed: {allowed}")
    allowed = f"one of its files of weights by its own path, {ALLOWED}" if weights else ALLOWED
    return ConfigError(f"{key}: {path} {content(workdir)}; allowed: {allowed}")


def content(workdir: Workdir) -> str:
    """Return what a folder without a checkpoint holds: "holds 19 images", "is empty"."""
    entries = sorted(workdir.path.iterdir(), key=lambda entry: entry.name)
    entries = [entry for entry in entries if not entry.name.startswith(".")]
    try:
        is_run = "task" in workdir.read_json("config.json")
    except ConfigError:  # damaged
        is_run = False
    images = [entry for entry in entries if is_image(entry.name)]
    rest = [entry for entry in entries if entry not in images]
    folders = [entry.name for entry in rest if entry.is_dir()]
    names = [entry.name for entry in rest if entry.name not in folders]
    if is_run:
        names = [*names, *[name for name in folders if name != "checkpoints"]]
        steps = [row["step"] for row in workdir.read_lines("metrics.jsonl")[0]]
        made = max(steps, default=0)
        why = f", though metrics.jsonl speaks of step {made}" if made else ": the run saved no step"
        return f"holds {shown(names)}, no checkpoints{why}"
    parts = [f"{len(images)} image{'s' * (len(images) > 1)}"] if images else []
    if folders:
        parts.append(f"{len(folders)} folder{'s' * (len(folders) > 1)} ({shown(folders)})")
    parts += [shown(names)] if names else []
    return f"holds {', '.join(parts)}" if parts else "is empty"


def shown(names: list[str]) -> str:
    """Return the first SHOWN names in one string, with "..." if there are more."""
    return ", ".join(names[:SHOWN]) + (", ..." if len(names) > SHOWN else "")
