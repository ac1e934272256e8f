"""Rows of the layouts' tables, and the memory layouts of tensors in PyTorch checkpoints.

A row maps one of our parameter paths ("ours") to the file's key ("theirs") and names how the tensor
is laid out. Import reads a row in one direction and export in the other, so that a round trip is
exact. If several of our parameters share one tensor of the file (q_bias and v_bias in qkv.bias),
each has its own row, and export adds the tensors of these rows. torch is not needed.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np


class Layout(NamedTuple):
    """Memory layout of a tensor.

    Attributes:
      to_ours: (the file's tensor, our shape) -> our parameter.
      to_theirs: (our parameter, number of image channels) -> the file's tensor.
      times: number of elements of the file's tensor per element of our parameter.
      rest: part of the file's tensor that must be zero, since there is no parameter for it; None =
        there is no such part.
    """

    to_ours: Callable[[np.ndarray, tuple[int, ...]], np.ndarray]
    to_theirs: Callable[[np.ndarray, int], np.ndarray]
    times: int = 1
    rest: Callable[[np.ndarray], np.ndarray] | None = None


def _third(index: int) -> Layout:
    """Return the layout of a third of a fused qkv bias whose middle third (keys) is zero."""

    def to_theirs(x: np.ndarray, channels: int) -> np.ndarray:
        parts = [np.zeros_like(x)] * 3
        parts[index] = x
        return np.concatenate(parts)

    part = lambda x, i: np.split(x, 3)[i]
    return Layout(lambda x, shape: part(x, index), to_theirs, 3, lambda x: part(x, 1))


def _square(features: int, channels: int = 3) -> int:
    """Return the side of a square patch with so many features."""
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
    """Row of a table: one parameter.

    "{i}" in `ours` and `theirs` stands for the number of a block, which is 00 in our paths and 0 in
    theirs. "{j}" is a second number; in our path it stands after the first.

    Attributes:
      ours: path of our parameter.
      theirs: key of the file, or keys whose tensors are stacked in this order.
      layout: a key of LAYOUTS.
    """

    ours: str
    theirs: str | tuple[str, ...]
    layout: str

    @property
    def keys(self) -> tuple[str, ...]:
        """Keys of the file; several if our parameter is fused and theirs are not (q, k and v)."""
        return (self.theirs,) if isinstance(self.theirs, str) else self.theirs

    def numbered(self, path: str, indices: Sequence[str]) -> Row:
        """Return the row of one block.

        Args:
          path: path of our parameter in this block.
          indices: numbers that replace "{i}" and "{j}" in the file's keys.
        """
        keys = self.keys
        for mark, index in zip(("{i}", "{j}"), indices):
            keys = tuple(k.replace(mark, index) for k in keys)
        return Row(path, keys, self.layout)


# (rows, {key of a fixed position table in the file: network whose positions it has})
Table = tuple[list[Row], dict[str, str]]


def norm(ours: str, theirs: str) -> list[Row]:
    """Return the rows of a LayerNorm."""
    return [
        Row(f"{ours}/scale", f"{theirs}.weight", "same"),
        Row(f"{ours}/bias", f"{theirs}.bias", "same"),
    ]


def linear(ours: str, theirs: str) -> list[Row]:
    """Return the rows of a linear layer."""
    return [
        Row(f"{ours}/kernel", f"{theirs}.weight", "linear"),
        Row(f"{ours}/bias", f"{theirs}.bias", "same"),
    ]


def conv(ours: str, theirs: str, layout: str = "conv") -> list[Row]:
    """Return the rows of a convolution; `layout` is a key of LAYOUTS."""
    return [
        Row(f"{ours}/kernel", f"{theirs}.weight", layout),
        Row(f"{ours}/bias", f"{theirs}.bias", "same"),
    ]


def biases(ours: str, theirs: str, fused: bool) -> list[Row]:
    """Return the rows of q and v biases of an attention without k biases.

    Args:
      ours, theirs: prefixes of the attention's parameters.
      fused: whether the file has them as parts of one qkv.bias.
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
    """Return the rows of all parameters that a transformer block may have.

    Args:
      ours, theirs: prefixes of the block's parameters.
      cross: the file's name of a cross-attention.
      fused: see `biases`.
      gammas: the file's names of the layer scales.
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
    """Return the rows with renamed keys of the file.

    Args:
      rows: the rows.
      names: {beginning of a key: its replacement}, up to a dot; the longest one that fits is used.
    """
    begin = "|".join(map(re.escape, sorted(names, key=len, reverse=True)))
    pattern = re.compile(f"({begin})(?=$|[.])")
    new = lambda k: pattern.sub(lambda m: names[m[1]], k) if pattern.match(k) else k
    return [Row(r.ours, tuple(new(k) for k in r.keys), r.layout) for r in rows]


def without(rows: list[Row], *parts: str) -> list[Row]:
    """Return the rows without those whose path begins with one of `parts`."""
    return [r for r in rows if not r.ours.startswith(parts)]
