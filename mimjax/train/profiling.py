"""A trace of a few updates, for TensorBoard's profiler, XProf or Perfetto.

It lies in the workdir's `profile/`. Each update is a step of the trace, and operations carry the
names of the modules that they belong to.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable, Iterator
from typing import Any

import jax

from mimjax.errors import ConfigError
from mimjax.storage.files import Workdir

FOLDER = "profile"
STEPS = re.compile(r"([0-9]+)\.\.([0-9]+)")


def parse(text: str | None, total: int) -> tuple[int, int] | None:
    """Return the first and the last update of "10..15"; None for None.

    Args:
      total: updates of the run.

    Raises:
      ConfigError: another text, or updates that the run does not make.
    """
    if text is None:
        return None
    match = STEPS.fullmatch(text)
    first, last = (int(match[1]), int(match[2])) if match else (0, 0)
    if not 1 <= first <= last <= total:
        raise ConfigError(
            f"profile.steps: {text!r}; allowed: the first and the last update, as in 10..15, of "
            f"the run's {total}"
        )
    return first, last


class Trace:
    """A trace of the updates `first` to `last`, written by process 0 only.

    The first update compiles nothing, because the train step is compiled ahead of time.
    """

    def __init__(
        self,
        steps: tuple[int, int] | None,
        workdir: Workdir,
        say: Callable[[str], None],
        start: int = 0,
    ):
        """Make a trace of the updates `steps`; `start` updates are made already."""
        self.steps = steps if workdir.writer else None
        if self.steps and self.steps[0] <= start:
            say(f"profile.steps: update {self.steps[0]} was made already; nothing is traced")
            self.steps = None
        self.folder, self.say = os.fspath(workdir.file(FOLDER)), say
        self.running = False

    @contextlib.contextmanager
    def step(self, number: int) -> Iterator[None]:
        """Record the body as update `number`, if it is one of those."""
        if self.steps and number == self.steps[0]:
            jax.profiler.start_trace(self.folder)
            self.running = True
        if not self.running:
            yield
            return
        with jax.profiler.StepTraceAnnotation("train", step_num=number):
            yield

    def after(self, number: int, metrics: Any) -> None:
        """End the trace if update `number`, which computes `metrics`, is the last one."""
        if self.running and self.steps and number == self.steps[1]:
            jax.block_until_ready(metrics)
            self.close()
            self.say(f"trace of updates {self.steps[0]} to {number}: {self.folder}")

    def close(self) -> None:
        """End a trace that is still being written."""
        if self.running:
            self.running = False
            jax.profiler.stop_trace()
