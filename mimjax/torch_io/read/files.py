"""Reading of checkpoint files as {key: float32 array}: .safetensors, and .pth by torch.

Files may be hostile. A .pth file is loaded with `weights_only`, so that no pickled object is
created, and the sizes that a file states are compared with its own size before memory is allocated:
archives that grow when unpacked, tensors larger than their storage. Keys are not interpreted beyond
wrappers and libraries' names; `detect.py` finds the layout, `load.py` the parameters.
"""

from __future__ import annotations

import os
import re
import zipfile
from collections.abc import Iterable
from typing import Any, NamedTuple

import ml_dtypes  # noqa: F401  # numpy learns bfloat16 and float8 from it
import numpy as np
from safetensors import SafetensorError, safe_open

from mimjax.errors import ConfigError
from mimjax.torch_io.read import detect
from mimjax.torch_io.tables import variants
from mimjax.torch_io.tables.imports import official_names, own_names
from mimjax.torch_io.tables.teachers import backbone

State = dict[str, np.ndarray]
SUFFIXES = (
    ".safetensors",
    ".pth",
    ".pth.tar",
    ".pt",
    ".bin",
    ".ckpt",
    ".pkl",
    ".index.json",
)  # the last two kinds are refused with a reason
# names of the file of weights in a folder that timm, transformers or `mimjax export` made
IN_FOLDER = ("model.safetensors", "pytorch_model.bin")
# keys under which a .pth file has its weights, and their moving average
WRAPPERS = ("model", "module", "state_dict", "teacher", "student", "encoder")
SAME = ("model", "module", "state_dict")  # names of one thing
AVERAGES = ("model_ema", "state_dict_ema", "target_encoder")
# allowed growth when unpacked: a factor, plus bytes; files of torch.save are not compressed
GROWTH, SMALL = 4, 1 << 20
ADAPTER = re.compile(r"(^|[._])(lora_(A|B|down|up)|lora_embedding_(A|B)|hada_w\d|ia3_l)([._]|$)")
QUANTIZED = re.compile(r"\.(qweight|qzeros|SCB|weight_scale(_inv)?|absmax|quant_map|g_idx)$")
SHARD = re.compile(r"-\d{5}-of-\d{5}\.\w+$")
UNSHARDED = "transformers' save_pretrained(..., max_shard_size='100GB') writes it"
BROKEN = "it is truncated, corrupted or no checkpoint; copy or download it again"


class File(NamedTuple):
    """Content of a checkpoint file.

    Attributes:
      state: {key: float32 array}, the weights.
      average: moving average of the weights under the same keys; None = the file has none.
      about: metadata of a file that mimjax exported (`write.export.Export.metadata`), otherwise {}.
    """

    state: State
    average: State | None = None
    about: dict[str, str] = {}


def is_weights(path: str) -> bool:
    """Return whether a path names weights and no workdir: a file by its suffix, or a folder."""
    return path.endswith(SUFFIXES) or weights_file(path) != path


def weights_file(path: str) -> str:
    """Return the file of weights in the folder of a model; any other path as it is."""
    inside = (os.path.join(os.path.expanduser(path), name) for name in IN_FOLDER)
    return next((file for file in inside if os.path.isfile(file)), path)


def read_file(path: str) -> State:
    """Return the weights of a checkpoint file, {key: float32 array}, under official names.

    A wrapper ({"model": ...}, DINO's {"teacher": ...}) is removed. If there are keys that begin
    with `backbone.`, only these are kept, without that prefix. Names that transformers and timm
    give to the same tensors are replaced by those of the tables (`imports.official_names`).

    Raises:
      ConfigError: there is no such file, its suffix is unknown, torch is missing, or the file has
        pickled objects, is damaged, or states sizes larger than its own.
    """
    return read(path).state


