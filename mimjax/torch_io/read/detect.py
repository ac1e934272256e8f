"""Layouts of PyTorch checkpoint files: rows of their tables, and detection by the keys of a file.

The tables themselves are data in `torch_io/tables/`; here all of them are joined. Tensors are
converted in `load.py`. torch is not needed.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable

from mimjax.errors import ConfigError
from mimjax.torch_io.tables import imports, libraries, methods, teachers, vision
from mimjax.torch_io.tables.layouts import LAYOUTS, Row

__all__ = ["LAYOUTS", "OWN", "TABLES", "Row", "detect", "rows_for"]

OWN = "mimjax"  # layout of mimjax's own .safetensors files, whose keys are our parameter paths
ROOTS = ("encoder", "clip", "dino", "vision")  # names, of ours, under which files have encoders
CONV = "encoder/patch_embed4/kernel"  # of a convolutional encoder
TABLES = imports.with_heads(
    methods.TABLES | libraries.TABLES | teachers.TABLES | vision.TABLES | {OWN: ([], {})}
)
# Layouts with the same keys: the second one is chosen if its network is requested and the network
# of the first is not.
TWINS = {"mae": "dino"}
ROOMS = (teachers, libraries, methods)


@functools.cache
def patterns(layout: str) -> list[tuple[re.Pattern[str], Row]]:
    """Return the rows of a layout's table, each with the pattern of our paths that it is for."""
    # {i} and {j} of a row stand for the numbers of blocks
    path = lambda row: re.sub(r"\\{[ij]\\}", r"(\\d+)", re.escape(row.ours))
    return [(re.compile(path(row)), row) for row in TABLES[layout][0]]


def rows_for(layout: str, paths: Iterable[str]) -> list[Row]:
    """Return the row of a layout's table for each of our parameter paths, in their order.

    Raises:
      ConfigError: the layout has no key for a path.
    """
    if layout == OWN:
        return [Row(path, path, "same") for path in paths]
    matches = []
    for path in paths:
        for pattern, row in patterns(layout):
            if m := pattern.fullmatch(path):
                matches.append(row.numbered(path, [str(int(g)) for g in m.groups()]))
                break
        else:
            raise ConfigError(f"layout {layout!r} has no key for the parameter {path!r}")
    return matches


def roots_of(layout: str) -> set[str]:
    """Return the networks of a layout, the first parts of our paths: "encoder", "clip", ..."""
    layouts = TABLES if layout == OWN else (layout,)
    return {row.ours.split("/")[0] for name in layouts for row in TABLES[name][0]}


def find(keys: Iterable[str]) -> str | None:
    """Return the layout of a checkpoint file; None = it is unknown."""
    keys = set(keys)
    if any(k.startswith("encoder/") for k in keys):
        return OWN
    return next((layout for room in (vision, *ROOMS) if (layout := room.detect(keys))), None)


def detect(keys: Iterable[str], where: str = "", roots: Iterable[str] = ()) -> str:
    """Return the layout of a checkpoint file.

    Args:
      keys: keys of the file.
      where: beginning of the error.
      roots: requested networks, which decide between layouts with the same keys.

    Raises:
      ConfigError: the keys fit no known layout.
    """
    keys, roots = set(keys), set(roots)
    several = [layout for room in ROOMS if (layout := room.detect(keys))]
    # the names in a tokenizer's encoder, and in those of `vision`, are the methods' as well
    known = find(keys) == OWN or vision.detect(keys) or teachers.detect_tokenizer(keys)
    if len(several) > 1 and not known:
        raise ConfigError(
            f"{where}keys of two layouts, {' and '.join(map(repr, several))}; allowed: a file of "
            "one network, or its layout said"
        )
    if layout := find(keys):
        twin = TWINS.get(layout)
        if twin and roots & roots_of(twin) and not roots & roots_of(layout):
            return twin
        return layout
    some = ", ".join(sorted(keys)[:3])
    raise ConfigError(
        f"{where}unknown checkpoint layout (keys {some}, ...); known: {', '.join(TABLES)}"
    )


def check_roots(layout: str, roots: Iterable[str], where: str) -> None:
    """Check that a layout has at least one of the requested networks.

    Args:
      layout: name of the file's layout.
      roots: requested networks, first parts of our paths: "encoder", "clip", ...
      where: name of the file, for errors.

    Raises:
      ConfigError: the layout has only other networks; the line names the layouts that would fit.
    """
    roots = set(roots)
    if layout != OWN and not roots & roots_of(layout):
        fit = ", ".join(sorted(name for name in TABLES if roots & roots_of(name)))
        raise ConfigError(
            f"{where} has layout {layout!r}, which holds {', '.join(sorted(roots_of(layout)))}; "
            f"needed: {', '.join(sorted(roots))} (layouts {fit})"
        )
