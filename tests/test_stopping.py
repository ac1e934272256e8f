"""Signals: noted at once, answered at the next safe place, and by force where there is none."""

import os
import signal
import subprocess
import sys
import time

import helpers
import pytest

from mimjax import stopping
from mimjax.errors import Exit
from mimjax.stopping import Signals, Stopped

TERM, INT, USR1 = signal.SIGTERM, signal.SIGINT, signal.SIGUSR1


@pytest.mark.parametrize(
    ("number", "saved", "code"),
    [
        *((TERM, True, 75), (TERM, False, 143), (USR1, True, 75), (USR1, False, 143)),
        *((INT, True, 130), (INT, False, 130)),
    ],
)
def test_check_raises_what_was_asked(number, saved, code):
    signals = Signals()
    signals.check()
    signals.saved = saved
    signals.hear(number)
    signals.hear(TERM)  # a launcher repeats what the terminal sent: the first one counts
    with pytest.raises(Stopped, match=stopping.NAMES[number]) as found:
        signals.check()
    assert found.value.code == code
    assert ("continues" in str(found.value)) == saved


def test_deferred_waits_for_the_end_of_a_step():
    signals = Signals()
    with signals.deferred():
        assert not signals.due()
        signals.hear(TERM)
        signals.check()  # loops within a step go on
        assert signals.due()
        with pytest.raises(Stopped):
            signals.sync()
    with pytest.raises(Stopped):
        signals.check()


def test_processes_that_agree_stop_where_all_do():
    signals, answers = Signals(), iter([False, True])
    signals.agree = lambda: next(answers)
    signals.hear(TERM)
    with signals.deferred():
        assert not signals.due()
        assert signals.due()


def test_time_until_force_is_used():
    signals = Signals()
    assert signals._time_left() is None  # nobody asked
    signals.hear(TERM)
    assert 0 < signals._time_left() <= stopping.AT_ONCE
    with signals.deferred():
        assert stopping.AT_ONCE < signals._time_left() <= stopping.PATIENCE
        signals.longest = 100.0  # steps that take long get the time they need
        assert stopping.PATIENCE < signals._time_left() <= 200
        with signals.saving():
            assert signals._time_left() is None
        signals.longest, signals.last = 0.1, time.monotonic() - 300
        assert 0 < signals._time_left() <= stopping.HUNG
        line, code = signals._too_late()
        assert "no step has ended for 300 s" in line
        assert code == Exit.NO_ANSWER


def test_handlers_of_a_notebook_come_back():
    signals, before = Signals(), signal.getsignal(TERM)
    with signals.handled():
        os.kill(os.getpid(), USR1)
        assert signals.asked == USR1
        os.kill(os.getpid(), INT)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), INT)
    assert signal.getsignal(TERM) is before
    assert signal.getsignal(INT) is signal.default_int_handler
    assert signals.asked is None


def test_which_programs_install_handlers_early():
    ours = ["-m mimjax prepare --path=x", "-m mimjax.main", "-u -m mimjax", "/env/bin/mimjax plan"]
    for words in ours:
        assert stopping.program_of_mimjax(["python", *words.split()]), words
    others = [["-m", "pytest", "mimjax"], ["x.py"], ["-m"], ["-c", "import mimjax", "mimjax"], []]
    for other in (["python", *words] for words in others):
        assert not stopping.program_of_mimjax(other)


HEAD = """
import os, signal, time
from mimjax.stopping import SIGNALS
signal.signal(signal.SIGINT, signal.default_int_handler)
SIGNALS.install()
me = os.getpid()
"""
BUSY = """
with SIGNALS.undoing(lambda: print("undone")):
    os.kill(me, signal.SIGTERM)
    time.sleep(60)
"""
TWICE = """
SIGNALS.saved, SIGNALS.tell = True, lambda line: print("log:", line)
with SIGNALS.deferred(), SIGNALS.whole():
    os.kill(me, signal.SIGINT), time.sleep(0.3), os.kill(me, signal.SIGINT), time.sleep(0.5)
    print("the file is whole")
time.sleep(60)
"""
IGNORED = """
signal.signal(signal.SIGINT, signal.SIG_IGN)
SIGNALS.install()
os.kill(me, signal.SIGINT)
time.sleep(0.2)
SIGNALS.check()
print("as before")
"""


@pytest.mark.parametrize(
    ("body", "code", "out", "err"),
    [
        (BUSY, 143, "undone\n", "stopped by SIGTERM: nothing more had to be saved\n"),
        (TWICE, 130, "the file is whole\nlog: ", "stopped at once by a second Ctrl-C"),
        (IGNORED, 0, "as before\n", ""),
    ],
)
def test_a_program_that_does_not_ask(body, code, out, err):
    """Such a program is ended within seconds, in one line."""
    begin = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", HEAD + body],
        cwd=helpers.ROOT,
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert done.returncode == code, done.stderr
    assert done.stdout.startswith(out)
    assert done.stderr.startswith(err)
    assert done.stderr.count("\n") == bool(err)
    assert time.monotonic() - begin < 30
