"""How a tensor of a PyTorch checkpoint is laid out, and the rows that tables are made of.

A row says: our parameter path <-> their key, and how the tensor is laid out. Import reads a row in
one direction, export in the other, so that a round trip is exact. No torch is needed here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np


class Layout(NamedTuple):
    """How a tensor is stored: `to_ours(x, shape)` gets our shape, `to_theirs(x)` inverts it."""

    to_ours: Callable[[np.ndarray, tuple[int, ...]], np.ndarray]
    to_theirs: Callable[[np.ndarray, int], np.ndarray]


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


def block(ours: str, theirs: str, cross: str = "c_attn") -> list[Row]:
    """Every parameter a block may have; which of them exist depends on its options."""
    rows = norm(f"{ours}/norm1", f"{theirs}.norm1") + norm(f"{ours}/norm2", f"{theirs}.norm2")
    rows += norm(f"{ours}/norm_q", f"{theirs}.norm3") + norm(f"{ours}/norm_kv", f"{theirs}.norm4")
    for a, b, projections in (("attn", "attn", ("qkv",)), ("cross", cross, ("q", "kv"))):
        for p in (*projections, "proj"):
            rows += linear(f"{ours}/{a}/{p}", f"{theirs}.{b}.{p}")
        rows += [Row(f"{ours}/{a}/{q}", f"{theirs}.{b}.{q}", "same") for q in ("q_bias", "v_bias")]
    for fc in ("fc1", "fc2"):
        rows += linear(f"{ours}/mlp/{fc}", f"{theirs}.mlp.{fc}")
    return rows + [Row(f"{ours}/{g}", f"{theirs}.{g}", "same") for g in ("gamma_1", "gamma_2")]
