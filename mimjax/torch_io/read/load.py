"""Conversion of PyTorch state dicts into parameter trees, and back.

The tables in `torch_io/tables/` say which tensor is which parameter. Shapes, missing keys and fixed
position tables are checked, so that no file is taken for another kind of network. Files are read in
`files.py`; sizes of networks are derived in `sizes.py`.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from mimjax.errors import ConfigError
from mimjax.models.positions import Grid
from mimjax.rules import paths
from mimjax.task import Encoder
from mimjax.torch_io.read import detect, positions
from mimjax.torch_io.read.files import SUFFIXES, State, read, read_file
from mimjax.torch_io.tables import imports, libraries, methods, teachers

__all__ = ["SUFFIXES", "from_torch", "place_of", "read", "read_file", "take", "to_torch"]

PyTree = Any
LISTED = 20  # largest number of keys that an error names
# Parameters that a file may lack: fine-tuned models have a norm after pooling instead, files of the
# encoder alone no mask token, projection and sum of stages, feature pyramids no CLS token.
OPTIONAL = re.compile(
    r"encoder/(norm/(scale|bias)|mask_token|cls_token|projection/.+|stage\d_fuse/.+)"
)
# keys of files that may lack the final norm: norms after pooling, feature pyramids
NORMLESS = r"(beit\.)?(fc_norm|pooler\.layernorm)\.|fpn\d?\.|classifier/params/norm/"


def from_torch(
    state: State,
    like: PyTree,
    layout: str = "auto",
    where: str = "checkpoint",
    grid: Grid | None = None,
    order: str = "",
    made_for: Grid | None = None,
) -> PyTree:
    """Return parameters with the structure and shapes of `like` from a published state dict.

    `like` decides what is read: {"encoder": ...} reads the encoder alone. The encoder's learned
    positions, absolute or relative, are resized if the file has another grid.

    Args:
      state: {key of the file: array}.
      like: our parameters, or their shapes.
      layout: a key of `detect.TABLES`, or "auto".
      where: name of the file, for errors.
      grid: (height, width) of the model in patches, to resize learned positions; None = square.
      order: coordinate that comes first in the encoder's fixed positions, "xy" or "yx"; "" = that
        of the layout.
      made_for: (height, width) that the model's fixed positions are made for; None = any.

    Returns:
      A tree like `like`; None for a parameter that the file rightly lacks (OPTIONAL).

    Raises:
      ConfigError: keys are missing, shapes differ, or a position table is not the fixed sine-cosine
        table of this model.
    """
    layout = detect.detect(state, roots=like) if layout == "auto" else layout
    state, folded = with_shared_table(state, like, layout, where), {}
    antialias = libraries.antialiased(layout, state)
    if layout in libraries.FOLDED:
        scale = re.compile(r"encoder/block_\d+/gamma_[12]")
        folded = {p: i for i, p in enumerate(paths(like)) if scale.fullmatch(p)}
    rows = [None if path in folded else row_in_file(layout, path, state) for path in paths(like)]
    leaves, wrong = [], []
    needed = [k for r in rows if r for k in r.keys]
    tables = detect.TABLES.get(layout, ([], {}))[1].items() if order else ()
    needed += [k for k, network in tables if network in like and k in state]  # compared below
    check_keys(state, needed, layout, where)
    for row, leaf in zip(rows, jax.tree.leaves(like), strict=True):
        try:
            parts = [state[k] for k in row.keys] if row else []
            leaves.append(convert(parts, leaf.shape, row, grid, antialias) if row else None)
        except ValueError as error:
            wrong.append(str(error))
    if wrong:
        count = f"{len(wrong)} tensors of layout {layout!r} do not fit: " if len(wrong) > 1 else ""
        raise ConfigError(f"{where}: {count}{listed(wrong, '; ')}")
    check_positions(state, like, layout, where, order, made_for, grid)
    for i in folded.values():  # the weights before them have these factors already
        leaves[i] = np.ones(jax.tree.leaves(like)[i].shape, np.float32)
    return jax.tree.unflatten(jax.tree.structure(like), leaves)


def place_of(encoder: Encoder) -> tuple[Grid, str, Grid]:
    """Return `grid`, `order` and `made_for` of `from_torch` for a model with this encoder."""
    grid = encoder.grid
    return grid, encoder.positions, encoder.pos_grid or grid


def row_in_file(layout: str, path: str, state: State) -> detect.Row | None:
    """Return the row of one parameter; None if it is OPTIONAL and the file rightly lacks it.

    Raises:
      ConfigError: the layout has no key for a parameter that is not OPTIONAL.
    """
    if not OPTIONAL.fullmatch(path):
        return detect.rows_for(layout, [path])[0]
    try:
        (row,) = detect.rows_for(layout, [path])
    except ConfigError:
        return None
    lacks = not any(k in state for k in row.keys)
    if path.endswith("cls_token"):
        lacks = False
    elif "_fuse/" in path:
        lacks = lacks and "decoder_embed.weight" not in state
    elif path.endswith("mask_token"):
        lacks = lacks and not any(k.startswith("lm_head") for k in state)
    elif path.startswith("encoder/norm/"):
        lacks = lacks and any(re.match(NORMLESS, k) for k in state)
    return None if lacks else row


def with_shared_table(state: State, like: PyTree, layout: str, where: str) -> State:
    """Return the tensors with one relative table where each block of the file has the same one.

    Args:
      state, like, layout, where: see `from_torch`; nothing is done if `like` has no such table.

    Raises:
      ConfigError: the blocks have different tables.
    """
    ours = "encoder/rel_pos/table"
    if ours not in paths(like):
        return state
    try:
        (shared,), (block,) = (
            detect.rows_for(layout, [p]) for p in (ours, "encoder/rel_pos_00/table")
        )
    except ConfigError:
        return state
    pattern = re.escape(block.keys[0]).replace("\\.0\\.", "\\.\\d+\\.")
    each = [x for k, x in state.items() if re.fullmatch(pattern, k)]
    if shared.keys[0] in state or not each:
        return state
    if any(not np.array_equal(each[0], x) for x in each):
        raise ConfigError(
            f"{where}: its blocks have different relative positions, and the encoder shares one "
            "table; allowed: method.encoder.rel_pos='per_block'"
        )
    return state | {shared.keys[0]: each[0]}


def take(
    state: State,
    like: PyTree,
    layout: str,
    where: str,
    grid: Grid | None = None,
    order: str = "",
    made_for: Grid | None = None,
) -> tuple[PyTree, list[str]]:
    """Return the parameters of those networks of `like` that are in the file.

    Args:
      state, like, layout, where, grid, order, made_for: see `from_torch`; `layout` is not "auto".

    Returns:
      The tree of `from_torch`, with None for all parameters that the file lacks, and the names of
      what it lacks: ["decoder", "encoder/norm"].

    Raises:
      ConfigError: see `from_torch`; or `like` has an encoder and the file has none, or the file
        has none of the networks.
    """
    detect.check_roots(layout, like, where)
    present = {k: v for k, v in like.items() if has_any(state, {k: v}, layout)}
    absent = [k for k in like if k not in present]
    if not present or "encoder" in absent:
        raise ConfigError(
            f"{where} has layout {layout!r} and holds no {', '.join(absent)}; its keys: "
            f"{', '.join(sorted(state)[:3])}, ..."
        )
    params = from_torch(state, present, layout, where, grid, order, made_for)
    blank = lambda tree: jax.tree.map(lambda _: None, tree)
    optional = [p for p in paths(present) if OPTIONAL.fullmatch(p)]
    lacking = [p for p in optional if not row_in_file(layout, p, state)]
    absent += sorted({"/".join(p.split("/")[:2]) for p in lacking})
    return {k: params[k] if k in params else blank(v) for k, v in like.items()}, absent


def listed(items: list[str], separator: str = ", ") -> str:
    """Return the first LISTED items in one string, with "..." if there are more."""
    return separator.join(items[:LISTED]) + (f"{separator}..." if len(items) > LISTED else "")


def check_keys(state: State, needed: list[str], layout: str, where: str) -> None:
    """Check that all needed keys are in the file, and that no key of a frozen network is unused.

    An unused key means a wrong size in the config: a tokenizer with too few levels would otherwise
    load without an error and give wrong codes.

    Args:
      state: {key of the file: array}.
      needed: keys that the model needs.
      layout: the file's layout.
      where: name of the file, for errors.

    Raises:
      ConfigError: keys are missing, or a frozen network has unused ones.
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


