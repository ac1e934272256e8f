"""How a run finds its start: the workdir's config, checkpoints, other runs' weights, files.

Order: the own workdir -> config.resume (a whole state) -> config.init_from (weights) -> scratch.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from mimjax import rules
from mimjax.errors import ConfigError
from mimjax.files import Workdir
from mimjax.rng import step_key
from mimjax.schema import Config
from mimjax.torch_io import load, names
from mimjax.train.checkpoints import Checkpoints
from mimjax.train.program import Program
from mimjax.train.state import TrainState

PyTree = Any
Say = Callable[[str], None]
TEACHER_FILE = "teacher.json"  # where frozen weights came from, and their checksum
# A checkpoint fits only while these stay the same; all other settings may change between starts.
STRUCTURE = ("task", "method.", "optimizer.name")


def flatten(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings as {"a.b.c": value}."""
    out = {}
    for key, value in config.items():
        if isinstance(value, dict):
            out |= flatten(value, f"{prefix}{key}.")
        else:
            out[prefix + key] = value
    return out


def to_json(c: Config) -> str:
    """The resolved config as indented JSON."""
    return json.dumps(c.to_dict(), indent=2, sort_keys=True) + "\n"


def check_workdir(
    c: Config, workdir: Workdir, checkpoints: Checkpoints, say: Say
) -> dict[str, tuple[Any, Any]]:
    """Compares the config with the one that made the workdir's checkpoints; says what changed.

    Returns:
      The changed settings by dotted name: what they were, what they are.

    Raises:
      ConfigError: task, method or optimizer differ: the checkpoints do not fit.
    """
    found = workdir.read_json("config.json")
    if not found or checkpoints.manager.latest_step() is None:
        return {}  # nothing to continue from
    old, new = flatten(found), flatten(json.loads(to_json(c)))
    keys = sorted(old.keys() | new.keys(), key=lambda k: (k != "task", k))  # the cause first
    changed = [k for k in keys if old.get(k) != new.get(k)]
    for key in changed:
        if key.startswith(STRUCTURE):
            raise ConfigError(
                f"{key}: {new.get(key)!r}, but the workdir {workdir.path} was made with "
                f"{old.get(key)!r}; use another --workdir (its weights: --config.init_from)"
            )
    for key in changed:
        say(f"changed since the last start: {key}: {old.get(key)!r} -> {new.get(key)!r}")
    return {key: (old.get(key), new.get(key)) for key in changed}


def before(c: Config, changed: dict[str, tuple[Any, Any]]) -> Config:
    """The config with the length that it had."""
    old = c.copy_and_resolve_references().unlock()
    old.update({key: changed[key][0] for key in ("steps", "epochs") if key in changed})
    return old


def find_start(
    c: Config, program: Program, checkpoints: Checkpoints, fingerprint: str, say: Say
) -> tuple[TrainState, tuple[int, ...]]:
    """The state to begin with, and the batches that are left out; one line says where from."""
    found = checkpoints.restore(program.abstract_state, say)
    where = "this workdir"
    if found is None and c.resume:
        where = c.resume
        other = Checkpoints(existing(where, "resume"), read_only=True)
        found = other.restore(program.abstract_state, say)
        if found is None:
            raise ConfigError(f"resume: no readable checkpoint in {where}")
    if found is not None:
        state, data = found
        say(f"weights: continued from step {data['step']} of {where}")
        skipped = tuple(data.get("skipped", ()))
        if data["fingerprint"] != fingerprint:
            say(
                "the data are not those of the checkpoint (files, crops or batch size changed): "
                "the run continues, but is not the uninterrupted one"
            )
            skipped = ()  # they name batches of the old data
        if skipped:
            say(f"batches left out after numbers that were not finite: {skipped}")
        return state, skipped
    state = program.init()
    if c.init_from:
        like = program.abstract_state.params
        order = order_of(program)
        params = read_params(c.init_from, like, "init_from", say, grid_of(program), order)
        params = jax.tree.map(
            lambda new, old: old if new is None else jax.device_put(new, old.sharding),
            params,
            state.params,
            is_leaf=lambda x: x is None,
        )
        # EMA targets start as copies of the weights, not of the random ones
        ema = jax.jit(
            program.task.init_ema,
            out_shardings=jax.tree.map(lambda x: x.sharding, program.abstract_state.ema),
        )(params)
        say(
            f"schedule: from its beginning, with a warm-up of {warmup_words(c)}; optimizer slots "
            "are empty (a whole state: --config.resume)"
        )
        return state.replace(params=params, ema=ema), ()
    say("weights: random, the method's own initialization")
    return state, ()