def read(path: str) -> File:
    """Return the content of a checkpoint file: `read_file`, moving average and metadata.

    BootMAE and timm save a moving average beside the weights.

    Raises:
      ConfigError: see `read_file`.
    """
    path = weights_file(path)
    if path.endswith(".pkl"):
        raise ConfigError(
            f"{path}: a pickled module (as OpenAI's encoder.pkl of DALL-E), which mimjax never "
            "loads; take facebook/flava-image-codebook (the same network, as tensors), or load it "
            "where you trust it and save its state dict as .safetensors"
        )
    if path.endswith(".index.json"):
        raise ConfigError(
            f"{path}: a list of shards, which are not read; allowed: one file ({UNSHARDED})"
        )
    if not path.endswith(SUFFIXES):
        raise ConfigError(f"{path}: not a checkpoint file; allowed: {', '.join(SUFFIXES[:-2])}")
    if SHARD.search(path):
        raise ConfigError(
            f"{path}: one of several shards, which are not read; allowed: one file ({UNSHARDED})"
        )
    path = os.path.expanduser(path)
    if "://" in path:
        raise ConfigError(f"{path}: files of weights are read here alone; allowed: a local copy")
    if not os.path.isfile(path):
        raise ConfigError(f"{path}: no such file")
    if path.endswith(".safetensors"):
        state, about = _safetensors(path)
        return File(_named(state, about, path), None, about)
    whole = _torch_load(path)
    state = unwrapped(whole, path)
    average = next((whole[w] for w in AVERAGES if isinstance(whole.get(w), dict)), None)
    about = _about(whole.get("mimjax"))
    named = lambda tensors: _named(_arrays(tensors, path), about, path)
    return File(named(state), named(average) if average else None, about)


def unwrapped(whole: dict[str, Any], path: str) -> dict[str, Any]:
    """Return the state dict in the content of a .pth file.

    It is that under a known name, the only one in the file, or the content itself.

    Raises:
      ConfigError: there is none, or several that are equally good.
    """
    held = [k for k, x in whole.items() if isinstance(x, dict) and any(map(is_tensor, x.values()))]
    if plain := [w for w in WRAPPERS if w in held]:
        if several := [w for w in plain if w in SAME]:
            plain = several
        if len(several) > 1:
            raise ConfigError(
                f"{path}: state dicts under {', '.join(several)}; allowed: one of them, saved alone"
            )
        return whole[plain[0]]
    if any(map(is_tensor, whole.values())):
        return whole
    if len(held) == 1:
        return whole[held[0]]
    names = ", ".join(map(str, held or list(whole)[:5])) or "nothing"
    raise ConfigError(
        f"{path}: no state dict at its top, but {names}; allowed: one state dict, alone or under "
        f"{', '.join(WRAPPERS)}"
    )


def is_tensor(value: Any) -> bool:
    """Return whether a value of a .pth file is a tensor."""
    return hasattr(value, "untyped_storage")


def _named(state: State, about: dict[str, str], path: str) -> State:
    """Return a state dict under the names of the tables.

    Raises:
      ConfigError: it holds several encoders.
    """
    if about:
        return own_names(state)
    state = backbone(state)
    state = variants.transformers_names(state)
    known = lambda keys: detect.find(keys) is not None
    state = variants.stripped(state, known, path)
    return official_names(variants.dino_names(state))


def layout_of(file: File, where: str = "", roots: Iterable[str] = ()) -> str:
    """Return the layout of a file: what a file that mimjax exported says, or what its keys show.

    Args:
      where, roots: see `detect.detect`.

    Raises:
      ConfigError: it is unknown.
    """
    said = file.about.get("layout", "")
    return said if said in detect.TABLES else detect.detect(file.state, where, roots)


def check_plain(path: str, integer: dict[str, bool]) -> None:
    """Check that tensors are weights as they are multiplied with.

    Args:
      path: the file, for errors.
      integer: whether its numbers are integers, by key.

    Raises:
      ConfigError: there are weights of adapters, or quantized ones; the line names a key.
    """
    if key := next((k for k in integer if ADAPTER.search(k)), None):
        raise ConfigError(
            f"{path}: {key} is of an adapter (LoRA), without the weights that it changes; allowed: "
            "a file of the merged weights (peft: merge_and_unload())"
        )
    quantized = lambda k: QUANTIZED.search(k) or (integer[k] and re.search(r"weight$", k))
    if key := next((k for k in integer if quantized(k)), None):
        raise ConfigError(f"{path}: {key} is quantized; allowed: weights in floating point")


