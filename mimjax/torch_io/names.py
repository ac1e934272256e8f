"""Names and layouts of published PyTorch checkpoints: one two-way table per layout.

A table row says: our parameter path <-> their key, and how the tensor is laid out. Import reads a
table in one direction, export in the other, so that a round trip is exact. No torch is needed here.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np

from mimjax.errors import ConfigError


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
    """One parameter: our path, their key, the layout's name."""

    ours: str
    theirs: str
    layout: str


def _norm(ours: str, theirs: str) -> list[Row]:
    return [
        Row(f"{ours}/scale", f"{theirs}.weight", "same"),
        Row(f"{ours}/bias", f"{theirs}.bias", "same"),
    ]


def _linear(ours: str, theirs: str) -> list[Row]:
    return [
        Row(f"{ours}/kernel", f"{theirs}.weight", "linear"),
        Row(f"{ours}/bias", f"{theirs}.bias", "same"),
    ]


def _block(ours: str, theirs: str, cross: str = "c_attn") -> list[Row]:
    """Every parameter a block may have; which of them exist depends on its options."""
    rows = _norm(f"{ours}/norm1", f"{theirs}.norm1") + _norm(f"{ours}/norm2", f"{theirs}.norm2")
    rows += _norm(f"{ours}/norm_q", f"{theirs}.norm3") + _norm(f"{ours}/norm_kv", f"{theirs}.norm4")
    for a, b, projections in (("attn", "attn", ("qkv",)), ("cross", cross, ("q", "kv"))):
        for p in (*projections, "proj"):
            rows += _linear(f"{ours}/{a}/{p}", f"{theirs}.{b}.{p}")
        rows += [Row(f"{ours}/{a}/{q}", f"{theirs}.{b}.{q}", "same") for q in ("q_bias", "v_bias")]
    for fc in ("fc1", "fc2"):
        rows += _linear(f"{ours}/mlp/{fc}", f"{theirs}.mlp.{fc}")
    return rows


# "{i}" stands for a block index: block_00 in our paths, 0 in theirs.
_ENCODER = [
    Row("encoder/cls_token", "cls_token", "same"),
    Row("encoder/patch_embed/kernel", "patch_embed.proj.weight", "patch_conv"),
    Row("encoder/patch_embed/bias", "patch_embed.proj.bias", "same"),
    *_block("encoder/block_{i}", "blocks.{i}"),
    *_norm("encoder/norm", "norm"),
]

# name -> (rows, fixed tables: their key -> the network whose positions it holds)
TABLES: dict[str, tuple[list[Row], dict[str, str]]] = {
    "mae": (
        [
            *_ENCODER,
            Row("decoder/mask_token", "mask_token", "same"),
            *_linear("decoder/embed", "decoder_embed"),
            *_block("decoder/block_{i}", "decoder_blocks.{i}"),
            *_norm("decoder/norm", "decoder_norm"),
            *_linear("decoder/head", "decoder_pred"),
        ],
        {"pos_embed": "encoder", "decoder_pos_embed": "decoder"},
    ),
    "bootmae": (
        [
            *_ENCODER,
            Row("pixel_decoder/mask_token", "mask_token", "same"),
            *_linear("pixel_decoder/down", "down"),
            *_block("pixel_decoder/block_{i}", "decode_blocks.{i}"),
            *_norm("pixel_decoder/norm", "decode_norm"),
            Row("pixel_decoder/head/kernel", "lm_head.proj.weight", "patch_deconv"),
            Row("pixel_decoder/head/bias", "lm_head.proj.bias", "same"),
            Row("feature_decoder/mask_token", "mask_token_1", "same"),
            *_linear("feature_decoder/down", "down_1"),
            *_block("feature_decoder/block_{i}", "decode_blocks_1.{i}"),
            *_norm("feature_decoder/norm", "decode_norm_1"),
            *_linear("feature_decoder/head", "lm_head_1"),
        ],
        {"pos_embed": "encoder", "de_pos_embed": "pixel_decoder"},
    ),
}


def rows_for(layout: str, paths: Iterable[str]) -> list[Row]:
    """The table's row for each of our parameter paths.

    Raises:
      ConfigError: the layout has no home for a path.
    """
    rows, _ = TABLES[layout]
    patterns = [(re.compile(re.escape(r.ours).replace(r"\{i\}", r"(\d+)")), r) for r in rows]
    found = []
    for path in paths:
        for pattern, row in patterns:
            if m := pattern.fullmatch(path):
                index = str(int(m[1])) if m.groups() else ""
                found.append(Row(path, row.theirs.replace("{i}", index), row.layout))
                break
        else:
            raise ConfigError(f"layout {layout!r} has no key for the parameter {path!r}")
    return found


def detect(keys: Iterable[str]) -> str:
    """The layout of a checkpoint, from its key names.

    Raises:
      ConfigError: no known layout fits.
    """
    keys = set(keys)
    if "blocks.0.attn.q_bias" in keys and keys & {"pos_embed", "mask_token_1"}:
        return "bootmae"
    if "blocks.0.attn.qkv.bias" in keys and "cls_token" in keys:
        return "mae"
    some = ", ".join(sorted(keys)[:3])
    raise ConfigError(f"unknown checkpoint layout (keys {some}, ...); known: {', '.join(TABLES)}")
