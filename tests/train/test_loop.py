"""A run that is asked to stop, inside this process; real ones are in test_restart.py."""

import os
import re
import signal

import helpers
import jax
import pytest
from train import inside

from mimjax import stopping
from mimjax.evaluators.error import MaskedError
from mimjax.schema import section
from mimjax.storage.files import Workdir

TIMED = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d [+-]\d{4} "


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    inside.quick(monkeypatch)


def config(**more):
    settings = {"steps": 4, "log_every": 1, "eval.every": 2, "eval.error": section(MaskedError())}
    return helpers.small("mae", **inside.TINY, **settings | {"eval.batch_size": 64} | more)


def at_line(step, number):
    """The run gets a signal when it writes the line of a step."""

    def change(run):
        write = run.log.write

        def hit(at, values):
            write(at, values)
            if at == step and "loss/total" in values:
                os.kill(os.getpid(), number)

        run.log.write = hit

    return change


def last_line(workdir):
    return (workdir / "train.log").read_text().splitlines()[-1]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The final state of the run that nobody stops."""
    with pytest.MonkeyPatch.context() as patch:
        inside.quick(patch)
        return inside.go(config(), tmp_path_factory.mktemp("whole"))[1]


@pytest.mark.parametrize(
    ("number", "step", "stopped", "code"),
    [
        # noted at step 1's line, answered after the next step
        pytest.param(signal.SIGUSR1, 1, 2, 75, marks=pytest.mark.slow),
        (signal.SIGTERM, 2, 2, 75),  # between two batches of the evaluation at step 2
        # in the last evaluation
        pytest.param(signal.SIGINT, 4, 4, 130, marks=pytest.mark.slow),
    ],
)
def test_stopped_with_a_checkpoint_and_continued(whole, tmp_path, number, step, stopped, code):
    before = signal.getsignal(number)
    with pytest.raises(stopping.Stopped) as found:
        inside.go(config(), tmp_path, at_line(step, number))
    name = stopping.NAMES[number]
    line = f"stopped at step {stopped}: the same command continues from here ({name})"
    assert (str(found.value), found.value.code, found.value.said) == (line, code, True)
    assert re.fullmatch(TIMED + re.escape(line), last_line(tmp_path))
    assert (tmp_path / "checkpoints" / str(stopped)).is_dir()
    rows = Workdir(str(tmp_path), writer=False).read_lines("metrics.jsonl")[0]
    assert not any(r["step"] == stopped and "eval/error/masked_error" in r for r in rows)
    assert signal.getsignal(number) is before
    run, state = inside.go(config(), tmp_path)
    jax.tree.map(lambda a, b: inside.assert_same(a, b), state, whole)
    assert run.log.evaluated(stopped) == (stopped in (2, 4))


def test_stopped_in_the_first_evaluation(tmp_path):
    """The checkpoint of step 0 is there, so that whoever restarts on 75 starts it again."""

    def change(run):
        batches = run.setup.evaluators[0].measure.bench.batches

        def hit(*args, **kwargs):
            os.kill(os.getpid(), signal.SIGTERM)
            return batches(*args, **kwargs)

        run.setup.evaluators[0].measure.bench.batches = hit

    with pytest.raises(stopping.Stopped, match=r"stopped at step 0: .*\(SIGTERM\)") as found:
        inside.go(config(), tmp_path, change)
    assert found.value.code == 75
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["0"]
