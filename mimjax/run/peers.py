"""The other processes of a run: whether they live, when all stop, and whether they agree.

Everything goes through the key-value store of jax's coordination service, which process 0 holds. A
thread tells the others that this process lives and looks at them, so that a process that hangs in
a collective, in compiled code, learns that the one it waits for is gone.
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
INTERVAL = 1.0  # between two looks; longer for more than a hundred processes
SILENCE = 20.0  # without a sign of life, after which a process counts as dead
STEP = 1800.0  # without the end of a step: as long as torch.distributed waits for a collective
LINGER = 3.0  # for which process 0 keeps the store open for others that end with it
FEW = 5  # differences that are named


class Peers:
    """The processes of one run, from `watch` to `leave`.

    Attributes:
      store: jax's client of the coordination service.
      number, count: of this process, and of all.
    """

    def __init__(self, store: Any, number: int, count: int, interval: float = INTERVAL):
        self.store, self.number, self.count = store, number, count
        self.interval = max(interval, count / 100)
        self._beats: dict[str, tuple[str, float]] = {}
        self._left: dict[int, tuple[int, str]] = {}
        self._calls, self._stop_at, self._told = 0, 0, False
        self._counting, self._end = threading.Lock(), threading.Event()

    def watch(self) -> None:
        """Starts the thread; from here on the processes stop together."""
        SIGNALS.agree = self.agree
        threading.Thread(target=self._watch, daemon=True, name="peers").start()

    def _watch(self) -> None:
        beat = 0
        while not self._end.wait(self.interval):
            beat += 1
            try:
                self._set(f"beat/{self.number}", str(beat))
                if SIGNALS.asked is not None and not self._told:
                    with contextlib.suppress(Exception):  # another process was first
                        self.store.key_value_set(f"{ROOT}stop", str(int(SIGNALS.asked)))
                    self._told = True
                found = {k.removeprefix(ROOT): v for k, v in self.store.key_value_dir_get(ROOT)}
            except Exception:  # jaxlib has one kind of error for all that can go wrong
                if not self._end.is_set():
                    self.lost("process 0, which the others report to, does not answer")
                return
            self.look(found, time.monotonic())
            if "stop" in found:
                SIGNALS.hear_of(int(found["stop"]))
                self._told = True
                self._agree_on_step(found)

    # ---------------------------------------------------------------- alive
    def look(self, found: dict[str, str], now: float) -> None:
        """Ends this process where another one is gone, or no step ends.

        Args:
          found: the store by key; now: seconds of a clock that only this process reads.
        """
        for key, value in found.items():
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
                # a process that was asked to stop with this one may end before it
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
        """Ends this process in one line."""
        SIGNALS.end_now(f"error: {why}; {AGAIN}", Exit.NO_ANSWER)

    def explain(self, error: BaseException) -> str:
        """What ended the others, after an error in a collective; "" = the error is our own."""
        if not is_connection(error):
            return ""
        deadline = time.monotonic() + 2 * self.interval + 1  # who leaves in order says why
        while time.monotonic() < deadline and not any(code for code, _ in self._left.values()):
            time.sleep(0.1)
        others = [str(n) for n in range(self.count) if n != self.number]
        who = _named(others) if len(others) == 1 else "another process"
        return f"{who} broke the connection in the middle of a step; {AGAIN}"

    def leave(self, code: int, line: str = "") -> None:
        """Tells the others that this process ends, and with what."""
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
        """Whether all processes stop at this call; they make the same calls in the same order."""
        with self._counting:
            self._calls += 1
            return self._calls == self._stop_at

    def _agree_on_step(self, found: dict[str, str]) -> None:
        """All stop at the call after the one that the fastest process has made.

        No process makes another call between saying how many it made and knowing the others'.
        """
        if self._stop_at or not SIGNALS.running:
            return
        with self._counting:
            self._set(f"at/{self.number}", str(self._calls))
            while not self._end.wait(0.05):
                try:
                    found = dict(self.store.key_value_dir_get(ROOT))
                except Exception:
                    self.lost("process 0, which the others report to, does not answer")
                self.look({k.removeprefix(ROOT): v for k, v in found.items()}, time.monotonic())
                self._set(f"beat/{self.number}", f"{time.monotonic()}")
                if self._left:
                    return  # the run is over
                calls = [int(v) for k, v in found.items() if k.startswith(f"{ROOT}at/")]
                if len(calls) == self.count:
                    self._stop_at = max(calls) + 1
                    return

    # ---------------------------------------------------------------- agreeing
    def compare(self, facts: dict[str, str]) -> None:
        """Waits for all processes, and compares what each says of itself.

        Raises:
          ConfigError: something differs; every process raises it.
          PeerError: a process does not come.
        """
        text = json.dumps(facts, sort_keys=True)
        self.store.key_value_set(f"mimjax/facts/{self.number}", text)
        digest = hashlib.sha256(text.encode()).hexdigest()
        self.store.key_value_set(f"mimjax/digest/{self.number}", digest)
        digests = [self._get(f"mimjax/digest/{n}") for n in range(self.count)]
        if len(set(digests)) == 1:
            return
        first = [digests.index(d) for d in dict.fromkeys(digests)][:FEW]
        told = {n: json.loads(self._get(f"mimjax/facts/{n}")) for n in first}
        groups = {n: [str(i) for i, d in enumerate(digests) if d == digests[n]] for n in first}
        with contextlib.suppress(Exception):  # each reads before the first one ends
            self.store.wait_at_barrier("mimjax/compared", 10_000)
        raise ConfigError(difference(told, groups))

    def _get(self, key: str) -> str:
        try:
            return self.store.blocking_key_value_get(key, int(1000 * STEP))
        except Exception:
            number = key.rpartition("/")[2]
            raise PeerError(f"process {number} did not start within {STEP:.0f} s") from None

    def _set(self, name: str, value: str) -> None:
        self.store.key_value_set(ROOT + name, value, allow_overwrite=True)


AGAIN = "the same command, on all processes, continues from the newest checkpoint"


def difference(told: dict[int, dict[str, str]], groups: dict[int, list[str]]) -> str:
    """One line that names what differs, the processes and their values.

    Args:
      told: the facts of one process for each kind.
      groups: the same processes -> all of their kind.
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
    """Their names: "process 1", or "processes 0, 2 and 3"."""
    if len(numbers) == 1:
        return f"process {numbers[0]}"
    shown = numbers if len(numbers) <= 8 else [*numbers[:7], f"{len(numbers) - 7} more"]
    return f"processes {', '.join(shown[:-1])} and {shown[-1]}"


def is_connection(error: BaseException) -> bool:
    """Whether an error says that a collective lost a process."""
    text = str(error).lower()
    signs = ("gloo", "connection closed", "connection reset", "socket closed", "unavailable:")
    return isinstance(error, RuntimeError | ValueError | OSError) and any(s in text for s in signs)


_JOINED: list[Peers] = []


def join(store: Any, number: int, count: int) -> None:
    """Begins to watch the processes that jax has joined."""
    _JOINED[:] = [Peers(store, number, count)]
    _JOINED[0].watch()


def joined() -> Peers | None:
    """The processes of this run; None where there is one."""
    return _JOINED[0] if _JOINED else None
