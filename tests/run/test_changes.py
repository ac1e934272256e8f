"""A finished run made longer: the longer run from the start, or a line that says why not."""

import shutil

import helpers
import numpy as np
import pytest
from train import inside

from mimjax.data.sources import Folder, Synthetic
from mimjax.errors import ConfigError
from mimjax.run import changes
from mimjax.schedules import Constant, MAECosine
from mimjax.storage.checkpoints import Checkpoints
from mimjax.storage.files import Workdir
from mimjax.storage.settings import config_json
from mimjax.train.run import Length


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    inside.quick(monkeypatch)


SCHEDULES = {"mae": MAECosine(warmup_epochs=1.0), "constant": Constant(warmup_epochs=1.0)}


def config(epochs, schedule, **overrides):
    settings = {"epochs": epochs, "steps": None, "batch_size": 40, "optimizer.lr": 1e-3}
    settings["optimizer.schedule"] = SCHEDULES[schedule]
    settings["data.source"] = Synthetic(length=120, side=8)
    return helpers.small("mae", **inside.TINY, **settings | overrides)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Two epochs of three steps, under a constant rate."""
    with pytest.MonkeyPatch.context() as patch:
        inside.quick(patch)
        workdir = tmp_path_factory.mktemp("finished")
        inside.go(config(2.0, "constant"), workdir)
        return workdir


@pytest.mark.gate
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
        (
            {"optimizer.rule.b2": 0.99},
            "other settings changed too (optimizer.rule.b2): it is another run",
        ),
        ({"optimizer.schedule": SCHEDULES["mae"]}, "optimizer.schedule.value): it is another run"),
    ],
)
def test_what_makes_it_another_run_is_said(finished, tmp_path, overrides, words, capsys):
    workdir = shutil.copytree(finished, tmp_path / "copy")
    if "optimizer.weight_decay_end" in overrides:  # as if it had been so from the start
        Workdir(str(workdir)).write_text(
            "config.json", config_json(config(2.0, "constant", **overrides))
        )
    helpers.begun(config(3.0, "constant", **overrides), workdir)
    assert words in capsys.readouterr().out


def test_a_cosine_is_made_anew_and_its_jump_is_said(finished, tmp_path, capsys):
    workdir = shutil.copytree(finished, tmp_path / "copy")
    text = config_json(config(2.0, "mae"))
    Workdir(str(workdir)).write_text("config.json", text)
    run = helpers.begun(config(3.0, "mae"), workdir)
    said = capsys.readouterr().out
    # a cosine over 6 steps of which 3 remain, and one that has ended
    assert float(run.setup.lr(6)) == pytest.approx(5e-4)
    assert "extended from 6 to 9 steps: the learning rate of the next step is 0.0005; " in said
    assert "with the old length it would be 0" in said
    # steps 3, 4 and 5 had less than they would have had: the last the most
    assert f"at step 5 its rate was {1e-3 * 0.25:.4g} and not {1e-3 * 0.75:.4g}" in said


def test_shorter_than_it_is_is_refused(finished, tmp_path):
    workdir = shutil.copytree(finished, tmp_path / "copy")
    before = (workdir / "config.json").read_text()
    with pytest.raises(ConfigError, match=r"steps: 3 .* at step 6; allowed: 6 or more"):
        helpers.begun(config(1.0, "constant"), workdir)
    assert (workdir / "config.json").read_text() == before


@pytest.mark.gate
def test_some_checkpoints_are_kept_for_good(tmp_path):
    c = config(3.0, "constant", checkpoint_every=1, keep_checkpoints=2, keep_every=4)
    inside.go(c, tmp_path)
    steps = Checkpoints(Workdir(str(tmp_path), writer=False), read_only=True).manager.all_steps()
    assert sorted(steps) == [4, 8, 9]
    for key, value in (("keep_checkpoints", 0), ("keep_every", -1)):
        with pytest.raises(ConfigError, match=rf"{key}: {value}; allowed"):
            helpers.begun(config(3.0, "constant", **{key: value}), tmp_path)


def test_resume_takes_another_run_s_whole_state(finished, tmp_path, capsys):
    c = config(2.0, "constant", resume=str(finished))
    run = helpers.begun(c, tmp_path)
    assert int(run.state.step) == 6
    there = helpers.begun(config(2.0, "constant"), finished)
    inside.assert_same(run.state, there.state)


def test_init_from_begins_the_schedule_anew(finished, tmp_path, capsys):
    """Continued training from weights: step 0, a warm-up, empty slots; and it is said."""
    c = config(1.0, "mae", init_from=str(finished))
    run = helpers.begun(c, tmp_path)
    inside.assert_same(run.state.params, helpers.final_params(finished, c))
    assert int(run.state.step) == 0
    assert float(run.setup.lr(0)) == 0.0
    assert (
        "schedule: from its beginning (warm-up 1 epochs, down to 0); optimizer"
        in capsys.readouterr().out
    )


def lengths(step, before, now, changed=None, rates=(1e-3, 1e-3)):
    """What `explain` says of two lengths, each (steps per epoch, steps, batch, images)."""
    said = []
    versions = [
        changes.Version(Length(*x), lambda s, r=r: np.full(np.shape(s), r))
        for x, r in zip((before, now), rates)
    ]
    make = lambda clock: (None, versions[0].rate)
    changes.explain(step, *versions, make, changed or {}, said.append)
    return "\n".join(said)


def test_whatever_changes_an_epoch_is_said_with_numbers():
    """Half the batch, more files, fewer files: before and after, and the cause."""
    base = (12, 720, 16, 200)
    assert lengths(320, base, base) == ""
    said = lengths(320, base, (25, 1500, 8, 200), {"batch_size": (16, 8)}, (1e-3, 5e-4))
    assert "extended from 720 to 1500 steps: the learning rate of the next step is 0.0005" in said
    assert "with the old length it would be 0.001 (batch_size 16 -> 8)" in said
    assert "an epoch was 12 steps and is 25: step 320 was epoch 26.7 and is epoch 12.8" in said
    assert "before: 60.0 epochs of 12 steps = 720 steps, now: 60.0 epochs of 25 steps" in said
    said = lengths(320, base, (50, 3000, 16, 800))
    assert "(images 200 -> 800)" in said
    assert "the number of images): it is another run" in said
    # a length in steps stays, and the epoch jumps all the same
    said = lengths(320, base, (5, 720, 16, 95))
    assert "the length stays" in said
    assert "was epoch 26.7 and is epoch 64.0" in said
    # another rate alone
    changed = {"optimizer.lr": (1e-3, 2e-3)}
    said = lengths(320, base, base, changed, (1e-3, 2e-3))
    assert "the next step is 0.002; with the old length it would be 0.001 (optimizer.lr" in said


def test_a_length_that_is_passed_is_an_error_that_names_the_cause():
    with pytest.raises(ConfigError) as error:
        lengths(327, (12, 720, 16, 200), (5, 300, 16, 95))
    text = str(error.value)
    assert "steps: 300 (60.0 epochs of 5 steps = 300 steps), but the workdir is at step 327" in text
    assert "allowed: 327 or more, what gave 60.0 epochs of 12 steps = 720 steps" in text
    assert "(changed: images 200 -> 95)" in text


@pytest.mark.gate
def test_a_restart_with_another_batch_is_told(finished, tmp_path, capsys):
    """The checkpoint knows what an epoch was."""
    workdir = shutil.copytree(finished, tmp_path / "copy")
    helpers.begun(config(3.0, "constant", batch_size=24), workdir)
    said = capsys.readouterr().out
    assert "extended from 6 to 15 steps" in said
    assert "an epoch was 3 steps and is 5: step 6 was epoch 2.0 and is epoch 1.2" in said
    assert "batch_size 40 -> 24" in said
    with pytest.raises(ConfigError, match=r"at step 6; allowed: 6 or more.*batch_size 40 -> 120"):
        helpers.begun(config(3.0, "constant", batch_size=120), workdir)


@pytest.mark.gate
def test_a_folder_with_another_name_is_the_same_run(tmp_path, capsys):
    """The fingerprint says that the files are the same."""
    from PIL import Image

    for i in range(60):
        place = tmp_path / f"images/{i}.png"
        place.parent.mkdir(exist_ok=True)
        Image.fromarray(np.full((8, 8, 3), i, np.uint8)).save(place)
    settings = {"data.source": Folder(), "batch_size": 16, "data.path": str(tmp_path / "images")}
    inside.go(config(1.0, "constant", **settings), tmp_path / "run")
    (tmp_path / "images").rename(tmp_path / "renamed")
    settings["data.path"] = str(tmp_path / "renamed")
    inside.go(config(2.0, "constant", **settings), tmp_path / "run")
    said = capsys.readouterr().out
    assert "this is the run that had 6 steps from the start" in said
    assert "another run" not in said


def test_resume_from_another_model_is_refused(finished, tmp_path):
    """The number of heads shows in no array's shape."""
    c = config(3.0, "constant", resume=str(finished), **{"method.encoder.heads": 2})
    with pytest.raises(ConfigError, match=r"method.encoder.heads: 2, it was 4: .*another resume"):
        helpers.begun(c, tmp_path / "new")
    assert not (tmp_path / "new").exists()


