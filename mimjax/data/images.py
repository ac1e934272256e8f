"""What all sources share: cheap pickling, fingerprints, option checks."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterable
from typing import Any

from mimjax.task import ConfigError


class Lazy:
    """Mixin for dataclass sources: pickles the fields only, never what was loaded on demand.

    A worker process then gets a few bytes and loads its own arrays.
    """

    def __getstate__(self) -> dict[str, Any]:
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}  # pyright: ignore


def fingerprint(parts: Iterable[Any]) -> str:
    """16 hex digits over the `str` of all parts; the same in every process and version."""
    digest = hashlib.blake2b(digest_size=8)
    for part in parts:
        digest.update(part if isinstance(part, bytes) else str(part).encode())
        digest.update(b"\0")  # so that ("ab", "c") and ("a", "bc") differ
    return digest.hexdigest()


def check_option(name: str, value: Any, ok: bool, allowed: str) -> None:
    """Raises the one-line ConfigError of a wrong option value."""
    if not ok:
        raise ConfigError(f"data.{name}: found {value!r}; allowed: {allowed}")


def check_split(split: str) -> None:
    """Only "train" and "test" exist; a source maps them onto what its files call them."""
    check_option("split", split, split in ("train", "test"), "'train', 'test'")
