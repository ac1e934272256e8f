"""What a run starts with: the workdir's settings, a state or weights, and frozen networks.

`restore.choose` decides where it starts; here that is read, and compared with the settings.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from mimjax import rules
from mimjax.errors import ConfigError
from mimjax.rng import step_key
from mimjax.run import contradictions
from mimjax.run.restore import Start
from mimjax.schema import Config
from mimjax.storage import config_version
from mimjax.storage.checkpoints import Checkpoints, Restored
from mimjax.storage.files import RUNS, Workdir, checked_path
from mimjax.storage.verdicts import Damaged, in_words
from mimjax.task import TrainState
from mimjax.torch_io.read import detect as names
from mimjax.torch_io.read import load
from mimjax.train.program import Program

PyTree = Any
Say = Callable[[str], None]
TEACHER_FILE = "teacher.json"  # where frozen weights came from, and their checksum
# A checkpoint fits only while these stay the same; all other settings may change between starts.
STRUCTURE = ("task", "method.", "optimizer.name")


class Begin(NamedTuple):
    """Where a run begins.

    Attributes:
      state: its arrays.
      skipped: batches that are left out.
      data, meta: the checkpoint's items, {} for a new run.
      same_data: whether the training data are those of the checkpoint.
    """

    state: TrainState
    skipped: tuple[int, ...] = ()
    data: dict[str, Any] = {}
    meta: dict[str, Any] = {}
    same_data: bool = True


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


def config_json(c: Config) -> str:
    """Return what `config.json` holds: the resolved config and its version."""
    whole = {config_version.KEY: config_version.VERSION} | c.to_dict()
    return json.dumps(whole, indent=2, sort_keys=True) + "\n"


def own_settings(workdir: Workdir, checkpoints: Checkpoints, say: Say) -> dict[str, Any]:
    """Return the settings that a workdir's checkpoints were made with, {} if there are none.

    They stand in `config.json` and, should that be gone or damaged, in each checkpoint.

    Raises:
      ConfigError: they cannot be read anywhere, or a newer mimjax wrote them.
    """
    steps, problem, found = checkpoints.steps(), "is missing", {}
    try:
        found = workdir.read_json("config.json")
    except ConfigError:
        if not steps:
            raise
        problem = "is damaged"
    if not steps:
        check_no_user_s(workdir, found)
        found = {}  # nothing to continue from
    elif not found:
        for step in steps:
            with contextlib.suppress(Damaged):
                if found := checkpoints.read_json(step, "meta").get("config", {}):
                    say(f"config.json {problem}: the settings are read from checkpoint {step}")
                    break
    if steps and not found:
        raise ConfigError(
            f"--workdir: {workdir.file('config.json')} {problem}, and no checkpoint holds the "
            "settings; allowed: the file as a run wrote it (restore it from a copy)"
        )
    return config_version.upgrade(found, str(workdir.file("config.json"))) if found else {}


def check_no_user_s(workdir: Workdir, settings: dict[str, Any]) -> None:
    """Refuse a folder that has files of a run's names and is no run's: they are somebody's.

    Args:
      settings: what its `config.json` holds, {} if it has none.

    Raises:
      ConfigError: a run would replace such a file.
    """
    if "task" in settings:
        return
    names = ("config.json", "report.html", "table.md", "parameters.txt")
    there = [name for name in names if workdir.file(name).exists()]
    if there:
        raise ConfigError(
            f"--workdir: {workdir.path} holds {', '.join(there)}, and no run made it; allowed: an "
            "empty or new folder, or the workdir of a run"
        )


def check_workdir(
    c: Config, workdir: Workdir, found: dict[str, Any], say: Say, key: str = "--workdir"
) -> dict[str, tuple[Any, Any]]:
    """Compare the config with the one that made a workdir's checkpoints; say what changed.

    Args:
      found: that one, as `own_settings` returns it; {} = there is nothing to continue from.
      key: the flag or setting that names the workdir, for errors.

    Returns:
      The changed settings by dotted name: what they were, what they are.

    Raises:
      ConfigError: task, method or optimizer differ: the checkpoints do not fit.
    """
    if not found:
        return {}
    old, new = flatten(found), flatten(json.loads(to_json(c)))
    keys = sorted(old.keys() | new.keys(), key=lambda k: (k != "task", k))  # the cause first
    changed = [k for k in keys if old.get(k) != new.get(k)]
    for name in changed:
        if name.startswith(STRUCTURE):
            raise ConfigError(
                f"{name}: {new.get(name)!r}, but the workdir {workdir.path} was made with "
                f"{old.get(name)!r}; use another {key} (its weights: --config.init_from)"
            )
    if key == "--workdir":
        for name in changed:
            say(f"changed since the last start: {name}: {old.get(name)!r} -> {new.get(name)!r}")
    return {name: (old.get(name), new.get(name)) for name in changed}


def first_state(
    start: Start, restored: Restored | None, c: Config, program: Program, fingerprint: str, say: Say
) -> Begin:
    """The state to begin with; one line says where it is from.

    Args:
      restored: the workdir's own checkpoint, where `start` continues from it.
      fingerprint: of the training data.
    """
    where = "this workdir"
    if start.kind == "resume":
        where = c.resume
        other = existing(where, "resume")
        checkpoints = Checkpoints(other, read_only=True)
        check_workdir(c, other, own_settings(other, checkpoints, say), say, key="resume")
        outcomes, restored = checkpoints.survey(program.abstract_state, say)
        for outcome in outcomes:
            if outcome.problem:
                say(f"WARNING: {where}: checkpoint {in_words(outcome)}")
        if restored is None:
            reason = f": {in_words(outcomes[-1])}" if outcomes else ""
            raise ConfigError(f"resume: no readable checkpoint in {where}{reason}")
    if restored is not None:
        return continued(restored, where, fingerprint, say)
    state = program.init()
    if start.kind == "init_from":
        return Begin(with_weights(state, c, program, say))
    say("weights: random, the method's own initialization")
    return Begin(state)


def continued(restored: Restored, where: str, fingerprint: str, say: Say) -> Begin:
    """A checkpoint's state, and what goes with it."""
    data = restored.data
    say(f"weights: continued from step {data['step']} of {where}")
    skipped, same = tuple(data.get("skipped", ())), data["fingerprint"] == fingerprint
    if not same:
        say(
            "the data are not those of the checkpoint (files, crops or batch size changed): "
            "the run continues, but is not the uninterrupted one"
        )
        skipped = ()  # they name batches of the old data
    if skipped:
        say(f"batches left out after numbers that were not finite: {skipped}")
    return Begin(restored.state, skipped, data, restored.meta, same)


