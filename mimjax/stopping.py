"""How a program ends when it is asked to: by Ctrl-C, SIGTERM, or SIGUSR1 (SLURM's warning).

A signal sets a flag and interrupts nothing: an exception that rises out of a compilation, an import
or a save leaves tracebacks, half a checkpoint or a crash. Code that can stop asks for the flag,
with `check` in any loop and with `sync` between the steps of a run. What does not ask in time is
ended by a thread, which also hears signals while the main thread is in compiled code. A second
Ctrl-C ends the program at once.

Signals belong to the whole process, so there is one `Signals` object, `SIGNALS`.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

from mimjax.errors import Exit

NAMES = {signal.SIGINT: "Ctrl-C", signal.SIGTERM: "SIGTERM", signal.SIGUSR1: "SIGUSR1"}
# seconds
AT_ONCE = 1.0  # to the next `check`, where nothing is to be saved
UNWIND = 15.0  # to close files after that
PATIENCE = 60.0  # to the end of a step, where a checkpoint is to be made; twice the longest if more
HUNG = 3.0  # the same where no step has ended for a long time already


class Stopped(KeyboardInterrupt):
    """The program was asked to end, and has reached a place where it can.

    Attributes:
      code: the exit code.
      said: whether the message is on the screen already.
    """

    def __init__(self, text: str, code: Exit, said: bool = False):
        super().__init__(text)
        self.code, self.said = code, said


class Signals:
    """What was asked of this process, and what it is doing meanwhile.

    Attributes:
      asked: the first signal, None = none yet.
      saved: whether the workdir has a checkpoint, so that the same command continues.
      agree: set where a run has several processes: says at each `due` whether all stop there.
      tell: gets the line that ends the program, for `train.log`.
      last, longest: when `due` was called last, and the longest time between two calls.
    """

    def __init__(self):
        self.asked: signal.Signals | None = None
        self.saved = False
        self.agree: Callable[[], bool] | None = None
        self.tell: Callable[[str], None] = lambda line: None
        self.last = self.longest = 0.0
        self._since, self._interrupts = 0.0, 0
        self._deferred = self._saving = self._whole = 0
        self._installed = self._program = self._leaving = False
        self._cleanups: list[Callable[[], None]] = []
        self._ending, self._lock = threading.RLock(), threading.RLock()

    # ---------------------------------------------------------------- hearing
    def install(self) -> None:
        """Handles signals until the program ends; a second call does so anew.

        A signal that is ignored stays so, as a shell's background jobs ignore Ctrl-C.
        """
        for signum in NAMES:
            if signal.getsignal(signum) is not signal.SIG_IGN:
                signal.signal(signum, lambda *_: None)
        if not self._program:
            read, write = os.pipe()
            os.set_blocking(write, False)
            # the byte is written even while the main thread is in compiled code
            signal.set_wakeup_fd(write, warn_on_full_buffer=False)
            threading.Thread(target=self._watch, args=(read,), daemon=True, name="signals").start()
            # That thread hears it; helpers of libraries, which inherit this, would die of it: SLURM
            # sends it to all processes of a job.
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
        self._installed = self._program = True

    @contextlib.contextmanager
    def handled(self) -> Iterator[None]:
        """Handles signals in the body where no program does: in a notebook that trains."""
        if self._installed or threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {s: signal.getsignal(s) for s in NAMES}
        try:
            for signum in NAMES:
                signal.signal(signum, lambda number, _: self.hear(number))
            self._installed = True
            yield
        finally:
            for signum, handler in before.items():
                signal.signal(signum, handler)
            self._installed = self._leaving = self.saved = False
            self.asked, self._interrupts = None, 0

    def hear(self, number: int) -> None:
        """Notes a signal; a second Ctrl-C ends the program, or raises where there is none."""
        if number not in NAMES:
            return
        with self._lock:
            self._interrupts += number == signal.SIGINT
            if self.asked is None:
                self.asked, self._since = signal.Signals(number), time.monotonic()
        if self._interrupts > 1:
            if not self._program:
                raise KeyboardInterrupt
            kept = "; the checkpoints made before are whole" if self._deferred else ""
            self.end_now(f"stopped at once by a second Ctrl-C{kept}", Exit.INTERRUPTED)

    def hear_of(self, number: int) -> None:
        """Notes a signal that another process of the run has got."""
        with self._lock:
            if self.asked is None:
                self.asked, self._since = signal.Signals(number), time.monotonic()

    def _watch(self, pipe: int) -> None:
        while True:
            wait = self._time_left()
            if wait is not None and wait <= 0:
                self.end_now(*self._too_late())
            ready, _, _ = select.select([pipe], [], [], min(wait or 0.5, 0.5))
            for number in os.read(pipe, 64) if ready else b"":
                self.hear(number)

    def _time_left(self) -> float | None:
        """Seconds until a program that was asked to end is ended; None = no limit."""
        if self.asked is None or self._saving:
            return None
        now = time.monotonic()
        if self._leaving:
            return self._since + UNWIND - now
        if not self._deferred:
            return self._since + AT_ONCE - now
        if self.last < self._since - max(PATIENCE, 5 * self.longest):
            return self._since + HUNG - now
        return max(self._since, self.last) + max(PATIENCE, 2 * self.longest) - now

    def _too_late(self) -> tuple[str, Exit]:
        if self._leaving or not self._deferred:
            return self.words(), self.code()
        name, now = NAMES[self.asked or signal.SIGTERM], time.monotonic()
        return (
            f"error: asked to stop by {name}, but no step has ended for {now - self.last:.0f} s: "
            "nothing more is saved; the same command continues from the newest checkpoint",
            Exit.NO_ANSWER,
        )

    # ---------------------------------------------------------------- asking
    def check(self) -> None:
        """To be called in any loop, by any thread; does nothing in the body of `deferred`.

        Raises:
          Stopped: the program was asked to end.
        """
        if self.asked is not None and not self._deferred:
            self._leave_soon()
            raise Stopped(self.words(), self.code())

    def due(self) -> bool:
        """Whether the run is to stop here; all its processes call it in the same order."""
        now = time.monotonic()
        if self.last:
            self.longest = max(self.longest, now - self.last)
        self.last = now
        if self.agree is not None and self._deferred:
            return self.agree()
        return self.asked is not None

    def sync(self) -> None:
        """To be called between the batches of an evaluation, as `due` between steps.

        Raises:
          Stopped: the run is to stop here.
        """
        if self.due():
            self._leave_soon()
            raise Stopped(self.words(), self.code())

    def _leave_soon(self) -> None:
        if not self._deferred and not self._leaving:
            self._leaving, self._since = True, time.monotonic()

    def words(self) -> str:
        """The line of a program that has nothing (more) to save."""
        name = NAMES[self.asked or signal.SIGTERM]
        if self.saved:
            return f"stopped by {name}: the same command continues from the newest checkpoint"
        return f"stopped by {name}: there was nothing to save"

    def code(self) -> Exit:
        """The exit code of the signal that was heard."""
        if self.asked == signal.SIGINT:
            return Exit.INTERRUPTED
        return Exit.STOPPED if self.saved else Exit.ENDED

    # ---------------------------------------------------------------- sections
    @contextlib.contextmanager
    def deferred(self) -> Iterator[None]:
        """In the body there is something to save: signals wait for `due` and `sync`."""
        if not self._deferred:
            self.last, self.longest = time.monotonic(), 0.0
        self._deferred += 1
        try:
            yield
        finally:
            self._deferred -= 1

    @contextlib.contextmanager
    def saving(self) -> Iterator[None]:
        """The body may take as long as a disk needs."""
        self._saving += 1
        try:
            yield
        finally:
            self._saving -= 1
            self.last = time.monotonic()

    @contextlib.contextmanager
    def whole(self) -> Iterator[None]:
        """The body, a file that is put in its place, is not cut in the middle."""
        with self._lock:
            self._whole += 1
        try:
            yield
        finally:
            with self._lock:
                self._whole -= 1

    @contextlib.contextmanager
    def undoing(self, cleanup: Callable[[], None]) -> Iterator[None]:
        """If the program is ended in the body, `cleanup` is called: half a file is deleted."""
        self._cleanups.append(cleanup)
        try:
            yield
        finally:
            self.forget(cleanup)

    def at_end(self, cleanup: Callable[[], None]) -> None:
        """As `undoing`, until `forget`."""
        self._cleanups.append(cleanup)

    def forget(self, cleanup: Callable[[], None]) -> None:
        """Takes back `at_end`."""
        with contextlib.suppress(ValueError):
            self._cleanups.remove(cleanup)

    def idle(self) -> float:
        """Seconds since the last step of a run; 0 where none is to be expected."""
        return time.monotonic() - self.last if self._deferred and not self._saving else 0.0

    @property
    def running(self) -> bool:
        """Whether this is the body of `deferred`."""
        return self._deferred > 0

    # ---------------------------------------------------------------- ending
    def claim(self) -> None:
        """The thread that calls ends the program; another one that wants to waits for that."""
        if not self._ending.acquire(blocking=False):
            time.sleep(3600)

    def end_now(self, line: str, code: int) -> NoReturn:
        """Ends the program from any thread, without the interpreter's own end.

        Threads of the compiler may be running, and would crash in what that takes apart.
        """
        self.claim()
        deadline = time.monotonic() + HUNG
        while time.monotonic() < deadline and self._whole:
            time.sleep(0.01)
        self._lock.acquire(timeout=1)  # nothing begins to be written from here on
        self.last_words(line)
        for cleanup in reversed(self._cleanups):
            with contextlib.suppress(Exception):
                cleanup()
        leave(code)

    def last_words(self, line: str, screen: bool = True) -> None:
        """The line on the screen and in train.log."""
        if screen:
            print(line, file=sys.stderr, flush=True)
        with contextlib.suppress(Exception):  # a full disk, a folder that is gone
            self.tell(line)


@contextlib.contextmanager
def spared() -> Iterator[None]:
    """Processes that the body starts do not hear Ctrl-C and SIGTERM while they are starting.

    Both reach a terminal's or job's whole group. This process hears them in another thread.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, set(NAMES))
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def leave(code: int) -> NoReturn:
    """Ends the process; nothing but what was printed is brought to its end."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()
    os._exit(int(code))


def module_of(words: list[Any]) -> str:
    """Return the module that a command line `python -m MODULE` or `.../MODULE` runs, else ""."""
    for number, word in enumerate(map(str, words[1:]), 1):
        if word == "-m":
            return str(words[number + 1]) if words[number + 1 :] else ""
        if word == "-c":
            return ""
        if not word.startswith("-"):
            return os.path.basename(word).removesuffix(".exe")
    return ""


def program_of_mimjax(words: list[Any]) -> bool:
    """Whether a command line is `mimjax` or `python -m mimjax[.NAME]`."""
    return module_of(words).split(".")[0] == "mimjax"


SIGNALS = Signals()
check, due, sync = SIGNALS.check, SIGNALS.due, SIGNALS.sync
deferred, saving, whole, undoing = (
    SIGNALS.deferred,
    SIGNALS.saving,
    SIGNALS.whole,
    SIGNALS.undoing,
)
handled, install = SIGNALS.handled, SIGNALS.install
