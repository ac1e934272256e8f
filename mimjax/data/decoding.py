"""Decoding of image files and NumPy files to 8-bit images.

Images of three channels are decoded as by torchvision's `ImageFolder`
(`Image.open(...).convert("RGB")`): an alpha channel is dropped, not blended, and the first frame of
an animation is taken. In addition the EXIF orientation is applied, and 16-bit and float values are
scaled instead of clipped. Images of other numbers of channels are `Bands`. A file that cannot be
decoded raises `BadImage`. All image files are opened by `open_image`, which allows FORMATS only:
other readers of Pillow start programs (Ghostscript for EPS) or are little tested against hostile
files.
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
WIDE = re.compile(r"(LA|RGB|RGBA|RGBX|CMYK);16[BLN]")  # Pillow's raw modes of 16 bits per color
TILE_SIDES = 322, 323  # TIFF tags of the width and height of a tile
Range = tuple[Number, Number]
MAX_PIXELS = 178_956_970  # Pillow's bound against decompression bombs


class BadImage(ConfigError):
    """Error of a file that cannot be read or decoded; training may skip the file.

    Attributes:
      path: path of the file, or name of a record.
      reason: cause in words that are the same at every attempt (no addresses, no times).
    """

    def __init__(self, message: str, path: str, reason: str):
        super().__init__(message, path, reason)  # pickle calls __init__ with these arguments
        self.path, self.reason = path, reason

    def __str__(self) -> str:
        return self.args[0]


@dataclasses.dataclass(frozen=True)
class Decoding:
    """Settings of decoding.

    Attributes:
      channels: 3 = RGB, converted from any file; 1 = gray, converted as well. For other numbers a
        file must have this number of channels: an array [h w c], a TIFF of c pages, or a picture
        with c bands (4: RGBA, CMYK).
      max_pixels: largest allowed height x width of an image.
      value_range: (low, high) for values that are not 8 bits: low becomes 0, high 255, values
        outside are clipped. None = 0 to 65535 for 16 bits and 0 to 1 for floats; floats outside
        are an error.
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
        """Return the text that enters the fingerprint of data.

        It is the same as in older versions, where (0, 0) stood for None, so that their workdirs
        can be continued.
        """
        value_range = self.value_range or (0.0, 0.0)
        return (
            f"Decoding(channels={self.channels}, max_pixels={self.max_pixels}, "
            f"value_range={value_range})"
        )


def open_image(file: IO[bytes] | str | os.PathLike) -> Image.Image:
    """Open an image file by its content, not its name; pixels are not yet decoded.

    Raises:
      UnidentifiedImageError: the format is none of FORMATS.
    """
    return Image.open(file, formats=FORMATS)


def to_uint8(values: np.ndarray, value_range: Range | None) -> np.ndarray:
    """Return values of any dtype scaled to uint8; uint8 values are returned unchanged.

    Args:
      values: array of any shape.
      value_range: see `Decoding.value_range`.

    Raises:
      ValueError: the dtype needs a `value_range`, floats are outside of 0 to 1 without one, or a
        value is NaN.
    """
    low, high = value_range or (0.0, 1.0)
    default, floating = value_range is None, values.dtype.kind == "f"
    if values.dtype == np.uint8:
        return values
    if values.dtype == bool:
        return values.astype(np.uint8) * 255
    if floating and np.isnan(values).any():
        raise ValueError("values that are no numbers")
    if default and values.dtype.kind == "u" and values.dtype.itemsize == 2:
        return (values >> 8).astype(np.uint8)
    if default and not floating:
        raise ValueError(f"{values.dtype} needs data.value_range")
    if default and (values.min() < 0 or values.max() > 1):
        limits = f"floats from {values.min():g} to {values.max():g}"
        raise ValueError(f"{limits}; allowed: 0 to 1, or data.value_range")
    return (np.clip((values - low) / (high - low), 0, 1) * 255 + 0.5).astype(np.uint8)


def upright(image: Image.Image) -> Image.Image:
    """Return the image rotated by its EXIF orientation; an unreadable EXIF block is ignored."""
    image.load()  # decode here, so that an error below comes from the EXIF block
    with contextlib.suppress(Exception):
        return ImageOps.exif_transpose(image)
    return image


def to_8_bits(image: Image.Image, value_range: Range | None) -> Image.Image:
    """Return an image with 8 bits per channel.

    Integers of more bits and floats are scaled to gray (see `to_uint8`), palettes are replaced by
    their colors, other modes are returned unchanged.
    """
    if image.mode.startswith("I"):
        values = np.asarray(image)
        if value_range is None:
            # Pillow's own conversion clips at 255, which gives a white picture
            values = np.clip(values.astype(np.int64) >> 8, 0, 255).astype(np.uint8)
        return Image.fromarray(to_uint8(values, value_range))
    if image.mode == "F":
        return Image.fromarray(to_uint8(np.asarray(image), value_range))
    if image.mode == "PA" or (image.mode == "P" and "transparency" in image.info):
        return image.convert("RGBA")  # Pillow warns if such a palette is converted to RGB directly
    return image.convert("RGB") if image.mode == "P" else image


