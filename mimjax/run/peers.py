"""The processes of one run: whether they are alive, where all of them stop, whether they agree.

They communicate through the key-value store of jax's coordination service, which process 0 runs. A
thread in each process writes a sign of life and reads those of the others, so that a process that
hangs in a collective, in compiled code, learns that the one it waits for is gone. Arrays do not
pass here: those are jax's collectives.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import threading
import time
from typing import Any

from mimjax.errors import SIGNALS as BY_SIGNAL
from mimjax.errors import ConfigError, Exit, PeerError
from mimjax.stopping import SIGNALS

ROOT = "mimjax/peers/"
# seconds
INTERVAL = 1.0  # between two reads of the store; longer for more than a hundred processes
SILENCE = 20.0  # without a sign of life, after which a process counts as dead
STEP = 1800.0  # without the end of a step: as long as torch.distributed waits for a collective
LINGER = 3.0  # for which process 0 keeps the store open for others that end with it

FEW = 5  # differences that an error names


class Peers:
    """The processes of one run as this one knows them, from `watch` to `leave`.

    Attributes:
      store: jax's client of the coordination service.
      number, count: the number of this process, and how many there are.
      interval: seconds between two reads of the store.
    """

    def __init__(self, store: Any, number: int, count: int, interval: float = INTERVAL):
        self.store, self.number, self.count = store, number, count
        self.interval = max(interval, count / 100)
        self._beats: dict[str, tuple[str, float]] = {}
        self._left: dict[int, tuple[int, str]] = {}
        self._calls, self._stop_at, self._told = 0, 0, False
        self._compared = 0  # runs, of which `--seeds` makes several
        self._counting, self._end = threading.Lock(), threading.Event()

    def watch(self) -> None:
        """Start the thread that watches; from here on the processes stop together."""
        SIGNALS.agree = self.agree
        threading.Thread(target=self._watch, daemon=True, name="peers").start()

    def _watch(self) -> None:
        """Write signs of life and read the store until the end: the body of the thread."""
        beat = 0
        while not self._end.wait(self.interval):
            beat += 1
            try:
                self._set(f"beat/{self.number}", str(beat))
                if SIGNALS.asked is not None and not self._told:
                    with contextlib.suppress(Exception):  # another process was first
                        self.store.key_value_set(f"{ROOT}stop", str(int(SIGNALS.asked)))
                    self._told = True
                entries = {k.removeprefix(ROOT): v for k, v in self.store.key_value_dir_get(ROOT)}
            except Exception:  # jaxlib has one kind of error for all that can go wrong
                if not self._end.is_set():
                    self.lost("process 0, which the others report to, does not answer")
                return
            self.look(entries, time.monotonic())
            if "stop" in entries:
                SIGNALS.hear_of(int(entries["stop"]))
                self._told = True
                self._agree_on_step(entries)

    # ---------------------------------------------------------------- alive
    def look(self, entries: dict[str, str], now: float) -> None:
        """End this process where another one is gone, or where no step ends.

        Args:
          entries: of the store, by key without `ROOT`.
          now: seconds of this process's own clock; clocks are not compared between processes.
        """
        for key, value in entries.items():
            kind, _, number = key.partition("/")
            if kind == "left" and int(number) != self.number:
                code, _, line = value.partition(" ")
                self._left[int(number)] = int(code), line
            elif kind == "beat" and self._beats.get(number, ("",))[0] != value:
                self._beats[number] = value, now
        for number, (code, line) in self._left.items():
            if code in BY_SIGNAL and not SIGNALS.running:
                SIGNALS.end_now(line, code)
            elif code and (code not in BY_SIGNAL or SIGNALS.asked is None):
                # A process that was asked to stop together with this one may end before it.
                line = line.removeprefix("error: ")
                why = f"error: process {number} ended with exit code {code}: {line}"
                SIGNALS.end_now(why, Exit.NO_ANSWER)
        silent = [
            n
            for n, (_, since) in self._beats.items()
            if now - since > max(SILENCE, 3 * self.interval) and int(n) not in self._left
        ]
        if silent:
            self.lost(f"{_named(silent)} gave no sign of life for {SILENCE:.0f} s")
        patience = SILENCE * 3 if self._left else STEP
        if SIGNALS.idle() > max(patience, 10 * SIGNALS.longest):
            self.lost(f"no step has ended for {SIGNALS.idle():.0f} s")

    def lost(self, why: str) -> None:
        """End this process with one line and exit code 76."""
        SIGNALS.end_now(f"error: {why}; {AGAIN}", Exit.NO_ANSWER)

    def explain(self, error: BaseException) -> str:
        """Return what ended another process, after an error in a collective; "" for other errors.

        A process that ends in order says why in the store; where one has, the thread ends this
        process with that line while this function waits.
        """
        if not is_connection(error):
            return ""
        deadline = time.monotonic() + 2 * self.interval + 1
        while time.monotonic() < deadline and not any(code for code, _ in self._left.values()):
            time.sleep(0.1)
        others = [str(n) for n in range(self.count) if n != self.number]
        who = _named(others) if len(others) == 1 else "another process"
        return f"{who} broke the connection in the middle of a step; {AGAIN}"

    def leave(self, code: int, line: str = "") -> None:
        """Tell the others that this process ends, with which exit code and last line."""
        self._end.set()
        SIGNALS.agree = None
        with contextlib.suppress(Exception):
            self._set(f"left/{self.number}", f"{int(code)} {line}")
            deadline = time.monotonic() + (LINGER if code and self.number == 0 else 0)
            while time.monotonic() < deadline:
                left = self.store.key_value_dir_get(f"{ROOT}left/")
                if len(left) == self.count:
                    time.sleep(0.2)  # the last one has said so, and is about to end
                    break
                time.sleep(0.1)

    # ---------------------------------------------------------------- stopping together
    def agree(self) -> bool:
        """Return whether all processes stop at this call.

        Each process makes the same calls in the same order, once per step.
        """
        with self._counting:
            self._calls += 1
            return self._calls == self._stop_at

    def _agree_on_step(self, entries: dict[str, str]) -> None:
        """Choose the call of `agree` at which all processes stop.

        It is the call after the last one that the fastest process has made. No process makes
        another call between writing its number of calls and knowing those of the others.
        """
        if self._stop_at or not SIGNALS.running:
            return
        with self._counting:
            self._set(f"at/{self.number}", str(self._calls))
            while not self._end.wait(0.05):
                try:
                    entries = dict(self.store.key_value_dir_get(ROOT))
                except Exception:
                    self.lost("process 0, which the others report to, does not answer")
                self.look({k.removeprefix(ROOT): v for k, v in entries.items()}, time.monotonic())
                self._set(f"beat/{self.number}", f"{time.monotonic()}")
                if self._left:
                    return  # the run is over
                calls = [int(v) for k, v in entries.items() if k.startswith(f"{ROOT}at/")]
                if len(calls) == self.count:
                    self._stop_at = max(calls) + 1
                    return

    # ---------------------------------------------------------------- agreeing
    def compare(self, facts: dict[str, str]) -> None:
        """Wait for all processes, and compare what each says of itself.

        Digests are compared first: the facts of a process are read only where they differ.

        Args:
          facts: what must be the same, by the name that an error gives it.

        Raises:
          ConfigError: something differs; every process raises it.
          PeerError: a process did not start in time.
        """
        text, run = json.dumps(facts, sort_keys=True), self._compared
        self._compared += 1
        self.store.key_value_set(f"mimjax/facts/{run}/{self.number}", text)
        digest = hashlib.sha256(text.encode()).hexdigest()
        self.store.key_value_set(f"mimjax/digest/{run}/{self.number}", digest)
        digests = [self._get(f"mimjax/digest/{run}/{n}") for n in range(self.count)]
        if len(set(digests)) == 1:
            return
        first = [digests.index(d) for d in dict.fromkeys(digests)][:FEW]
        told = {n: json.loads(self._get(f"mimjax/facts/{run}/{n}")) for n in first}
        groups = {n: [str(i) for i, d in enumerate(digests) if d == digests[n]] for n in first}
        with contextlib.suppress(Exception):  # all read the store before process 0 may end
            self.store.wait_at_barrier("mimjax/compared", 10_000)
        raise ConfigError(difference(told, groups))

    def _get(self, key: str) -> str:
        """Return an entry of the store; wait for it up to `STEP` seconds."""
        try:
            return self.store.blocking_key_value_get(key, int(1000 * STEP))
        except Exception:
            number = key.rpartition("/")[2]
            raise PeerError(f"process {number} did not start within {STEP:.0f} s") from None

    def _set(self, name: str, value: str) -> None:
        """Write or replace an entry of the store."""
        self.store.key_value_set(ROOT + name, value, allow_overwrite=True)


AGAIN = "the same command, on all processes, continues from the newest checkpoint"


def difference(told: dict[int, dict[str, str]], groups: dict[int, list[str]]) -> str:
    """Return one line that names what differs, the processes and their values.

    Args:
      told: the facts of one process of each group of equal processes, by its number.
      groups: by the same number, the numbers of all processes of the group.
    """
    keys = list(dict.fromkeys(key for facts in told.values() for key in facts))
    lines = []
    for key in keys:
        values: dict[str, list[str]] = {}
        for number, facts in told.items():
            values.setdefault(facts.get(key, "(not there)"), []).extend(groups[number])
        if len(values) > 1:
            shown = (f"{v} ({_named(sorted(n, key=int))})" for v, n in values.items())
            lines.append(f"{key}: {', '.join(shown)}")
    more = f"; and {len(lines) - FEW} more" if len(lines) > FEW else ""
    return (
        f"the processes of this run differ in {'; '.join(lines[:FEW])}{more}; allowed: the same "
        "settings, code and data on every process"
    )


def _named(numbers: list[str]) -> str:
    """Return the names of processes: "process 1", or "processes 0, 2 and 3"."""
    if len(numbers) == 1:
        return f"process {numbers[0]}"
    shown = numbers if len(numbers) <= 8 else [*numbers[:7], f"{len(numbers) - 7} more"]
    return f"processes {', '.join(shown[:-1])} and {shown[-1]}"


def is_connection(error: BaseException) -> bool:
    """Return whether an error says that a collective lost a process."""
    text = str(error).lower()
    signs = ("gloo", "connection closed", "connection reset", "socket closed", "unavailable:")
    return isinstance(error, RuntimeError | ValueError | OSError) and any(s in text for s in signs)


_JOINED: list[Peers] = []


def join(store: Any, number: int, count: int) -> None:
    """Begin to watch the processes that jax has joined.

    Args:
      store: jax's client of the coordination service.
      number, count: the number of this process, and how many there are.
    """
    _JOINED[:] = [Peers(store, number, count)]
    _JOINED[0].watch()


def joined() -> Peers | None:
    """Return the processes of this run; None where it has one process."""
    return _JOINED[0] if _JOINED else None
