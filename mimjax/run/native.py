"""What compiled code writes to stderr, and its abrupt end, in runs of several processes.

When the process that holds jax's coordination service is gone, jaxlib prints some thirty lines and
aborts all others, before Python can answer. Here its lines pass through a pipe, where those about
lost connections are held back, and an abort that follows them ends with one line and exit code 76.
"""

from __future__ import annotations

import ctypes
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable

HEAD = re.compile(rb"^(\x1b\[[0-9;]*m)?[IWEF]\d{4} \d\d:\d\d:\d\d|^[IWEF]0000 ")
LOST = re.compile(rb"coordination|preemption|distributed service|gloo|grpc", re.IGNORECASE)
_KEPT: list[object] = []  # ctypes frees a callback that nobody holds


class Filter:
    """Holds back lines about lost connections, and those that continue them."""

    def __init__(self):
        self.held: list[bytes] = []
        self._holding = False

    def __call__(self, line: bytes) -> bool:
        """Whether the line is to be shown."""
        if HEAD.match(line):
            self._holding = LOST.search(line) is not None
        elif line.startswith((b"terminate called", b"*** Check failure")):
            self._holding = self._holding or bool(self.held)
        if self._holding:
            self.held.append(line)
        return not self._holding


def redirect(lost: Callable[[], None]) -> None:
    """From now on native lines are filtered, and Python's own go to the screen as before.

    Args:
      lost: called when compiled code aborts the process after lines about lost connections; it
        ends the process.
    """
    screen = os.dup(2)
    read, write = os.pipe()
    sys.stderr.flush()
    os.dup2(write, 2)
    os.close(write)
    sys.stderr = os.fdopen(screen, "w", buffering=1, errors="backslashreplace", closefd=False)
    keep = Filter()

    def pump() -> None:
        with os.fdopen(read, "rb") as lines:
            for line in lines:
                if keep(line):
                    os.write(screen, line)

    threading.Thread(target=pump, daemon=True, name="native stderr").start()
    libc = ctypes.CDLL(None)

    def on_abort(number: int) -> None:
        time.sleep(0.2)  # the last lines may still be in the pipe
        if keep.held:
            lost()
        libc.signal(number, 0)  # the usual end: `abort` raises the signal once more

    callback = ctypes.CFUNCTYPE(None, ctypes.c_int)(on_abort)
    _KEPT.append(callback)
    libc.signal.argtypes = [ctypes.c_int, ctypes.c_void_p]
    libc.signal(int(signal.SIGABRT), ctypes.cast(callback, ctypes.c_void_p))
