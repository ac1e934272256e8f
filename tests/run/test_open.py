"""An open run gives back what it took, on every exit."""

import helpers
import pytest
from train import inside

from mimjax import stopping
from mimjax.errors import ConfigError
from mimjax.run import restore
from mimjax.storage.lock import FILE


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    inside.quick(monkeypatch)


def config(**overrides):
    return helpers.small("mae", **inside.TINY, **{"steps": 2} | overrides)


def test_lock_log_and_signals_are_given_back(tmp_path):
    tell = stopping.SIGNALS.tell
    with helpers.opened(config(), tmp_path / "run") as run:
        assert (tmp_path / "run" / FILE).exists()
        stopping.SIGNALS.tell("the last line")
    assert not (tmp_path / "run" / FILE).exists()
    assert "the last line" in (tmp_path / "run/train.log").read_text()
    assert stopping.SIGNALS.tell == tell
    assert not run.log.boards


def test_an_error_in_the_body_frees_the_workdir(tmp_path):
    with pytest.raises(ZeroDivisionError), helpers.opened(config(), tmp_path):
        _ = 1 / 0
    assert not (tmp_path / FILE).exists()
    helpers.begun(config(), tmp_path)


def test_an_error_while_opening_leaves_nothing(tmp_path, monkeypatch):
    def fail(*_, **__):
        raise ConfigError("no")

    monkeypatch.setattr(restore, "first_state", fail)
    with pytest.raises(ConfigError, match="no"):
        helpers.begun(config(), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_second_run_is_refused_and_the_first_goes_on(tmp_path):
    with helpers.opened(config(), tmp_path) as run:
        with pytest.raises(ConfigError, match=r"^--workdir: .*another run|in use|held"):
            helpers.begun(config(), tmp_path)
        assert (tmp_path / FILE).exists()
        run.lock.check()
