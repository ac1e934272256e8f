"""A scatter plot: coordinates in the plane in, a Pillow image out.

Points are dots, or small images with a frame; the color is the label where there is one. This
module reads no file and computes no coordinates; `plots.embedding` does.
"""

from __future__ import annotations

import colorsys

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from mimjax.plots.reconstructions import BACKGROUND, FAINT, FONT_SIZE, INK, MARGIN, wrap

# pixels
SIDE = 900  # width of the map; its height is that of its points
DOT = 4  # radius of a dot
FRAME = 2  # width of the frame of a small image
LEGEND = 170  # width of the legend
ROW = 7  # space between two rows of the legend

MOST_NAMES = 36  # names that a legend shows
NO_LABEL = (70, 110, 170)  # RGB of points without a label


def colors(count: int) -> list[tuple[int, int, int]]:
    """Return `count` RGB colors; neighbors in the list are far apart.

    Hues are spaced by the golden angle, with three brightnesses in turn.
    """
    out = []
    for i in range(count):
        value = (0.85, 0.6, 0.95)[i % 3]
        rgb = colorsys.hsv_to_rgb(i * 0.61803 % 1, 0.75 if i % 2 else 0.9, value)
        out.append((round(255 * rgb[0]), round(255 * rgb[1]), round(255 * rgb[2])))
    return out


def spread(points: np.ndarray) -> np.ndarray:
    """Return points [n 2] centered and scaled into [0, 1], by one scale for both axes."""
    low, high = points.min(0), points.max(0)
    scale = max(float((high - low).max()), 1e-12)
    return (points - (low + high) / 2) / scale + 0.5


def draw(
    points: np.ndarray,
    labels: np.ndarray | None = None,
    names: list[str] | None = None,
    thumbnails: np.ndarray | None = None,
    caption: str = "",
    size: int = 30,
) -> Image.Image:
    """Return the scatter plot of `points`, with a legend where there are labels.

    Args:
      points: float [n 2]; the second coordinate grows upwards.
      labels: int [n], -1 = none; None = no point has a label.
      names: names of the labels for the legend; None = their numbers.
      thumbnails: small images drawn at the points, uint8 [n h w 3]; None = dots.
      caption: text below the map.
      size: longer side of a thumbnail in pixels.
    """
    labels = np.full(len(points), -1) if labels is None else labels
    known = np.unique(labels[labels >= 0])
    palette = dict(zip(known.tolist(), colors(len(known)), strict=True))
    color = [palette.get(int(k), NO_LABEL) for k in labels]
    font, line = ImageFont.load_default(FONT_SIZE), FONT_SIZE + 5
    width = SIDE + 2 * MARGIN + (LEGEND if len(known) else 0)
    lines = wrap(caption, font, width - 2 * MARGIN)
    where = spread(np.asarray(points, np.float64)) * (SIDE - 2 * size)
    where[:, 1] = where[:, 1].max() - where[:, 1]  # rows count downwards, from the highest point
    rows = min(len(known), MOST_NAMES + 1)
    height = max(round(where[:, 1].max()) + 2 * size, rows * (FONT_SIZE + ROW))
    below = 2 * MARGIN + height
    sheet = Image.new("RGB", (width, below + len(lines) * line + MARGIN), BACKGROUND)
    pen = ImageDraw.Draw(sheet)
    for i, (x, y) in enumerate(where):
        center = MARGIN + size + x, MARGIN + size + y
        rim = color[i]
        if thumbnails is None:
            box = [center[0] - DOT, center[1] - DOT, center[0] + DOT, center[1] + DOT]
            pen.ellipse(box, fill=rim, outline=BACKGROUND)
        else:
            paste(sheet, pen, thumbnails[i], center, size, rim)
    legend(pen, font, palette, names)
    for row, text in enumerate(lines):
        pen.text((MARGIN, below + row * line), text, fill=FAINT, font=font)
    return sheet


def paste(sheet, pen, image: np.ndarray, center, size: int, rim) -> None:
    """Paste one small image in a frame of its label's color.

    Args:
      sheet, pen: the picture, and what draws on it.
      image: uint8 [h w 3].
      center: (x, y) in pixels.
      size: longer side of the thumbnail in pixels.
      rim: RGB of the frame.
    """
    h, w = image.shape[:2]
    shape = max(1, round(size * w / max(h, w))), max(1, round(size * h / max(h, w)))
    how = Image.Resampling.NEAREST if max(h, w) < size else Image.Resampling.BOX
    x, y = round(center[0] - shape[0] / 2), round(center[1] - shape[1] / 2)
    pen.rectangle([x - FRAME, y - FRAME, x + shape[0] + FRAME - 1, y + shape[1] + FRAME - 1], rim)
    sheet.paste(Image.fromarray(image).resize(shape, how), (x, y))


def legend(pen, font, palette: dict[int, tuple[int, int, int]], names: list[str] | None) -> None:
    """Draw the color and name of each label at the right of the map."""
    line, x = FONT_SIZE + ROW, SIDE + 2 * MARGIN
    for row, (label, color) in enumerate(list(palette.items())[:MOST_NAMES]):
        y = MARGIN + row * line
        pen.rectangle([x, y + 2, x + 11, y + 13], fill=color)
        name = names[label] if names is not None and label < len(names) else str(label)
        short = name if len(name) <= 18 else name[:17] + "…"
        pen.text((x + 18, y), short, fill=INK, font=font)
    if len(palette) > MOST_NAMES:
        more = f"and {len(palette) - MOST_NAMES} more"
        pen.text((x, MARGIN + MOST_NAMES * line), more, fill=FAINT, font=font)
