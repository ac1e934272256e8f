"""Memory that is freed stays with the process, unless something else decides."""

import os
import subprocess
import sys

import pytest

from mimjax.programs import allocator

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc alone")

# Pages that are cleared while a block of 64 MiB is taken, filled and freed ten times, in a thread
# as XLA does it.
PROGRAM = """
import ctypes, resource, threading
from mimjax.programs import allocator
print(allocator.keep())
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
libc.free.argtypes = [ctypes.c_void_p]
def fill():
    block = libc.malloc(2**26)
    ctypes.memset(block, 1, 2**26)
    libc.free(block)
def faults():
    thread = threading.Thread(target=fill)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    thread.start()
    thread.join()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
fill()
print(min(faults() for _ in range(10)))
"""


def run(**variables):
    """Whether memory is kept, and pages cleared for a block of 64 MiB."""
    env = {k: v for k, v in os.environ.items() if k not in allocator.CHOSEN} | variables
    command = [sys.executable, "-c", PROGRAM]
    out = subprocess.run(command, env=env, capture_output=True, text=True, check=True).stdout
    kept, faults = out.split()
    return kept == "True", int(faults)


def test_a_block_is_cleared_once():
    kept, faults = run(JAX_PLATFORMS="cpu")
    assert kept
    assert faults < 100  # 16,384 pages of 4 KiB


@pytest.mark.parametrize(
    "variables",
    [
        {"JAX_PLATFORMS": "cpu", "MALLOC_TRIM_THRESHOLD_": "131072"},
        {"JAX_PLATFORMS": "cpu", "GLIBC_TUNABLES": "glibc.malloc.arena_max=4"},
        {"JAX_PLATFORMS": "tpu"},
        {"JAX_PLATFORMS": "cuda,cpu"},
    ],
    ids=str,
)
def test_a_choice_and_an_accelerator_leave_it_alone(variables):
    kept, faults = run(**variables)
    assert not kept
    assert faults > 1000


def test_an_accelerator_is_seen_by_its_file(monkeypatch, tmp_path):
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)
    monkeypatch.setattr(allocator, "ACCELERATORS", (str(tmp_path / "chip[0-9]"),))
    assert not allocator.accelerated()
    (tmp_path / "chip0").touch()
    assert allocator.accelerated()
