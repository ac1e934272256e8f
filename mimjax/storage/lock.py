"""Lock of a workdir: `run.lock` names the run that writes there, and a second run is refused.

A lock whose process died on this machine is taken over at once. A run on another machine is judged
by its pulse, a counter in the file that a thread increments: its lock is taken over only if the
counter does not change for PATIENCE seconds. Clocks of machines are not compared. The lock is a
plain file, since remote stores have no `flock`. Hence two runs that start at the same instant may
both pass; the one whose entry was overwritten stops at its next log line (`RunLock.check`).
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
from collections.abc import Callable, Iterator
from typing import Any

from mimjax import stopping
from mimjax.errors import ConfigError, RunError
from mimjax.storage.files import Workdir

FILE = "run.lock"
FIELDS = {"token", "host", "machine", "pid", "born", "started", "pulse"}
PULSE = 20.0  # seconds between two pulses
PATIENCE = 60.0  # seconds without a pulse after which a run on another machine counts as dead


class RunLock:
    """Lock of one workdir, from `acquire` to `release` or the end of the interpreter.

    Attributes:
      workdir: folder of the run. Where this process is not its writer, all methods do nothing.
      pulse, patience: seconds, see PULSE and PATIENCE.
      mine: content of this run's lock file, {} without a lock.
    """

    def __init__(self, workdir: Workdir, pulse: float = PULSE, patience: float = PATIENCE):
        self.workdir, self.pulse, self.patience = workdir, pulse, patience
        self.mine: dict[str, Any] = {}
        self._end = threading.Event()
        self._thread: threading.Thread | None = None

    def acquire(self, say: Callable[[str], None]) -> None:
        """Take the lock and start its pulse.

        Args:
          say: receives a line if the lock of a dead run is taken over.

        Raises:
          ConfigError: a living run has the lock.
        """
        if not self.workdir.writer:
            return
        other = read(self.workdir)
        if other:
            self._check_dead(other, say)
            say(f"run.lock: taken over from a run that has died ({_who(other)})")
        elif not other and self.workdir.read_text(FILE):
            self._check_dead_damaged(say)
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
        """Check that the lock is still this run's.

        Raises:
          RunError: another run took it over, for example while this one was suspended.
        """
        other = read(self.workdir) if self.mine else {}
        if other and other["token"] != self.mine["token"]:
            self._end.set()
            raise RunError(f"--workdir: {self.workdir.path} was taken over by {_who(other)}")

    def release(self) -> None:
        """Stop the pulse, and delete the file if it is this run's."""
        self._end.set()
        if self._thread is not None:
            # a pulse after the deletion would write the file again
            self._thread.join(timeout=10)
        atexit.unregister(self.release)
        stopping.SIGNALS.forget(self.release)
        if self.mine and read(self.workdir).get("token") == self.mine["token"]:
            self.workdir.remove(FILE)
        self.mine = {}

    def _check_dead(self, other: dict[str, Any], say: Callable[[str], None]) -> None:
        """Return if the run of the lock `other` is dead.

        Raises:
          ConfigError: that run is alive.
        """
        alive = is_alive(other)
        if alive is None:
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

    def _check_dead_damaged(self, say: Callable[[str], None]) -> None:
        """Return if no living run has a lock file that cannot be read.

        A living run would write the file again at its next pulse.

        Raises:
          ConfigError: a run wrote the file again.
        """
        say(
            f"run.lock: damaged, so that nobody is named; watching for {self.patience:.0f} s "
            "whether a living run writes it anew"
        )
        for other in self._watch():
            if other:
                return self._check_dead(other, say)
        say("run.lock: damaged, and no run writes it: taken over")

    def _moves(self, other: dict[str, Any]) -> bool:
        """Return whether the lock file changes within `patience` seconds."""
        for now in self._watch():
            if now != other:
                return bool(now)  # where it is gone, that run has just ended
        return False

    def _watch(self) -> Iterator[dict[str, Any]]:
        """Yield the content of the lock file, once a second or more often, for `patience`."""
        deadline = time.monotonic() + self.patience
        while time.monotonic() < deadline:
            time.sleep(min(1.0, self.patience / 10))
            yield read(self.workdir)

    def _beat(self) -> None:
        """Increment the pulse every `pulse` seconds until the lock is released or lost."""
        mine = self.mine
        while not self._end.wait(self.pulse):
            try:
                if read(self.workdir).get("token", mine["token"]) != mine["token"]:
                    return  # another run took the lock; `check` raises the error
                mine["pulse"] += 1
                self._write()
            except OSError:
                continue  # a short failure of a disk or store must not end the run

    def _write(self) -> None:
        self.workdir.write_text(FILE, json.dumps(self.mine) + "\n")


def read(workdir: Workdir) -> dict[str, Any]:
    """Return the content of the lock file, {} if it is missing or not whole."""
    try:
        lock = json.loads(workdir.read_text(FILE) or "{}")
    except (json.JSONDecodeError, FileNotFoundError):
        return {}  # being written or deleted
    return lock if isinstance(lock, dict) and lock.keys() >= FIELDS else {}


def is_alive(lock: dict[str, Any]) -> bool | None:
    """Return whether a lock's run is alive; None = on another machine: its pulse must tell."""
    if lock["machine"] != _machine():
        return None
    return _born(lock["pid"]) == lock["born"] and _exists(lock["pid"])


def in_words(workdir: Workdir) -> str:
    """Return what the lock of a workdir says of its run, without waiting; "" without a lock."""
    lock = read(workdir)
    if not lock and not workdir.file(FILE).exists():
        return ""
    alive = is_alive(lock) if lock else None
    if alive is None:
        who = f" ({_who(lock)})" if lock else ""
        return f"{FILE} is there: this run trains now{who}, or it was killed."
    return f"This run trains now: {_who(lock)}." if alive else f"This run was killed: {_who(lock)}."


def _who(lock: dict[str, Any]) -> str:
    """Return words that name the run of a lock, for messages."""
    return f"process {lock['pid']} on {lock['host']}, started {lock['started']}"


def _machine() -> str:
    """Return the name of this boot and process namespace.

    It is equal for two processes only if a process id means the same to both of them.
    """
    parts = [socket.gethostname()]
    for path in ("/proc/sys/kernel/random/boot_id", "/proc/self/ns/pid"):
        try:
            parts.append(os.readlink(path) if path.endswith("pid") else _text(path))
        except OSError:
            parts.append("")
    return " ".join(parts)


def _born(pid: int) -> str:
    """Return the start time of a process in the kernel's ticks, "" if there is no such process.

    Process ids are used again; together with the start time they are unique.
    """
    return "".join(_facts(pid)[19:20])


def _exists(pid: int) -> bool:
    """Return whether a process is alive."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True  # a process of another user
    return _facts(pid)[:1] != ["Z"]  # it has ended, and its parent has not yet collected it


def _facts(pid: int) -> list[str]:
    """Return what the kernel says of a process, its state first; [] if there is none."""
    try:
        return _text(f"/proc/{pid}/stat").rpartition(")")[2].split()
    except OSError:
        return []


def _text(path: str) -> str:
    return pathlib.Path(path).read_text().strip()
