"""The start of a run: from its own checkpoints, another run's state, weights, or random weights.

`choose` decides it, as a pure function of the checkpoints and records in the workdir. A run starts
from scratch only where no checkpoint was ever saved, or where the settings ask for it; files of a
run before are moved aside and never deleted. What changed settings mean for a run that continues
stands in `run.changes`.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import jax

from mimjax.errors import ConfigError
from mimjax.inference import adoption, contradictions
from mimjax.inference.model import Model
from mimjax.inference.places import check_source, existing
from mimjax.inference.weights import place_of, read_params
from mimjax.run.changes import check_workdir
from mimjax.schema import Config, build
from mimjax.storage.checkpoints import Checkpoints, Restored
from mimjax.storage.files import Workdir
from mimjax.storage.settings import own_settings
from mimjax.storage.verdicts import Outcome, in_words
from mimjax.task import TrainState
from mimjax.train.optimizers import OptimizerConfig
from mimjax.train.program import Program
from mimjax.transfer.tuning import Tuning

Say = Callable[[str], None]
FOLDER = "broken"  # in a workdir, for files that are set aside


@dataclasses.dataclass(frozen=True)
class Start:
    """The decision about where a run starts.

    Attributes:
      kind: "continue" = from the newest checkpoint that can be read; "resume" = from another run's
        state; "init_from" = from weights alone; "scratch" = from random weights.
      damaged: checkpoints to be set aside before the run saves its own.
      anew: whether records of an earlier run are to be set aside too, because its checkpoints are
        lost and the settings ask for a new start.
    """

    kind: Literal["continue", "resume", "init_from", "scratch"]
    damaged: tuple[Outcome, ...] = ()
    anew: bool = False


def choose(
    where: str,
    outcomes: Sequence[Outcome],
    began: str = "",
    restart: bool = False,
    resume: str | None = None,
    init_from: str | None = None,
) -> Start:
    """Decide where a run starts.

    Args:
      where: the workdir, for errors.
      outcomes: what reading its checkpoints gave, newest first, up to the first that is not
        damaged.
      began: the record in the workdir that proves earlier updates, in words; "" = there is none.
      restart, resume, init_from: the settings of these names.

    Raises:
      ConfigError: no checkpoint can be continued, though there are some or were some.
    """
    damaged = tuple(o for o in outcomes if o.problem == "damaged")
    last = outcomes[-1] if outcomes else None
    if last is not None and not last.problem:
        return Start("continue", damaged)
    if last is not None and last.problem != "damaged":
        ways = {
            "unfit": "the settings and the version that it was made with, or another --workdir "
            "(its weights: --config.init_from)",
            "newer": "the mimjax that wrote it, or another --workdir",
            "unreadable": "the same command again when the cause is mended; to go on from an "
            f"older checkpoint, move {where}/checkpoints/{last.step} elsewhere",
        }
        raise ConfigError(
            f"--workdir: {where}: checkpoint {in_words(last)}; nothing was changed; allowed: "
            f"{ways[last.problem]}"
        )
    lost = f"its checkpoints cannot be read: {in_words(damaged[0])}" if damaged else ""
    if not lost and began:
        lost = f"it holds no checkpoint, but {began}"
    if lost and not restart:
        more = f" ({len(damaged)} are damaged in all)" if len(damaged) > 1 else ""
        raise ConfigError(
            f"--workdir: {where}: {lost}{more}; nothing was changed; allowed: the checkpoints as "
            "they were (from a copy), --config.restart=True (begins anew and keeps what is there "
            f"in {FOLDER}/), or another --workdir"
        )
    kind = "resume" if resume else "init_from" if init_from else "scratch"
    return Start(kind, damaged, anew=bool(lost))


def records(workdir: Workdir) -> str:
    """Return the record in a workdir that proves earlier updates, in words; "" = there is none."""
    steps = [row["step"] for row in workdir.read_lines("metrics.jsonl")[0]]
    if steps and max(steps) > 0:
        return f"metrics.jsonl speaks of step {max(steps)}"
    logged = re.findall(r"^(?:.* )?step ([0-9]+)/[0-9]+ ", workdir.read_text("train.log"), re.M)
    if logged and max(map(int, logged)) > 0:
        return f"train.log speaks of step {max(map(int, logged))}"
    return ""


def own_start(
    workdir: Workdir,
    checkpoints: Checkpoints,
    like: TrainState,
    c: Config,
    say: Say,
) -> tuple[Start, Restored | None]:
    """Read the workdir's checkpoints and decide where the run starts; nothing is moved yet.

    Args:
      like: the abstract state into which checkpoints are restored.
      c: decides by its settings restart, resume and init_from.
      say: gets lines for screen and log.

    Returns:
      The decision, and the newest checkpoint that can be read (None = there is none).

    Raises:
      ConfigError: see `choose`.
    """
    outcomes, restored = checkpoints.survey(like, say)
    where, began = str(workdir.path), records(workdir)
    start = choose(where, outcomes, began, c.restart, c.resume, c.init_from)
    if c.restart and start.kind == "continue":
        say("restart: True has no effect: the run can be continued (anew: another --workdir)")
    for outcome in start.damaged:
        say(f"WARNING: checkpoint {in_words(outcome)}")
    return start, restored


def set_aside(start: Start, workdir: Workdir, checkpoints: Checkpoints, say: Say) -> None:
    """Move files that a run cannot continue from into `broken/`; nothing is deleted."""
    checkpoints.set_aside(list(start.damaged), say)
    if start.anew:
        for name in ("metrics.jsonl", "table.md", "tables", "config.json", "classes.json"):
            if workdir.writer and workdir.file(name).exists():
                say(
                    f"{name} of the run before was moved to "
                    f"{workdir.move_aside(name, f'{FOLDER}/{name}')}"
                )


class Begin(NamedTuple):
    """The state with which a run begins, and what the checkpoint says of it.

    Attributes:
      state: parameters, averages, optimizer slots and step.
      skipped: batches that are left out.
      data, meta: items of the checkpoint, {} for a new run.
      same_data: whether the training data are those of the checkpoint.
    """

    state: TrainState
    skipped: tuple[int, ...] = ()
    data: dict[str, Any] = {}
    meta: dict[str, Any] = {}
    same_data: bool = True


def first_state(
    start: Start,
    restored: Restored | None,
    c: Config,
    program: Program,
    fingerprint: str,
    say: Say,
    model: Model | None = None,
) -> Begin:
    """Return the state to begin with; one line in the log says where it is from.

    Args:
      restored: the workdir's own checkpoint, where `start` continues from it.
      fingerprint: of the training data.
      model: what `init_from` names, where it is open already.

    Raises:
      ConfigError: the file or workdir that the settings name cannot be read or does not fit.
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
        return Begin(with_weights(state, c, program, say, model))
    adoption.check_random(c)
    say("weights: random, the method's own initialization")
    return Begin(state)


