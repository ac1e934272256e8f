"""Reading published PyTorch weights into parameter trees. Never unpickles.

`.safetensors` needs nothing; `.pth` needs torch and is read with weights-only loading.
"""

from __future__ import annotations

import re
from typing import Any

import jax
import numpy as np

from mimjax.errors import ConfigError
from mimjax.models.vit import sincos_table
from mimjax.rules import paths
from mimjax.torch_io import methods, names, positions, teachers
from mimjax.torch_io.teachers_dino import backbone

PyTree = Any
SUFFIXES = (
    ".safetensors",
    ".pth",
    ".pt",
    ".bin",
    ".ckpt",
    ".pkl",
)  # .pkl only to say why it is refused


def read_file(path: str) -> dict[str, np.ndarray]:
    """A checkpoint file as {key: float32 array}.

    A wrapper ({"model": ...}, DINO's {"teacher": ...}) is unwrapped, and of keys under `backbone.`
    only these are kept, without it.

    Raises:
      ConfigError: no such file, an unknown suffix, torch missing, or pickled objects inside.
    """
    if path.endswith(".pkl"):
        raise ConfigError(
            f"{path}: a pickled module (as OpenAI's encoder.pkl of DALL-E), which mimjax never "
            "loads; take facebook/flava-image-codebook (the same network, as tensors), or load it "
            "where you trust it and save its state dict as .safetensors"
        )
    if not path.endswith(SUFFIXES):
        raise ConfigError(f"{path}: not a checkpoint file; allowed: {', '.join(SUFFIXES[:-1])}")
    try:
        if path.endswith(".safetensors"):
            from safetensors.numpy import load_file

            return backbone({k: v.astype(np.float32) for k, v in load_file(path).items()})
        state = _torch_load(path)
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file") from None
    for wrapper in ("model", "module", "state_dict", "teacher", "student"):
        if isinstance(state.get(wrapper), dict):
            state = state[wrapper]
            break
    return backbone({k: v.float().numpy() for k, v in state.items() if hasattr(v, "numpy")})


def _torch_load(path: str) -> dict[str, Any]:
    try:
        import torch
    except ImportError:
        raise ConfigError(f"{path}: reading .pth needs torch: pip install mimjax[torch]") from None
    import argparse
    import pickle
    import warnings

    # Official training scripts keep their parsed flags beside the weights: an inert record.
    flags = torch.serialization.safe_globals([argparse.Namespace])
    try:
        with warnings.catch_warnings(action="ignore"), flags:
            return torch.load(path, map_location="cpu", weights_only=True)
    except RuntimeError as e:
        if "TorchScript" not in str(e):
            raise
        raise ConfigError(
            f"{path}: a TorchScript archive (as OpenAI publishes CLIP), which holds code; load it "
            "where you trust it and torch.save(model.state_dict(), ...), or take transformers' "
            ".safetensors of the same weights"
        ) from None
    except pickle.UnpicklingError:
        raise ConfigError(
            f"{path}: holds pickled objects, which mimjax never loads; save its tensors alone "
            "(torch.save(model.state_dict(), ...)) or as .safetensors"
        ) from None


