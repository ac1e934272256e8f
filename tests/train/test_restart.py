"""Kill -9 at any moment, run the same command again: nothing is lost, bit for bit."""

import pathlib
import shutil
import signal
import time

import helpers
import jax
import numpy as np
import pytest

from mimjax.data.sources import Synthetic
from mimjax.errors import Exit

pytestmark = pytest.mark.gate
TOTAL = 22  # two epochs of 11 steps


@pytest.fixture(scope="module")
def config():
    """BootMAE with everything that a restart could lose, on few and small images."""
    return helpers.small(
        "bootmae",
        **{
            "steps": TOTAL,
            "batch_size": 32,
            "data.source": Synthetic(length=11 * 32, side=8),
            "accum": 2,
            "method.encoder.drop_path": 0.1,
            "data.workers": 1,
            "log_every": 1,
            "checkpoint_every": 4,
        },
    )


@pytest.fixture(scope="module")
def straight(config, tmp_path_factory):
    """The uninterrupted run."""
    workdir = tmp_path_factory.mktemp("straight")
    helpers.run("mimjax.main", *helpers.flags(config), f"--workdir={workdir}")
    return workdir


def kill_when(config, workdir, condition):
    """Start the run and kill it once `condition` holds."""
    process = helpers.start("mimjax.main", *helpers.flags(config), f"--workdir={workdir}")
    deadline = time.time() + 240
    while not condition():
        assert process.poll() is None, "the run ended before it could be killed"
        assert time.time() < deadline
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.wait()


def logged(workdir, step):
    file = pathlib.Path(workdir) / "metrics.jsonl"
    return file.exists() and f'{{"step": {step},' in file.read_text()


def assert_same_run(config, workdir, straight):
    ours, theirs = helpers.losses(workdir), helpers.losses(straight)
    assert ours == theirs  # every float of every step, exactly
    a, b = (helpers.final_params(w, config) for w in (workdir, straight))
    jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.fixture
def every_process_compiles(monkeypatch):
    """Let every process compile, as a user's does; the tests' cache would make restarts easier."""
    monkeypatch.setenv("JAX_ENABLE_COMPILATION_CACHE", "false")


@pytest.mark.usefixtures("every_process_compiles")
def test_killed_in_mid_epoch(config, straight, tmp_path):
    kill_when(config, tmp_path, lambda: logged(tmp_path, 7))
    out = helpers.run("mimjax.main", *helpers.flags(config), f"--workdir={tmp_path}")
    assert "continued from step" in out.stdout or "random" in out.stdout
    assert_same_run(config, tmp_path, straight)


def test_killed_in_mid_save(config, straight, tmp_path):
    def saving():
        folder = tmp_path / "checkpoints"
        names = [p.name for p in folder.iterdir()] if folder.exists() else []
        return any(n.startswith("12.orbax-checkpoint-tmp") for n in names)

    kill_when(config, tmp_path, saving)
    out = helpers.run("mimjax.main", *helpers.flags(config), f"--workdir={tmp_path}")
    assert "continued from step 8" in out.stdout or "continued from step 12" in out.stdout
    assert_same_run(config, tmp_path, straight)


def test_newest_checkpoint_corrupted(config, straight, tmp_path):
    """The last good checkpoint is used, and that is said; eight devices agree to 1e-5."""
    assert jax.device_count() == 8
    workdir = tmp_path / "copy"
    shutil.copytree(straight, workdir)
    newest = workdir / "checkpoints" / str(TOTAL)
    arrays = [p for p in newest.rglob("*") if p.is_file() and "/d/" in str(p)]
    assert arrays
    for file in arrays:
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    words = *helpers.flags(config), f"--workdir={workdir}"
    out = helpers.answer("mimjax.main", *words, check=True).stdout
    assert f"checkpoint {TOTAL} cannot be read" in out
    assert "continued from step 20" in out
    ours, theirs = helpers.losses(workdir), helpers.losses(straight)
    assert ours.keys() == theirs.keys()
    for step, row in theirs.items():
        for name, value in row.items():
            assert ours[step][name] == pytest.approx(value, rel=1e-5, abs=1e-7), (step, name)
    a, b = (helpers.final_params(w, config) for w in (workdir, straight))
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-5), a, b)


def test_sigterm_saves_and_continues(config, straight, tmp_path):
    process = helpers.start("mimjax.main", *helpers.flags(config), f"--workdir={tmp_path}")
    deadline = time.time() + 240
    while not logged(tmp_path, 5):
        assert time.time() < deadline
        assert process.poll() is None
        time.sleep(0.01)
    process.terminate()
    assert process.wait(timeout=120) == Exit.STOPPED
    stopped = [int(p.name) for p in (tmp_path / "checkpoints").iterdir() if p.name.isdigit()]
    assert max(stopped) >= 5
    helpers.run("mimjax.main", *helpers.flags(config), f"--workdir={tmp_path}")
    assert_same_run(config, tmp_path, straight)
