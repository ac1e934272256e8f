"""Pictures as a grid of captioned columns: arrays in, Pillow images out.

Reconstructions and other pictures are drawn with it. Callers decide what the columns show
(`inference/presentation.py`). This module reads no file and runs no network.
"""

from __future__ import annotations

import io

import numpy as np
from PIL import Image, ImageDraw, ImageFont

TILE = 128  # pixels to which smaller images are enlarged, about
GAP, MARGIN = 6, 16  # pixels between tiles, and around all
FONT_SIZE = 14  # pixels
BACKGROUND, INK, FAINT = (255, 255, 255), (32, 32, 32), (110, 110, 110)


def draw(columns: dict[str, np.ndarray], caption: str = "") -> Image.Image:
    """Return a picture with one row per image under named columns, and a caption below.

    From four images on, two images stand beside each other in a row.

    Args:
      columns: name -> uint8 [b h w c], all of the same b, h and w.
    """
    count, h, w, _ = next(iter(columns.values())).shape
    channels = max(images.shape[-1] for images in columns.values())
    columns = {name: colors(images) for name, images in columns.items()}
    if channels not in (1, 3):
        which = "channel 0" if channels == 2 else "channels 0, 1 and 2"
        caption = f"{caption} Shown: {which} of {channels}.".lstrip()
    times = zoom(h, w)
    h, w = h * times, w * times
    blocks = 2 if count >= 4 else 1
    rows = -(-count // blocks)
    font, line = ImageFont.load_default(FONT_SIZE), FONT_SIZE + 5
    block_width = len(columns) * (w + GAP) - GAP
    width = 2 * MARGIN + blocks * block_width + (blocks - 1) * 2 * MARGIN
    lines = wrap(caption, font, width - 2 * MARGIN)
    top = MARGIN + line
    bottom = top + rows * (h + GAP) - GAP
    height = bottom + (len(lines) * line + 2 * GAP if lines else 0) + MARGIN
    sheet = Image.new("RGB", (width, height), BACKGROUND)
    pen = ImageDraw.Draw(sheet)
    for i in range(blocks):
        for j, (name, images) in enumerate(columns.items()):
            x = MARGIN + i * (block_width + 2 * MARGIN) + j * (w + GAP)
            pen.text((x + w / 2, MARGIN), name, fill=INK, font=font, anchor="mt")
            for row, image in enumerate(images[i::blocks]):
                tile = Image.fromarray(image).resize((w, h), Image.Resampling.NEAREST)
                sheet.paste(tile, (x, top + row * (h + GAP)))
    for row, text in enumerate(lines):
        pen.text((MARGIN, bottom + 2 * GAP + row * line), text, fill=FAINT, font=font)
    return sheet


def colors(images: np.ndarray) -> np.ndarray:
    """Return the channels that a screen can show.

    Of one or two channels it is the first, as gray; of more it is the first three, as RGB.

    Args:
      images: uint8 [b h w c].

    Returns:
      uint8 [b h w 3].
    """
    return images[..., :3] if images.shape[-1] > 2 else images[..., :1].repeat(3, axis=-1)


def zoom(h: int, w: int) -> int:
    """Return the whole number by which an image of this size in pixels is enlarged."""
    return max(1, round(TILE / max(h, w)))


def wrap(text: str, font, width: float) -> list[str]:
    """Return lines of at most `width` pixels, broken between words."""
    lines: list[str] = []
    for word in text.split():
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and font.getlength(longer) <= width:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines


def png(image: Image.Image) -> bytes:
    """Return the bytes of a PNG file."""
    out = io.BytesIO()
    image.save(out, "PNG", optimize=True)
    return out.getvalue()
