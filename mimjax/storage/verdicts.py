"""Outcomes of reading a checkpoint: read, damaged, of another structure, newer, or unreadable.

A run may continue from an older checkpoint only if the newer one is proven to be damaged. A lack of
memory, missing permissions and network failures also make reading fail but prove nothing about the
files. This module reads no file; `storage/checkpoints.py` does.
"""

from __future__ import annotations

import json
import re
from typing import Any, Literal, NamedTuple

import jax

from mimjax import errors
from mimjax.rules import paths

PyTree = Any
Problem = Literal["", "damaged", "unfit", "newer", "unreadable"]
# from the best to the worst: of the outcomes of several processes the worst counts
PROBLEMS: tuple[Problem, ...] = ("", "damaged", "unfit", "newer", "unreadable")
# tensorstore's messages about bytes that are missing, cut short or fail a checksum
LOST = re.compile(
    r"\b(NOT_FOUND|OUT_OF_RANGE|DATA_LOSS|FAILED_PRECONDITION|INVALID_ARGUMENT): "
    r"Error (opening|reading)"
)


class Outcome(NamedTuple):
    """Outcome of reading one checkpoint.

    Attributes:
      step: the checkpoint's step.
      problem: "" = it was read; "damaged" = it is proven to be incomplete or altered; "unfit" = its
        arrays differ from this run's; "newer" = a newer mimjax wrote it; "unreadable" = another
        failure (memory, permissions, network), which proves nothing.
      reason: the error in one line.
    """

    step: int
    problem: Problem = ""
    reason: str = ""


class Damaged(Exception):
    """Error of a checkpoint that is proven to be incomplete or altered."""


class Unfit(Exception):
    """Error of a checkpoint whose arrays have other names or shapes than this run's."""


class Newer(Exception):
    """Error of a checkpoint that was written by a newer mimjax."""


def problem_of(error: BaseException, exists: bool) -> tuple[Problem, str]:
    """Return the problem that an error of reading proves, and the error's first line.

    Args:
      error: the exception; its causes are searched too.
      exists: whether the checkpoint's folder exists. If the whole folder is gone, a disk or network
        is probably gone, so that damage is not proven.
    """
    causes = list(errors.causes(error))
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


def compare(stored: dict[str, Any], mine: dict[str, Any], where: str, part: bool = False) -> None:
    """Compare names and shapes of a checkpoint's arrays with those of this run.

    Args:
      stored: the checkpoint's arrays by path; `shape` None = unknown, not compared.
      mine: this run's arrays by path.
      where: beginning of the error.
      part: whether the checkpoint may hold further arrays.

    Raises:
      Unfit: names or shapes differ; the first difference is named.
    """
    lacks = sorted(mine.keys() - stored.keys())
    extra = [] if part else sorted(stored.keys() - mine.keys())
    if lacks or extra:
        parts = [
            f"{what} {names[0]}" + (f" ({len(names)} in all)" if len(names) > 1 else "")
            for what, names in (("it holds no", lacks), ("this run has no", extra))
            if names
        ]
        raise Unfit(where + ", and ".join(parts))
    for name, x in mine.items():
        if stored[name].shape is not None and tuple(stored[name].shape) != tuple(x.shape):
            raise Unfit(f"{where}{name} has shape {stored[name].shape}, here it is {x.shape}")


def in_words(outcome: Outcome) -> str:
    """Return the outcome as words that follow "checkpoint": "12 does not fit this run (...)"."""
    kinds = {
        "damaged": "cannot be read: it is damaged",
        "unfit": "does not fit this run",
        "newer": "was written by a newer mimjax",
        "unreadable": "cannot be read, and is not proven to be damaged",
    }
    return f"{outcome.step} {kinds[outcome.problem]} ({outcome.reason})"


def first_line(error: BaseException) -> str:
    """Return an error's first line, at most 300 characters.

    The class of the error stands before it, except for errors of this module and tensorstore's
    messages about lost bytes, which are clear without it.
    """
    text, name = str(error).strip(), type(error).__name__
    line = text.splitlines()[0][:300] if text else ""
    is_clear = isinstance(error, Damaged | Unfit | Newer) or LOST.search(text)
    return line if is_clear else f"{name}: {line}".removesuffix(": ")
