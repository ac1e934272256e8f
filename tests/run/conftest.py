"""A trained encoder for the tests of evaluations."""

import helpers
import pytest

SHORT = ["--config.steps=1", "--config.eval.every=0", "--config.batch_size=16"]
SHORT += ["--config.optimizer.schedule.warmup_steps=0", "--config.eval.error=None"]
SHORT += ["--config.eval.probes=None", "--config.eval.health=None", "--config.eval.pictures=None"]
SHORT += [f"--config.method.encoder.{k}" for k in ("width=16", "depth=1", "heads=2")]


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory):
    """A workdir of one update of a small MAE on digits."""
    workdir = tmp_path_factory.mktemp("evaluated")
    words = "--config=configs/mae.py:demo", *SHORT, f"--workdir={workdir}"
    helpers.answer("train", *words, check=True, devices=1)
    return workdir
