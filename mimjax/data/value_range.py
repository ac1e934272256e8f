"""Check that values of more than 8 bits fill the range in which they are read.

For example, 12-bit values in a 16-bit file become almost black images. A sample of a source's files
is opened, and if the range does not fit, a line proposes another `data.value_range`. The setting is
not changed, since only the user knows what the values mean. (What a setting may be is checked in
`mimjax/values.py`.)
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

SAMPLE = 16  # number of files that are opened
DARK = 1 / 4  # an image is dark if all values are below this part of the range (14 of 16 bits)
FEW = 0.1  # a range in the settings does not fit if it has fewer than this share of the values


def advise(source: Any) -> str:
    """Return `advice` on a sample of a source's files, equal at every call.

    Args:
      source: a source; one of files has `file(index)` and `how`.

    Returns:
      "" if the range fits, or the source has no files.
    """
    if not hasattr(source, "file"):
        return ""
    order = np.random.default_rng(0).permutation(len(source))[:SAMPLE].tolist()
    return advice([values_of(source.file(i), source.how) for i in order], source.how)


def advice(
    sample: Sequence[np.ndarray | None], how: Decoding, setting: str = "data.value_range"
) -> str:
    """Return words that propose another range; "" if the values fit the range of `how`.

    Args:
      sample: values of some images, any shapes; None = an image of 8 bits.
      how: settings of decoding with the range in which values are read.
      setting: name of the setting to propose.
    """
    values = [x for x in sample if x is not None and x.size]
    for floating in (False, True):  # integers and floats have different default ranges
        part = [x for x in values if (x.dtype.kind == "f") == floating]
        if text := _advice(part, how, not floating, setting):
            return f"{len(part)} of {len(sample)} sampled files hold values beyond 8 bits, {text}"
    return ""


def _advice(values: Sequence[np.ndarray], how: Decoding, integer: bool, setting: str) -> str:
    """Return the end of `advice` for integers or for floats."""
    if not values:
        return ""
    minimum, maximum = min(float(x.min()) for x in values), max(float(x.max()) for x in values)
    low, high = how.value_range or (0.0, 0.0)
    default = low == high
    if default:
        low, high = 0.0, 65535.0 if integer else 1.0
    inside = np.mean([np.mean((x >= low) & (x <= high)) for x in values])
    problem = ""
    if maximum <= 0 <= minimum:
        return ""  # all values are 0: black in every range
    if (default and (minimum < low or maximum > high)) or (not default and inside < FEW):
        problem = "values outside are clipped"
    elif maximum < low + DARK * (high - low):
        problem = "they come out black or nearly so"
    if not problem:
        return ""
    return (
        f"from {minimum:.5g} to {maximum:.5g}; read as {low:.5g} to {high:.5g}, {problem}; "
        f"{setting}={_proposal(minimum, maximum, integer)} fits them"
    )


def _proposal(minimum: float, maximum: float, integer: bool) -> str:
    """Return a range that has all values: 0 to 2^bits - 1, or their own limits."""
    if integer and minimum >= 0:
        bits = max(8, int(maximum).bit_length())
        return f"(0,{2**bits - 1})"
    if integer:
        return f"({int(minimum)},{int(maximum)})"
    return f"({min(minimum, 0.0):.5g},{maximum:.5g})"


def values_of(path: str, how: Decoding) -> np.ndarray | None:
    """Return the values in a file before they become 8 bits.

    Args:
      path: image file or NumPy file, local or remote.
      how: settings of decoding.

    Returns:
      An array of any shape; None if the values have 8 bits or the file is bad.
    """
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
            except ValueError:
                # only the upper bytes can be decoded, which is enough to find dark values
                return np.asarray(image.convert("L")).astype(np.uint16) << 8
            return color if color is not None else values_in(image)
    except Exception:  # a bad file is reported when it is read for training
        return None


def values_in(image: Image.Image) -> np.ndarray | None:
    """Return the values of a Pillow image, [h w]; None if they have 8 bits."""
    return np.asarray(image) if image.mode[0] in "IF" else None
