"""Progress bars of programs, on stderr and only where that is a terminal.

Training has lines of its own (`train/metrics.py`); pipes, logs and tests see no bar.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TypeVar

from tqdm import tqdm

T = TypeVar("T")


def track(
    items: Iterable[T], what: str, total: int | None = None, unit: str = "img"
) -> Iterator[T]:
    """`items`, while a bar called `what` counts them.

    Args:
      total: how many there are; None = asked of `items`, unknown where they cannot say.
      unit: what is counted.
    """
    # disable=None: off unless stderr is a terminal
    yield from tqdm(items, desc=what, total=total, unit=unit, disable=None, leave=False)
