"""A scatter plot, drawn by matplotlib: coordinates in the plane in, a Pillow image out.

Points are dots, or small images with a frame; the color is the label where there is one. matplotlib
is imported when a map is drawn. This module reads no file and computes no coordinates;
`plots.embedding` does.
"""

from __future__ import annotations

import colorsys
import textwrap
from typing import Any

import numpy as np
from PIL import Image

from mimjax.plots.reconstructions import FAINT, FONT_SIZE, INK, MARGIN

# pixels
SIDE = 900  # width of the map; its height is that of its points
DOT = 4  # radius of a dot
FRAME = 2  # width of the frame of a small image
LEGEND = 170  # width of the legend
ROW, LINE = 21, 20  # height of a row of the legend, and of a line of the caption
LETTER = 8  # width of a letter there, at most on average

MOST_NAMES = 36  # names that a legend shows
LONGEST = 18  # letters of a name there
NO_LABEL = (70, 110, 170)  # RGB of points without a label
DPI = 72  # a point is a pixel


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
      points: float [n 2]; the second coordinate grows upwards, and both have one scale.
      labels: int [n], -1 = none; None = no point has a label.
      names: names of the labels for the legend; None = their numbers.
      thumbnails: small images drawn at the points, uint8 [n h w 3]; None = dots.
      caption: text below the map.
      size: longer side of a thumbnail in pixels, and the space around the points.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    points = np.asarray(points, np.float64)
    labels = np.full(len(points), -1) if labels is None else labels
    known = np.unique(labels[labels >= 0]).tolist()
    palette = dict(zip(known, np.divide(colors(len(known)), 255), strict=True))
    color = [palette.get(int(k), np.divide(NO_LABEL, 255)) for k in labels]
    wide, tall = np.maximum(np.ptp(points, axis=0), 1e-12)
    inner = SIDE - 2 * size, round((SIDE - 2 * size) * min(tall / wide, 1))
    height = max(inner[1] + 2 * size, ROW * min(len(known), MOST_NAMES + 1))
    width = SIDE + 2 * MARGIN + (LEGEND if known else 0)
    lines = textwrap.wrap(caption, (width - 2 * MARGIN) // LETTER)
    whole = height + len(lines) * LINE + 2 * MARGIN
    figure = Figure(figsize=(width / DPI, whole / DPI), dpi=DPI)
    canvas, share = FigureCanvasAgg(figure), lambda x, y: (x / width, 1 - y / whole)
    corner = share(MARGIN + size, MARGIN + size + inner[1])
    axes = figure.add_axes((*corner, inner[0] / width, inner[1] / whole))
    axes.axis("off")
    axes.margins(0)
    axes.update_datalim(points)
    axes.autoscale_view()
    axes.set_aspect("equal", "datalim")
    if thumbnails is None:
        rim = {"edgecolors": "white", "linewidths": 0.6, "clip_on": False}
        axes.scatter(*points.T, s=(2 * DOT) ** 2, c=color, **rim)
    else:
        _paste(axes, points, thumbnails, color, size)
    if known:
        _legend(figure, palette, names, share(2 * MARGIN + SIDE, MARGIN))
    look = {"color": np.divide(FAINT, 255), "size": FONT_SIZE, "va": "top", "parse_math": False}
    figure.text(*share(MARGIN, 2 * MARGIN + height), "\n".join(lines), **look)
    canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3])


def _paste(axes: Any, points: np.ndarray, images: np.ndarray, color: list[Any], size: int) -> None:
    """Draw small images at points, each in a frame of its color.

    Args:
      axes: matplotlib's axes.
      images: uint8 [n h w 3].
      size: longer side of a small image in pixels.
    """
    from matplotlib.offsetbox import AnnotationBbox, OffsetImage

    longest = max(images.shape[1:3])
    how = "nearest" if longest < size else "antialiased"
    for point, image, rim in zip(points, images, color, strict=True):
        small = OffsetImage(image, zoom=size / longest, interpolation=how)
        frame = {"edgecolor": rim, "linewidth": 2 * FRAME, "boxstyle": "square,pad=0"}
        axes.add_artist(AnnotationBbox(small, point, pad=0, annotation_clip=False, bboxprops=frame))


def _legend(
    figure: Any, palette: dict[int, Any], names: list[str] | None, place: tuple[float, float]
) -> None:
    """Draw the color and name of each label at the right of the map.

    Args:
      figure: matplotlib's figure.
      place: upper left corner, as shares of the figure.
    """
    from matplotlib.patches import Patch

    rows = []
    for label, rgb in list(palette.items())[:MOST_NAMES]:
        name = names[label] if names is not None and label < len(names) else str(label)
        short = name if len(name) <= LONGEST else name[: LONGEST - 1] + "…"
        rows.append(Patch(color=rgb, label=short))
    if more := len(palette) - len(rows):
        rows.append(Patch(alpha=0, label=f"and {more} more"))
    where = {"loc": "upper left", "bbox_to_anchor": place, "borderaxespad": 0, "borderpad": 0}
    space = {"frameon": False, "handlelength": 0.8, "labelspacing": ROW / FONT_SIZE - 1.2}
    color = np.divide(INK, 255)
    legend = figure.legend(handles=rows, labelcolor=color, fontsize=FONT_SIZE, **where, **space)
    for text in legend.get_texts():
        text.set_parse_math(False)
