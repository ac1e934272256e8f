"""Writing files that others read: tensors and their metadata.

`outputs.staged` says where. `.safetensors` needs no torch, `.pth` does.
"""

from __future__ import annotations

import json
import os
from typing import Any

import numpy as np

from mimjax.errors import ConfigError

Tensors = dict[str, np.ndarray]


def write_tensors(path: str, tensors: Tensors, wrapper: str, metadata: dict[str, str]) -> None:
    """A `.safetensors` file, or a `.pth` of {wrapper: tensors, "mimjax": metadata}.

    Raises:
      ConfigError: .pth without torch.
      OSError: it cannot be written.
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
        except RuntimeError as error:  # what its writer makes of a full disk
            raise OSError(str(error).strip().splitlines()[0]) from None
        _flush(file)


def _flush(file: Any) -> None:
    """Onto the disk, so that a full one is noticed."""
    file.flush()
    os.fsync(file.fileno())


def import_torch(what: str) -> Any:
    """The module torch.

    Raises:
      ConfigError: it is not installed; `what` begins the line.
    """
    try:
        import torch
    except ImportError:
        raise ConfigError(f"{what}: needs torch: pip install mimjax[torch]") from None
    return torch


def write_folder(
    path: str, tensors: Tensors, metadata: dict[str, str], files: dict[str, dict[str, Any]]
) -> None:
    """A folder of model.safetensors and JSON files."""
    os.mkdir(path)
    for name, content in files.items():
        with open(os.path.join(path, name), "w") as file:
            json.dump(content, file, indent=2)
            file.write("\n")
            _flush(file)
    write_tensors(os.path.join(path, "model.safetensors"), tensors, "", metadata)