def from_torch(
    state: dict[str, np.ndarray],
    like: PyTree,
    layout: str = "auto",
    where: str = "checkpoint",
    grid: tuple[int, int] | None = None,
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

    Raises:
      ConfigError: keys missing, shapes that differ, or position tables that are not the fixed
        sine-cosine ones of this model.
    """
    layout = names.detect(state, roots=like) if layout == "auto" else layout
    rows = names.rows_for(layout, paths(like))
    check_keys(state, [k for r in rows for k in r.keys], layout, where)
    leaves = [
        convert([state[k] for k in row.keys], leaf.shape, row, where, grid)
        for row, leaf in zip(rows, jax.tree.leaves(like), strict=True)
    ]
    check_positions(state, like, layout, where)
    return jax.tree.unflatten(jax.tree.structure(like), leaves)


def check_keys(state: dict[str, np.ndarray], needed: list[str], layout: str, where: str) -> None:
    """Every needed key is there; frozen networks leave none of their own unread.

    A tokenizer built with too few levels would otherwise load without an error and be wrong.
    """
    some = lambda keys: f"{', '.join(keys[:4])}{', ...' if len(keys) > 4 else ''}"
    missing = [k for k in needed if k not in state]
    unread = sorted(state.keys() - set(needed))
    if missing:
        more = f"; {len(unread)} keys of the file fit nothing: {some(unread)}" if unread else ""
        pattern, advice = methods.ADVICE.get(layout, ("", ""))
        if any(re.fullmatch(pattern, k) for k in missing):
            more += f"; {advice}"
        raise ConfigError(
            f"{where}: {len(missing)} keys of layout {layout!r} are missing: {some(missing)}{more}"
        )
    if layout in teachers.OWN:
        own, optional = teachers.OWN[layout]
        unread = [k for k in unread if re.match(own, k) and not re.fullmatch(optional, k)]
        if unread:
            raise ConfigError(
                f"{where}: {len(unread)} keys of layout {layout!r} have no place in the configured "
                f"network: {some(unread)}"
            )


def holds(state: dict[str, np.ndarray], like: PyTree, layout: str) -> bool:
    """Whether the file has any parameter of `like`."""
    return any(k in state for row in names.rows_for(layout, paths(like)) for k in row.keys)


def convert(
    parts: list[np.ndarray],
    shape: tuple[int, ...],
    row: names.Row,
    where: str,
    grid: tuple[int, int] | None = None,
) -> np.ndarray:
    """One tensor in our layout, float32; several of theirs are stacked along their first axis."""
    x = np.concatenate(parts) if len(parts) > 1 else parts[0]
    sizes = (
        f"{where}: {'+'.join(row.keys)} has shape {list(x.shape)}, {row.ours} needs {list(shape)}"
    )
    layout = names.LAYOUTS[row.layout]
    x = positions.resized(x, tuple(shape), row.ours, grid)
    if x.size != layout.times * np.prod(shape, dtype=int):
        raise ConfigError(sizes)
    try:
        out = layout.to_ours(np.asarray(x, np.float32), tuple(shape))
    except (ValueError, IndexError):  # not even the right number of axes
        raise ConfigError(sizes) from None
    if out.shape != tuple(shape):
        raise ConfigError(sizes)
    if layout.rest is not None and layout.rest(x).any():
        raise ConfigError(
            f"{where}: {'+'.join(row.keys)} has biases of keys, for which {row.ours} has no place; "
            "needed: an encoder with biases of q, k and v (method.encoder.bias='full')"
        )
    return np.ascontiguousarray(out)


def check_positions(state: dict[str, np.ndarray], like: PyTree, layout: str, where: str) -> None:
    """The file's position tables are the fixed ones that this model computes.

    MAE's table is BootMAE's transposed, so a file of one read as the other would load without an
    error and be wrong.
    """
    order = methods.POSITIONS.get(layout)
    if order is None:
        return  # no fixed tables
    for key, network in names.TABLES[layout][1].items():
        if key not in state or network not in like or "pos_embed" in like[network]:
            continue  # the network is not there, or learns its positions
        table = state[key][0, 0 if layout in methods.NO_CLS else 1 :]  # the first row is CLS's
        side = round(len(table) ** 0.5)
        if side * side != len(table):
            continue  # not square: the grid cannot be told from the table
        error = np.abs(table - sincos_table((side, side), table.shape[1], order)).max()
        if error > 1e-4:
            raise ConfigError(
                f"{where}: {key} is not the fixed sine-cosine table of layout {layout!r} "
                f"(differs by {error:.2g}); learned positions need another encoder"
            )


def to_torch(params: PyTree, layout: str, channels: int = 3) -> dict[str, np.ndarray]:
    """The inverse of `from_torch`, without the fixed position tables."""
    rows = names.rows_for(layout, paths(params))
    out: dict[str, np.ndarray] = {}
    for row, x in zip(rows, jax.tree.leaves(params), strict=True):
        theirs = names.LAYOUTS[row.layout].to_theirs(np.asarray(x), channels)
        for key, part in zip(row.keys, np.split(theirs, len(row.keys)), strict=True):
            out[key] = np.ascontiguousarray(out[key] + part if key in out else part)
    return out