def sixteen_bit_color(data: bytes) -> np.ndarray | None:
    """Return the values of a color image with 16 bits per channel, uint16 [h w c], upright.

    Pillow has no such mode and keeps the upper bytes only. Its decoders give the lower bytes if
    they are told the opposite byte order, so the image is decoded twice.

    Args:
      data: content of an image file.

    Returns:
      None for any other image.

    Raises:
      ValueError: gray with alpha, whose lower bytes cannot be decoded in this way.
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
    """Return a tile's arguments with the byte order of the raw mode, its last letter, replaced."""
    if isinstance(raw, tuple):
        return (_swapped(raw[0], orders), *raw[1:])
    return raw[:-1] + raw[-1].translate(orders)


def to_rgb(image: Image.Image, value_range: Range | None = None) -> Image.Image:
    """Return an upright 8-bit RGB copy of any Pillow image; alpha is dropped as in torchvision."""
    return to_8_bits(upright(image), value_range).convert("RGB")


def to_bands(image: Image.Image, how: Decoding) -> Bands:
    """Return the image as `how.channels` bands of 8 bits.

    Raises:
      ValueError: the image has another number of channels or pages, or too many pixels.
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
    """Return one page of a TIFF as gray of 8 bits."""
    image.seek(number)
    check_head(image, how)
    page = to_8_bits(upright(image), how.value_range)
    if page.mode not in ("1", "L"):
        raise ValueError(f"page {number} is {page.mode}; allowed: pages of one channel")
    return page.convert("L")


def check_head(image: Image.Image, how: Decoding) -> None:
    """Check the size of an image, and of the tiles of a TIFF, before its pixels are decoded.

    Raises:
      ValueError: more pixels than `how.max_pixels`.
    """
    check_size(image.size, how)
    tags: Any = getattr(image, "tag_v2", {})
    # libtiff decodes a tile as a whole, even if the image covers only a part of it
    check_size((int(tags.get(TILE_SIDES[0], 0)), int(tags.get(TILE_SIDES[1], 0))), how)


def check_size(size: tuple[int, int], how: Decoding) -> None:
    """Check a size in pixels.

    Raises:
      ValueError: more pixels than `how.max_pixels`.
    """
    if size[0] * size[1] > how.max_pixels:
        raise ValueError(f"{size[0]}x{size[1]} pixels; data.max_pixels is {how.max_pixels}")


def decode(
    data: bytes, name: str, key: str = "", how: Decoding = Decoding(), min_side: int = 0
) -> Image.Image | Bands:
    """Return the image in `data`: RGB, or Bands for another number of channels.

    Args:
      data: content of an image file.
      name: path or record id, for errors.
      key: setting that named it, for errors.
      how: settings of decoding.
      min_side: sides in pixels that are enough for the caller: a larger JPEG is decoded at a half,
        a quarter or an eighth of its size, several times faster. 0 = full size.

    Raises:
      BadImage: `data` is no readable image, or has another number of channels or too many pixels.
    """
    if not data:
        refuse(key, name, "empty file")
    if Image.MAX_IMAGE_PIXELS and how.max_pixels > Image.MAX_IMAGE_PIXELS:
        # Pillow has one bound per process: it is only raised, and `how.max_pixels` checked below
        Image.MAX_IMAGE_PIXELS = how.max_pixels
    try:
        with open_image(io.BytesIO(data)) as image:
            check_head(image, how)
            if min_side:
                image.draft(None, (min_side, min_side))
            if how.value_range and how.value_range[0] != how.value_range[1]:
                color = sixteen_bit_color(data)
                if color is not None:
                    image = Image.fromarray(to_uint8(color, how.value_range))
            return to_rgb(image, how.value_range) if how.channels == 3 else to_bands(image, how)
    except Image.UnidentifiedImageError:
        refuse(key, name, "unknown format")
    except Exception as err:  # a broken file can make Pillow raise any exception
        refuse(key, name, err)


def load_array(file: Any, name: str, key: str, how: Decoding) -> Bands:
    """Return the image in a NumPy file of shape [h w c] or, for one channel, [h w].

    Args:
      file: a local path, whose file is mapped into memory and not read whole, or an open binary
        file.
      name: path, for errors.
      key: setting that named it, for errors.
      how: settings of decoding.

    Raises:
      BadImage: the file is no array, has another shape, holds objects, or has values that
        `to_uint8` refuses.
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
    """Raise the BadImage of a file that is no readable image, with the reason in one line.

    Args:
      key: setting that named the file; "" = none.
      name: path or record id.
      reason: exception or text.
    """
    # some messages of Pillow have several lines
    text = " ".join(str(reason).split()) or type(reason).__name__
    where = f"{key}: {shown(name)}" if key else shown(name)
    message = f"{where}: not a readable image ({text}); repair or remove this file"
    raise BadImage(message, name, text) from (reason if isinstance(reason, BaseException) else None)
