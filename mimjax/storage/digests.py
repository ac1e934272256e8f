"""Digests of arrays and JSON items, with which a restore detects flipped bits.

Orbax's format has checksums for its index only, so an array with a flipped bit would be restored
without an error. The digest of an array is sum_i w_i * o_i modulo 2^32: w_i are its bits as words
of at most 32 bits, o_i an odd number that depends on the position i. One flipped bit always changes
the sum. The order of summation does not, so every sharding, device and number of processes gives
the same digest. A digest is no protection against intended changes.
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
PLACES = np.arange(1 << 15, dtype=np.uint32) * SPREAD  # 32,768 words at once stay in the CPU cache


@jax.jit
def on_device(x: jax.Array) -> jax.Array:
    """Return the digest, uint32 [], of an array of any dtype and shape, on its own devices."""
    if x.dtype == jnp.bool_:
        x = x.astype(jnp.uint8)
    width = {1: jnp.uint8, 2: jnp.uint16}.get(x.dtype.itemsize, jnp.uint32)
    # an 8-byte type becomes two words along a new last axis
    words = lax.bitcast_convert_type(x, width).astype(jnp.uint32)
    place = jnp.zeros((), jnp.uint32)
    for axis, size in enumerate(words.shape):
        place = place * np.uint32(size) + lax.broadcasted_iota(jnp.uint32, words.shape, axis)
    return jnp.sum(words * (place * SPREAD | np.uint32(1)), dtype=jnp.uint32)


def on_host(x: np.ndarray) -> int:
    """Return the digest of a host array, equal to `on_device`'s, without compiling a program."""
    width = {1: np.uint8, 2: np.uint16}.get(x.dtype.itemsize, np.uint32)
    words = np.ascontiguousarray(x).reshape(-1).view(width)
    total = 0
    for start in range(0, len(words), len(PLACES)):
        piece = words[start : start + len(PLACES)].astype(np.uint32, copy=False)
        offset = np.uint32(start * int(SPREAD) % 2**32)
        total += int(np.dot(piece, PLACES[: len(piece)] + offset | np.uint32(1)))
    return total % 2**32


def of_tree(tree: PyTree) -> Digests:
    """Return {path: [dtype, digest]} of a tree of arrays.

    All processes must call it together, since arrays may be sharded over them.
    """

    def one(x: Any) -> Any:
        local = isinstance(x, np.ndarray) or (
            x.is_fully_addressable and {d.platform for d in x.devices()} == {"cpu"}
        )
        return on_host(np.asarray(x)) if local else on_device(x)

    leaves = jax.tree.leaves(tree)
    values = jax.device_get([one(x) for x in leaves])
    rows = zip(paths(tree), leaves, values, strict=True)
    return {name: [str(x.dtype), int(v)] for name, x, v in rows}


def of_json(value: Any) -> int:
    """Return the CRC-32 of a JSON value, independent of the order of keys."""
    return zlib.crc32(json.dumps(value, sort_keys=True).encode())


def sealed(meta: dict[str, Any], data: Any, **trees: PyTree) -> dict[str, Any]:
    """Return `meta` with the digests of `data`, of each tree and of `meta` itself."""
    values: dict[str, Any] = {name: of_tree(tree) for name, tree in trees.items()}
    values["data"] = of_json(data)
    # through JSON, which turns tuples into lists: the digest must be that of what is read later
    whole = json.loads(json.dumps(meta | {"digests": values}))
    values["meta"] = of_json(whole)
    return whole | {"digests": values}


def check_meta(meta: Any) -> None:
    """Compare a `meta` item with its own digest; items of older versions have none.

    Raises:
      Damaged: the digest is wrong, or `meta` is no JSON object.
    """
    if not isinstance(meta, dict) or not isinstance(meta.get("digests", {}), dict):
        raise Damaged("meta: no object of an item")
    known = dict(meta.get("digests", {}))
    if known and known.pop("meta", None) != of_json(meta | {"digests": known}):
        raise Damaged("meta: its checksum is wrong")


def check(meta: dict[str, Any], data: Any = None, **trees: PyTree) -> None:
    """Compare restored items with the digests in `meta`; without digests nothing is compared.

    Args:
      meta: the item `meta`.
      data: the item `data`; None = not read.
      trees: arrays of the other items by name, all or a part of what was saved. An array that was
        restored in another dtype than it was saved in is not compared.

    Raises:
      Damaged: a digest differs; the first such array is named.
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
            if (saved := known[item].get(name)) and saved[0] == dtype and saved[1] != value
        ]
        if bad:
            more = f" ({len(bad)} arrays in all)" if len(bad) > 1 else ""
            raise Damaged(f"{item}: {bad[0]} is not what was saved{more}")
