"""Paths of arrays in checkpoints that were written with version 3 of the settings or before.

The projection behind CAE's encoder had a place of its own, "projection/...", and is a part of the
encoder now, "encoder/projection/...". An average of the encoder did not hold it. All other
parameters, averages and optimizer slots have the paths that they had.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from mimjax.rules import path_name
from mimjax.storage import config_version

PyTree = Any
LAST = 3  # the last version with these paths
PART, OWNER = "projection", "encoder"


def version_of(meta: dict[str, Any]) -> Any:
    """Return the version of the settings in a checkpoint's metadata."""
    return meta.get("config", {}).get(config_version.KEY, 1)


def as_stored(tree: PyTree, meta: dict[str, Any]) -> PyTree:
    """Return a tree of today with the structure in which a checkpoint holds it.

    Args:
      tree: parameters or the other items of a state, or subtrees of them; leaves of any kind.
      meta: the checkpoint's metadata.
    """
    if version_of(meta) > LAST:
        return tree
    average = lambda path: "ema" in path_name(path).split("/")
    one = lambda path, x: _apart(x, average(path)) if _holds(x) else x
    return jax.tree_util.tree_map_with_path(one, tree, is_leaf=_holds)


def as_today(stored: PyTree, like: PyTree, params: PyTree | None, meta: dict[str, Any]) -> PyTree:
    """Return a tree as restored with the structure that it has today.

    Args:
      stored: the restored tree, with the structure that `as_stored` gives `like`.
      like: the tree of today, of shapes and shardings.
      params: the restored parameters, for averages, which did not hold the projection: it is a
        copy of them. None = the tree itself is that of the parameters.
      meta: the checkpoint's metadata.
    """
    if version_of(meta) > LAST:
        return stored
    one = lambda x, then: _together(then, x, params) if _holds(x) else then
    return jax.tree.map(one, like, stored, is_leaf=_holds)


def _holds(tree: PyTree) -> bool:
    """Return whether a tree is one of networks whose encoder has the projection in it."""
    encoder = tree.get(OWNER) if isinstance(tree, dict) else None
    return isinstance(encoder, dict) and PART in encoder


def _apart(tree: PyTree, averages: bool) -> PyTree:
    """Return networks with the projection beside the encoder; averages are without it."""
    encoder = {k: v for k, v in tree[OWNER].items() if k != PART}
    out = {**tree, OWNER: encoder}
    return out if averages else out | {PART: tree[OWNER][PART]}


def _together(stored: PyTree, like: PyTree, params: PyTree) -> PyTree:
    """Return networks that `_apart` took apart, put together."""
    part = stored.get(PART)
    if part is None:
        part = _average(params[OWNER][PART], like[OWNER][PART])
    out = {k: stored[k] for k in like if k != OWNER}
    return out | {OWNER: {**stored[OWNER], PART: part}}


def _average(params: PyTree, like: PyTree) -> PyTree:
    """Return copies of parameters, never aliases, with the dtypes and shardings of `like`."""
    copy = lambda x, y: jnp.array(x, y.dtype, copy=True)
    shardings = jax.tree.map(lambda x: x.sharding, like)
    return jax.jit(lambda tree: jax.tree.map(copy, tree, like), out_shardings=shardings)(params)
