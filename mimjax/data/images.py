"""Helpers for sources of images: cheap pickling, fingerprints, and checks of options.

The sources themselves are in `sources.py`, `folder.py`, `files.py`, `bundled.py` and `records.py`.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterable
from typing import Any

from mimjax.task import ConfigError


class Lazy:
    """Mixin for dataclass sources that pickles their fields only, not arrays loaded on demand.

    A worker process thus receives a few bytes and loads its own arrays.
    """

    def __getstate__(self) -> dict[str, Any]:
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}  # pyright: ignore


def fingerprint(parts: Iterable[Any]) -> str:
    """Return 16 hex digits over the `str` of all parts, the same in every process and version."""
    digest = hashlib.blake2b(digest_size=8)
    for part in parts:
        digest.update(part if isinstance(part, bytes) else str(part).encode())
        digest.update(b"\0")  # so that ("ab", "c") and ("a", "bc") differ
    return digest.hexdigest()


def check_option(name: str, value: Any, ok: bool, allowed: str) -> None:
    """Check an option of a source.

    Args:
      name: name of the option below `data`.
      value: its value.
      ok: whether the value is allowed.
      allowed: allowed values in words.

    Raises:
      ConfigError: `ok` is False.
    """
    if not ok:
        raise ConfigError(f"data.{name}: found {value!r}; allowed: {allowed}")


def check_split(split: str) -> None:
    """Check the name of a split: "train" or "test"; a source maps them to the names of its files.

    Raises:
      ConfigError: the name is another one.
    """
    check_option("split", split, split in ("train", "test"), "'train', 'test'")
