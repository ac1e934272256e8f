"""Two runs on one workdir: the second is refused; a dead run's lock is no obstacle."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import threading
import time

import helpers
import pytest

from mimjax.errors import ConfigError, RunError
from mimjax.storage.files import Workdir
from mimjax.storage.lock import FILE, RunLock, in_words

HOLD = """
import signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background ignores it
from mimjax.storage.files import Workdir
from mimjax.storage.lock import RunLock
RunLock(Workdir(sys.argv[1])).acquire(print)
print("held", flush=True)
time.sleep(60)
"""


def hold(workdir):
    """Another process that holds the lock."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(workdir)],
        cwd=helpers.ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "held\n"
    return process


def test_a_living_run_is_named_and_a_killed_one_replaced(tmp_path):
    process = hold(tmp_path)
    lock, said = RunLock(Workdir(str(tmp_path))), []
    with pytest.raises(ConfigError, match=rf"in use by another run, process {process.pid} on "):
        lock.acquire(said.append)
    assert json.loads((tmp_path / FILE).read_text())["pid"] == process.pid
    assert in_words(lock.workdir).startswith(f"This run trains now: process {process.pid} on ")
    process.send_signal(signal.SIGKILL)  # not yet collected: a zombie is dead too
    while "Z" not in pathlib.Path(f"/proc/{process.pid}/stat").read_text():
        time.sleep(0.01)
    assert in_words(lock.workdir).startswith(f"This run was killed: process {process.pid} on ")
    lock.acquire(said.append)
    assert f"process {process.pid}" in said[0]
    assert json.loads((tmp_path / FILE).read_text())["pid"] == os.getpid()
    process.wait()
    lock.release()
    assert not (tmp_path / FILE).exists()
    assert in_words(lock.workdir) == ""


def test_an_ended_run_leaves_no_lock_and_readers_take_none(tmp_path):
    process = hold(tmp_path)
    process.send_signal(signal.SIGINT)  # an exception, so that the interpreter ends in order
    process.wait()
    assert not (tmp_path / FILE).exists()
    reader = RunLock(Workdir(str(tmp_path), writer=False))
    reader.acquire(print)
    reader.check()
    reader.release()
    assert not (tmp_path / FILE).exists()


def elsewhere(tmp_path, **facts):
    """The lock of a run on another machine."""
    lock = {"token": "x", "host": "far", "machine": "far", "pid": 7, "born": "1", "pulse": 0}
    (tmp_path / FILE).write_text(json.dumps(lock | {"started": "today"} | facts))


def test_another_machine_s_run_is_watched(tmp_path):
    elsewhere(tmp_path)
    said = []
    lock = RunLock(Workdir(str(tmp_path)), patience=0.2)
    assert "trains now (process 7 on far, started today), or it was" in in_words(lock.workdir)
    lock.acquire(said.append)  # no pulse: dead
    assert "watching" in said[0]
    assert "process 7 on far" in said[1]
    lock.release()

    elsewhere(tmp_path)
    beat = threading.Timer(0.1, elsewhere, [tmp_path], {"pulse": 1})
    beat.start()
    with pytest.raises(ConfigError, match="in use by another run, process 7 on far"):
        RunLock(Workdir(str(tmp_path)), patience=5.0).acquire(said.append)
    beat.join()


def test_a_damaged_lock_is_watched(tmp_path):
    """Nobody is named in it; a living run writes it anew, a dead one does not."""
    said = []
    for text in ("{broken", '{"pid": 1}', "[]"):
        (tmp_path / FILE).write_text(text)
        lock = RunLock(Workdir(str(tmp_path)), patience=0.1)
        lock.acquire(said.append)
        assert "damaged, and no run writes it: taken over" in said[-1]
        lock.release()
    (tmp_path / FILE).write_text("{broken")
    beats = [threading.Timer(t, elsewhere, [tmp_path], {"pulse": t}) for t in (0.1, 0.6)]
    for beat in beats:
        beat.start()
    with pytest.raises(ConfigError, match="in use by another run, process 7 on far"):
        RunLock(Workdir(str(tmp_path)), patience=5.0).acquire(said.append)
    for beat in beats:
        beat.join()


def test_the_pulse_moves_and_a_stolen_lock_ends_the_run(tmp_path):
    lock = RunLock(Workdir(str(tmp_path)), pulse=0.02)
    lock.acquire(print)
    read = lambda: json.loads((tmp_path / FILE).read_text())["pulse"]
    deadline = time.time() + 10
    while read() < 2:
        assert time.time() < deadline
        time.sleep(0.01)
    lock.check()
    elsewhere(tmp_path)
    with pytest.raises(RunError, match="was taken over by process 7 on far"):
        lock.check()
    lock.release()
    assert json.loads((tmp_path / FILE).read_text())["token"] == "x"  # not ours to delete
