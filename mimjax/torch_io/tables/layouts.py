"""How a tensor of a PyTorch checkpoint is laid out, and the rows that tables are made of.

A row says: our parameter path <-> their key, and how the tensor is laid out. Import reads a row in
one direction, export in the other, so that a round trip is exact. Where several of our parameters
share one of their tensors (q_bias and v_bias in a qkv.bias), each has a row of its own and export
adds the rows up. No torch is needed here.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np


class Layout(NamedTuple):
    """How a tensor is stored: `to_ours(x, shape)` gets our shape, `to_theirs(x)` inverts it.

    Attributes:
      times: their tensor has that many times our numbers.
      rest: what of their tensor must be zero, because ours has no such parameter.
    """

    to_ours: Callable[[np.ndarray, tuple[int, ...]], np.ndarray]
    to_theirs: Callable[[np.ndarray, int], np.ndarray]
    times: int = 1
    rest: Callable[[np.ndarray], np.ndarray] | None = None


def _third(index: int) -> Layout:
    """A part of the bias of a fused qkv layer, of which the middle third (keys) is zero."""

    def to_theirs(x: np.ndarray, channels: int) -> np.ndarray:
        parts = [np.zeros_like(x)] * 3
        parts[index] = x
        return np.concatenate(parts)

    part = lambda x, i: np.split(x, 3)[i]
    return Layout(lambda x, shape: part(x, index), to_theirs, 3, lambda x: part(x, 1))


def _square(features: int, channels: int = 3) -> int:
    return round((features / channels) ** 0.5)


LAYOUTS: dict[str, Layout] = {
    # vectors, tokens
    "same": Layout(lambda x, shape: x.reshape(shape), lambda x, c: x),
    # nn.Linear.weight [out in] <-> kernel [in out]
    "linear": Layout(lambda x, shape: x.T, lambda x, c: x.T),
    # convolution [out in h w] <-> kernel [h w in out]; depthwise: [c 1 h w] <-> [h w 1 c]
    "conv": Layout(lambda x, shape: x.transpose(2, 3, 1, 0), lambda x, c: x.transpose(3, 2, 0, 1)),
    # 1x1 convolution [out in 1 1] <-> kernel [in out]
    "conv1x1": Layout(lambda x, shape: x[:, :, 0, 0].T, lambda x, c: x.T[:, :, None, None]),
    # patch convolution [out c p q] <-> kernel [(p q c) out]
    "patch_conv": Layout(
        lambda x, shape: x.transpose(2, 3, 1, 0).reshape(shape),
        lambda x, c: x.reshape(_square(len(x), c), -1, c, x.shape[1]).transpose(3, 2, 0, 1),
    ),
    # transposed convolution [in c p q] <-> kernel [in (p q c)]
    "patch_deconv": Layout(
        lambda x, shape: x.transpose(0, 2, 3, 1).reshape(shape),
        lambda x, c: x.reshape(len(x), _square(x.shape[1], c), -1, c).transpose(0, 3, 1, 2),
    ),
    # biases of queries and values inside qkv.bias
    "q_of_qkv": _third(0),
    "v_of_qkv": _third(2),
    # bias of queries, stacked with one of keys that is zero
    "with_zeros": Layout(
        lambda x, shape: np.split(x, 2)[0],
        lambda x, c: np.concatenate([x, np.zeros_like(x)]),
        2,
        lambda x: np.split(x, 2)[1],
    ),
}


class Row(NamedTuple):
    """One parameter: our path, their key (or keys, stacked in this order), the layout's name.

    "{i}" in both stands for a block index: block_00 in our paths, 0 in theirs. "{j}" is a second
    one; in our path it stands after the first.
    """

    ours: str
    theirs: str | tuple[str, ...]
    layout: str

    @property
    def keys(self) -> tuple[str, ...]:
        """Their keys; several where we fuse what they keep apart (q, k and v)."""
        return (self.theirs,) if isinstance(self.theirs, str) else self.theirs

    def numbered(self, path: str, indices: Sequence[str]) -> Row:
        """The row of one block: `path` is ours, "{i}" and "{j}" in their keys become `indices`."""
        keys = self.keys
        for mark, index in zip(("{i}", "{j}"), indices):
            keys = tuple(k.replace(mark, index) for k in keys)
        return Row(path, keys, self.layout)


# name -> (rows, fixed tables: their key -> the network whose positions it holds)
Table = tuple[list[Row], dict[str, str]]


def norm(ours: str, theirs: str) -> list[Row]:
    return [
        Row(f"{ours}/scale", f"{theirs}.weight", "same"),
        Row(f"{ours}/bias", f"{theirs}.bias", "same"),
    ]


def linear(ours: str, theirs: str) -> list[Row]:
    return [
        Row(f"{ours}/kernel", f"{theirs}.weight", "linear"),
        Row(f"{ours}/bias", f"{theirs}.bias", "same"),
    ]


def conv(ours: str, theirs: str, layout: str = "conv") -> list[Row]:
    return [
        Row(f"{ours}/kernel", f"{theirs}.weight", layout),
        Row(f"{ours}/bias", f"{theirs}.bias", "same"),
    ]


def biases(ours: str, theirs: str, fused: bool) -> list[Row]:
    """Biases of queries and values of an attention that has none of keys.

    Args:
      fused: theirs are parts of qkv.bias.
    """
    if fused:
        key = f"{theirs}.qkv.bias"
        return [Row(f"{ours}/{x}_bias", key, f"{x}_of_qkv") for x in ("q", "v")]
    return [Row(f"{ours}/{x}_bias", f"{theirs}.{x}_bias", "same") for x in ("q", "v")]


def block(
    ours: str,
    theirs: str,
    cross: str = "c_attn",
    fused: bool = False,
    gammas: tuple[str, str] = ("gamma_1", "gamma_2"),
) -> list[Row]:
    """Every parameter a block may have; which of them exist depends on its options.

    Args:
      fused: see `biases`.
      gammas: their names of the layer scales.
    """
    rows = norm(f"{ours}/norm1", f"{theirs}.norm1") + norm(f"{ours}/norm2", f"{theirs}.norm2")
    rows += norm(f"{ours}/norm_q", f"{theirs}.norm3") + norm(f"{ours}/norm_kv", f"{theirs}.norm4")
    for a, b, projections in (("attn", "attn", ("qkv",)), ("cross", cross, ("q", "kv"))):
        for p in (*projections, "proj"):
            rows += linear(f"{ours}/{a}/{p}", f"{theirs}.{b}.{p}")
        rows += biases(f"{ours}/{a}", f"{theirs}.{b}", fused and a == "attn")
    for fc in ("fc1", "fc2"):
        rows += linear(f"{ours}/mlp/{fc}", f"{theirs}.mlp.{fc}")
    for i, gamma in enumerate(gammas):
        rows.append(Row(f"{ours}/gamma_{i + 1}", f"{theirs}.{gamma}", "same"))
    return rows


def renamed(rows: list[Row], names: dict[str, str]) -> list[Row]:
    """Rows with each beginning of their keys in `names` replaced by another, the longest first."""
    begin = "|".join(map(re.escape, sorted(names, key=len, reverse=True)))
    pattern = re.compile(f"({begin})(?=$|[.])")
    new = lambda k: pattern.sub(lambda m: names[m[1]], k) if pattern.match(k) else k
    return [Row(r.ours, tuple(new(k) for k in r.keys), r.layout) for r in rows]


def without(rows: list[Row], *parts: str) -> list[Row]:
    """Rows whose path on our side begins with none of these."""
    return [r for r in rows if not r.ours.startswith(parts)]
