"""Processes of one run: comparing, stopping together, missing one; against a store in memory.

`train/test_layouts.py` has real processes.
"""

import threading
import time

import pytest

from mimjax.errors import ConfigError, Exit
from mimjax.run import agreement, native, peers
from mimjax.run.peers import Peers, difference
from mimjax.stopping import Signals


class Store:
    """What `Peers` uses of jax's client."""

    def __init__(self):
        self.values, self.lock = {}, threading.Condition()

    def key_value_set(self, key, value, allow_overwrite=False):
        with self.lock:
            if key in self.values and not allow_overwrite:
                raise ValueError("exists")
            self.values[key] = value
            self.lock.notify_all()

    def key_value_dir_get(self, root):
        with self.lock:
            return [(k, v) for k, v in self.values.items() if k.startswith(root)]

    def blocking_key_value_get(self, key, milliseconds):
        with self.lock:
            assert self.lock.wait_for(lambda: key in self.values, milliseconds / 1000)
            return self.values[key]

    def wait_at_barrier(self, name, milliseconds):
        pass


def at_once(store, count, work):
    """`work(number)` in a thread each; their results or errors."""
    out = [None] * count

    def one(number):
        try:
            out[number] = work(Peers(store, number, count))
        except ConfigError as error:
            out[number] = error

    threads = [threading.Thread(target=one, args=(n,)) for n in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    return out


def test_processes_that_differ_all_say_so():
    facts = [{"optimizer.lr": "0.1", "seed": "0"} for _ in range(4)]
    assert at_once(Store(), 4, lambda p: p.compare(facts[p.number])) == [None] * 4
    facts[2] = {"optimizer.lr": "0.2", "seed": "0"}
    errors = at_once(Store(), 4, lambda p: p.compare(facts[p.number]))
    text = "optimizer.lr: 0.1 (processes 0, 1 and 3), 0.2 (process 2); allowed: the same"
    assert len({str(e) for e in errors}) == 1
    assert text in str(errors[0])
    assert "seed" not in str(errors[0])


def test_each_run_of_several_seeds_is_compared():
    """One start trains them all, and the second comparison reads nothing of the first."""

    def both(p):
        p.compare({"seed": "0"})
        p.compare({"seed": "1" if p.number else "2"})

    errors = at_once(Store(), 2, both)
    assert all("seed: 2 (process 0), 1 (process 1)" in str(e) for e in errors)


def test_many_differences_are_counted():
    told = {0: {f"key{i}": "a" for i in range(9)}, 1: {f"key{i}": "b" for i in range(8)}}
    line = difference(told, {0: ["0"], 1: ["1"]})
    assert line.count("(process 1)") == peers.FEW
    assert "and 4 more" in line


def test_all_stop_at_the_same_call(monkeypatch):
    """One is two steps behind the other, which waits for it."""
    signals = Signals()
    monkeypatch.setattr(peers, "SIGNALS", signals)
    store = Store()
    with signals.deferred():
        slow, fast = (Peers(store, n, 2, interval=0.02) for n in (0, 1))
        assert [slow.agree() for _ in range(3)] == [False] * 3
        assert [fast.agree() for _ in range(5)] == [False] * 5
        signals.asked = 15
        for p in (slow, fast):
            threading.Thread(target=p._watch, daemon=True).start()
        deadline = time.monotonic() + 10
        while not (slow._stop_at and fast._stop_at) and time.monotonic() < deadline:
            time.sleep(0.01)
        assert [slow.agree() for _ in range(3)] == [False, False, True]
        assert fast.agree()
    for p in (slow, fast):
        p.leave(Exit.DONE)


class Ended(Exception):
    pass


@pytest.fixture
def ends(monkeypatch):
    """Signals whose `end_now` raises what it would print."""
    signals = Signals()

    def end(line, code):
        raise Ended(f"{int(code)} {line}")

    signals.end_now = end
    monkeypatch.setattr(peers, "SIGNALS", signals)
    return signals


def test_one_that_is_gone_ends_the_others(ends):
    look = Peers(Store(), 0, 3).look
    look({"beat/1": "1", "beat/2": "1"}, 0.0)
    look({"beat/1": "2", "beat/2": "1"}, 15.0)
    with pytest.raises(Ended, match="76 error: process 2 gave no sign of life"):
        look({"beat/1": "3", "beat/2": "1"}, 25.0)
    look = Peers(Store(), 0, 3).look
    look({"left/1": "0 "}, 0.0)  # one that is done
    with pytest.raises(Ended, match="76 error: process 2 ended with exit code 1: no space"):
        look({"left/2": "1 error: no space"}, 0.0)


def test_one_that_was_asked_to_stop_takes_the_others_along(ends):
    line = "stopped by SIGTERM: nothing more had to be saved"
    with pytest.raises(Ended, match=f"143 {line}"):
        Peers(Store(), 0, 2).look({"left/1": f"143 {line}"}, 0.0)
    with ends.deferred():  # while this one saves
        ends.hear_of(15)
        Peers(Store(), 0, 2).look({"left/1": "75 stopped at step 3"}, 0.0)


def test_a_step_that_does_not_end(ends):
    look = Peers(Store(), 0, 2).look
    with ends.deferred():
        look({}, 0.0)
        ends.last -= peers.STEP + 1
        with pytest.raises(Ended, match="76 error: no step has ended for 1801 s"):
            look({}, 0.0)


def test_errors_of_lost_connections():
    gloo = RuntimeError("Gloo AllReduce failed: Connection closed by peer [127.0.0.1]:4711")
    assert peers.is_connection(gloo)
    assert not peers.is_connection(RuntimeError("shapes (2,) and (3,) differ"))


def test_native_lines_about_lost_connections_are_held_back():
    keep = native.Filter()
    lines = [
        (b"W1129 18:03:01.051330 1 cuda_timer.cc:87] clocks\n", True),
        (b"F1129 18:03:01.051441 1 client.h:80] because the JAX distributed service ...\n", False),
        (b"*** Check failure stack trace: ***\n", False),
        (b"    @  0x7f4f05a40634  absl::LogMessage::SendToLog()\n", False),
        (b"W1129 18:03:02.051330 1 cuda_timer.cc:87] clocks\n", True),
        (b"a worker's own line\n", True),
    ]
    assert [keep(line) for line, _ in lines] == [shown for _, shown in lines]
    assert len(keep.hidden) == 3


def test_the_digest_of_the_code_covers_every_room(tmp_path, monkeypatch):
    digest = agreement.code_digest.__wrapped__
    assert {"main.py", "models", "train"} <= {p.name for p in agreement.PACKAGE.iterdir()}
    monkeypatch.setattr(agreement, "PACKAGE", tmp_path)
    (tmp_path / "room").mkdir()
    (tmp_path / "room" / "file.py").write_text("x = 1\n")
    before = digest()
    (tmp_path / "room" / "file.py").write_text("x = 2\n")
    assert digest() != before
