"""Published PyTorch weights as parameter trees, and back; files are read in `files`.

The tables of `names` say which tensor is which parameter; here shapes, missing keys and position
tables are checked, so that no file is read as something that it is not.
"""

from __future__ import annotations

import re
from typing import Any

import jax
import numpy as np

from mimjax.errors import ConfigError
from mimjax.models.vit import sincos_table
from mimjax.rules import paths
from mimjax.torch_io.read import detect, positions
from mimjax.torch_io.read.files import SUFFIXES, State, read, read_file
from mimjax.torch_io.tables import imports, methods, teachers

__all__ = ["SUFFIXES", "from_torch", "read", "read_file", "take", "to_torch"]

PyTree = Any
LISTED = 20  # keys that an error names
# Parameters that a file may lack: fine-tuned models have a norm of their own after pooling, and
# encoders alone never see masked patches.
OPTIONAL = re.compile(r"encoder/(norm/(scale|bias)|mask_token)")
NORMLESS = (
    r"(beit\.)?(fc_norm|pooler\.layernorm)\.|fpn\d?\."  # norms after pooling, feature pyramids
)


def from_torch(
    state: State,
    like: PyTree,
    layout: str = "auto",
    where: str = "checkpoint",
    grid: tuple[int, int] | None = None,
    order: str = "",
) -> PyTree:
    """Parameters of `like`'s structure and shapes, from a published state dict.

    Subtrees of `like` decide what is read: {"encoder": ...} takes the encoder alone. An encoder's
    learned positions, absolute or relative, are resized where the file has another grid.

    Args:
      state: their key -> array.
      like: our parameters, or their shapes.
      layout: a name of `names.TABLES`, or "auto".
      where: how errors name the source.
      grid: of the model's patches, to resize learned positions; None = square.
      order: of the encoder's own fixed positions, "xy" or "yx"; "" = the layout's.

    Returns:
      A tree; None for a final norm or mask token that fine-tuned files and encoders lack.

    Raises:
      ConfigError: keys missing, shapes that differ, or position tables that are not the fixed
        sine-cosine ones of this model.
    """
    layout = detect.detect(state, roots=like) if layout == "auto" else layout
    rows = [found_row(layout, path, state) for path in paths(like)]
    leaves, wrong = [], []
    check_keys(state, [k for r in rows if r for k in r.keys], layout, where)
    for row, leaf in zip(rows, jax.tree.leaves(like), strict=True):
        try:
            parts = [state[k] for k in row.keys] if row else []
            leaves.append(convert(parts, leaf.shape, row, grid) if row else None)
        except ValueError as error:
            wrong.append(str(error))
    if wrong:
        count = f"{len(wrong)} tensors of layout {layout!r} do not fit: " if len(wrong) > 1 else ""
        raise ConfigError(f"{where}: {count}{listed(wrong, '; ')}")
    check_positions(state, like, layout, where, order)
    return jax.tree.unflatten(jax.tree.structure(like), leaves)


def found_row(layout: str, path: str, state: State) -> detect.Row | None:
    """The row of one parameter; None where the file rightly lacks it."""
    if not OPTIONAL.fullmatch(path):
        return detect.rows_for(layout, [path])[0]
    try:
        (row,) = detect.rows_for(layout, [path])
    except ConfigError:
        return None
    lacks = not any(k in state for k in row.keys)
    if path.endswith("mask_token"):
        lacks = lacks and not any(k.startswith("lm_head") for k in state)
    else:
        lacks = lacks and any(re.match(NORMLESS, k) for k in state)
    return None if lacks else row


def take(
    state: State,
    like: PyTree,
    layout: str,
    where: str,
    grid: tuple[int, int] | None = None,
    order: str = "",
) -> tuple[PyTree, list[str]]:
    """Those networks of `like` that the file holds.

    Returns:
      `from_torch` with None for everything that the file lacks, and the names of what it lacks:
      "decoder", "encoder/norm".

    Raises:
      ConfigError: as `from_torch`, or if the file has none of the networks or no encoder.
    """
    detect.check_roots(layout, like, where)
    present = {k: v for k, v in like.items() if holds(state, {k: v}, layout)}
    absent = [k for k in like if k not in present]
    if not present or "encoder" in absent:
        raise ConfigError(
            f"{where} has layout {layout!r} and holds no {', '.join(absent)}; its keys: "
            f"{', '.join(sorted(state)[:3])}, ..."
        )
    found = from_torch(state, present, layout, where, grid, order)
    blank = lambda tree: jax.tree.map(lambda _: None, tree)
    parts = [p for p in paths(present) if OPTIONAL.fullmatch(p) and not found_row(layout, p, state)]
    absent += sorted({"/".join(p.split("/")[:2]) for p in parts})
    return {k: found[k] if k in found else blank(v) for k, v in like.items()}, absent


