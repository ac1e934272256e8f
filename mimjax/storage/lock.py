"""One run per workdir: `run.lock` says who writes there; a second run is refused.

A lock whose process has died on this machine is taken over at once. Of a lock from another machine
nothing is known but its pulse, a counter that a thread raises: it is watched for a while, and taken
over only if it stands still. No clock is compared. A file and no `flock`, which remote stores lack:
of two runs that start within the same instant both may pass, and the one whose name is
overwritten stops at its next log line.
"""

from __future__ import annotations

import atexit
import json
import os
import pathlib
import socket
import threading
import time
import uuid
from collections.abc import Callable
from typing import Any

from mimjax import stopping
from mimjax.errors import ConfigError, RunError
from mimjax.storage.files import Workdir

FILE = "run.lock"
FIELDS = {"token", "host", "machine", "pid", "born", "started", "pulse"}
PULSE = 20.0  # seconds between two pulses
PATIENCE = 60.0  # seconds without one after which another machine's run counts as dead


class RunLock:
    """Held from `acquire` to `release`, which the end of the interpreter calls too.

    Attributes:
      workdir: only its writer takes part; for all others every method does nothing.
      pulse, patience: seconds, see PULSE and PATIENCE.
    """

    def __init__(self, workdir: Workdir, pulse: float = PULSE, patience: float = PATIENCE):
        self.workdir, self.pulse, self.patience = workdir, pulse, patience
        self.mine: dict[str, Any] = {}
        self._end = threading.Event()
        self._thread: threading.Thread | None = None

    def acquire(self, say: Callable[[str], None]) -> None:
        """Takes the lock; `say` gets a line if a dead run's lock is taken over.

        Raises:
          ConfigError: a living run holds it.
        """
        if not self.workdir.writer:
            return
        other = self._read()
        if other and not self._is_me(other):
            self._outlive(other, say)
            say(f"run.lock: taken over from a run that has died ({_who(other)})")
        elif not other and self.workdir.read_text(FILE):
            self._outlive_damaged(say)
        self.mine = {
            "token": uuid.uuid4().hex,
            "host": socket.gethostname(),
            "machine": _machine(),
            "pid": os.getpid(),
            "born": _born(os.getpid()),
            "started": time.strftime("%Y-%m-%d %H:%M:%S %Z"),
            "pulse": 0,
        }
        self._write()
        atexit.register(self.release)
        stopping.SIGNALS.at_end(self.release)
        self._thread = threading.Thread(target=self._beat, daemon=True, name="run.lock")
        self._thread.start()

    def check(self) -> None:
        """Whether the lock is still ours.

        Raises:
          RunError: another run took it over while this one stood still.
        """
        other = self._read() if self.mine else {}
        if other and other["token"] != self.mine["token"]:
            self._end.set()
            raise RunError(f"--workdir: {self.workdir.path} was taken over by {_who(other)}")

    def release(self) -> None:
        """Ends the pulse and deletes the file, if it is ours."""
        self._end.set()
        if self._thread is not None:
            self._thread.join(timeout=10)  # a pulse after the deletion would leave the file
        atexit.unregister(self.release)
        stopping.SIGNALS.forget(self.release)
        if self.mine and self._read().get("token") == self.mine["token"]:
            self.workdir.remove(FILE)
        self.mine = {}

    def _outlive(self, other: dict[str, Any], say: Callable[[str], None]) -> None:
        """Returns if the holder is dead."""
        if other["machine"] == _machine():
            alive = _born(other["pid"]) == other["born"] and _exists(other["pid"])
        else:
            say(
                f"run.lock: held by {_who(other)}; watching for {self.patience:.0f} s whether "
                "that run is alive"
            )
            alive = self._moves(other)
        if alive:
            raise ConfigError(
                f"--workdir: {self.workdir.path} is in use by another run, {_who(other)}; allowed: "
                "one run per workdir (end that one, or choose another folder)"
            )

    def _outlive_damaged(self, say: Callable[[str], None]) -> None:
        """Watches a file that names nobody: a living run writes it anew at its next pulse."""
        say(
            f"run.lock: damaged, so that nobody is named; watching for {self.patience:.0f} s "
            "whether a living run writes it anew"
        )
        deadline = time.monotonic() + self.patience
        while time.monotonic() < deadline:
            time.sleep(min(1.0, self.patience / 10))
            if other := self._read():
                return self._outlive(other, say)
        say("run.lock: damaged, and no run writes it: taken over")

    def _moves(self, other: dict[str, Any]) -> bool:
        deadline = time.monotonic() + self.patience
        while time.monotonic() < deadline:
            time.sleep(min(1.0, self.patience / 10))
            now = self._read()
            if not now:
                return False  # that run has ended just now
            if now != other:
                return True
        return False

    def _beat(self) -> None:
        mine = self.mine
        while not self._end.wait(self.pulse):
            try:
                if self._read().get("token", mine["token"]) != mine["token"]:
                    return  # `check` says so
                mine["pulse"] += 1
                self._write()
            except OSError:
                continue  # a store that hiccups must not end the run

    def _read(self) -> dict[str, Any]:
        try:
            found = json.loads(self.workdir.read_text(FILE) or "{}")
        except (json.JSONDecodeError, FileNotFoundError):
            return {}  # being written or deleted
        return found if isinstance(found, dict) and found.keys() >= FIELDS else {}

    def _write(self) -> None:
        self.workdir.write_text(FILE, json.dumps(self.mine) + "\n")

    def _is_me(self, other: dict[str, Any]) -> bool:
        """A run of this very process: a notebook or test that starts another one."""
        same = other["machine"] == _machine() and other["pid"] == os.getpid()
        return same and other["born"] == _born(os.getpid())


def _who(lock: dict[str, Any]) -> str:
    return f"process {lock['pid']} on {lock['host']}, started {lock['started']}"


def _machine() -> str:
    """Equal for two processes only if one's process ids mean something to the other."""
    parts = [socket.gethostname()]
    for path in ("/proc/sys/kernel/random/boot_id", "/proc/self/ns/pid"):
        try:
            parts.append(os.readlink(path) if path.endswith("pid") else _text(path))
        except OSError:
            parts.append("")
    return " ".join(parts)


def _born(pid: int) -> str:
    """When a process began, in the kernel's ticks: a process id is used again."""
    try:
        return _text(f"/proc/{pid}/stat").rpartition(")")[2].split()[19]
    except OSError:
        return ""


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True  # somebody else's
    return not _zombie(pid)


def _zombie(pid: int) -> bool:
    """Killed, and only not yet collected by its parent."""
    try:
        return _text(f"/proc/{pid}/stat").rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return False


def _text(path: str) -> str:
    return pathlib.Path(path).read_text().strip()
