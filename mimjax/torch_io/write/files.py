"""Writing of exported tensors and their metadata as .safetensors or .pth, or a folder with JSON.

The paths are stages of `storage.outputs`, so a failed write leaves nothing behind. A .safetensors
file is written without torch, a .pth file needs it. What the tensors are is decided in `export.py`.
"""

from __future__ import annotations

import json
import os
from typing import Any

import numpy as np

from mimjax.errors import ConfigError

Tensors = dict[str, np.ndarray]


def write_tensors(path: str, tensors: Tensors, wrapper: str, metadata: dict[str, str]) -> None:
    """Write a .safetensors file, or a .pth file of {wrapper: tensors, "mimjax": metadata}.

    Args:
      path: the file; its suffix decides the kind.
      tensors: {key: array}, written as float32.
      wrapper: key of a .pth file under which the tensors are.
      metadata: {name: text}.

    Raises:
      ConfigError: torch is missing for a .pth file.
      OSError: the file cannot be written.
    """
    tensors = {k: np.ascontiguousarray(v, np.float32) for k, v in tensors.items()}
    if path.endswith(".safetensors"):
        from safetensors.numpy import save

        data = save(tensors, {"format": "pt", **metadata})
        with open(path, "wb") as file:
            file.write(data)
            _flush(file)
        return
    torch = import_torch(path)
    state = {k: torch.from_numpy(v.copy()) for k, v in tensors.items()}
    with open(path, "wb") as file:
        try:
            torch.save({wrapper: state, "mimjax": metadata}, file)
        except RuntimeError as error:  # torch's writer raises it for a full disk
            raise OSError(str(error).strip().splitlines()[0]) from None
        _flush(file)


def _flush(file: Any) -> None:
    """Write a file's buffers to the disk, which raises an OSError if it is full."""
    file.flush()
    os.fsync(file.fileno())


def import_torch(what: str) -> Any:
    """Return the module torch.

    Args:
      what: what needs torch; beginning of the error.

    Raises:
      ConfigError: torch is not installed.
    """
    try:
        import torch
    except ImportError:
        raise ConfigError(f"{what}: needs torch: pip install 'mimjax[torch]'") from None
    return torch


def write_folder(
    path: str, tensors: Tensors, metadata: dict[str, str], files: dict[str, dict[str, Any]]
) -> None:
    """Write a folder with model.safetensors and JSON files.

    Args:
      path: the folder, which must not exist.
      tensors, metadata: see `write_tensors`.
      files: {file name: JSON object}.

    Raises:
      OSError: the folder cannot be written.
    """
    os.mkdir(path)
    for name, content in files.items():
        with open(os.path.join(path, name), "w") as file:
            json.dump(content, file, indent=2)
            file.write("\n")
            _flush(file)
    write_tensors(os.path.join(path, "model.safetensors"), tensors, "", metadata)
