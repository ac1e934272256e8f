"""Rewrite a folder of images to a small short side, so that training reads and decodes less.

  mimjax prepare --path=photos --output=photos256 --short_side=256

The tree of sub-folders stays, so classes and splits do too. Images that are small enough are copied
byte for byte, whatever their format; others become JPEGs with full color resolution (4:4:4). Files
that are done already are left alone: run it again after an interruption, or to make anew what has
changed in the source. `prepare.json` in the output remembers source and settings; others are
refused. Nothing is deleted. Random crops of the result are crops of resized images, so pixels
differ slightly from training on the originals.
"""

from __future__ import annotations

import sys
from typing import Any

from absl import flags

from mimjax import stopping
from mimjax.data.decoding import MAX_PIXELS
from mimjax.data.preparation import prepare
from mimjax.errors import ConfigError, Exit
from mimjax.programs import cli

REQUIRED = ("path", "output")


def numbers(text: str) -> tuple[float, float]:
    """Return two numbers that are separated by a comma.

    Raises:
      ConfigError: it is something else.
    """
    try:
        low, high = map(float, text.strip("() ").split(","))
    except ValueError:
        raise ConfigError(f"value_range: {text!r}; allowed: low,high") from None
    return low, high


def define_flags() -> None:
    """Define all flags of the program."""
    flags.DEFINE_enum("source", "folder", ["folder"], "Kind of input.")
    flags.DEFINE_string("path", None, "Folder to read.")
    flags.DEFINE_string("output", None, "Folder to write.")
    flags.DEFINE_integer("short_side", 256, "Pixels of the short side.")
    flags.DEFINE_integer("quality", 95, "JPEG quality, 1 to 95.")
    flags.DEFINE_string("value_range", None, "low,high of values beyond 8 bits, as 0,4095.")
    flags.DEFINE_integer("max_pixels", MAX_PIXELS, "Of an image, at most.")
    cli.define_base_flags()


def main() -> None:
    """Rewrite the folder; the exit code is 1 if any file failed."""
    f = flags.FLAGS
    options: dict[str, Any] = {"max_pixels": f.max_pixels, "say": print}
    if f.value_range:
        options["value_range"] = numbers(f.value_range)
    try:
        counts, errors = prepare(f.path, f.output, f.short_side, f.quality, **options)
    except stopping.Stopped as stop:
        line = f"{str(stop).partition(':')[0]}: the same command goes on from here"
        stopping.SIGNALS.end_now(line, stop.code)
    for error in errors:
        print(f"error: {error}", file=sys.stderr)
    print(
        f"{f.output}: {counts['written']} written, {counts['skipped']} already there, "
        f"{counts['failed']} failed"
    )
    if errors:
        sys.exit(int(Exit.ERROR))
