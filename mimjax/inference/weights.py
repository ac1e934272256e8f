"""Reading of the weights that a config names, from a workdir or a published file.

They are where a run begins (`init_from`) or its frozen networks (`teacher.path`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from mimjax import rules
from mimjax.errors import ConfigError
from mimjax.inference import contradictions
from mimjax.rng import step_key
from mimjax.schema import Config
from mimjax.storage.checkpoints import Checkpoints
from mimjax.storage.files import RUNS, Workdir, checked_path
from mimjax.task import Pretraining, Task
from mimjax.torch_io.read import detect, load

PyTree = Any
Say = Callable[[str], None]


TEACHER_FILE = "teacher.json"  # where frozen weights came from, and their checksum


def grid_of(task: Task) -> tuple[int, int] | None:
    """Return rows and columns of the encoder's patches; None = the task pretrains no encoder."""
    return task.encoder.grid if isinstance(task, Pretraining) else None


def order_of(task: Task) -> str:
    """Return the coordinate that comes first in the encoder's fixed positions; "" = none does."""
    return task.encoder.positions if isinstance(task, Pretraining) else ""


def existing(path: str, key: str) -> Workdir:
    """Return the workdir at `path`, which must exist; `key` is the setting that names it."""
    workdir = Workdir(checked_path(path, key, RUNS), writer=False)
    if not workdir.path.is_dir():
        raise ConfigError(f"{key}: {path} is no folder; allowed: a workdir of an earlier run")
    return workdir


def read_params(
    path: str,
    like: PyTree,
    key: str,
    say: Say,
    grid: tuple[int, int] | None = None,
    order: str = "",
) -> PyTree:
    """Read parameters from a workdir or a published file; None for subtrees that it lacks.

    Args:
      like: abstract parameters, {"encoder": ..., ...}.
      key: the config key, for errors.
      grid: rows and columns of the encoder's patches; learned positions are resized to them.
      order: order of the encoder's fixed positions, see `load.from_torch`.
    """
    if not path.endswith(load.SUFFIXES):
        try:
            params = Checkpoints(existing(path, key), read_only=True).params(like)
        except ConfigError as error:
            text = str(error)
            raise ConfigError(text if text.startswith(key) else f"{key}: {text}") from None
        say(f"weights: all of {', '.join(like)} from {path}")
        return params
    state = load.read_file(path)
    layout = detect.detect(state, f"{key}: {path}: ", like)
    out, absent = load.take(state, like, layout, f"{key}: {path}", grid, order)
    fresh = f"; {', '.join(absent)} not in the file: random" if absent else ""
    say(f"weights: {', '.join(k for k in like if k not in absent)} from {path} ({layout}){fresh}")
    return out


def make_frozen(
    c: Config,
    task: Task,
    abstract: PyTree,
    workdir: Workdir,
    sample,
    say: Say,
    meta: dict[str, Any] | None = None,
) -> tuple[PyTree, dict[str, str]]:
    """Make the frozen parameters: read from `teacher.path`, or estimated from the data.

    Args:
      abstract: shapes and shardings of `task.init_frozen`.
      meta: metadata of the checkpoint that is continued.

    Returns:
      The tree, and {"path", "sha256"} of what was read ({} if nothing was).

    Raises:
      ConfigError: the task has a frozen network and no path is given, the file does not fit, or
        it is not the one that the workdir was made with.
    """
    sharding = jax.tree.map(lambda x: x.sharding, abstract)
    like, path = {k: v for k, v in abstract.items() if k not in task.FITTED}, c.teacher.path
    if like and not path:
        raise ConfigError(
            f"teacher.path: none, but {c.task} learns from a frozen network ({', '.join(like)}); "
            "allowed: a workdir, .safetensors, .pth (README: where each is published), or "
            "'random' (tests and benchmarks only)"
        )
    frozen, source = {}, {}
    if path == "random" or len(like) < len(abstract):
        frozen = jax.jit(task.init_frozen, out_shardings=sharding)(step_key(c.seed, "init", 1))
        frozen = task.fit_frozen(frozen, sample)
    if like and path == "random":
        say("WARNING: teacher.path=random: the targets are noise; for tests and benchmarks only")
        source = {"path": path, "sha256": "random weights"}
    elif like:
        contradictions.check(path, "teacher.path", task.frozen_readers(), say)
        trees = read_teachers(path, like, say, grid_of(task))
        count = lambda tree: len(jax.tree.leaves(tree))
        if absent := [k for k, v in trees.items() if count(v) < count(like[k])]:
            raise ConfigError(f"teacher.path: {path} does not hold all of {', '.join(absent)}")
        source = {"path": path, "sha256": ",".join(checksum(p, trees) for p in path.split(","))}
        say(f"teacher: {path}, sha256 {source['sha256']}")
        frozen |= trees
    check_teacher(source, workdir, meta or {}, say)
    return jax.tree.map(lambda x, s: jax.device_put(x, s), frozen, sharding), source


def read_teachers(path: str, like: PyTree, say: Say, grid: tuple[int, int] | None) -> PyTree:
    """Read frozen networks from a file or workdir, or from several files separated by commas."""
    paths = path.split(",")
    if len(paths) == 1:
        return read_params(path, like, "teacher.path", say, grid)
    trees = {}
    for one in paths:
        layout = detect.detect(load.read_file(one), f"teacher.path: {one}: ", like)
        part = {k: v for k, v in like.items() if k in detect.roots_of(layout)}
        trees |= read_params(one, part or like, "teacher.path", say, grid)
    if absent := like.keys() - trees.keys():
        raise ConfigError(f"teacher.path: none of {path} holds {', '.join(sorted(absent))}")
    return trees


def check_teacher(source: dict[str, str], workdir: Workdir, meta: dict[str, Any], say: Say) -> None:
    """Compare the frozen weights with those that the workdir's run began with.

    Args:
      meta: metadata of the checkpoint that is continued, which repeats teacher.json; {} = none.

    Raises:
      ConfigError: they differ, or nothing says what they were.
    """
    if not source:
        return
    complete = lambda source: {"path", "sha256"} <= (source or {}).keys()
    kept, there = meta.get("teacher"), workdir.file(TEACHER_FILE).exists()
    try:
        before = workdir.read_json(TEACHER_FILE)
    except ConfigError:
        before = {}
    if there and not complete(before):
        if not complete(kept):
            raise ConfigError(
                f"--workdir: {workdir.file(TEACHER_FILE)} is damaged; allowed: the file as a run "
                "wrote it (restore it from a copy)"
            )
        say(f"{TEACHER_FILE} is damaged: the checkpoint says what it held")
    known = before if complete(before) else kept or {}
    if complete(known) and known["sha256"] != source["sha256"]:
        raise ConfigError(
            f"teacher.path: {source['path']} (sha256 {source['sha256'][:14]}), but the workdir was "
            f"made with {known['path']} (sha256 {known['sha256'][:14]}); use the same weights or "
            "another --workdir"
        )


def checksum(path: str, trees: PyTree) -> str:
    """Return the sha256 of a file, or of a checkpoint's arrays (names and float32 bytes)."""
    if path.endswith(load.SUFFIXES):
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    digest = hashlib.sha256()
    for name, x in zip(rules.paths(trees), jax.tree.leaves(trees), strict=True):
        digest.update(name.encode() + np.asarray(x, np.float32).tobytes())
    return digest.hexdigest()
