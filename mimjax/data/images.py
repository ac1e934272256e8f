"""What all sources share: bytes to RGB, fingerprints, option checks and cheap pickling.

Decoding follows torchvision's `ImageFolder` (`Image.open(...).convert("RGB")`), so an alpha channel
is dropped, not blended; on top of that the EXIF orientation is applied and 16-bit gray is scaled
instead of clipped.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
from collections.abc import Iterable
from typing import Any

import numpy as np
from PIL import Image, ImageOps

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


def to_rgb(image: Image.Image) -> Image.Image:
    """An upright 8-bit RGB copy of any Pillow image; alpha is dropped as torchvision does."""
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):
        # 16-bit gray: Pillow's own conversion clips at 255 and leaves a white picture.
        values = np.asarray(image).astype(np.int64)
        image = Image.fromarray(np.clip(values >> 8, 0, 255).astype(np.uint8))
    elif image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")  # Pillow warns when the palette goes to RGB directly
    return image.convert("RGB")


def decode(data: bytes, name: str) -> Image.Image:
    """The RGB image in `data`.

    Raises:
      ConfigError: `data` is no readable image; the message holds `name`, a path or record id.
    """
    try:
        with Image.open(io.BytesIO(data)) as image:
            return to_rgb(image)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as err:
        raise ConfigError(
            f"{name}: not a readable image ({err}); repair or remove this file"
        ) from err


def check_option(name: str, value: Any, ok: bool, allowed: str) -> None:
    """Raises the one-line ConfigError of a wrong option value."""
    if not ok:
        raise ConfigError(f"data.{name}: found {value!r}; allowed: {allowed}")


def check_split(split: str) -> None:
    """Only "train" and "test" exist; a source maps them onto what its files call them."""
    check_option("split", split, split in ("train", "test"), "'train', 'test'")
