"""Changed settings of a run that has begun: which may change, and what a new length means.

The length changes with the epochs, the batch size or the number of files; one rule serves all
causes. Schedules span a run's length, so a run that is made longer is in most cases not the run
that had the new length from the start. It is that run where nothing in the train step depends on
the length (a constant rate and a method without schedules over the whole run), and the lowered
programs prove it. Where a run starts is decided in `run.restore`.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict

from mimjax.errors import ConfigError
from mimjax.inference import teachers
from mimjax.schema import Config
from mimjax.storage.classes import FILE, Classes
from mimjax.storage.files import Workdir
from mimjax.storage.settings import flatten, resolved, to_json
from mimjax.task import Clock, Task
from mimjax.train.optimizers import ByStep
from mimjax.train.program import Program
from mimjax.train.run import Length

Say = Callable[[str], None]
# A checkpoint fits only while these stay the same; all other settings may change between starts.
STRUCTURE = ("task", "method.", "optimizer.rule.type")
# Settings of a method that change neither parameters nor what they mean: how a step is computed,
# which patches are hidden, what a term counts, how fast an average follows, how images and labels
# are mixed, how much slower blocks far from a head learn.
APPLIED = re.compile(
    r"method\.(masking\..+|(\w+\.)*(drop_path|remat)|(\w+\.)+(\w*weight|skip_masked)"
    r"|layer_decay|mixing(\..+)?|smoothing|erase"
    r"|(\w+\.)+schedule(\..+)?|average\.(decay(\..+)?|evaluate))"
)
# Places of frozen networks: the weights there are compared by their checksums.
PLACE = re.compile(r"method\.(\w+\.)+path")
# Settings that change neither a batch nor a step.
NEUTRAL = (
    *("steps", "epochs", "log_every", "checkpoint_every", "keep_", "eval.", "boards."),
    *("on_nonfinite", "data.workers", "data.threads", "restart", "init_from", "resume"),
    "compile_cache_dir",
)


class Version(NamedTuple):
    """A run's length and learning rate, as it was saved or as it goes on.

    Attributes:
      rate: learning rate by step.
      program: its train step; None = not compared.
    """

    length: Length
    rate: ByStep
    program: Program | None = None


def explain(
    step: int,
    old: Version,
    new: Version,
    make: Callable[[Clock], tuple[Program, ByStep]],
    changed: Mapping[str, tuple[Any, Any]],
    say: Callable[[str], None],
) -> None:
    """Report how length, epoch and learning rate change; nothing is said where they do not.

    Args:
      step: updates made.
      old, new: the run as it was saved, and as it goes on.
      make: makes the program and the rate of today's settings at any length.
      changed: changed settings by name -> (value before, value now).
      say: gets each line.

    Raises:
      ConfigError: more updates were made than the new length has.
    """
    before, now = old.length, new.length
    cause = causes(before, now, changed)
    if now.total_steps < step:
        raise ConfigError(
            f"steps: {now.total_steps} ({in_words(now)}), but the workdir is at step {step}; "
            f"allowed: {step} or more, what gave {in_words(before)}"
            f"{f' (changed: {cause})' if cause else ''}, or another --workdir"
        )
    jump = [float(v.rate(np.asarray(step))) for v in (old, new)]
    same_rate = np.isclose(*jump, rtol=1e-6, atol=0) or step >= before.total_steps
    if before.clock == now.clock and same_rate:
        return
    verb = "the length stays"
    if now.total_steps != before.total_steps:
        verb = "extended" if now.total_steps > before.total_steps else "shortened"
        verb += f" from {before.total_steps} to {now.total_steps} steps"
    say(
        f"{verb}: the learning rate of the next step is {jump[1]:.4g}; with the old length it "
        f"would be {jump[0]:.4g}{f' ({cause})' if cause else ''}"
    )
    if before.steps_per_epoch != now.steps_per_epoch:
        say(
            f"  an epoch was {before.steps_per_epoch} steps and is {now.steps_per_epoch}: step "
            f"{step} was epoch {step / before.steps_per_epoch:.1f} and is epoch "
            f"{step / now.steps_per_epoch:.1f}; before: {in_words(before)}, now: {in_words(now)}"
        )
    neutral = lambda key: key.startswith(NEUTRAL) or PLACE.fullmatch(key)
    others = [key for key in changed if not neutral(key)]
    if others or before.steps_per_epoch != now.steps_per_epoch:
        named = ", ".join(others) or "the number of images"
        say(f"  other settings changed too ({named}): it is another run")
    else:
        say_difference(step, before, new, make, say)


def in_words(length: Length) -> str:
    """Return a length in words: "60.0 epochs of 12 steps = 720 steps"."""
    clock = length.clock
    return f"{clock.epochs:.1f} epochs of {clock.steps_per_epoch} steps = {clock.total_steps} steps"


def causes(before: Length, now: Length, changed: Mapping[str, tuple[Any, Any]]) -> str:
    """Return what changed the length, an epoch or the rate, with numbers before and after."""
    keys = [k for k in changed if k in ("steps", "epochs") or k.startswith("optimizer.")]
    out = [f"{k} {changed[k][0]} -> {changed[k][1]}" for k in keys]
    for name in ("batch_size", "images"):
        a, b = getattr(before, name), getattr(now, name)
        out += [f"{name} {a} -> {b}"] if a != b else []
    return ", ".join(out)


def say_difference(
    step: int,
    before: Length,
    new: Version,
    make: Callable[[Clock], tuple[Program, ByStep]],
    say: Callable[[str], None],
) -> None:
    """Report whether the run that goes on is the run that had the new length from the start."""
    old_program, old_rate = make(before.clock)
    made, total = np.arange(step), new.length.total_steps
    # a user's schedule may give one number for all steps
    then, after = (np.broadcast_to(rate(made), made.shape) for rate in (old_rate, new.rate))
    if new.program is not None and _text(old_program) == _text(new.program):
        say(
            f"  no schedule depends on the length: this is the run that had {total} steps from "
            "the start"
        )
    elif np.array_equal(then, after):
        say(
            "  the learning rate until now is that of the new length, but another schedule (weight "
            f"decay or the method's) is not: this is not the run that had {total} steps from the "
            "start"
        )
    else:
        worst = int(np.abs(after - then).argmax())
        say(
            f"  this is not the run that had {total} steps from the start: at step {worst} its "
            f"rate was {then[worst]:.4g} and not {after[worst]:.4g}"
        )


def _text(program: Program) -> str:
    """Return the lowered train step as text; equal texts are equal computations."""
    return program.trace().lower().as_text()


def may_change(name: str, before: Any, now: Any) -> bool:
    """Return whether a setting may change between two starts of a run.

    Args:
      name: dotted name of the setting.
      before, now: its values.
    """
    if not name.startswith(STRUCTURE) or PLACE.fullmatch(name):
        return True
    if name.endswith(".weight") and (before == 0) != (now == 0):
        return False  # a term of weight 0 is left out, with its network and target
    return APPLIED.fullmatch(name) is not None


def check_workdir(
    c: Config, workdir: Workdir, saved: dict[str, Any], say: Say, key: str = "--workdir"
) -> dict[str, tuple[Any, Any]]:
    """Compare the config with the one that made a workdir's checkpoints; report what changed.

    Args:
      saved: settings of the checkpoints, as `own_settings` returns them; {} = there are none to
        continue from.
      say: gets a line for each change, where `key` is "--workdir".
      key: the flag or setting that names the workdir, for errors.

    Returns:
      The changed settings by dotted name -> (value before, value now).

    Raises:
      ConfigError: task, parameters or their meaning differ, so that the checkpoints do not fit; all
        differences are named.
    """
    if not saved:
        return {}
    if saved.get("task") == c.task:  # what an older version took from the student unsaid
        saved = json.loads(to_json(teachers.fill(ConfigDict(saved), read=False)))
    old, new = flatten(saved), resolved(c)
    # the task first: where it differs, it is why the settings of the method differ
    keys = sorted(old.keys() | new.keys(), key=lambda k: (k != "task", k))
    changed = [k for k in keys if old.get(k) != new.get(k)]
    wrong = [name for name in changed if not may_change(name, old.get(name), new.get(name))]
    if "task" in wrong:
        wrong = ["task"]
    if wrong:
        words = [f"{name}: {new.get(name)!r}, it was {old.get(name)!r}" for name in wrong]
        paste = "" if wrong == ["task"] else f" ({overrides(old, wrong)})"
        raise ConfigError(
            f"{'; '.join(words)}: the checkpoints in {workdir.path} do not fit; allowed: the "
            f"settings that they were made with{paste}, or another {key} (its weights: "
            "--config.init_from)"
        )
    if key == "--workdir":
        for name in changed:
            say(f"changed since the last start: {name}: {old.get(name)!r} -> {new.get(name)!r}")
    return {name: (old.get(name), new.get(name)) for name in changed}


def check_classes(task: Task, before: Classes, now: Classes, say: Say) -> None:
    """Compare the classes of the data with those of the run that is continued.

    Args:
      say: gets a line where the classes changed and no label is learned.

    Raises:
      ConfigError: they changed, and the task learns from labels.
    """
    text = now.difference(before)
    if text and task.learns_labels:
        raise ConfigError(
            f"data: {text}; its checkpoints learned from the classes in {FILE}; allowed: the same "
            "classes in the same order, or another --workdir"
        )
    if text:
        say(f"classes changed since the last start (no label is learned): {text}")


def overrides(old: dict[str, Any], names: list[str]) -> str:
    """Return the words that give a command line the old values of settings, ready for a shell.

    A section of another class is named first and then filled, since its class brings defaults; one
    that was left out is left out again.

    Args:
      old: all settings by dotted name, as they were.
      names: those that have to be as they were.
    """
    classes = [name for name in names if name.endswith(".type") and old.get(name)]
    filled = {k for c in classes for k in old if k.startswith(c.removesuffix("type"))}
    above = lambda k: (k.rsplit(".", n)[0] for n in range(k.count(".") + 1))
    keys = filled | {next((k for k in above(name) if k in old), "") for name in names} - {""}
    words = []
    for k in sorted(keys, key=lambda k: (k.count("."), k not in classes, k)):
        if not k.endswith(".digest") and (k in classes or not k.endswith(".type")):
            value = f"{old[k]}".replace(" ", "")
            words.append(shlex.quote(f"--config.{k.removesuffix('.type')}={value}"))
    return " ".join(words)
