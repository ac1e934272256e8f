"""What an attempt to read a checkpoint proves: damage, another structure, or nothing.

Only proven damage lets a run go on from an older checkpoint. Memory, permissions and networks also
make reading fail, and say nothing about the files.
"""

from __future__ import annotations

import json
import re
from typing import Any, Literal, NamedTuple

import jax

from mimjax.rules import paths

PyTree = Any
Problem = Literal["", "damaged", "unfit", "newer", "unreadable"]
PROBLEMS: tuple[Problem, ...] = ("", "damaged", "unfit", "newer", "unreadable")  # the worst last
# What tensorstore says of bytes that are missing, cut short or fail its checksums. What it says of
# memory, permissions and networks proves nothing about a file.
LOST = re.compile(
    r"\b(NOT_FOUND|OUT_OF_RANGE|DATA_LOSS|FAILED_PRECONDITION|INVALID_ARGUMENT): "
    r"Error (opening|reading)"
)


class Outcome(NamedTuple):
    """What came of reading one checkpoint.

    Attributes:
      problem: "" = it was read; "damaged" = proven incomplete or altered; "unfit" = it holds
        other arrays than this run; "newer" = a newer mimjax wrote it; "unreadable" = anything
        else (memory, permissions, a network): nothing is proven.
      reason: one line.
    """

    step: int
    problem: Problem = ""
    reason: str = ""


class Damaged(Exception):
    """A checkpoint is proven to be incomplete or altered."""


class Unfit(Exception):
    """A checkpoint holds other arrays than this run has."""


class Newer(Exception):
    """A checkpoint was written by a newer mimjax."""


def problem_of(error: BaseException, exists: bool) -> tuple[Problem, str]:
    """Return what an error of reading a checkpoint proves, and its first line.

    Args:
      exists: whether the checkpoint's folder is there; where it is gone as a whole, a disk or a
        network is gone, and nothing is proven.
    """
    causes: list[BaseException] = [error]
    while (cause := causes[-1].__cause__) is not None:
        causes.append(cause)
    reason = first_line(causes[-1] if LOST.search(str(causes[-1])) else error)
    if isinstance(error, Unfit):
        return "unfit", reason
    if isinstance(error, Newer):
        return "newer", reason
    broken = Damaged | json.JSONDecodeError | UnicodeDecodeError | FileNotFoundError
    proven = any(isinstance(e, broken) or LOST.search(str(e)) for e in causes)
    return ("damaged" if proven and exists else "unreadable"), reason


def by_path(tree: PyTree) -> dict[str, Any]:
    """Return the leaves of a tree by their paths."""
    return dict(zip(paths(tree), jax.tree.leaves(tree), strict=True))


def compare(held: dict[str, Any], mine: dict[str, Any], where: str, part: bool = False) -> None:
    """Compare names and shapes of a checkpoint's arrays with those of this run.

    Args:
      part: whether `mine` may be a part of what is held.

    Raises:
      Unfit: they differ; the first difference is named.
    """
    lacks = sorted(mine.keys() - held.keys())
    extra = [] if part else sorted(held.keys() - mine.keys())
    if lacks or extra:
        parts = [
            f"{what} {names[0]}" + (f" ({len(names)} in all)" if len(names) > 1 else "")
            for what, names in (("it holds no", lacks), ("this run has no", extra))
            if names
        ]
        raise Unfit(where + ", and ".join(parts))
    for name, x in mine.items():
        if held[name].shape is not None and tuple(held[name].shape) != tuple(x.shape):
            raise Unfit(f"{where}{name} has shape {held[name].shape}, here it is {x.shape}")


def in_words(outcome: Outcome) -> str:
    """Return "12 is damaged (...)", to be said after "checkpoint"."""
    kinds = {
        "damaged": "cannot be read: it is damaged",
        "unfit": "does not fit this run",
        "newer": "was written by a newer mimjax",
        "unreadable": "cannot be read, and is not proven to be damaged",
    }
    return f"{outcome.step} {kinds[outcome.problem]} ({outcome.reason})"


def first_line(error: BaseException) -> str:
    """Return an error's first line, with its kind where the text alone says too little."""
    text, name = str(error).strip(), type(error).__name__
    line = text.splitlines()[0][:300] if text else ""
    speaks = isinstance(error, Damaged | Unfit | Newer) or LOST.search(text)
    return line if speaks else f"{name}: {line}".removesuffix(": ")
