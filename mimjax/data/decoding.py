"""Files to 8-bit images, whatever they are.

Decoding of three channels follows torchvision's `ImageFolder` (`Image.open(...).convert("RGB")`),
so an alpha channel is dropped, not blended, and of an animation the first frame counts; on top of
that the EXIF orientation is applied, and 16-bit and float values are scaled instead of clipped.
Any other number of channels comes as `Bands`. A file that cannot be had raises `BadImage`.
`open_image` is the only place of the package that opens image files: other readers of Pillow start
programs (Ghostscript for EPS) or are little tested against hostile files.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import os
import re
import sys
from typing import IO, Any, NoReturn

import numpy as np
from PIL import Image, ImageOps

from mimjax.data.bands import Bands
from mimjax.data.images import check_option
from mimjax.data.index import shown
from mimjax.task import ConfigError
from mimjax.values import Count, Number, check

# JPEG includes MPO, which phones write. None of these readers starts a program.
FORMATS = ("JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP")
WIDE = re.compile(r"(LA|RGB|RGBA|RGBX|CMYK);16[BLN]")  # how a file holds color of 16 bits
TILE_SIDES = 322, 323  # TIFF tags: width and height of a tile
Range = tuple[Number, Number]
MAX_PIXELS = 178_956_970  # Pillow's own bound against decompression bombs


class BadImage(ConfigError):
    """A file that cannot be read or decoded; training may skip it.

    Attributes:
      path: of the file, or what names a record.
      reason: the same at every try, without addresses or times.
    """

    def __init__(self, message: str, path: str, reason: str):
        super().__init__(message, path, reason)  # pickled by these
        self.path, self.reason = path, reason

    def __str__(self) -> str:
        return self.args[0]


@dataclasses.dataclass(frozen=True)
class Decoding:
    """How files become images.

    Attributes:
      channels: 3 = RGB, whatever the file holds. 1 = gray. Else a file must have just that many:
        an array [h w c], a TIFF of as many pages, or a picture with as many bands (4: RGBA, CMYK).
      max_pixels: height x width of a file's image, at most.
      value_range: (low, high) of values that are not 8 bits: low becomes 0, high 255, the rest is
        clipped. None = 0 to 65535 for 16 bits and 0 to 1 for floats, which must not leave it.
    """

    channels: Count = 3
    max_pixels: Count = MAX_PIXELS
    value_range: Range | None = None

    def __post_init__(self):
        check(self, "data")
        if self.value_range is not None:
            object.__setattr__(self, "value_range", tuple(self.value_range))
            ok = self.value_range[0] < self.value_range[1]
            allowed = "(low, high) with low < high, or None = the type's own"
            check_option("value_range", self.value_range, ok, allowed)

    @property
    def signature(self) -> str:
        """What fingerprints of data hold; written as older versions wrote it."""
        value_range = self.value_range or (0.0, 0.0)
        return (
            f"Decoding(channels={self.channels}, max_pixels={self.max_pixels}, "
            f"value_range={value_range})"
        )


def open_image(file: IO[bytes] | str | os.PathLike) -> Image.Image:
    """A file's image, by its content and not by its name, before its pixels are decoded.

    Raises:
      UnidentifiedImageError: its format is none of FORMATS.
    """
    return Image.open(file, formats=FORMATS)


def to_uint8(values: np.ndarray, value_range: Range | None) -> np.ndarray:
    """Numbers of any kind as uint8; see `Decoding.value_range`. 8-bit ones stay as they are.

    Raises:
      ValueError: a type or values without a stated range.
    """
    low, high = value_range or (0.0, 1.0)
    own, floating = value_range is None, values.dtype.kind == "f"
    if values.dtype == np.uint8:
        return values
    if values.dtype == bool:
        return values.astype(np.uint8) * 255
    if floating and np.isnan(values).any():
        raise ValueError("values that are no numbers")
    if own and values.dtype.kind == "u" and values.dtype.itemsize == 2:
        return (values >> 8).astype(np.uint8)
    if own and not floating:
        raise ValueError(f"{values.dtype} needs data.value_range")
    if own and (values.min() < 0 or values.max() > 1):
        found = f"floats from {values.min():g} to {values.max():g}"
        raise ValueError(f"{found}; allowed: 0 to 1, or data.value_range")
    return (np.clip((values - low) / (high - low), 0, 1) * 255 + 0.5).astype(np.uint8)


def upright(image: Image.Image) -> Image.Image:
    """The image as its camera was held; one with an unreadable EXIF block stays as it is."""
    image.load()  # so that what fails below is the EXIF block alone
    with contextlib.suppress(Exception):
        return ImageOps.exif_transpose(image)
    return image


def to_8_bits(image: Image.Image, value_range: Range | None) -> Image.Image:
    """Numbers beyond 8 bits scaled to gray, palettes looked up; other modes stay."""
    if image.mode.startswith("I"):
        values = np.asarray(image)
        if value_range is None:
            # Pillow's own conversion clips at 255 and leaves a white picture.
            values = np.clip(values.astype(np.int64) >> 8, 0, 255).astype(np.uint8)
        return Image.fromarray(to_uint8(values, value_range))
    if image.mode == "F":
        return Image.fromarray(to_uint8(np.asarray(image), value_range))
    if image.mode == "PA" or (image.mode == "P" and "transparency" in image.info):
        return image.convert("RGBA")  # Pillow warns when the palette goes to RGB directly
    return image.convert("RGB") if image.mode == "P" else image


def sixteen_bit_color(data: bytes) -> np.ndarray | None:
    """The values of an upright color image of 16 bits, uint16 [h w c]; None for any other image.

    Pillow has no such mode and keeps the upper bytes. Its decoders give the lower bytes when they
    are told the other byte order.

    Raises:
      ValueError: gray with alpha, of which Pillow gives the upper bytes alone.
    """
    halves = []
    for orders in (None, str.maketrans("BLN", "LBB" if sys.byteorder == "little" else "LBL")):
        with open_image(io.BytesIO(data)) as image:
            parts: Any = getattr(image, "tile", [])
            tiles = [(t, t[3] if isinstance(t[3], tuple) else (t[3],)) for t in parts]
            if not tiles or not all(WIDE.fullmatch(str(raw[0])) for _, raw in tiles):
                return None
            if any(raw[0].startswith("LA") for _, raw in tiles):
                raise ValueError("gray with alpha of 16 bits; allowed: without alpha")
            if orders:
                image.tile = [(*t[:3], _swapped(t[3], orders)) for t, _ in tiles]  # pyright: ignore
            halves.append(np.asarray(upright(image)).astype(np.uint16))
    return halves[0] << 8 | halves[1]


def _swapped(raw: Any, orders: dict[int, int]) -> Any:
    """A tile's arguments with the raw mode's last letter translated."""
    if isinstance(raw, tuple):
        return (_swapped(raw[0], orders), *raw[1:])
    return raw[:-1] + raw[-1].translate(orders)


def to_rgb(image: Image.Image, value_range: Range | None = None) -> Image.Image:
    """An upright 8-bit RGB copy of any Pillow image; alpha is dropped as torchvision does."""
    return to_8_bits(upright(image), value_range).convert("RGB")


def to_bands(image: Image.Image, how: Decoding) -> Bands:
    """The image as `how.channels` bands of 8 bits.

    Raises:
      ValueError: it has another number of them.
    """
    pages = getattr(image, "n_frames", 1) if image.format == "TIFF" else 1
    if pages > 1:
        if pages != how.channels:
            raise ValueError(f"{pages} pages; data.channels is {how.channels}")
        bands = [_page(image, number, how) for number in range(pages)]
    elif how.channels == 1:
        bands = [to_8_bits(upright(image), how.value_range).convert("L")]
    else:
        image = to_8_bits(upright(image), how.value_range)
        bands = list(image.split())
    if len(bands) != how.channels:
        raise ValueError(f"mode {image.mode}; data.channels is {how.channels}")
    return Bands(bands)


def _page(image: Image.Image, number: int, how: Decoding) -> Image.Image:
    image.seek(number)
    check_head(image, how)
    page = to_8_bits(upright(image), how.value_range)
    if page.mode not in ("1", "L"):
        raise ValueError(f"page {number} is {page.mode}; allowed: pages of one channel")
    return page.convert("L")


def check_head(image: Image.Image, how: Decoding) -> None:
    """Raises ValueError for an image, or a tile of a TIFF, of more pixels than allowed."""
    check_size(image.size, how)
    tags: Any = getattr(image, "tag_v2", {})
    # libtiff holds a tile as a whole, however small the image is that it covers
    check_size((int(tags.get(TILE_SIDES[0], 0)), int(tags.get(TILE_SIDES[1], 0))), how)


def check_size(size: tuple[int, int], how: Decoding) -> None:
    """Raises ValueError for more pixels than allowed, before they are decoded."""
    if size[0] * size[1] > how.max_pixels:
        raise ValueError(f"{size[0]}x{size[1]} pixels; data.max_pixels is {how.max_pixels}")


def decode(
    data: bytes, name: str, key: str = "", how: Decoding = Decoding(), least: int = 0
) -> Image.Image | Bands:
    """The image in `data`: RGB, or Bands for another number of channels.

    Args:
      data: a file that Pillow reads.
      name: path or record id.
      key: of the setting that named it, for errors.
      least: pixels of both sides that suffice: a larger JPEG is decoded at a half, a quarter or an
        eighth of its size, several times faster. 0 = as it is.

    Raises:
      BadImage: `data` is no readable image, or not one of so many channels or pixels.
    """
    if not data:
        refuse(key, name, "empty file")
    if Image.MAX_IMAGE_PIXELS and how.max_pixels > Image.MAX_IMAGE_PIXELS:
        # Pillow has one bound per process; it is raised and never lowered, ours is checked below.
        Image.MAX_IMAGE_PIXELS = how.max_pixels
    try:
        with open_image(io.BytesIO(data)) as image:
            check_head(image, how)
            if least:
                image.draft(None, (least, least))
            if how.value_range and how.value_range[0] != how.value_range[1]:
                color = sixteen_bit_color(data)
                if color is not None:
                    image = Image.fromarray(to_uint8(color, how.value_range))
            return to_rgb(image, how.value_range) if how.channels == 3 else to_bands(image, how)
    except Image.UnidentifiedImageError:
        refuse(key, name, "unknown format")
    except Exception as err:  # Pillow's readers raise whatever a broken file makes them trip over
        refuse(key, name, err)


def load_array(file: Any, name: str, key: str, how: Decoding) -> Bands:
    """The image in a NumPy file, [h w c] or, for one channel, [h w].

    Args:
      file: a local path, which is mapped and not read whole, or an open binary file.

    Raises:
      BadImage: no such array, objects, or values that no rule makes 8 bits of.
    """
    try:
        local = isinstance(file, str)
        values = np.load(file, mmap_mode="r" if local else None, allow_pickle=False)
        if not isinstance(values, np.ndarray):
            raise ValueError("an archive")
        array = values[..., None] if values.ndim == 2 and how.channels == 1 else values
        if array.ndim != 3 or array.shape[2] != how.channels or not array.size:
            raise ValueError(f"shape {values.shape}; allowed: (h, w, {how.channels})")
        check_size((array.shape[1], array.shape[0]), how)
        array = to_uint8(np.asarray(array), how.value_range)
        return Bands([Image.fromarray(array[..., i].copy()) for i in range(how.channels)])
    except OSError as err:
        refuse(key, name, err.strerror or err)
    except Exception as err:
        refuse(key, name, err)


def refuse(key: str, name: str, reason: Any) -> NoReturn:
    """Raises the BadImage of a file that is no readable image."""
    # not every message of Pillow fits into one line
    text = " ".join(str(reason).split()) or type(reason).__name__
    where = f"{key}: {shown(name)}" if key else shown(name)
    message = f"{where}: not a readable image ({text}); repair or remove this file"
    raise BadImage(message, name, text) from (reason if isinstance(reason, BaseException) else None)
