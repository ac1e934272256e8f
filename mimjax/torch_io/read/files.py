"""Checkpoint files as {key: float32 array}: safetensors, and .pth by weights-only loading.

Nothing is ever unpickled into objects, and what a file claims is checked against what it holds
before memory is asked for: archives that grow when unpacked, tensors larger than their storage.
"""

from __future__ import annotations

import os
import re
import zipfile
from typing import Any, NamedTuple

import ml_dtypes  # noqa: F401  # numpy learns bfloat16 and float8 from it
import numpy as np
from safetensors import SafetensorError, safe_open

from mimjax.errors import ConfigError
from mimjax.torch_io.tables.imports import official_names
from mimjax.torch_io.tables.teachers import backbone

State = dict[str, np.ndarray]
SUFFIXES = (
    ".safetensors",
    ".pth",
    ".pt",
    ".bin",
    ".ckpt",
    ".pkl",
)  # .pkl only to say why it is refused
WRAPPERS = ("model", "module", "state_dict", "teacher", "student")
AVERAGES = ("model_ema", "state_dict_ema")
GROWTH, SMALL = 4, 1 << 20  # torch.save does not compress: an honest archive does not grow
BROKEN = "it is truncated, corrupted or no checkpoint; copy or download it again"


class File(NamedTuple):
    """What a checkpoint file holds: its weights, and their moving average if it has one.

    Attributes:
      about: what one of our own exports says about itself (`exporting.Export.metadata`), else {}.
    """

    state: State
    average: State | None = None
    about: dict[str, str] = {}


def read_file(path: str) -> State:
    """The weights of a checkpoint file, float32, under official names.

    A wrapper ({"model": ...}, DINO's {"teacher": ...}) is unwrapped, and of keys under `backbone.`
    only these are kept, without it. Names that transformers and timm give to the same tensors
    become those of the tables (`imports.official_names`).

    Raises:
      ConfigError: no such file, an unknown suffix, torch missing, pickled objects inside, or a
        file that is broken or claims more than it holds.
    """
    return read(path).state


def read(path: str) -> File:
    """`read_file` with the moving average that BootMAE and timm save beside the weights."""
    if path.endswith(".pkl"):
        raise ConfigError(
            f"{path}: a pickled module (as OpenAI's encoder.pkl of DALL-E), which mimjax never "
            "loads; take facebook/flava-image-codebook (the same network, as tensors), or load it "
            "where you trust it and save its state dict as .safetensors"
        )
    if not path.endswith(SUFFIXES):
        raise ConfigError(f"{path}: not a checkpoint file; allowed: {', '.join(SUFFIXES[:-1])}")
    path = os.path.expanduser(path)
    if "://" in path:
        raise ConfigError(f"{path}: files of weights are read here alone; allowed: a local copy")
    if not os.path.isfile(path):
        raise ConfigError(f"{path}: no such file")
    if path.endswith(".safetensors"):
        state, about = _safetensors(path)
        state = backbone(state)
        return File(state if about else official_names(state), None, about)
    whole = _torch_load(path)
    state = next((whole[w] for w in WRAPPERS if isinstance(whole.get(w), dict)), whole)
    average = next((whole[w] for w in AVERAGES if isinstance(whole.get(w), dict)), None)
    about = _about(whole.get("mimjax"))
    official = (lambda state: state) if about else official_names
    named = lambda tensors: official(backbone(_arrays(tensors, path)))
    return File(named(state), named(average) if average else None, about)


def _about(metadata: Any) -> dict[str, str]:
    """The metadata of one of our own exports; {} of anybody else's."""
    ours = isinstance(metadata, dict) and {"method", "layout", "weights"} <= metadata.keys()
    return {str(k): str(v) for k, v in metadata.items()} if ours else {}


