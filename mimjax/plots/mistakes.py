"""What a classifier took for what: a picture of its mistakes, and pieces of a page about them.

The picture is drawn by Pillow, each image with two lines below it; a page shows the same images,
cut from the picture, with whole names. This module reads no file and runs no network.
"""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from mimjax.data.decoding import open_image
from mimjax.plots import page
from mimjax.plots.reconstructions import (
    BACKGROUND,
    FAINT,
    FONT_SIZE,
    GAP,
    INK,
    MARGIN,
    TILE,
    colors,
    png,
)
from mimjax.storage.confusions import Confusion

COLUMNS = 9  # images in a row of the picture
LONGEST_SIDE = 3  # of an image, in short sides; the middle of a longer one is shown
EMPTY = (225, 225, 225)  # in place of an image that cannot be read
MOST_CLASSES = 20  # of a table; of more classes the most confused pairs are shown
PAIRS = 20
LONGEST = 24  # letters of a name on a page
HEADING = 16  # letters of a name above a column of the table
TURNED = 4  # letters above which it is turned


# ------------------------------------------------------------------ the picture
def sheet(
    images: Sequence[np.ndarray | None], words: Sequence[tuple[str, str]], caption: str
) -> tuple[Image.Image, list[tuple[int, int, int, int]]]:
    """Return the picture of some images, and where in it each of them stands.

    Args:
      images: uint8 [h w c] of any sizes; None = it cannot be read.
      words: the lines below each image; what does not fit is cut.
      caption: text below all.

    Returns:
      The picture; left, top, right and bottom of each image in it, in pixels.
    """
    font, line = ImageFont.load_default(FONT_SIZE - 2), FONT_SIZE + 2
    columns = max(min(COLUMNS, len(images)), 3)  # room for the caption
    width, height = TILE + GAP, TILE + 2 * line + 2 * GAP
    whole = 2 * MARGIN + columns * width - GAP
    rows = -(-len(images) // columns)
    out = Image.new("RGB", (whole, 2 * MARGIN + rows * height + line), BACKGROUND)
    pen, boxes = ImageDraw.Draw(out), []
    for i, (image, texts) in enumerate(zip(images, words, strict=True)):
        left, top = MARGIN + i % columns * width, MARGIN + i // columns * height
        tile = fitted(image)
        y = top + TILE - tile.height  # words stand close below
        out.paste(tile, (left, y))
        boxes.append((left, y, left + tile.width, top + TILE))
        for j, (text, ink) in enumerate(zip(texts, (INK, FAINT), strict=True)):
            said = cut(text, font, TILE)
            pen.text((left, top + TILE + GAP // 2 + j * line), said, fill=ink, font=font)
    said = cut(caption, font, whole - 2 * MARGIN)
    pen.text((MARGIN, MARGIN + rows * height), said, fill=FAINT, font=font)
    return out, boxes


def fitted(image: np.ndarray | None) -> Image.Image:
    """Return an image whose longer side has about TILE pixels, or an empty place.

    Args:
      image: uint8 [h w c], or None.
    """
    if image is None:
        out = Image.new("RGB", (TILE, TILE), EMPTY)
        font = ImageFont.load_default(FONT_SIZE - 2)
        ImageDraw.Draw(out).text(
            (TILE / 2, TILE / 2), "not readable", fill=FAINT, font=font, anchor="mm"
        )
        return out
    h, w = image.shape[:2]
    tall, wide = min(h, LONGEST_SIDE * w), min(w, LONGEST_SIDE * h)
    top, left = (h - tall) // 2, (w - wide) // 2
    image = colors(image[top : top + tall, left : left + wide])
    out = Image.fromarray(np.ascontiguousarray(image))
    if max(out.size) > TILE:
        out.thumbnail((TILE, TILE))
        return out
    times = TILE // max(out.size)
    return out.resize((wide * times, tall * times), Image.Resampling.NEAREST)


def cut(text: str, font, width: float) -> str:
    """Return a text in one line of at most `width` pixels, with … where it was cut."""
    line = " ".join(text.split())
    if font.getlength(line) <= width:
        return line
    while line and font.getlength(line + "…") > width:
        line = line[:-1]
    return line + "…"


def tiles(picture: bytes, boxes: Sequence[tuple[int, int, int, int]]) -> list[bytes]:
    """Return the images of a picture as PNG files.

    Args:
      picture: a PNG file.
      boxes: left, top, right and bottom of each, in pixels.

    Raises:
      ValueError: it is no such file, or too small for them.
    """
    try:
        with open_image(io.BytesIO(picture)) as whole:
            whole.load()
    except (OSError, SyntaxError, ValueError) as error:
        raise ValueError(f"no picture: {error}") from None
    for left, top, right, bottom in boxes:
        if not (0 <= left < right <= whole.width and 0 <= top < bottom <= whole.height):
            raise ValueError("a box outside of the picture")
    return [png(whole.crop(box)) for box in boxes]


# ------------------------------------------------------------------ pieces of a page
def gallery(found: Confusion, names: Sequence[str], images: Sequence[bytes]) -> str:
    """Return mistakes with true name, predicted name and probability, in the order of `found`.

    Args:
      names: of the classes, plain text.
      images: PNG files, one of each mistake; [] = there are none.
    """
    parts = []
    for i, m in enumerate(found.mistakes):
        true, predicted = names[m.true], names[m.predicted]
        about = f"test image {m.index:,} of class {true}, predicted {predicted}"
        said = (
            f"<b>{page.short(true, LONGEST)}</b><br>predicted {page.short(predicted, LONGEST)}, "
            f"{percent(m.probability)}"
        )
        picture = page.png(images[i], about) if images else ""
        parts.append(f"<figure>{picture}<figcaption>{said}</figcaption></figure>")
    return page.several(parts, "mistakes")


def percent(share: float) -> str:
    """Return a share, 0 to 1, in percent; what is not quite all does not read as all."""
    return f"{100 * share:.1f} %" if share < 0.9995 else "over 99.9 %"


def confusion(found: Confusion, names: Sequence[str]) -> str:
    """Return the table of counts, rows = true classes; of many classes the most confused pairs.

    Args:
      names: of the classes, plain text.
    """
    return table(found, names) if found.classes <= MOST_CLASSES else pairs(found, names)


def table(found: Confusion, names: Sequence[str]) -> str:
    """Return the table of counts with sums; cells are the darker, the larger their share of a row.

    Args:
      names: of the classes, plain text.
    """
    counts = found.counts
    head = "".join(map(_heading, [*names, "images", "right, %"]))
    rows = []
    for i, (name, row) in enumerate(zip(names, counts.tolist(), strict=True)):
        total = sum(row)
        cells = "".join(_cell(n, total, i == j) for j, n in enumerate(row))
        right = f"{100 * row[i] / total:.1f}" if total else "–"
        sums = f"<td>{total:,}</td><td>{right}</td>"
        rows.append(f"<tr><th>{page.short(name, LONGEST)}</th>{cells}{sums}</tr>")
    sums = "".join(f"<td>{n:,}</td>" for n in counts.sum(0).tolist())
    right = f"{100 * (1 - found.wrong / found.images):.1f}" if found.images else "–"
    rows.append(f"<tr><th>predicted</th>{sums}<td>{found.images:,}</td><td>{right}</td></tr>")
    return (
        "<p>Rows: the true class; columns: what was predicted; numbers of test images.</p>"
        f'<table class="confusion"><thead><tr><th></th>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table>"
    )


def _heading(name: str) -> str:
    """Return the heading of a column; a long one is turned, so that the column stays narrow."""
    said = page.short(name, HEADING)
    return f"<th><i>{said}</i></th>" if len(name) > TURNED else f"<th>{said}</th>"


def _cell(count: int, total: int, right: bool) -> str:
    """Return a cell of the table; its color says whether it is right, its strength the share."""
    if not count:
        return '<td class="none">0</td>'
    share = round(8 + 47 * count / total)
    return f'<td class="{"right" if right else "wrong"}" style="--share:{share}%">{count:,}</td>'


def pairs(found: Confusion, names: Sequence[str]) -> str:
    """Return the table of the most confused pairs; "" where no image is wrong.

    Args:
      names: of the classes, plain text.
    """
    if not found.pairs:
        return ""
    totals = found.counts.sum(1)
    head = "".join(f"<th>{t}</th>" for t in ("true class", "predicted", "images", "of its class"))
    rows = [
        f"<tr><td>{page.short(names[a], 2 * LONGEST)}</td>"
        f"<td>{page.short(names[b], 2 * LONGEST)}</td>"
        f"<td>{n:,}</td><td>{100 * n / int(totals[a]):.1f} % of {int(totals[a]):,}</td></tr>"
        for a, b, n in found.pairs[:PAIRS]
    ]
    more = len(found.pairs) - len(rows)
    which = f"The {len(rows)} most frequent of {len(found.pairs):,} pairs" if more else "All pairs"
    return (
        f"<p>{which} of a true class and another one that was predicted.</p>"
        f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"
    )
