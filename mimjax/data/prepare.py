"""Rewrites a folder of images to a small short side, once, so that training reads and decodes less.

    python -m mimjax.data.prepare --source=folder --path=photos --output=photos256 --short_side=256

The tree of sub-folders stays, so classes and splits do too. Images that are done already are left
alone: run it again after an interruption. JPEGs that are small enough are copied byte for byte.
Random crops of the result are crops of resized images, so pixels differ slightly from training on
the originals.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import sys
from collections import Counter
from collections.abc import Sequence
from concurrent import futures
from typing import NoReturn

from etils import epath
from PIL import Image

from mimjax import progress, stopping
from mimjax.data.decoding import MAX_PIXELS, Decoding, decode
from mimjax.data.folder import list_images, read_bytes
from mimjax.data.images import check_option
from mimjax.exits import Exit
from mimjax.task import ConfigError

_JPEG = (".jpg", ".jpeg")


def output_name(path: str) -> str:
    """The relative path of the result; "a.png" becomes "a.png.jpg", to spare "a.jpg"."""
    return path if path.lower().endswith(_JPEG) else path + ".jpg"


def shrink(
    data: bytes, name: str, short_side: int, quality: int, max_pixels: int = MAX_PIXELS
) -> bytes:
    """JPEG bytes with the short side at most `short_side`; never enlarged.

    Args:
      data: an image file.
      name: its path, for errors.
      short_side: in pixels.
      quality: of the JPEG.
      max_pixels: of the file's image, at most.

    Raises:
      ConfigError: `data` is no readable image.
    """
    # twice what is wanted: what the decoder's own averaging leaves is filtered as usual
    image = decode(data, name, how=Decoding(max_pixels=max_pixels), least=2 * short_side)
    assert isinstance(image, Image.Image)  # three channels
    factor = short_side / min(image.size)
    if factor >= 1 and name.lower().endswith(_JPEG):
        return data
    if factor < 1:
        size = tuple(max(short_side, round(side * factor)) for side in image.size)
        image = image.resize((size[0], size[1]), Image.Resampling.BICUBIC)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def write_whole(target: epath.Path, data: bytes) -> None:
    """Under its own name only when complete: an interrupted run leaves no half image.

    Raises:
      ConfigError: it cannot be written.
    """
    partial = target.parent / f".{target.name}.part"
    try:
        with stopping.whole():
            target.parent.mkdir(parents=True, exist_ok=True)
            partial.write_bytes(data)
            partial.replace(target)
    except OSError as err:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        reason = err.strerror or err
        raise ConfigError(f"output: cannot write {target} ({reason})") from None


def prepare(
    path: str,
    output: str,
    short_side: int = 256,
    quality: int = 95,
    threads: int | None = None,
    max_pixels: int = MAX_PIXELS,
) -> tuple[Counter[str], list[str]]:
    """Rewrites all images below `path` into `output`.

    Args:
      path: folder to read, local or gs://.
      output: folder to write; created; must not lie inside `path`.
      short_side: in pixels.
      quality: of the JPEGs, 1 to 95.
      threads: None = one per core.
      max_pixels: of an image; files with more fail.

    Returns:
      Counts of "written", "skipped" and "failed", and one error line per failed file.

    Raises:
      ConfigError: wrong folders or settings, or a file that cannot be written.
    """
    check_option("short_side", short_side, short_side >= 1, "1 or more")
    check_option("quality", quality, 1 <= quality <= 95, "1 to 95")
    check_option("max_pixels", max_pixels, max_pixels >= 1, "1 or more")
    path, output = os.path.expanduser(path), os.path.expanduser(output)
    if not epath.Path(path).is_dir():
        raise ConfigError(f"path: {path!r} is no folder; allowed: a folder of images")
    if os.path.realpath(output).startswith(os.path.join(os.path.realpath(path), "")):
        raise ConfigError(f"output: {output!r} lies inside {path!r}; allowed: a folder beside it")
    if os.path.realpath(output) == os.path.realpath(path):
        raise ConfigError(f"output: {output!r} is the input; allowed: another folder")
    files = [name for name, _ in list_images(path)]
    if not files:
        raise ConfigError(f"path: no image below {path!r}")

    def one(name: str) -> tuple[str, str]:
        stopping.check()
        target = epath.Path(output) / output_name(name)
        if target.exists():
            return "skipped", ""
        source = os.path.join(path, name)
        try:
            data = shrink(read_bytes(source), source, short_side, quality, max_pixels)
        except ConfigError as err:
            return "failed", str(err)
        write_whole(target, data)
        return "written", ""

    with futures.ThreadPoolExecutor(threads or os.cpu_count()) as pool:
        results = list(progress.track(pool.map(one, files), "prepare", len(files), "file"))
    return Counter(kind for kind, _ in results), [error for _, error in results if error]


class Parser(argparse.ArgumentParser):
    """Answers wrong arguments as the other programs do."""

    def error(self, message: str) -> NoReturn:
        self.exit(Exit.REFUSED, f"error: {message}; allowed: see --help\n")


def main(argv: Sequence[str] | None = None) -> int:
    """The program; returns its exit code, 1 if anything failed."""
    parser = Parser(prog="python -m mimjax.data.prepare", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--source", default="folder", choices=["folder"], help="kind of input")
    parser.add_argument("--path", required=True, help="folder to read")
    parser.add_argument("--output", required=True, help="folder to write")
    parser.add_argument("--short_side", type=int, default=256, help="pixels of the short side")
    parser.add_argument("--quality", type=int, default=95, help="JPEG quality, 1 to 95")
    parser.add_argument("--max_pixels", type=int, default=MAX_PIXELS, help="of an image, at most")
    args = parser.parse_args(argv)
    try:
        counts, errors = prepare(
            args.path, args.output, args.short_side, args.quality, max_pixels=args.max_pixels
        )
    except stopping.Stopped as stop:
        line = f"{str(stop).partition(':')[0]}: the same command goes on from here"
        stopping.SIGNALS.end_now(line, stop.code)
    except ConfigError as err:
        print(f"error: {err}", file=sys.stderr)
        return Exit.REFUSED
    for error in errors:
        print(f"error: {error}", file=sys.stderr)
    print(
        f"{args.output}: {counts['written']} written, {counts['skipped']} already there, "
        f"{counts['failed']} failed"
    )
    return 1 if errors else 0


if __name__ == "__main__":
    sys.exit(main())
