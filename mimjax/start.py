"""How a run finds its start: the workdir's config, checkpoints, other runs' weights, files.

Order: the own workdir -> config.resume (a whole state) -> config.init_from (weights) -> scratch.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import jax

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
# A checkpoint fits only while these stay the same; all other settings may change between starts.
STRUCTURE = ("task", "method.", "teacher.", "optimizer.name")


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


def check_workdir(c: Config, workdir: Workdir, checkpoints: Checkpoints, say: Say) -> None:
    """Compares the config with the one that made the workdir's checkpoints; says what changed.

    Raises:
      ConfigError: task, method, teacher or optimizer differ: the checkpoints do not fit.
    """
    text = workdir.read_text("config.json")
    if not text or checkpoints.manager.latest_step() is None:
        return  # nothing to continue from
    old, new = flatten(json.loads(text)), flatten(json.loads(to_json(c)))
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


def find_start(
    c: Config, program: Program, checkpoints: Checkpoints, fingerprint: str, say: Say
) -> TrainState:
    """The state to begin with; one line says where it came from."""
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
        if data["fingerprint"] != fingerprint:
            say(
                "the data are not those of the checkpoint (files, crops or batch size changed): "
                "the run continues, but is not the uninterrupted one"
            )
        return state
    state = program.init()
    if c.init_from:
        params = read_params(c.init_from, program.abstract_state.params, "init_from", say)
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
        return state.replace(params=params, ema=ema)
    say("weights: random, the method's own initialization")
    return state


def existing(path: str, key: str) -> Workdir:
    workdir = Workdir(path, writer=False)
    if not workdir.path.is_dir():
        raise ConfigError(f"{key}: {path} is no folder; allowed: a workdir of an earlier run")
    return workdir


def read_params(path: str, like: PyTree, key: str, say: Say) -> PyTree:
    """Parameters from a workdir or a published file; None for subtrees that it does not hold.

    Args:
      like: abstract parameters, {"encoder": ..., ...}.
      key: the config key, for errors.
    """
    if not path.endswith(load.SUFFIXES):
        params = Checkpoints(existing(path, key), read_only=True).params(like)
        say(f"weights: all of {', '.join(like)} from {path}")
        return params
    state = load.read_file(path)
    layout = names.detect(state)
    out, absent = {}, []
    for name, subtree in like.items():
        if load.holds(state, {name: subtree}, layout):
            out[name] = load.from_torch(state, {name: subtree}, layout, f"{key}: {path}")[name]
        else:
            absent.append(name)
            out[name] = jax.tree.map(lambda _: None, subtree)
    if "encoder" in absent:
        raise ConfigError(f"{key}: {path} holds no encoder of layout {layout!r}")
    fresh = f"; {', '.join(absent)} not in the file: random" if absent else ""
    say(f"weights: {', '.join(k for k in like if k not in absent)} from {path} ({layout}){fresh}")
    return out


def make_frozen(c: Config, program: Program, sample, say: Say) -> PyTree:
    """Frozen parameters: read from `teacher.path`, or estimated from the data.

    Raises:
      ConfigError: the task has a teacher and no path is given.
    """
    task, sharding = program.task, jax.tree.map(lambda x: x.sharding, program.abstract_frozen)
    frozen = jax.jit(task.init_frozen, out_shardings=sharding)(step_key(c.seed, "init", 1))
    frozen = task.fit_frozen(frozen, sample)
    if "teacher" in frozen:
        path = c.teacher.path
        if not path:
            raise ConfigError(
                "teacher.path: empty, but the method learns from a frozen encoder; allowed: a "
                "workdir, .safetensors, .pth, or 'random' (tests and benchmarks only)"
            )
        if path == "random":
            say("WARNING: teacher.path=random: the targets are noise; for tests and benchmarks")
        else:
            like = {"encoder": program.abstract_frozen["teacher"]}
            frozen["teacher"] = read_params(path, like, "teacher.path", say)["encoder"]
    return jax.tree.map(lambda x, s: jax.device_put(x, s), frozen, sharding)