def _safetensors(path: str) -> tuple[State, dict[str, str]]:
    try:
        with safe_open(path, framework="numpy") as file:
            # The library has compared the header's sizes and offsets with the file by now.
            state = {key: file.get_tensor(key).astype(np.float32) for key in file.keys()}  # noqa: SIM118
            return state, _about(file.metadata())
    except (SafetensorError, TypeError, ValueError) as error:
        raise ConfigError(f"{path}: cannot be read ({_reason(error)}); {BROKEN}") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror or error})") from None


def _torch_load(path: str) -> dict[str, Any]:
    try:
        import torch
    except ImportError:
        raise ConfigError(f"{path}: reading .pth needs torch: pip install mimjax[torch]") from None
    import argparse
    import pickle
    import warnings

    check_archive(path)
    # Official training scripts keep their parsed flags beside the weights: an inert record.
    flags = torch.serialization.safe_globals([argparse.Namespace])
    try:
        with warnings.catch_warnings(action="ignore"), flags:
            whole = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if re.search(r"Unsupported operand|persistent id|too long|truncated", str(error)):
            raise ConfigError(f"{path}: cannot be read ({_reason(error)}); {BROKEN}") from None
        raise ConfigError(
            f"{path}: holds pickled objects, which mimjax never loads; save its tensors alone "
            "(torch.save(model.state_dict(), ...)) or as .safetensors"
        ) from None
    except Exception as error:  # a reader of broken bytes fails in any way
        if "TorchScript" not in str(error):
            raise ConfigError(f"{path}: cannot be read ({_reason(error)}); {BROKEN}") from None
        raise ConfigError(
            f"{path}: a TorchScript archive (as OpenAI publishes CLIP), which holds code; load it "
            "where you trust it and torch.save(model.state_dict(), ...), or take transformers' "
            ".safetensors of the same weights"
        ) from None
    if not isinstance(whole, dict):
        raise ConfigError(f"{path}: holds a {type(whole).__name__}; allowed: a state dict")
    return whole


def check_archive(path: str) -> None:
    """A .pth archive unpacks to about its own size and has the bytes that were written.

    Raises:
      ConfigError: it would grow (a zip bomb), or a checksum differs.
    """
    if not zipfile.is_zipfile(path):
        return  # the format before torch 1.6, or broken: torch says which
    size = os.path.getsize(path)
    try:
        with zipfile.ZipFile(path) as archive:
            unpacked = sum(entry.file_size for entry in archive.infolist())
            if unpacked > GROWTH * size + SMALL:
                raise ConfigError(
                    f"{path}: {size:,} bytes that unpack to {unpacked:,}; allowed: at most "
                    f"{GROWTH} times its size (torch.save does not compress)"
                )
            if bad := archive.testzip():  # torch compares no checksums
                raise ConfigError(f"{path}: the checksum of {bad} is wrong; {BROKEN}")
    except (zipfile.BadZipFile, zipfile.LargeZipFile, NotImplementedError, RuntimeError) as error:
        raise ConfigError(f"{path}: cannot be read ({_reason(error)}); {BROKEN}") from None


def _arrays(tensors: dict[str, Any], path: str) -> State:
    """Tensors as float32 arrays; anything else (epochs, flags) is left out."""
    found = {str(k): x for k, x in tensors.items() if hasattr(x, "untyped_storage")}
    if bad := [k for k, x in found.items() if x.is_sparse or x.is_quantized]:
        raise ConfigError(f"{path}: {bad[0]} is sparse or quantized; allowed: dense tensors")
    claims = {k: x.numel() * x.element_size() for k, x in found.items()}
    size = os.path.getsize(path)
    if sum(claims.values()) > GROWTH * size + SMALL:  # one stored number can claim any shape
        key = max(claims, key=claims.__getitem__)
        raise ConfigError(
            f"{path}: tensors of {sum(claims.values()):,} bytes in a file of {size:,} ({key} has "
            f"shape {list(found[key].shape)}); allowed: tensors that are stored in full"
        )
    return {k: x.float().numpy() for k, x in found.items()}


def _reason(error: BaseException) -> str:
    """An error's first sentence, on one line."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text.split(". ")[0][:120]
