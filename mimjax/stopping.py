"""Ending a program on request: by Ctrl-C, SIGTERM, or SIGUSR1 (SLURM's warning).

A signal sets a flag and interrupts nothing, because an exception out of a compilation, an import or
a save would leave tracebacks, half a checkpoint or a crash. Code that can stop reads the flag: with
`check` in any loop, with `due` and `sync` between the steps of a run. A thread ends programs that
do not read it in time; it receives signals even while the main thread is in compiled code. A second
Ctrl-C ends the program at once. Signals belong to the whole process, so there is one `Signals`
object, `SIGNALS`; exit codes stand in `errors`.
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
AT_ONCE = 1.0  # until the next `check`, where there is nothing to save
UNWIND = 15.0  # for closing files after that
PATIENCE = 60.0  # until a step ends and a checkpoint is made, or twice the longest step if more
HUNG = 3.0  # the same where no step has ended for a long time already


class Stopped(KeyboardInterrupt):
    """Raised where a program that was asked to end has reached a point where it can.

    Attributes:
      code: the exit code.
      said: whether the message is on the screen already.
    """

    def __init__(self, text: str, code: Exit, said: bool = False):
        super().__init__(text)
        self.code, self.said = code, said


class Signals:
    """The signals that this process received, and whether it can end now.

    Attributes:
      asked: the first signal; None = none yet.
      saved: whether the workdir has a checkpoint, so that the same command continues.
      agree: function that decides at each `due` whether all processes of a run stop there; None =
        the run has one process.
      tell: function that writes the line which ends the program to `train.log`.
      last, longest: time of the last call of `due`, and the longest time between two calls, in
        seconds.
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
        self._end_lock, self._lock = threading.RLock(), threading.RLock()

    # ---------------------------------------------------------------- receiving signals
    def install(self) -> None:
        """Handle signals until the program ends; a second call installs the handlers anew.

        A signal that the process ignores stays ignored, as a shell's background jobs ignore Ctrl-C.
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
            # The thread receives SIGUSR1. Blocking it here keeps child processes of libraries
            # alive, which inherit the mask: SLURM sends the signal to all processes of a job.
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
        self._installed = self._program = True

    @contextlib.contextmanager
    def recorded(self, tell: Callable[[str], None]) -> Iterator[None]:
        """Give the line that ends the program to `tell` as well, if it ends in the body."""
        before, self.tell = self.tell, tell
        yield  # after an error `tell` stays: the line is written when the program ends
        self.tell, self.saved = before, False

    @contextlib.contextmanager
    def handled(self) -> Iterator[None]:
        """Handle signals in the body, where no program handles them: in a notebook that trains."""
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
        """Note a signal; a second Ctrl-C ends the program.

        Raises:
          KeyboardInterrupt: at a second Ctrl-C outside of a program, in a notebook.
        """
        if number not in NAMES:
            return
        with self._lock:
            self._interrupts += number == signal.SIGINT
            self.hear_of(number)
        if self._interrupts > 1:
            if not self._program:
                raise KeyboardInterrupt
            kept = "; the checkpoints made before are whole" if self._deferred else ""
            self.end_now(f"stopped at once by a second Ctrl-C{kept}", Exit.INTERRUPTED)

    def hear_of(self, number: int) -> None:
        """Note a signal that another process of the run received."""
        with self._lock:
            if self.asked is None:
                self.asked, self._since = signal.Signals(number), time.monotonic()

    def _watch(self, pipe: int) -> None:
        """Read signals from the pipe, and end the program when its time is up; a thread's body."""
        while True:
            wait = self._time_left()
            if wait is not None and wait <= 0:
                self.end_now(*self._too_late())
            ready, _, _ = select.select([pipe], [], [], min(wait or 0.5, 0.5))
            for number in os.read(pipe, 64) if ready else b"":
                self.hear(number)

    def _time_left(self) -> float | None:
        """Return the seconds until a program that was asked to end is ended; None = no limit."""
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
        """Return the last line and exit code of a program whose time is up."""
        if self._leaving or not self._deferred:
            return self.words(), self.code()
        name, now = NAMES[self.asked or signal.SIGTERM], time.monotonic()
        return (
            f"error: asked to stop by {name}, but no step has ended for {now - self.last:.0f} s: "
            "nothing more is saved; the same command continues from the newest checkpoint",
            Exit.NO_ANSWER,
        )

    # ---------------------------------------------------------------- reading the flag
    def check(self) -> None:
        """Raise `Stopped` where the program was asked to end; to be called in any loop.

        Any thread may call it. In the body of `deferred` it does nothing.

        Raises:
          Stopped: the program was asked to end.
        """
        if self.asked is not None and not self._deferred:
            self._stop()

    def due(self) -> bool:
        """Return whether the run is to stop here; all its processes call it in the same order."""
        now = time.monotonic()
        if self.last:
            self.longest = max(self.longest, now - self.last)
        self.last = now
        if self.agree is not None and self._deferred:
            return self.agree()
        return self.asked is not None

    def sync(self) -> None:
        """Raise `Stopped` where `due` says so; to be called between batches of an evaluation.

        Raises:
          Stopped: the run is to stop here.
        """
        if self.due():
            self._stop()

    def _stop(self) -> NoReturn:
        """Raise `Stopped`, and start the time that the program has for closing its files."""
        if not self._deferred and not self._leaving:
            self._leaving, self._since = True, time.monotonic()
        raise Stopped(self.words(), self.code())

    def words(self) -> str:
        """Return the last line of a program that has nothing (more) to save."""
        name = NAMES[self.asked or signal.SIGTERM]
        if self.saved:
            return f"stopped by {name}: the same command continues from the newest checkpoint"
        return f"stopped by {name}: nothing more had to be saved"

    def code(self) -> Exit:
        """Return the exit code of the signal that was received."""
        if self.asked == signal.SIGINT:
            return Exit.INTERRUPTED
        return Exit.STOPPED if self.saved else Exit.ENDED

    # ---------------------------------------------------------------- sections
    @contextlib.contextmanager
    def deferred(self) -> Iterator[None]:
        """Let signals wait for `due` and `sync` in the body, which has something to save."""
        if not self._deferred:
            self.last, self.longest = time.monotonic(), 0.0
        self._deferred += 1
        try:
            yield
        finally:
            self._deferred -= 1

    @contextlib.contextmanager
    def saving(self) -> Iterator[None]:
        """Set no time limit for the body, which writes to a disk."""
        self._saving += 1
        try:
            yield
        finally:
            self._saving -= 1
            self.last = time.monotonic()

    @contextlib.contextmanager
    def whole(self) -> Iterator[None]:
        """Let no signal end the program in the body, which puts a file in its place."""
        with self._lock:
            self._whole += 1
        try:
            yield
        finally:
            with self._lock:
                self._whole -= 1

    @contextlib.contextmanager
    def undoing(self, cleanup: Callable[[], None]) -> Iterator[None]:
        """Call `cleanup` if the program is ended in the body, to delete half a file."""
        self.at_end(cleanup)
        try:
            yield
        finally:
            self.forget(cleanup)

    def at_end(self, cleanup: Callable[[], None]) -> None:
        """Call `cleanup` if the program is ended before `forget(cleanup)`."""
        self._cleanups.append(cleanup)

    def forget(self, cleanup: Callable[[], None]) -> None:
        """Undo `at_end`."""
        with contextlib.suppress(ValueError):
            self._cleanups.remove(cleanup)

    def idle(self) -> float:
        """Return the seconds since the last step of a run; 0 where no step is expected."""
        return time.monotonic() - self.last if self._deferred and not self._saving else 0.0

    @property
    def running(self) -> bool:
        """Whether the program is in the body of `deferred`."""
        return self._deferred > 0

    # ---------------------------------------------------------------- the end of the program
    def claim(self) -> None:
        """Make the calling thread the one that ends the program; any later one sleeps here."""
        if not self._end_lock.acquire(blocking=False):
            time.sleep(3600)

    def end_now(self, line: str, code: int) -> NoReturn:
        """End the program from any thread, without the shutdown of the interpreter.

        Threads of the compiler may be running, and would crash while the interpreter shuts down.

        Args:
          line: the last line, on the screen and in train.log.
          code: the exit code.
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
        """Write the last line to train.log and, if `screen`, to stderr."""
        if screen:
            print(line, file=sys.stderr, flush=True)
        with contextlib.suppress(Exception):  # the disk may be full, or the folder gone
            self.tell(line)


@contextlib.contextmanager
def spared() -> Iterator[None]:
    """Block Ctrl-C, SIGTERM and SIGUSR1 in processes that the body starts, while they are starting.

    These signals reach the whole group of a terminal or job. This process receives them in another
    thread.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, set(NAMES))
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def leave(code: int) -> NoReturn:
    """End the process at once; only the output buffers are flushed."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()
    os._exit(int(code))


def unread() -> bool:
    """Return whether the program that reads stdout has ended, as `head` does; then hush stdout."""
    try:
        poll, number = select.poll(), sys.stdout.fileno()
        poll.register(number, 0)
        gone = any(event & select.POLLERR for _, event in poll.poll(0))
    except (AttributeError, OSError, ValueError):  # stdout is no file, or there is no poll
        return False
    if gone:  # what is still in the buffer would fail again at the end
        os.dup2(os.open(os.devnull, os.O_WRONLY), number)
    return gone


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
    """Return whether a command line is `mimjax` or `python -m mimjax[.NAME]`."""
    return module_of(words).split(".")[0] == "mimjax"


SIGNALS = Signals()
check, due, sync = SIGNALS.check, SIGNALS.due, SIGNALS.sync
deferred, saving = SIGNALS.deferred, SIGNALS.saving
whole, undoing = SIGNALS.whole, SIGNALS.undoing
handled, install = SIGNALS.handled, SIGNALS.install
