"""Writing files that others read: tensors, their metadata, and nothing half-written.

Everything is made beside its place and moved there when it is whole; what a failed export leaves
is nothing. `.safetensors` needs no torch, `.pth` does.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from typing import Any

import numpy as np

from mimjax import stopping
from mimjax.errors import ConfigError

Tensors = dict[str, np.ndarray]


def free(path: str, overwrite: bool) -> str:
    """The absolute path to write at.

    Raises:
      ConfigError: it exists and is not to be overwritten.
    """
    path = os.path.abspath(os.path.expanduser(path))
    if os.path.lexists(path) and not overwrite:
        raise ConfigError(f"--output: {path} exists; allowed: --overwrite, or another path")
    return path


@contextlib.contextmanager
def staged(path: str, overwrite: bool) -> Iterator[str]:
    """A path beside `path` to write a file or folder at; moved to `path` if the body succeeds.

    Raises:
      ConfigError: `path` exists and is not to be overwritten, or nothing can be written there
        (the body's OSErrors too); the line names --output.
    """
    path, room = free(path, overwrite), None
    parent, name = os.path.split(path)
    try:
        os.makedirs(parent, exist_ok=True)
        room = tempfile.mkdtemp(prefix=f".{name}.", dir=parent)
        new = os.path.join(room, name)
        with stopping.undoing(lambda: shutil.rmtree(room or "", ignore_errors=True)):
            yield new
            with stopping.whole():
                _replace(new, path, os.path.join(room, "old"))
    except OSError as error:
        reason = error.strerror or error
        raise ConfigError(f"--output: cannot write {path} ({reason})") from None
    finally:
        if room:
            shutil.rmtree(room, ignore_errors=True)


def _replace(new: str, path: str, old: str) -> None:
    """Puts `new` in the place of `path`; a folder cannot replace what is there at once."""
    if not os.path.lexists(path) or not (os.path.isdir(path) or os.path.isdir(new)):
        os.replace(new, path)
        return
    os.replace(path, old)
    try:
        os.replace(new, path)
    except OSError:
        os.replace(old, path)
        raise


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
