"""Progress bars of programs, on stderr, and lines that are printed above them.

A bar is drawn where stderr is a terminal; pipes, logs and tests see none. The numbers of a run are
no part of a bar: training logs them as lines (`train.metrics`).
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from typing import TypeVar

from tqdm import tqdm

from mimjax import stopping

T = TypeVar("T")


def track(
    items: Iterable[T], what: str, total: int | None = None, unit: str = "img", quiet: bool = False
) -> Iterator[T]:
    """Yield the items while a bar counts them; a signal ends the loop.

    Args:
      what: name of the bar.
      total: number of items; None = `len(items)`, unknown where they have no length.
      unit: what is counted.
      quiet: draw no bar on a terminal either.

    Raises:
      Stopped: the program was asked to end.
    """
    # disable=None: off unless stderr is a terminal
    off = True if quiet else None
    for item in tqdm(items, desc=what, total=total, unit=unit, disable=off, leave=False):
        stopping.check()
        yield item


def steps(first: int, total: int, quiet: bool = False) -> tqdm:
    """Return the bar of a run, to be updated at every step.

    Args:
      first: updates made before.
      total: updates of the whole run.
      quiet: draw no bar on a terminal either.
    """
    off = True if quiet else None
    return tqdm(
        desc="train",
        initial=first,
        total=total,
        unit="step",
        disable=off,
        leave=False,
        mininterval=1,
    )


def say(text: str) -> None:
    """Print a line on stdout, above the bars where there are some."""
    with tqdm.external_write_mode(file=sys.stdout):
        print(text, flush=True)
