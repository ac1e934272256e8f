"""The command `mimjax PROGRAM ...`, and `python -m mimjax PROGRAM ...`."""

from __future__ import annotations

import difflib
import importlib
import sys
from collections.abc import Sequence
from typing import Any

from mimjax.errors import Exit
from mimjax.programs import usage


def main(argv: Sequence[str] | None = None) -> None:
    """Run the program that the first word names; without one, print the list of programs.

    Args:
      argv: the words after `mimjax`; None = those of this process.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        _start(words)
        sys.stdout.flush()
    except BrokenPipeError:
        from mimjax import stopping

        if not stopping.unread():
            raise
        sys.exit(int(Exit.UNREAD))


def _start(words: list[str]) -> None:
    """Run the program that the first word names."""
    if not words or words[0] in ("--help", "-h", "-help", "help"):
        print(usage.programs())
        return
    name, *rest = words
    if name not in usage.PROGRAMS:
        close = difflib.get_close_matches(name, usage.PROGRAMS, 1)
        hint = f" (did you mean {close[0]}?)" if close else ""
        known = ", ".join(usage.PROGRAMS)
        print(f"error: {name!r}: no program{hint}; allowed: {known}", file=sys.stderr)
        sys.exit(int(Exit.REFUSED))
    from mimjax.programs import cli

    program: Any = importlib.import_module(f"mimjax.programs.{name}")
    cli.run(program, rest)


if __name__ == "__main__":
    main()
