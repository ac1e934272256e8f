"""Traces for a profiler: which updates, and under which names."""

import re

import helpers
import jax
import pytest
from train import inside

from mimjax.errors import ConfigError
from mimjax.storage.files import Workdir
from mimjax.train import profiling


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    inside.quick(monkeypatch)


@pytest.mark.gate
def test_a_trace_holds_the_updates_that_were_asked_for(tmp_path):
    c = helpers.small("mae", **inside.TINY, steps=4)
    c.profile.steps = "2..3"
    inside.go(c, tmp_path)
    (file,) = (tmp_path / "profile").rglob("*.xplane.pb")
    planes = jax.profiler.ProfileData.from_file(str(file)).planes
    events = [e for plane in planes for line in plane.lines for e in line.events]
    steps = [dict(e.stats)["step_num"] for e in events if e.name == "train"]
    assert steps == [2, 3]
    inside.go(c, tmp_path)  # the run is finished: said, and not traced again
    again = "profile.steps: update 2 was made already; nothing is traced"
    assert again in (tmp_path / "train.log").read_text()
    assert len([*(tmp_path / "profile").rglob("*.xplane.pb")]) == 1
    assert (
        f"trace of updates 2 to 3: {tmp_path / 'profile'}" in (tmp_path / "train.log").read_text()
    )


@pytest.mark.parametrize("text", ["5", "0..2", "3..2", "2..9", "a..b"])
def test_updates_that_the_run_does_not_make_are_refused(text, tmp_path):
    c = helpers.small("mae", **inside.TINY, steps=8)
    c.profile.steps = text
    with pytest.raises(
        ConfigError, match=rf"profile.steps: '{re.escape(text)}'; allowed: .*10..15"
    ):
        helpers.begun(c, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_an_error_ends_the_trace(tmp_path):
    run_dir = Workdir(str(tmp_path))
    trace = profiling.Trace((1, 5), run_dir, print)
    with pytest.raises(ZeroDivisionError), trace.step(1):
        _ = 1 / 0
    trace.close()
    with trace.step(6):  # a second trace can begin: the first one ended
        pass
    assert list((tmp_path / "profile").rglob("*.xplane.pb"))


def test_operations_carry_the_names_of_fields():
    """Both decoders are named, which have one class."""
    program = helpers.make(helpers.small("bootmae"))[1]
    text = program.trace().lower().as_text(debug_info=True)
    for name in ("jvp(encoder)/ViT/block_00", "pixel_decoder", "feature_decoder", "prepare"):
        assert name in text
