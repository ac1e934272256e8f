"""Mean and standard deviation of each channel of a source; the program is `mimjax stats`.

The numbers are those of whole decoded images on the scale 0 to 1, before any crop; every image
weighs the same whatever its size.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent import futures

import numpy as np

from mimjax import progress
from mimjax.data.bad_files import BadFiles
from mimjax.data.decoding import BadImage
from mimjax.data.sources import Source
from mimjax.errors import ConfigError

THREADS = 8


CHUNK = 256


LEVELS = np.arange(256) / 255


def moments(source: Source, index: int) -> np.ndarray | BadImage:
    """Means of the values and of their squares, float64 [2 c]; the error of a bad file."""
    try:
        counts = np.reshape(source.image(index).histogram(), (-1, 256))
    except BadImage as err:
        return err
    share = counts / counts.sum(1, keepdims=True)
    return np.stack([share @ LEVELS, share @ LEVELS**2])


def statistics(
    source: Source, count: int, bad_files: BadFiles
) -> tuple[np.ndarray, np.ndarray, int]:
    """Mean and std per channel, and how many images they are of.

    Args:
      count: at most so many images, drawn without replacement, the same at every call.

    Raises:
      ConfigError: more bad files than `bad_files` allows, or no other.
    """
    indices = np.random.default_rng(0).permutation(len(source))[:count].tolist()
    total, done, bad = np.zeros(()), 0, 0
    with futures.ThreadPoolExecutor(THREADS) as pool:
        for result in progress.track(_each(pool, source, indices), "statistics", len(indices)):
            if not isinstance(result, BadImage):
                total, done = total + result, done + 1
                continue
            if not bad_files.skip:
                raise result
            bad += 1
            bad_files.add([[result.path, result.reason]])
            bad_files.judge(bad, done + bad, len(indices), [result.path, result.reason])
    if not done:
        raise ConfigError("--images: no file could be read; allowed: at least one")
    mean, square = total / done
    return mean, np.sqrt(np.maximum(square - mean**2, 0)), done


def _each(
    pool: futures.Executor, source: Source, indices: list[int]
) -> Iterator[np.ndarray | BadImage]:
    """`moments` of all indices in order; in chunks, so that an error ends the work early."""
    for start in range(0, len(indices), CHUNK):
        yield from pool.map(lambda i: moments(source, i), indices[start : start + CHUNK])