def continued(restored: Restored, where: str, fingerprint: str, say: Say) -> Begin:
    """Return the state of a checkpoint, and what was saved with it."""
    data = restored.data
    say(f"weights: continued from step {data['step']} of {where}")
    skipped, same = tuple(data.get("skipped", ())), data["fingerprint"] == fingerprint
    if not same:
        say(
            "the data are not those of the checkpoint (files, crops or batch size changed): "
            "the run continues, but is not the uninterrupted one"
        )
        skipped = ()  # these numbers count batches of the old data
    if skipped:
        say(f"batches left out after numbers that were not finite: {skipped}")
    return Begin(restored.state, skipped, data, restored.meta, same)


def with_weights(
    state: TrainState, c: Config, program: Program, say: Say, model: Model | None = None
) -> TrainState:
    """Return the state at step 0 with the weights that `init_from` names; see `first_state`."""
    like, task = program.abstract_state.params, program.task
    check_source(c.init_from, "init_from")
    if isinstance(task, Tuning):
        params = adoption.params(c, task, state.params, say, model)
    else:
        readers = contradictions.own_readers(task, like)
        contradictions.check(c.init_from, "init_from", readers, say)
        params = read_params(c.init_from, like, "init_from", say, *place_of(task), c=c)
    params = jax.tree.map(
        lambda new, old: old if new is None else jax.device_put(new, old.sharding),
        params,
        state.params,
        is_leaf=lambda x: x is None,
    )
    # averaged weights start as copies of these weights and not of the random ones
    ema = jax.jit(
        task.init_ema,
        out_shardings=jax.tree.map(lambda x: x.sharding, program.abstract_state.ema),
    )(params)
    if ema:
        say(f"moving average of {', '.join(ema)}: begins as a copy of these weights")
    schedule = build(OptimizerConfig, c.optimizer, "optimizer").schedule
    say(
        f"schedule: from its beginning ({schedule.words()}); optimizer slots "
        "are empty (a whole state: --config.resume)"
    )
    return state.replace(params=params, ema=ema)