def listed(items: list[str], between: str = ", ") -> str:
    """At most twenty of them."""
    return between.join(items[:LISTED]) + (f"{between}..." if len(items) > LISTED else "")


def check_keys(state: State, needed: list[str], layout: str, where: str) -> None:
    """Every needed key is there; frozen networks leave none of their own unread.

    A tokenizer built with too few levels would otherwise load without an error and be wrong.
    """
    missing = list(dict.fromkeys(k for k in needed if k not in state))
    unread = sorted(state.keys() - set(needed))
    if missing:
        more = f"; {len(unread)} keys of the file fit nothing: {listed(unread)}" if unread else ""
        pattern, advice = methods.ADVICE.get(layout, ("", ""))
        if any(re.fullmatch(pattern, k) for k in missing):
            more += f"; {advice}"
        raise ConfigError(
            f"{where}: {len(missing)} keys of layout {layout!r} are missing: "
            f"{listed(missing)}{more}"
        )
    if layout in teachers.OWN:
        own, optional = teachers.OWN[layout]
        unread = [k for k in unread if re.match(own, k) and not re.fullmatch(optional, k)]
        if unread:
            raise ConfigError(
                f"{where}: {len(unread)} keys of layout {layout!r} have no place in the configured "
                f"network: {listed(unread)}"
            )


def holds(state: State, like: PyTree, layout: str) -> bool:
    """Whether the file has any parameter of `like`."""
    wanted = [p for p in paths(like) if not OPTIONAL.fullmatch(p)]
    if layout in detect.TABLES and not set(like) & detect.held(layout):
        return False
    return any(k in state for row in detect.rows_for(layout, wanted) for k in row.keys)


def convert(
    parts: list[np.ndarray],
    shape: tuple[int, ...],
    row: detect.Row,
    grid: tuple[int, int] | None = None,
) -> np.ndarray:
    """One tensor in our layout, float32; several of theirs are stacked along their first axis.

    Raises:
      ValueError: another shape, or numbers for which we have no parameter.
    """
    try:
        x = np.concatenate(parts) if len(parts) > 1 else parts[0]
    except ValueError:
        x = parts[0]  # of different shapes: the first is wrong, or those beside it
    key, layout = "+".join(row.keys), detect.LAYOUTS[row.layout]
    sizes = f"{key} has shape {list(x.shape)}, {row.ours} needs {list(shape)}"
    x = positions.resized(x, tuple(shape), row.ours, grid)
    if x.size != layout.times * np.prod(shape, dtype=int):
        raise ValueError(sizes)
    if layout.rest is not None and layout.rest(x).any():
        raise ValueError(
            f"{key} has biases of keys, for which {row.ours} has no place; needed: an encoder with "
            "biases of q, k and v (method.encoder.bias='full')"
        )
    try:
        out = layout.to_ours(np.asarray(x, np.float32), tuple(shape))
    except (ValueError, IndexError):  # not even the right number of axes
        raise ValueError(sizes) from None
    if out.shape != tuple(shape):
        raise ValueError(sizes)
    return np.ascontiguousarray(out)


def check_positions(state: State, like: PyTree, layout: str, where: str, order: str = "") -> None:
    """The file's position tables are the fixed ones that this model computes.

    MAE's table is BootMAE's transposed, so a file of one read as the other would load without an
    error and be wrong.
    """
    for key, network in detect.TABLES.get(layout, ([], {}))[1].items():
        expected = (order if network == "encoder" else "") or imports.POSITIONS.get(layout)
        if not expected or key not in state or network not in like or "pos_embed" in like[network]:
            continue  # no fixed table
        table = state[key][0, 0 if layout in methods.NO_CLS else 1 :]  # the first row is CLS's
        side = round(len(table) ** 0.5)
        if side * side != len(table):
            continue  # not square: the grid cannot be told from the table
        error = np.abs(table - sincos_table((side, side), table.shape[1], expected)).max()
        if error > positions.tolerance(table):
            raise ConfigError(
                f"{where}: {key} is not the fixed sine-cosine table of layout {layout!r} "
                f"(differs by {error:.2g}); learned positions need another encoder"
            )


def to_torch(params: PyTree, layout: str, channels: int = 3) -> dict[str, np.ndarray]:
    """The inverse of `from_torch`, without the fixed position tables."""
    rows = detect.rows_for(layout, paths(params))
    out: dict[str, np.ndarray] = {}
    for row, x in zip(rows, jax.tree.leaves(params), strict=True):
        theirs = detect.LAYOUTS[row.layout].to_theirs(np.asarray(x), channels)
        for key, part in zip(row.keys, np.split(theirs, len(row.keys)), strict=True):
            out[key] = np.ascontiguousarray(out[key] + part if key in out else part)
    return out
