"""Compiled programs kept on disk: a start of the same run, or of another seed, compiles nothing.

JAX keeps them; this module chooses the folder, keeps it small and answers what goes wrong with it.
A program is read back only by the same versions, settings and kind of processor.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import pathlib
import platform
import re
import shutil
import warnings
from collections.abc import Callable
from typing import Any

import jax
from jax.experimental.compilation_cache import compilation_cache

AUTO = "auto"
LIMIT = 4 * 2**30  # bytes of all programs that are kept; those read longest ago go first
NEEDED = 2**29  # bytes that are left free on the disk
SHORTEST = 0.1  # seconds; what compiles faster is compiled again
ENTRY = re.compile(r".+-[0-9a-f]{64}-cache")  # a name that JAX gives


def enable(folder: str | None, say: Callable[[str], None]) -> str | None:
    """Have JAX keep compiled programs, from the next one that it compiles.

    Nothing stops a run here: a folder that cannot be used is named in one line, and the run
    compiles. Processes may share a folder. A folder that JAX_COMPILATION_CACHE_DIR names wins.

    Args:
      folder: a local folder or a remote one that JAX can write to ("gs://..."); "auto" = that of
        `default`; None = nothing is kept.
      say: gets the line.

    Returns:
      The folder that is used; None = none.
    """
    if folder is None:
        return _use(None)
    if chosen := os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        return chosen
    place = default() if folder == AUTO else os.path.expanduser(folder)
    if "://" not in place:
        try:
            _tidy(place)
            place = _own(place)
        except OSError as error:
            why = error.strerror or str(error)
            say(f"compile_cache_dir: {place}: {why}; compiled programs are not kept")
            return _use(None)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", SHORTEST)
    # An entry that another process is writing, or a disk that fills while the run compiles: JAX
    # compiles, as it would without a cache, and would say so for every program.
    warnings.filterwarnings("ignore", "Error (reading|writing) persistent compilation cache")
    return _use(place)


def _use(place: str | None) -> str | None:
    """Have JAX read and write here from now on; None = nowhere."""
    now: Any = jax.config
    before = [now.jax_compilation_cache_dir, now.jax_enable_compilation_cache]
    if [place, place is not None] != before:
        jax.config.update("jax_compilation_cache_dir", place)
        jax.config.update("jax_enable_compilation_cache", place is not None)
        # INFO lines about the cache are of no use on a run's screen
        logging.getLogger("jax._src.compilation_cache").setLevel(logging.WARNING)
        compilation_cache.reset_cache()  # what it decided at the first program it compiled
    return place


def default() -> str:
    """Return the user's folder for files that can be made again, and in it that of mimjax."""
    root = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return os.path.join(root, "mimjax", "compiled")


def processor() -> str:
    """Return eight letters that stand for this kind of processor: its name and abilities."""
    known = [platform.machine(), platform.processor()]
    with contextlib.suppress(OSError):  # a file of Linux
        lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
        known += [line for line in lines if line.startswith(("model name", "flags"))][:2]
    return hashlib.sha256("\n".join(known).encode()).hexdigest()[:8]


def _own(folder: str) -> str:
    """Return the folder of this kind of processor, made and written to once.

    Raises:
      OSError: it cannot be written to, or the disk is full.
    """
    own = pathlib.Path(folder) / processor()
    own.mkdir(parents=True, exist_ok=True)
    if (free := shutil.disk_usage(own).free) < NEEDED:
        raise OSError(f"{free / 2**20:.0f} MiB free of {NEEDED / 2**20:.0f} needed")
    probe = own / f".{os.getpid()}"
    try:
        probe.write_bytes(bytes(2**16))
    finally:
        probe.unlink(missing_ok=True)
    return str(own)


def _tidy(folder: str) -> None:
    """Remove the programs that were read longest ago, until `LIMIT` is kept."""
    found = []
    for path in pathlib.Path(folder).glob("*/*-cache"):
        if not ENTRY.fullmatch(path.name):
            continue
        with contextlib.suppress(OSError):  # another process removed it
            info = path.stat()
            found.append((max(info.st_atime, info.st_mtime), info.st_size, path))
    total = sum(size for _, size, _ in found)
    for _, size, path in sorted(found):
        if total <= LIMIT:
            break
        with contextlib.suppress(OSError):
            path.unlink()
        total -= size
