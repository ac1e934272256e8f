"""Progress bars of programs, on stderr and only where that is a terminal.

Training has lines of its own too (`train/metrics.py`); pipes, logs and tests see no bar.
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
    """`items`, while a bar called `what` counts them; a signal ends the loop.

    Args:
      total: how many there are; None = asked of `items`, unknown where they cannot say.
      unit: what is counted.
      quiet: no bar on a terminal either.

    Raises:
      Stopped: the program was asked to end.
    """
    # disable=None: off unless stderr is a terminal
    off = True if quiet else None
    for item in tqdm(items, desc=what, total=total, unit=unit, disable=off, leave=False):
        stopping.check()
        yield item


def steps(first: int, total: int, quiet: bool = False) -> tqdm:
    """The bar of a run, to be updated at every step."""
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
    """Prints a line above the bars, where there are some."""
    with tqdm.external_write_mode(file=sys.stdout):
        print(text, flush=True)
