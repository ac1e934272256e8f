"""Images with any number of 8-bit channels, with the operations of Pillow that crops need.

Pillow resizes each channel separately, so three bands give the same pixels as one RGB image. There
are no operations on colors, since the meaning of the channels is unknown.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from PIL import Image


class Bands:
    """Image of c channels: one gray Pillow image [h w] per channel, all of one size.

    Raises:
      ValueError: the channels have different sizes.
    """

    def __init__(self, bands: Sequence[Image.Image]):
        self.bands = tuple(bands)
        if len({band.size for band in self.bands}) != 1:
            sizes = ", ".join(f"{w}x{h}" for w, h in sorted({b.size for b in self.bands}))
            raise ValueError(f"channels of different sizes: {sizes}")

    @property
    def size(self) -> tuple[int, int]:
        """Return (width, height) in pixels, in Pillow's order."""
        return self.bands[0].size

    @property
    def width(self) -> int:
        return self.size[0]

    @property
    def height(self) -> int:
        return self.size[1]

    def crop(self, box: tuple[int, int, int, int]) -> Bands:
        """Return the part in `box`: (left, top, right, bottom) in pixels."""
        return self._each(lambda band: band.crop(box))

    def resize(self, size: tuple[int, int], resample: Any) -> Bands:
        """Return the image resized to `size`: (width, height) in pixels."""
        return self._each(lambda band: band.resize(size, resample))

    def transpose(self, method: Any) -> Bands:
        """Return the image flipped or rotated by one of Pillow's `Image.Transpose`."""
        return self._each(lambda band: band.transpose(method))

    def histogram(self) -> list[int]:
        """Return 256 counts per channel, channel by channel."""
        return [count for band in self.bands for count in band.histogram()]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """Return a copy of the pixels, uint8 [h w c]."""
        return np.stack([np.asarray(band) for band in self.bands], axis=-1).astype(dtype or "uint8")

    def _each(self, fn: Callable[[Image.Image], Image.Image]) -> Bands:
        return Bands([fn(band) for band in self.bands])
