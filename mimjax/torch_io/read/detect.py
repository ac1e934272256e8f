"""All layouts of published PyTorch checkpoints: lookup by our paths, detection by their keys.

No torch is needed here.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from mimjax.errors import ConfigError
from mimjax.torch_io.tables import imports, libraries, methods, teachers
from mimjax.torch_io.tables.layouts import LAYOUTS, Row

__all__ = ["LAYOUTS", "OWN", "TABLES", "Row", "detect", "rows_for"]

OWN = "mimjax"  # the layout of our own .safetensors files, whose keys are our paths
TABLES = imports.with_heads(methods.TABLES | libraries.TABLES | teachers.TABLES | {OWN: ([], {})})
# Layouts of the same keys: the second is meant where its network is asked for and not the first's.
TWINS = {"mae": "dino"}


def rows_for(layout: str, paths: Iterable[str]) -> list[Row]:
    """The table's row for each of our parameter paths.

    Raises:
      ConfigError: the layout has no home for a path.
    """
    if layout == OWN:
        return [Row(path, path, "same") for path in paths]
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


def held(layout: str) -> set[str]:
    """Roots of our paths that the layout has keys for: "encoder", "clip", ..."""
    layouts = TABLES if layout == OWN else (layout,)
    return {row.ours.split("/")[0] for name in layouts for row in TABLES[name][0]}


def detect(keys: Iterable[str], where: str = "", roots: Iterable[str] = ()) -> str:
    """The layout of a checkpoint, from its key names; `where` begins an error's line.

    Args:
      roots: of the networks asked for; they decide between layouts of the same keys.

    Raises:
      ConfigError: no known layout fits.
    """
    keys, roots = set(keys), set(roots)
    if any(k.startswith("encoder/") for k in keys):
        return OWN
    if found := teachers.detect(keys) or libraries.detect(keys) or methods.detect(keys):
        twin = TWINS.get(found)
        return twin if twin and roots & held(twin) and not roots & held(found) else found
    some = ", ".join(sorted(keys)[:3])
    raise ConfigError(
        f"{where}unknown checkpoint layout (keys {some}, ...); known: {', '.join(TABLES)}"
    )


def check_roots(layout: str, roots: Iterable[str], where: str) -> None:
    """The layout holds at least one of the networks asked for.

    Args:
      roots: first parts of our paths: "encoder", "clip", ...
      where: how the error names the source.

    Raises:
      ConfigError: it holds other networks; the line says which layouts would do.
    """
    roots = set(roots)
    if layout != OWN and not roots & held(layout):
        fit = ", ".join(sorted(name for name in TABLES if roots & held(name)))
        raise ConfigError(
            f"{where} has layout {layout!r}, which holds {', '.join(sorted(held(layout)))}; "
            f"needed: {', '.join(sorted(roots))} (layouts {fit})"
        )
