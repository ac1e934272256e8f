"""What a new length means for a run that has begun: said in numbers, before a step is made.

Schedules span a run's length, so most runs that are extended are not the longer run from the
start. Where nothing in the train step depends on the length (optimizer.schedule=constant and a
method without schedules over the whole run) they are, and the lowered program itself proves it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np

from mimjax.errors import ConfigError
from mimjax.task import Clock
from mimjax.train.optim import Schedule
from mimjax.train.program import Program

# settings that change neither a batch nor a step
NEUTRAL = (
    *("steps", "epochs", "log_every", "checkpoint_every", "keep_", "eval.", "wandb"),
    *("on_nonfinite", "data.workers", "data.threads"),
)


def explain(
    step: int,
    old: Clock,
    new: tuple[Clock, Program, Schedule],
    make: Callable[[Clock], tuple[Program, Schedule]],
    changed: Iterable[str],
    say: Callable[[str], None],
) -> None:
    """Says what happens to the schedules.

    Args:
      step: updates made.
      old: the length until now.
      new: the length from now on, with the program and rate that go with it.
      make: those of any length.
      changed: names of all settings that changed.

    Raises:
      ConfigError: the run is longer already.
    """
    clock, program, rate = new
    if clock.total_steps < step:
        raise ConfigError(
            f"steps: {clock.total_steps} (or epochs that give it), but the workdir is at step "
            f"{step}; allowed: {step} or more, or another --workdir"
        )
    if clock == old:
        return
    old_program, old_rate = make(old)
    made = np.arange(step)
    before, after = np.asarray(old_rate(made)), np.asarray(rate(made))
    jump = float(old_rate(np.asarray(step))), float(rate(np.asarray(step)))
    verb = "extended" if clock.total_steps > old.total_steps else "shortened"
    say(
        f"{verb} from {old.total_steps} to {clock.total_steps} steps: the learning rate of the "
        f"next step is {jump[1]:.4g}; with the old length it would be {jump[0]:.4g}"
    )
    others = [key for key in changed if not key.startswith(NEUTRAL)]
    if others:
        say(f"  other settings changed too ({', '.join(others)}): it is another run")
    elif _text(old_program) == _text(program):
        say(
            f"  no schedule depends on the length: this is the run that had {clock.total_steps} "
            "steps from the start"
        )
    elif np.array_equal(before, after):
        say(
            "  the learning rate until now is that of the new length, but another schedule (weight "
            f"decay or the method's) is not: this is not the run that had {clock.total_steps} "
            "steps from the start"
        )
    else:
        worst = int(np.abs(after - before).argmax())
        say(
            f"  this is not the run that had {clock.total_steps} steps from the start: at step "
            f"{worst} its rate was {before[worst]:.4g} and not {after[worst]:.4g}"
        )


def _text(program: Program) -> str:
    """The lowered train step, which tells two programs apart."""
    return program.trace().lower().as_text()