# ------------------------------------------------------------------ what may change
@pytest.mark.parametrize(
    ("name", "before", "now", "may"),
    [
        ("batch_size", 16, 32, True),
        ("method.encoder.remat", "none", "full", True),
        ("method.encoder.drop_path", 0.0, 0.1, True),
        ("method.masking.ratio", 0.75, 0.6, True),
        ("method.pixel.weight", 1.0, 0.5, True),
        ("method.pixel.weight", 1.0, 0.0, False),
        ("method.feature.weight", 0, 1.0, False),
        ("method.pixel.schedule.type", "Constant", "Linear", True),
        ("method.average.decay.start", 0.99, 0.999, True),
        ("method.average.networks", ("encoder",), (), False),
        ("method.encoder.heads", 4, 2, False),
        ("method.pixel_target.norm", "none", "patch", False),
        ("method.pixel.at", "masked", "visible", False),
        ("method.mean", (0.5,), (0.4,), False),
        ("method.drop_path", 0.1, 0.2, True),
        ("method.layer_decay", 0.65, None, True),
        ("method.mixing.group", 32, None, True),
        ("method.smoothing", 0.0, 0.1, True),
        ("method.unfrozen", None, 2, False),
        ("method.average", None, 0.99, False),
        ("optimizer.rule.type", "AdamW", "Lion", False),
        ("optimizer.rule.b2", 0.95, 0.99, True),
    ],
)
def test_what_changes_parameters_or_their_meaning_is_refused(name, before, now, may):
    assert changes.may_change(name, before, now) == may


def test_all_differences_are_named_at_once(finished, tmp_path):
    workdir = shutil.copytree(finished, tmp_path / "copy")
    wrong = {"method.encoder.heads": 2, "method.encoder.pos_embed": "learned"}
    with pytest.raises(ConfigError) as found:
        helpers.begun(config(3.0, "constant", **wrong), workdir)
    for words in ("method.encoder.heads: 2, it was 4; ", "pos_embed: 'learned', it was 'sincos"):
        assert words in str(found.value)


def test_other_settings_of_a_method_are_applied_and_shown(finished, tmp_path, capsys):
    workdir = shutil.copytree(finished, tmp_path / "copy")
    c = config(3.0, "constant", **{"method.masking.ratio": 0.5, "method.pixel.weight": 2.0})
    state = inside.go(c, workdir)[1]
    assert int(state.step) == 9
    said = capsys.readouterr().out
    assert "changed since the last start: method.masking.ratio: 0.75 -> 0.5" in said
    assert "changed since the last start: method.pixel.weight: 1.0 -> 2.0" in said
    assert "12 masked" not in said
    assert "8 masked" in said