def _about(metadata: Any) -> dict[str, str]:
    """Return the metadata of a file that mimjax exported, {} for other files."""
    ours = isinstance(metadata, dict) and {"method", "layout", "weights"} <= metadata.keys()
    return {str(k): str(v) for k, v in metadata.items()} if ours else {}


def _safetensors(path: str) -> tuple[State, dict[str, str]]:
    """Return tensors and metadata of a .safetensors file."""
    try:
        with safe_open(path, framework="numpy") as file:
            # the library has already compared sizes and offsets of the header with the file
            stored = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
            about = _about(file.metadata())
    except AttributeError as error:  # of NumPy, which lacks such a type
        kind = str(error).split("'")[-2]
        raise ConfigError(
            f"{path}: numbers of type {kind}; allowed: float32, float16, bfloat16"
        ) from None
    except (SafetensorError, TypeError, ValueError) as error:
        raise ConfigError(f"{path}: cannot be read ({_reason(error)}); {BROKEN}") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror or error})") from None
    check_plain(path, {key: x.dtype.kind in "iu" for key, x in stored.items()})
    return {key: x.astype(np.float32) for key, x in stored.items()}, about


def _torch_load(path: str) -> dict[str, Any]:
    """Return the dict in a .pth file, loaded without unpickling objects."""
    try:
        import torch
    except ImportError:
        raise ConfigError(
            f"{path}: reading .pth needs torch: pip install 'mimjax[torch]'"
        ) from None
    import argparse
    import pickle
    import warnings

    check_archive(path)
    # official training scripts save their parsed flags, a Namespace without code, with the weights
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
    except Exception as error:  # a damaged file can make torch raise any exception
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
    """Check that a .pth archive unpacks to about its own size, and check its checksums.

    Raises:
      ConfigError: the archive would grow (a zip bomb), or a checksum is wrong.
    """
    if not zipfile.is_zipfile(path):
        return  # a file of torch before 1.6 or a damaged one; torch raises the error
    size = os.path.getsize(path)
    try:
        with zipfile.ZipFile(path) as archive:
            unpacked = sum(entry.file_size for entry in archive.infolist())
            if unpacked > GROWTH * size + SMALL:
                raise ConfigError(
                    f"{path}: {size:,} bytes that unpack to {unpacked:,}; allowed: at most "
                    f"{GROWTH} times its size (torch.save does not compress)"
                )
            if bad := archive.testzip():  # torch does not compare checksums
                raise ConfigError(f"{path}: the checksum of {bad} is wrong; {BROKEN}")
    except (zipfile.BadZipFile, zipfile.LargeZipFile, NotImplementedError, RuntimeError) as error:
        raise ConfigError(f"{path}: cannot be read ({_reason(error)}); {BROKEN}") from None


def _arrays(tensors: dict[str, Any], path: str) -> State:
    """Return the tensors as float32 arrays; other values (epochs, flags) are left out.

    Raises:
      ConfigError: a tensor is sparse or quantized, or the tensors are larger than the file.
    """
    tensors = {str(k): x for k, x in tensors.items() if is_tensor(x)}
    if bad := [k for k, x in tensors.items() if x.is_sparse or x.is_quantized]:
        raise ConfigError(f"{path}: {bad[0]} is sparse or quantized; allowed: dense tensors")
    check_plain(path, {k: not x.is_floating_point() for k, x in tensors.items()})
    sizes = {k: x.numel() * x.element_size() for k, x in tensors.items()}
    size = os.path.getsize(path)
    # a tensor with strides of 0 can have any shape with a single stored number
    if sum(sizes.values()) > GROWTH * size + SMALL:
        key = max(sizes, key=sizes.__getitem__)
        raise ConfigError(
            f"{path}: tensors of {sum(sizes.values()):,} bytes in a file of {size:,} ({key} has "
            f"shape {list(tensors[key].shape)}); allowed: tensors that are stored in full"
        )
    return {k: x.float().numpy() for k, x in tensors.items()}


def _reason(error: BaseException) -> str:
    """Return an error's first sentence on one line, at most 120 characters."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text.split(". ")[0][:120]