def check_fused(state: State, like: PyTree, layout: str, where: str) -> None:
    """Check that a published file has what fuses the stages of `like`, if anything does.

    Raises:
      ConfigError: it lacks that; the line says which setting leaves the fusion out.
    """
    fused = [p for p in paths(like) if "_fuse/" in p]
    if keys := [k for row in known_rows(layout, fused) for k in row.keys]:
        check_keys(state, keys, layout, where)


def has_any(state: State, like: PyTree, layout: str) -> bool:
    """Return whether the file has any parameter of `like`, OPTIONAL ones aside."""
    wanted = [p for p in paths(like) if p.endswith("cls_token") or not OPTIONAL.fullmatch(p)]
    if layout in detect.TABLES and not set(like) & detect.roots_of(layout):
        return False
    return any(k in state for row in known_rows(layout, wanted) for k in row.keys)


def known_rows(layout: str, wanted: list[str]) -> Iterator[detect.Row]:
    """Yield the rows of those parameters that the layout has; a network may share a name alone."""
    for path in wanted:
        with contextlib.suppress(ConfigError):
            yield from detect.rows_for(layout, [path])


def convert(
    parts: list[np.ndarray],
    shape: tuple[int, ...],
    row: detect.Row,
    grid: Grid | None = None,
    antialias: bool = False,
) -> np.ndarray:
    """Return one parameter, float32 of the given shape.

    Args:
      parts: the file's tensors, which are stacked along their first axis.
      shape: shape of our parameter.
      row: row of the layout's table.
      grid: see `from_torch`.
      antialias: whether learned positions are resized with antialiasing.

    Raises:
      ValueError: the shapes do not fit, or the file has values that are not finite or for which
        there is no parameter.
    """
    try:
        x = np.concatenate(parts) if len(parts) > 1 else parts[0]
    except ValueError:
        x = parts[0]  # the parts have different shapes; the error below names the first one's
    key, layout = "+".join(row.keys), detect.LAYOUTS[row.layout]
    sizes = f"{key} has shape {list(x.shape)}, {row.ours} needs {list(shape)}"
    x = positions.resized(x, tuple(shape), row.ours, grid, antialias)
    if not np.isfinite(x).all():
        raise ValueError(f"{key} holds numbers that are not finite (NaN or infinite)")
    if x.size != layout.times * np.prod(shape, dtype=int):
        raise ValueError(sizes)
    if layout.rest is not None and layout.rest(x).any():
        raise ValueError(
            f"{key} has biases of keys, for which {row.ours} has no place; needed: an encoder with "
            "biases of q, k and v (method.encoder.bias='full')"
        )
    try:
        out = layout.to_ours(np.asarray(x, np.float32), tuple(shape))
    except (ValueError, IndexError):  # another number of axes
        raise ValueError(sizes) from None
    if out.shape != tuple(shape):
        raise ValueError(sizes)
    return np.ascontiguousarray(out)


