"""A number that is not finite: the run stops, or goes back and leaves the batch out."""

import helpers
import jax
import numpy as np
import pytest
from train import inside

from mimjax import schema
from mimjax.data import configured
from mimjax.storage.files import Workdir
from mimjax.task import Clock
from mimjax.train.metrics import NonFiniteError

BROKEN = 5  # the update whose batch holds the black image
TOTAL = 8


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    inside.quick(monkeypatch)


@pytest.fixture(scope="module")
def black():
    """A place in the source that update BROKEN reads, and no other of the run."""
    c = config()
    return int(configured.make_data(c, schema.make_task(c, Clock(1, 1)), "train").indices(4)[3])


def config(**overrides):
    settings = {"steps": TOTAL, "checkpoint_every": 3, "log_every": 3, "optimizer.lr": 1e-3}
    c = helpers.small("mae", **inside.TINY, **settings | overrides)
    c.task = "train.inside:Unguarded"
    return c


@pytest.fixture
def poisoned(monkeypatch, black):
    monkeypatch.setattr(configured, "make_split", lambda c, split, index=None: inside.Blank(black))


def rows(workdir):
    return Workdir(str(workdir), writer=False).read_lines("metrics.jsonl")[0]


def test_stop_keeps_the_last_good_checkpoint(poisoned, tmp_path):
    with pytest.raises(NonFiniteError, match=r"loss/pixel.* not finite in steps 4 to 6") as found:
        inside.go(config(), tmp_path)
    assert "on_nonfinite=rollback" in str(found.value)
    kept = sorted(p.name for p in (tmp_path / "checkpoints").iterdir() if p.name.isdigit())
    assert kept == ["0", "3"]
    assert "not finite in steps 4 to 6" in (tmp_path / "report.html").read_text()


@pytest.fixture(scope="module")
def left_out(tmp_path_factory, black):
    """The same run with that batch left out from the start."""

    def leave_out(run):
        run.skipped = (BROKEN - 1,)

    with pytest.MonkeyPatch.context() as patch:
        inside.quick(patch)
        patch.setattr(configured, "make_split", lambda c, split, index=None: inside.Blank(black))
        workdir = tmp_path_factory.mktemp("left_out")
        return workdir, inside.go(config(), workdir, leave_out)[1]


def test_rollback_leaves_the_batch_out_and_says_why(poisoned, black, left_out, tmp_path):
    run, state = inside.go(config(on_nonfinite="rollback"), tmp_path)
    assert run.skipped == (BROKEN - 1,)
    assert int(state.step) == TOTAL
    inside.assert_same(state, left_out[1])  # bit for bit, optimizer and all
    assert helpers.losses(tmp_path) == helpers.losses(left_out[0])
    (warning,) = [r for r in rows(tmp_path) if "warning" in r]
    facts = warning["nonfinite"]
    assert warning["step"] == facts["step"] == BROKEN
    assert facts["examples"] == [black]  # the one image among sixteen
    assert black in facts["batch"]
    assert len(facts["batch"]) == 16
    assert {"loss/pixel", "loss/total", "grad_norm"} <= set(facts["metrics"])
    assert facts["of"][0] == facts["of"][1]  # every parameter lies before the loss
    assert "encoder/patch_embed/kernel" in facts["parameters"] or len(facts["parameters"]) == 20
    for words in (
        f"Examples whose error is not finite: {black} (1 of the batch)",
        "1 of at most 3",
    ):
        assert words in warning["warning"]
        assert words in (tmp_path / "train.log").read_text()


@pytest.mark.gate
def test_a_restart_after_a_rollback_decides_the_same(poisoned, left_out, tmp_path):
    """The run ends right after the rollback, before the list is saved, and once more after that."""
    c = config(on_nonfinite="rollback", log_every=1)

    def end_at(step):
        def change(run):
            write = run.log.write

            def fail(at, values):
                write(at, values)
                if at == step:
                    raise KeyboardInterrupt

            run.log.write = fail

        return change

    for step in (BROKEN, BROKEN + 2):
        with pytest.raises(KeyboardInterrupt):
            inside.go(c, tmp_path, end_at(step))
    run, state = inside.go(c, tmp_path)
    inside.assert_same(state, left_out[1])
    assert len([r for r in rows(tmp_path) if "nonfinite" in r]) == 1
    # the list came back from the checkpoint of step 6: no rollback was needed
    assert run.skipped == (BROKEN - 1,)
    assert (
        "batches left out after numbers that were not finite: (4,)"
        in (tmp_path / "train.log").read_text()
    )


@pytest.mark.gate
def test_divergence_ends_after_as_many_rollbacks_as_allowed(tmp_path):
    """No batch is at fault, so leaving batches out does not help; and that is said."""
    overrides = {"optimizer.lr": 1e38, "on_nonfinite": "rollback", "on_nonfinite_retries": 2}
    with pytest.raises(NonFiniteError, match=r"rolled back 2 times already"):
        inside.go(config(**overrides), tmp_path)
    warnings = [r["nonfinite"] for r in rows(tmp_path) if "nonfinite" in r]
    assert [w["step"] for w in warnings] == [1, 1]
    assert [w["skipped"] for w in warnings] == [0, 1]
    assert warnings[0]["of"][0] == 0
    assert "the update itself overflows" in (tmp_path / "train.log").read_text()


@pytest.mark.slow
def test_a_number_that_does_not_come_again_is_no_batch_s_fault(monkeypatch, tmp_path):
    """Memory that flips a bit: nothing is left out, the run is the one without it."""
    whole = inside.go(config(), tmp_path / "whole")[1]

    def flip(run):
        advance, times = run.feed, []

        def feed(start, stop):
            times.append(stop)
            if len(times) > 1:
                return advance(start, stop)
            return _Flipped(advance(start, stop), at=BROKEN)

        run.feed = feed

    run, state = inside.go(config(on_nonfinite="rollback"), tmp_path / "flipped", flip)
    assert (run.flukes, run.skipped) == (1, ())
    inside.assert_same(state, whole)
    assert "suspect the hardware" in (tmp_path / "flipped" / "train.log").read_text()


class _Flipped:
    """Batches of which one is black, once."""

    def __init__(self, batches, at):
        self.batches, self.left = batches, at

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.batches.close()

    def __iter__(self):
        return self

    def __next__(self):
        self.left -= 1
        batch = next(self.batches)
        return batch | {"image": batch["image"] * 0} if self.left == 0 else batch


def test_place_leaves_out_and_moves_up(black):
    c = config()
    data = configured.make_data(c, schema.make_task(c, Clock(1, 1)), "train")
    whole = [data.indices(s) for s in range(8)]
    data.skip = (5, 1, 2)
    assert [data.place(s) for s in range(5)] == [0, 3, 4, 6, 7]
    np.testing.assert_array_equal(data.indices(1), whole[3])
    jax.tree.map(np.testing.assert_array_equal, data.batch(1)["index"], whole[3])
