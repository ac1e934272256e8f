"""Rewriting of a folder of images to a small short side, once, so that training reads less.

Small images are copied byte for byte, others become JPEGs. A list beside the output says which
files it made, so that a second call makes anew what has changed in the source. The program is
`mimjax prepare`.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent import futures
from typing import Any

import numpy as np
from etils import epath
from PIL import Image

from mimjax import progress, stopping
from mimjax.data import layout, value_range
from mimjax.data.decoding import MAX_PIXELS, Decoding, Range, decode
from mimjax.data.folder import EXTENSIONS, JPEGS, list_images, read_bytes
from mimjax.data.images import check_option
from mimjax.data.index import Listing, holds_image, scan, shown
from mimjax.data.prepared import Prepared
from mimjax.errors import ConfigError
from mimjax.storage.files import checked_path

SETTINGS = "prepare.json"  # in the output


def output_names(files: Iterable[str]) -> dict[str, str]:
    """The relative path of each file that becomes a JPEG; "a.png" becomes "a.png.jpg".

    Another name is found where that one is taken by a file of the source.
    """
    files, out = list(files), {}
    taken = set(files)
    for path in files:
        name, number = path, 1
        if not path.lower().endswith(JPEGS):
            while (name := f"{path}{'' if number == 1 else f'.{number}'}.jpg") in taken:
                number += 1
            taken.add(name)
        out[path] = name
    return out


def shrink(
    data: bytes, name: str, short_side: int, quality: int, how: Decoding = Decoding()
) -> bytes:
    """The image with its short side at most `short_side`; `data` itself where it is already.

    Args:
      data: an image file.
      name: its path, for errors.
      short_side: in pixels.
      quality: of the JPEG.
      how: settings of decoding.

    Raises:
      ConfigError: `data` is no readable image.
    """
    # twice what is wanted: what the decoder's own averaging leaves is filtered as usual
    image = decode(data, name, how=how, min_side=2 * short_side)
    assert isinstance(image, Image.Image)  # three channels
    factor = short_side / min(image.size)
    if factor >= 1:
        return data
    size = tuple(max(short_side, round(side * factor)) for side in image.size)
    image = image.resize((size[0], size[1]), Image.Resampling.BICUBIC)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality, subsampling=0)
    return buffer.getvalue()


def write_whole(target: epath.Path, data: bytes, time: int = 0) -> None:
    """Write a file under its own name only when complete: an interrupted run leaves no half image.

    Args:
      time: of the last change that a local file gets, in ns; 0 = now.

    Raises:
      ConfigError: it cannot be written.
    """
    partial = target.parent / f".{target.name}.part"
    try:
        with stopping.whole():
            target.parent.mkdir(parents=True, exist_ok=True)
            partial.write_bytes(data)
            if time and "://" not in os.fspath(partial):
                os.utime(partial, ns=(time, time))
            partial.replace(target)
    except OSError as err:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        reason = err.strerror or err
        raise ConfigError(f"output: cannot write {target} ({reason})") from None


def is_done(target: epath.Path, time: int) -> bool:
    """Whether `target` was made of a source of this time; a local file has the time of its source.

    Args:
      time: of the source's last change in ns; 0 = unknown, then it is enough that `target` exists.
    """
    if not target.exists():
        return False
    if "://" in os.fspath(target):
        return int(target.stat().mtime or 0) * 10**9 >= time
    return not time or abs(os.stat(target).st_mtime_ns - time) < 1000  # some disks keep less


def check_settings(output: epath.Path, settings: dict[str, Any]) -> None:
    """Write the settings into the output, or compare them with those that made what is there.

    Raises:
      ConfigError: they differ, or images lie there that no settings are known of.
    """
    file = output / SETTINGS
    if output.exists() and not output.is_dir():
        raise ConfigError(f"output: {shown(str(output))} is a file; allowed: a folder")
    if file.exists():
        try:
            before = json.loads(file.read_text())
            before = {key: before[key] for key in settings}
        except (ValueError, KeyError, TypeError):
            raise ConfigError(f"output: {file} is damaged; allowed: a new folder") from None
        for key, value in settings.items():
            if before[key] != value:
                raise ConfigError(
                    f"{key}: {value!r}, but the images in {output} were made with {before[key]!r}; "
                    "allowed: that, or another output"
                )
        return
    if output.exists() and holds_image(os.fspath(output), EXTENSIONS):
        raise ConfigError(
            f"output: {output} holds images and no {SETTINGS}, which says how they were made; "
            "allowed: a new or an empty folder"
        )
    write_whole(file, (json.dumps(settings, indent=2) + "\n").encode())


def check_folders(path: str, output: str) -> None:
    """Raise ConfigError where `path` is no folder, or the output lies inside it."""
    if not epath.Path(path).is_dir():
        raise ConfigError(f"path: {path!r} is no folder; allowed: a folder of images")
    if os.path.realpath(output).startswith(os.path.join(os.path.realpath(path), "")):
        raise ConfigError(f"output: {output!r} lies inside {path!r}; allowed: a folder beside it")
    if os.path.realpath(output) == os.path.realpath(path):
        raise ConfigError(f"output: {output!r} is the input; allowed: another folder")


def list_source(path: str, say: Callable[[str], None]) -> Listing:
    """The images below `path`; says which other files lie there.

    Raises:
      ConfigError: there are none.
    """
    others: Counter[str] = Counter()
    files = scan(path, EXTENSIONS, others)
    rest = layout.left_out(others)
    if not files.names:
        raise ConfigError(f"path: no image below {path!r}" + (f"; {rest}" if rest else ""))
    if rest:
        say(f"{path}: {rest}")
    return files


def rewrite(
    place: str,
    results: Sequence[epath.Path],
    time: int,
    change: Callable[[bytes, str], bytes],
    prepared: Prepared,
) -> tuple[str, str]:
    """One file of the source becomes one of the output, if it is not there already.

    Args:
      place: of the source.
      results: where it lies as it is, and where `change` has made another of it.
      time: of the source's last change in ns.
      prepared: the list of what may be replaced in the output.

    Returns:
      "skipped" or "written" and where it lies, or "failed" and an error.
    """
    for result in results:
        if is_done(result, time):
            return "skipped", os.fspath(result)
    try:
        data = read_bytes(place)
        small = change(data, place)
        result = results[0] if small is data else results[1]
        prepared.check(name := os.path.relpath(result, prepared.folder))
    except ConfigError as err:
        return "failed", str(err)
    prepared.add(name, len(small))
    write_whole(result, small, time)
    return "written", os.fspath(result)


def sampled_values(path: str, names: list[str], how: Decoding) -> str:
    """What `value_range.advice` has to say of a sample of the files; "" = nothing."""
    some = np.random.default_rng(0).permutation(len(names))[: value_range.SAMPLE]
    sample = [value_range.values_of(os.path.join(path, names[i]), how) for i in some]
    return value_range.advice(sample, how, "--value_range")


def say_left_over(output: str, made: set[str], say: Callable[[str], None]) -> None:
    """Names the images in the output that are none of `made`."""
    left = [name for name, _ in list_images(output) if name not in made]
    if left:
        say(f"{output}: {len(left):,} images that this source does not make, left as they are:")
    for name in left:
        say(f"  {shown(name)}")


def prepare(
    path: str,
    output: str,
    short_side: int = 256,
    quality: int = 95,
    threads: int | None = None,
    max_pixels: int = MAX_PIXELS,
    value_range: Range | None = Decoding().value_range,
    say: Callable[[str], None] = lambda text: None,
) -> tuple[Counter[str], list[str]]:
    """Rewrite all images below `path` into `output`.

    Args:
      path: folder to read, local or gs://.
      output: folder to write; created; must not lie inside `path`.
      short_side: in pixels.
      quality: of the JPEGs, 1 to 95.
      threads: None = one per core.
      max_pixels: of an image; files with more fail.
      value_range: of values beyond 8 bits, see `Decoding`.
      say: gets what is to be said of both folders.

    Returns:
      Counts of "written", "skipped" and "failed", and one error line per failed file.

    Raises:
      ConfigError: wrong folders or settings, or a file that cannot be written.
    """
    check_option("short_side", short_side, short_side >= 1, "1 or more")
    check_option("quality", quality, 1 <= quality <= 95, "1 to 95")
    how = Decoding(max_pixels=max_pixels, value_range=value_range)
    path, output = checked_path(path, "path"), checked_path(output, "output")
    check_folders(path, output)
    prepared = Prepared(output)
    files = list_source(path, say)
    source = path if "://" in path else os.path.realpath(path)
    settings = {"path": source, "short_side": short_side, "quality": quality}
    check_settings(epath.Path(output), settings | {"value_range": list(how.value_range or ())})
    made = output_names(files.names)
    if text := sampled_values(path, files.names, how):
        say(f"WARNING: {text}")

    def one(name: str, time: int) -> tuple[str, str]:
        stopping.check()
        results = [epath.Path(output) / name, epath.Path(output) / made[name]]
        change = lambda data, place: shrink(data, place, short_side, quality, how)
        kind, text = rewrite(os.path.join(path, name), results, time, change, prepared)
        return kind, text if kind == "failed" else os.path.relpath(text, output)

    with futures.ThreadPoolExecutor(threads or os.cpu_count()) as pool:
        jobs = pool.map(one, files.names, files.times)
        results = list(progress.track(jobs, "prepare", len(files.names), "file"))
    there = {result for kind, result in results if kind != "failed"}
    say_left_over(output, there, say)
    errors = [text for kind, text in results if kind == "failed"]
    return Counter(kind for kind, _ in results), errors
