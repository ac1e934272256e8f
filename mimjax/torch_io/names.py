"""All layouts of published PyTorch checkpoints: lookup by our paths, detection by their keys.

No torch is needed here.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from mimjax.errors import ConfigError
from mimjax.torch_io import methods, teachers
from mimjax.torch_io.layouts import LAYOUTS, Row

__all__ = ["LAYOUTS", "TABLES", "Row", "detect", "rows_for"]

TABLES = methods.TABLES | teachers.TABLES


def rows_for(layout: str, paths: Iterable[str]) -> list[Row]:
    """The table's row for each of our parameter paths.

    Raises:
      ConfigError: the layout has no home for a path.
    """
    rows, _ = TABLES[layout]
    patterns = [(re.compile(re.sub(r"\\{[ij]\\}", r"(\\d+)", re.escape(r.ours))), r) for r in rows]
    found = []
    for path in paths:
        for pattern, row in patterns:
            if m := pattern.fullmatch(path):
                found.append(row.numbered(path, [str(int(g)) for g in m.groups()]))
                break
        else:
            raise ConfigError(f"layout {layout!r} has no key for the parameter {path!r}")
    return found


def detect(keys: Iterable[str]) -> str:
    """The layout of a checkpoint, from its key names.

    Raises:
      ConfigError: no known layout fits.
    """
    keys = set(keys)
    if found := teachers.detect(keys) or methods.detect(keys):
        return found
    some = ", ".join(sorted(keys)[:3])
    raise ConfigError(f"unknown checkpoint layout (keys {some}, ...); known: {', '.join(TABLES)}")
