"""A finished run made longer: the longer run from the start, or a line that says why not."""

import shutil

import helpers
import pytest
from train import inside

from mimjax import build
from mimjax.errors import ConfigError
from mimjax.files import Workdir
from mimjax.train.checkpoints import Checkpoints

pytestmark = pytest.mark.xdist_group("extend")  # one worker makes the runs they share


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    inside.quick(monkeypatch)


def config(epochs, schedule, **overrides):
    settings = {"epochs": epochs, "steps": 0, "batch_size": 472, "optimizer.warmup_epochs": 1.0}
    settings |= {"optimizer.schedule": schedule, "optimizer.lr": 1e-3}
    return helpers.small("mae", **inside.TINY, **settings | overrides)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Two epochs of three steps, under a constant rate."""
    with pytest.MonkeyPatch.context() as patch:
        inside.quick(patch)
        workdir = tmp_path_factory.mktemp("finished")
        inside.go(config(2.0, "constant"), workdir)
        return workdir


def test_two_epochs_and_one_more_are_three(finished, tmp_path):
    whole = inside.go(config(3.0, "constant"), tmp_path / "whole")[1]
    workdir = shutil.copytree(finished, tmp_path / "extended")
    _, state = inside.go(config(3.0, "constant"), workdir)
    assert int(state.step) == 9
    inside.assert_same(state, whole)
    assert helpers.losses(workdir) == helpers.losses(tmp_path / "whole")
    said = (workdir / "train.log").read_text()
    assert "extended from 6 to 9 steps: the learning rate of the next step is 0.001; with" in said
    assert "this is the run that had 9 steps from the start" in said
    assert "then constant" in said


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        # warm-up over, rate constant, but the decay of the weights spans the run
        ({"optimizer.weight_decay_end": 0.2}, "another schedule (weight decay or the method's)"),
        ({"optimizer.b2": 0.99}, "other settings changed too (optimizer.b2): it is another run"),
        ({"optimizer.schedule": "mae"}, "optimizer.schedule): it is another run"),
    ],
)
def test_what_makes_it_another_run_is_said(finished, tmp_path, overrides, words, capsys):
    workdir = shutil.copytree(finished, tmp_path / "copy")
    if "optimizer.weight_decay_end" in overrides:  # as if it had been so from the start
        Workdir(str(workdir)).write_text(
            "config.json", build.start.to_json(config(2.0, "constant", **overrides))
        )
    run = build.make_run(config(3.0, "constant", **overrides), str(workdir))
    run.lock.release()
    run.log.close()
    assert words in capsys.readouterr().out


def test_a_cosine_is_made_anew_and_its_jump_is_said(finished, tmp_path, capsys):
    workdir = shutil.copytree(finished, tmp_path / "copy")
    text = build.start.to_json(config(2.0, "mae"))
    Workdir(str(workdir)).write_text("config.json", text)
    run = build.make_run(config(3.0, "mae"), str(workdir))
    run.lock.release()
    run.log.close()
    said = capsys.readouterr().out
    # a cosine over 6 steps of which 3 remain, and one that has ended
    assert float(run.lr(6)) == pytest.approx(5e-4)
    assert "extended from 6 to 9 steps: the learning rate of the next step is 0.0005; " in said
    assert "with the old length it would be 0" in said
    # steps 3, 4 and 5 had less than they would have had: the last the most
    assert f"at step 5 its rate was {1e-3 * 0.25:.4g} and not {1e-3 * 0.75:.4g}" in said


def test_shorter_than_it_is_is_refused(finished, tmp_path):
    workdir = shutil.copytree(finished, tmp_path / "copy")
    before = (workdir / "config.json").read_text()
    with pytest.raises(ConfigError, match=r"steps: 3 .* at step 6; allowed: 6 or more"):
        build.make_run(config(1.0, "constant"), str(workdir))
    assert (workdir / "config.json").read_text() == before


def test_some_checkpoints_are_kept_for_good(tmp_path):
    c = config(3.0, "constant", checkpoint_every=1, keep_checkpoints=2, keep_every=4)
    inside.go(c, tmp_path)
    steps = Checkpoints(Workdir(str(tmp_path), writer=False), read_only=True).manager.all_steps()
    assert sorted(steps) == [4, 8, 9]
    for key, value in (("keep_checkpoints", 0), ("keep_every", -1)):
        with pytest.raises(ConfigError, match=rf"{key}: {value}; allowed"):
            build.make_run(config(3.0, "constant", **{key: value}), str(tmp_path))


def test_resume_takes_another_run_s_whole_state(finished, tmp_path, capsys):
    c = config(2.0, "constant", resume=str(finished))
    run = build.make_run(c, str(tmp_path))
    run.lock.release()
    run.log.close()
    assert int(run.state.step) == 6
    there = build.make_run(config(2.0, "constant"), str(finished))
    there.lock.release()
    there.log.close()
    inside.assert_same(run.state, there.state)


def test_init_from_begins_the_schedule_anew(finished, tmp_path, capsys):
    """Continued training from weights: step 0, a warm-up, empty slots; and it is said."""
    c = config(1.0, "mae", init_from=str(finished))
    run = build.make_run(c, str(tmp_path))
    run.lock.release()
    run.log.close()
    inside.assert_same(run.state.params, helpers.final_params(finished, c))
    assert int(run.state.step) == 0
    assert float(run.lr(0)) == 0.0
    assert "schedule: from its beginning, with a warm-up of 1 epochs" in capsys.readouterr().out