def with_weights(state: TrainState, c: Config, program: Program, say: Say) -> TrainState:
    """The state at step 0 with the weights that `init_from` names."""
    like, task = program.abstract_state.params, program.task
    contradictions.check(c.init_from, "init_from", contradictions.own_readers(task, like), say)
    params = read_params(c.init_from, like, "init_from", say, grid_of(program), order_of(program))
    params = jax.tree.map(
        lambda new, old: old if new is None else jax.device_put(new, old.sharding),
        params,
        state.params,
        is_leaf=lambda x: x is None,
    )
    # EMA targets start as copies of the weights, not of the random ones
    ema = jax.jit(
        task.init_ema,
        out_shardings=jax.tree.map(lambda x: x.sharding, program.abstract_state.ema),
    )(params)
    say(
        f"schedule: from its beginning, with a warm-up of {warmup_words(c)}; optimizer slots "
        "are empty (a whole state: --config.resume)"
    )
    return state.replace(params=params, ema=ema)


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
    c: Config,
    program: Program,
    workdir: Workdir,
    sample,
    say: Say,
    meta: dict[str, Any] | None = None,
) -> tuple[PyTree, dict[str, str]]:
    """Frozen parameters, read from `teacher.path` or estimated from the data, and their source.

    Args:
      meta: of the checkpoint that is continued.

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
        contradictions.check(path, "teacher.path", task.frozen_readers(), say)
        trees = read_teachers(path, like, say, grid_of(program))
        count = lambda tree: len(jax.tree.leaves(tree))
        if absent := [k for k, v in trees.items() if count(v) < count(like[k])]:
            raise ConfigError(f"teacher.path: {path} does not hold all of {', '.join(absent)}")
        source = {"path": path, "sha256": ",".join(checksum(p, trees) for p in path.split(","))}
        say(f"teacher: {path}, sha256 {source['sha256']}")
        frozen |= trees
    check_teacher(source, workdir, meta or {}, say)
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


def check_teacher(source: dict[str, str], workdir: Workdir, meta: dict[str, Any], say: Say) -> None:
    """Compare the frozen weights with those that the workdir's run began with.

    Args:
      meta: of the checkpoint that is continued, which says the same as teacher.json; {} = none.

    Raises:
      ConfigError: they differ, or nothing says what they were.
    """
    if not source:
        return
    complete = lambda found: {"path", "sha256"} <= (found or {}).keys()
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
    """sha256 of a file; of the arrays (names and float32 bytes) of a workdir's checkpoint."""
    if path.endswith(load.SUFFIXES):
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    digest = hashlib.sha256()
    for name, x in zip(rules.paths(trees), jax.tree.leaves(trees), strict=True):
        digest.update(name.encode() + np.asarray(x, np.float32).tobytes())
    return digest.hexdigest()
