"""Digests of arrays, computed where they lie, so that a flipped bit is noticed at restore.

Orbax's format has checksums for its index alone: a bit flipped in an array restores in silence.
The digest of an array is the sum, modulo 2^32, of its bits as words, each times an odd number that
its place decides. One flipped bit always changes it; the order of summation never does, so any
sharding, device and number of processes gives the same digest.
"""

from __future__ import annotations

import json
import zlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from mimjax.rules import paths
from mimjax.storage.verdicts import Damaged

PyTree = Any
Digests = dict[str, list]  # path -> [dtype, digest]
SPREAD = np.uint32(2654435761)  # Knuth's multiplicative hash: floor(2^32 / golden ratio), odd
PLACES = np.arange(1 << 15, dtype=np.uint32) * SPREAD  # as many words at once, from the cache


@jax.jit
def on_device(x: jax.Array) -> jax.Array:
    """Return the uint32 digest of one array of any dtype and shape."""
    if x.dtype == jnp.bool_:
        x = x.astype(jnp.uint8)
    width = {1: jnp.uint8, 2: jnp.uint16}.get(x.dtype.itemsize, jnp.uint32)
    words = lax.bitcast_convert_type(x, width).astype(jnp.uint32)  # 8 bytes: a last axis of two
    place = jnp.zeros((), jnp.uint32)
    for axis, size in enumerate(words.shape):
        place = place * np.uint32(size) + lax.broadcasted_iota(jnp.uint32, words.shape, axis)
    return jnp.sum(words * (place * SPREAD | np.uint32(1)), dtype=jnp.uint32)


def on_host(x: np.ndarray) -> int:
    """Return the same number without a compilation."""
    width = {1: np.uint8, 2: np.uint16}.get(x.dtype.itemsize, np.uint32)
    words = np.ascontiguousarray(x).reshape(-1).view(width)
    total = 0
    for start in range(0, len(words), len(PLACES)):
        piece = words[start : start + len(PLACES)].astype(np.uint32, copy=False)
        offset = np.uint32(start * int(SPREAD) % 2**32)
        total += int(np.dot(piece, PLACES[: len(piece)] + offset | np.uint32(1)))
    return total % 2**32


def of_tree(tree: PyTree) -> Digests:
    """Return {path: [dtype, digest]} of a tree of arrays; all processes must call it together."""

    def one(x: Any) -> Any:
        near = isinstance(x, np.ndarray) or (
            x.is_fully_addressable and {d.platform for d in x.devices()} == {"cpu"}
        )
        return on_host(np.asarray(x)) if near else on_device(x)

    leaves = jax.tree.leaves(tree)
    values = jax.device_get([one(x) for x in leaves])
    rows = zip(paths(tree), leaves, values, strict=True)
    return {name: [str(x.dtype), int(v)] for name, x, v in rows}


def of_json(value: Any) -> int:
    """Return a checksum of what JSON can hold, the same for every order of keys."""
    return zlib.crc32(json.dumps(value, sort_keys=True).encode())


def sealed(meta: dict[str, Any], data: Any, **trees: PyTree) -> dict[str, Any]:
    """Return `meta` with digests of the item `data`, of each tree, and of `meta` itself."""
    found: dict[str, Any] = {name: of_tree(tree) for name, tree in trees.items()}
    found["data"] = of_json(data)
    whole = json.loads(json.dumps(meta | {"digests": found}))  # as it will be read: no tuples
    found["meta"] = of_json(whole)
    return whole | {"digests": found}


def check_meta(meta: Any) -> None:
    """Compare a `meta` item with its own digest; those of older versions have none.

    Raises:
      Damaged: they differ.
    """
    if not isinstance(meta, dict) or not isinstance(meta.get("digests", {}), dict):
        raise Damaged("meta: no object of an item")
    known = dict(meta.get("digests", {}))
    if known and known.pop("meta", None) != of_json(meta | {"digests": known}):
        raise Damaged("meta: its checksum is wrong")


def check(meta: dict[str, Any], data: Any = None, **trees: PyTree) -> None:
    """Compare what was read with the digests in `meta`, if it has some.

    Args:
      data: the item of that name; None = not read.
      trees: items by name; each may be a part of what was saved. Arrays that were read in another
        dtype than they were saved in are not compared.

    Raises:
      Damaged: something differs.
    """
    known = meta.get("digests", {})
    if not known:
        return
    if data is not None and of_json(data) != known["data"]:
        raise Damaged("data: its checksum is wrong")
    for item, tree in trees.items():
        bad = [
            name
            for name, (dtype, value) in of_tree(tree).items()
            if (kept := known[item].get(name)) and kept[0] == dtype and kept[1] != value
        ]
        if bad:
            more = f" ({len(bad)} arrays in all)" if len(bad) > 1 else ""
            raise Damaged(f"{item}: {bad[0]} is not what was saved{more}")
