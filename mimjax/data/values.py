"""Whether values beyond 8 bits fill the range that is read: 12 bits in 16 come out black.

A sample of a source's files is opened, and a line proposes `data.value_range` where the range does
not fit. Nothing is changed: only the user knows what the numbers mean.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from mimjax.data.decoding import Decoding, check_head, check_size, open_image, sixteen_bit_color
from mimjax.data.folder import ARRAYS, read_bytes
from mimjax.data.index import is_file_of

SAMPLE = 16  # files
DARK = 1 / 4  # of the range: values below come out black or nearly so (14 of 16 bits)
FEW = 0.1  # of the values inside a range that somebody named


def advise(source: Any, setting: str = "data.value_range") -> str:
    """`advice` on a sample of a source of files, the same at every call; "" for other sources.

    Args:
      source: has `file(index)` and `how`, if it has files.
    """
    if not hasattr(source, "file"):
        return ""
    order = np.random.default_rng(0).permutation(len(source))[:SAMPLE].tolist()
    return advice([values_of(source.file(i), source.how) for i in order], source.how, setting)


def advice(
    sample: Sequence[np.ndarray | None], how: Decoding, setting: str = "data.value_range"
) -> str:
    """A sentence that proposes another range where the values do not fit the one that is read.

    Args:
      sample: values of some images; None = 8 bits.
      how: with the range that is read.
      setting: what names the range.
    """
    found = [x for x in sample if x is not None and x.size]
    for kind in (False, True):  # whole numbers and floats have ranges of their own
        part = [x for x in found if (x.dtype.kind == "f") == kind]
        if text := _advice(part, how, not kind, setting):
            return f"{len(part)} of {len(sample)} sampled files hold values beyond 8 bits, {text}"
    return ""


def _advice(found: Sequence[np.ndarray], how: Decoding, whole: bool, setting: str) -> str:
    """`advice` on values of one kind."""
    if not found:
        return ""
    least, most = min(float(x.min()) for x in found), max(float(x.max()) for x in found)
    named = how.value_range or (0.0, 0.0)
    own = named[0] == named[1]
    low, high = named if not own else (0.0, 65535.0 if whole else 1.0)
    inside = np.mean([np.mean((x >= low) & (x <= high)) for x in found])
    what = ""
    if most <= 0 <= least:
        return ""  # black, whatever the range
    if (own and (least < low or most > high)) or (not own and inside < FEW):
        what = "values outside are clipped"
    elif most < low + DARK * (high - low):
        what = "they come out black or nearly so"
    if not what:
        return ""
    return (
        f"from {least:.5g} to {most:.5g}; read as {low:.5g} to {high:.5g}, {what}; "
        f"{setting}={_proposal(least, most, whole)} fits them"
    )


def _proposal(least: float, most: float, whole: bool) -> str:
    """A range that holds the values: from 0 to all of so many bits, or else their own limits."""
    if whole and least >= 0:
        bits = max(8, int(most).bit_length())
        return f"(0,{2**bits - 1})"
    if whole:
        return f"({int(least)},{int(most)})"
    return f"({min(least, 0.0):.5g},{most:.5g})"


def values_of(path: str, how: Decoding) -> np.ndarray | None:
    """The numbers in a file, before they become 8 bits; None = they are 8 bits, or it is bad."""
    try:
        if is_file_of(path.rsplit("/", 1)[-1], ARRAYS):
            file = io.BytesIO(read_bytes(path)) if "://" in path else path
            x = np.load(file, mmap_mode=None if "://" in path else "r", allow_pickle=False)
            check_size((x.shape[1], x.shape[0]), how)
            return None if x.dtype in (np.uint8, bool) else np.asarray(x)
        data = read_bytes(path)
        with open_image(io.BytesIO(data)) as image:
            check_head(image, how)
            try:
                color = sixteen_bit_color(data)
            except ValueError:  # upper bytes alone, which tell dark values too
                return np.asarray(image.convert("L")).astype(np.uint16) << 8
            return color if color is not None else values_in(image)
    except Exception:  # a bad file is named by those who read it
        return None


def values_in(image: Image.Image) -> np.ndarray | None:
    """The numbers of a Pillow image; None = they are 8 bits."""
    return np.asarray(image) if image.mode[0] in "IF" else None