def warmup_words(c: Config) -> str:
    """The warm-up as the config gives it."""
    o = c.optimizer
    if o.warmup_steps is None:
        return f"{o.warmup_epochs:g} epochs"
    return f"{o.warmup_steps} steps"


def grid_of(program: Program) -> tuple[int, int] | None:
    """The encoder's patches, which are also a teacher's tokens."""
    return getattr(getattr(program.task, "encoder", None), "grid", None)


def order_of(program: Program) -> str:
    """Which coordinate comes first in the encoder's fixed positions; "" = they are learned."""
    kind = getattr(getattr(program.task, "encoder", None), "pos_embed", "")
    return kind.removeprefix("sincos_") if kind.startswith("sincos") else ""


def existing(path: str, key: str) -> Workdir:
    workdir = Workdir(path, writer=False)
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
    """Parameters from a workdir or a published file; None for subtrees that it does not hold.

    Args:
      like: abstract parameters, {"encoder": ..., ...}.
      key: the config key, for errors.
      grid: of the encoder's patches, to which a file's learned positions are resized.
      order: of the encoder's fixed positions, see `load.from_torch`.
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
    layout = names.detect(state, f"{key}: {path}: ", like)
    out, absent = load.take(state, like, layout, f"{key}: {path}", grid, order)
    fresh = f"; {', '.join(absent)} not in the file: random" if absent else ""
    say(f"weights: {', '.join(k for k in like if k not in absent)} from {path} ({layout}){fresh}")
    return out


def make_frozen(
    c: Config, program: Program, workdir: Workdir, sample, say: Say
) -> tuple[PyTree, dict[str, str]]:
    """Frozen parameters, read from `teacher.path` or estimated from the data, and their source.

    Returns:
      The tree, and {"path", "sha256"} of what was read ({} if nothing was).

    Raises:
      ConfigError: the task has a frozen network and no path is given, the file does not fit, or
        it is not the one that the workdir was made with.
    """
    task, abstract = program.task, program.abstract_frozen
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
        trees = read_teachers(path, like, say, grid_of(program))
        count = lambda tree: len(jax.tree.leaves(tree))
        if absent := [k for k, v in trees.items() if count(v) < count(like[k])]:
            raise ConfigError(f"teacher.path: {path} does not hold all of {', '.join(absent)}")
        source = {"path": path, "sha256": ",".join(checksum(p, trees) for p in path.split(","))}
        say(f"teacher: {path}, sha256 {source['sha256']}")
        frozen |= trees
    check_teacher(source, workdir)
    return jax.tree.map(lambda x, s: jax.device_put(x, s), frozen, sharding), source


def read_teachers(path: str, like: PyTree, say: Say, grid: tuple[int, int] | None) -> PyTree:
    """Frozen networks from one file or workdir, or from several files separated by commas."""
    paths = path.split(",")
    if len(paths) == 1:
        return read_params(path, like, "teacher.path", say, grid)
    trees = {}
    for one in paths:
        layout = names.detect(load.read_file(one), f"teacher.path: {one}: ", like)
        part = {k: v for k, v in like.items() if k in names.held(layout)}
        trees |= read_params(one, part or like, "teacher.path", say, grid)
    if absent := like.keys() - trees.keys():
        raise ConfigError(f"teacher.path: none of {path} holds {', '.join(sorted(absent))}")
    return trees


def check_teacher(source: dict[str, str], workdir: Workdir) -> None:
    """The frozen weights are those that the workdir's run began with.

    Raises:
      ConfigError: they are not.
    """
    before = workdir.read_json(TEACHER_FILE)
    if source and before and before["sha256"] != source["sha256"]:
        raise ConfigError(
            f"teacher.path: {source['path']} (sha256 {source['sha256'][:14]}), but the workdir was "
            f"made with {before['path']} (sha256 {before['sha256'][:14]}); use the same weights or "
            "another --workdir"
        )


def checksum(path: str, trees: PyTree) -> str:
    """sha256 of a file; of the arrays (names and float32 bytes) of a workdir's checkpoint."""
    if path.endswith(load.SUFFIXES):
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    digest = hashlib.sha256()
    for name, x in zip(rules.paths(trees), jax.tree.leaves(trees), strict=True):
        digest.update(name.encode() + np.asarray(x, np.float32).tobytes())
    return digest.hexdigest()
