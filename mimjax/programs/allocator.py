"""Memory that the C library keeps between two steps on CPUs.

XLA asks for the temporaries of a step in one block and frees it when the step ends. By default
glibc hands such a block to the kernel, which clears every page of the next one: a sixth of the CPU
time of a small model's step. Here freed memory stays with the process.
"""

from __future__ import annotations

import ctypes
import glob
import os

# <malloc.h>: one heap for all threads, no block with a mapping of its own, nothing given back
ARENA_MAX, MMAP_MAX, TRIM_THRESHOLD = -8, -4, -1
SETTINGS = ((ARENA_MAX, 1), (MMAP_MAX, 0), (TRIM_THRESHOLD, -1))

# Variables of glibc. A user who sets one has chosen, and nothing is changed.
CHOSEN = (
    "GLIBC_TUNABLES",
    "MALLOC_ARENA_MAX",
    "MALLOC_MMAP_MAX_",
    "MALLOC_MMAP_THRESHOLD_",
    "MALLOC_TRIM_THRESHOLD_",
)
ACCELERATORS = ("/dev/nvidia[0-9]*", "/dev/kfd", "/dev/accel*", "/dev/vfio/[0-9]*")


def keep() -> bool:
    """Let glibc keep what is freed; to be called before jax is imported.

    Returns:
      Whether it does so. False: there is an accelerator, another C library, or an environment
      variable of glibc that decides.
    """
    if accelerated() or any(name in os.environ for name in CHOSEN):
        return False
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "gnu_get_libc_version"):
        return False
    done = [libc.mallopt(setting, value) for setting, value in SETTINGS]  # 1 = taken
    return all(done)


def accelerated() -> bool:
    """Return whether jax may compute on something else than the CPU."""
    if chosen := os.environ.get("JAX_PLATFORMS"):
        return chosen != "cpu"
    return any(glob.glob(pattern) for pattern in ACCELERATORS)
