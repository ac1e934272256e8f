"""An image of any number of 8-bit channels, with the few operations of Pillow that crops need.

Pillow resizes every channel by itself, so three bands give the very pixels of an RGB image. No
color operations: what red, green and blue mean here nobody knows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from PIL import Image


class Bands:
    """One gray Pillow image per channel, all of one size."""

    def __init__(self, bands: Sequence[Image.Image]):
        self.bands = tuple(bands)
        if len({band.size for band in self.bands}) != 1:
            sizes = ", ".join(f"{w}x{h}" for w, h in sorted({b.size for b in self.bands}))
            raise ValueError(f"channels of different sizes: {sizes}")

    @property
    def size(self) -> tuple[int, int]:
        """(width, height), as Pillow has it."""
        return self.bands[0].size

    @property
    def width(self) -> int:
        return self.size[0]

    @property
    def height(self) -> int:
        return self.size[1]

    def crop(self, box: tuple[int, int, int, int]) -> Bands:
        return self._each(lambda band: band.crop(box))

    def resize(self, size: tuple[int, int], resample: Any) -> Bands:
        return self._each(lambda band: band.resize(size, resample))

    def transpose(self, method: Any) -> Bands:
        return self._each(lambda band: band.transpose(method))

    def histogram(self) -> list[int]:
        """256 counts per channel, one channel after the other."""
        return [count for band in self.bands for count in band.histogram()]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """uint8 [h w c], always a copy."""
        return np.stack([np.asarray(band) for band in self.bands], axis=-1).astype(dtype or "uint8")

    def _each(self, fn: Callable[[Image.Image], Image.Image]) -> Bands:
        return Bands([fn(band) for band in self.bands])
