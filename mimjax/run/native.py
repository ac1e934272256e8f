"""Filter for the stderr of compiled code, and for its aborts, in runs of several processes.

When the process with jax's coordination service is gone, jaxlib prints some thirty lines and aborts
all others, before Python can answer. Here its lines pass through a pipe that keeps back those about
lost connections, and an abort that follows them ends with one line and exit code 76. Python's own
lines go to the screen directly.
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

# the first line of a message of the C++ loggers: severity, date or 0000, time
HEAD = re.compile(rb"^(\x1b\[[0-9;]*m)?[IWEF]\d{4} \d\d:\d\d:\d\d|^[IWEF]0000 ")
LOST = re.compile(rb"coordination|preemption|distributed service|gloo|grpc", re.IGNORECASE)
_KEPT: list[object] = []  # ctypes frees a callback without a reference


class Filter:
    """Filter that keeps back messages about lost connections, of one or several lines.

    Attributes:
      hidden: the lines that were kept back.
    """

    def __init__(self):
        self.hidden: list[bytes] = []
        self._hiding = False

    def __call__(self, line: bytes) -> bool:
        """Return whether the line is to be shown."""
        if HEAD.match(line):
            self._hiding = LOST.search(line) is not None
        elif line.startswith((b"terminate called", b"*** Check failure")):
            # an abort after lost connections belongs to them; any other is shown
            self._hiding = self._hiding or bool(self.hidden)
        if self._hiding:
            self.hidden.append(line)
        return not self._hiding


def redirect(lost: Callable[[], None]) -> None:
    """Filter stderr of compiled code from now on; Python's own lines go to the screen as before.

    Args:
      lost: is called when compiled code aborts the process after lines about lost connections, and
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
        if keep.hidden:
            lost()
        libc.signal(number, 0)  # the default action: `abort` raises the signal once more

    callback = ctypes.CFUNCTYPE(None, ctypes.c_int)(on_abort)
    _KEPT.append(callback)
    libc.signal.argtypes = [ctypes.c_int, ctypes.c_void_p]
    libc.signal(int(signal.SIGABRT), ctypes.cast(callback, ctypes.c_void_p))