def check_positions(
    state: State,
    like: PyTree,
    layout: str,
    where: str,
    order: str = "",
    made_for: Grid | None = None,
    grid: Grid | None = None,
) -> None:
    """Check that fixed position tables in the file are those that this model computes.

    MAE's table is BootMAE's transposed, so a file of one would load as the other without an error
    and give wrong features.

    A file may also have the table as the model computes it, interpolated from `made_for` to `grid`
    (our exports of a run that continues one of another resolution).

    Args:
      state, like, layout, where, order, made_for, grid: see `from_torch`.

    Raises:
      ConfigError: a table has other values.
    """
    rows, fixed = detect.TABLES.get(layout, ([], {}))
    # a layout with a place for learned positions may hold fixed ones there
    learned = {row.keys[0]: "encoder" for row in rows if row.ours == "encoder/pos_embed"}
    for key, network in (learned | fixed).items():
        expected = (order if network == "encoder" else "") or imports.POSITIONS.get(layout)
        if not expected or key not in state or network not in like or "pos_embed" in like[network]:
            continue  # the file or the model has no fixed table
        table = state[key][0, 0 if layout in methods.NO_CLS else 1 :]  # the first row is CLS's
        if grid and made_for and positions.interpolated(table, expected, made_for, grid):
            continue
        kind, source = positions.fixed(table) or ("learned", None)
        if kind != f"sincos_{expected}":
            raise ConfigError(
                f"{where}: {key} is not the fixed sine-cosine table of layout {layout!r}, "
                f"'sincos_{expected}' (it is {kind!r}); another table needs another encoder"
            )
        if source and made_for and source != tuple(made_for):
            sides = [f"{g[0]}x{g[1]}" for g in (source, made_for)]
            raise ConfigError(
                f"{where}: {key} is of a grid of {sides[0]} patches, and this network's fixed "
                f"positions are of {sides[1]}; allowed: pos_grid={source[0]},{source[1]} in its "
                "encoder's settings, from which they are interpolated"
            )


def to_torch(params: PyTree, layout: str, channels: int = 3) -> dict[str, np.ndarray]:
    """Return {key of the layout: array} for a parameter tree: the inverse of `from_torch`.

    Fixed position tables are not included.

    Args:
      params: tree of arrays.
      layout: a key of `detect.TABLES`.
      channels: number of image channels, which decides how patches are laid out.
    """
    rows = detect.rows_for(layout, paths(params))
    out: dict[str, np.ndarray] = {}
    for row, x in zip(rows, jax.tree.leaves(params), strict=True):
        theirs = detect.LAYOUTS[row.layout].to_theirs(np.asarray(x), channels)
        for key, part in zip(row.keys, np.split(theirs, len(row.keys)), strict=True):
            # parameters that share one tensor (q_bias and v_bias) are added up
            out[key] = np.ascontiguousarray(out[key] + part if key in out else part)
    return out
