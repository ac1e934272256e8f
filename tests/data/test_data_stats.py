"""Means and deviations of channels: NumPy's own, as a program, and what it refuses."""

import ast
import re

import helpers
import numpy as np
import pytest
from PIL import Image

from mimjax.data import make_source
from mimjax.data.bad_files import BadFiles
from mimjax.data.statistics import statistics
from mimjax.errors import ConfigError
from mimjax.programs.stats import overrides


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Ten arrays of two channels, all of one size, and a broken one."""
    root = tmp_path_factory.mktemp("arrays")
    rng = np.random.default_rng(0)
    for n in range(10):
        np.save(root / f"{n}.npy", rng.integers(20 * n, 20 * n + 9, (6, 8, 2), dtype=np.uint8))
    (root / "x.npy").write_bytes(b"broken")
    return root


def test_they_are_numpys(folder):
    source = make_source("folder", "train", path=str(folder), test_fraction=0, channels=2)
    mean, std, done = statistics(source, 100, BadFiles(0.2))
    values = np.stack([np.load(folder / f"{n}.npy") for n in range(10)]) / 255
    assert done == 10
    np.testing.assert_allclose(mean, values.mean((0, 1, 2)), rtol=1e-12)
    np.testing.assert_allclose(std, values.std((0, 1, 2)), rtol=1e-9)
    few = [statistics(source, 4, BadFiles(0.2))[0] for _ in range(2)]
    np.testing.assert_array_equal(few[0], few[1])
    assert np.abs(few[0] - mean).max() > 1e-3  # a sample, not all
    with pytest.raises(ConfigError, match=r"x.npy: not a readable image"):
        statistics(source, 100, BadFiles())


def test_every_image_weighs_the_same(tmp_path):
    Image.new("L", (9, 9), 0).save(tmp_path / "small.png")
    Image.new("L", (90, 90), 255).save(tmp_path / "large.png")
    source = make_source("folder", "train", path=str(tmp_path), test_fraction=0)
    mean, std, _ = statistics(source, 9, BadFiles())
    np.testing.assert_allclose([mean, std], 0.5)


def test_overrides_are_read_back():
    assert overrides(np.ones(1), np.ones(1))[1] == "'--config.method.mean=(1.0000,)'"
    text = " ".join(overrides(np.asarray([0.1, 0.25]), np.asarray([1 / 3, 0.5])))
    found = re.findall(r"'--config.method\.(\w+)=(\S+)'", text)
    assert [key for key, _ in found] == ["mean", "std"]
    assert ast.literal_eval(found[1][1]) == (0.3333, 0.5)


def test_as_a_program(folder):
    out = helpers.answer("stats", f"--images={folder}", "--channels=2")
    assert out.returncode == 0, out.stderr
    assert out.stdout.startswith("10 of 11 training images, 2 channels")
    assert "1 files cannot be read" in out.stdout
    assert "--config.data.channels=2 '--config.method.mean=(" in out.stdout


def test_one_of_two_inputs():
    out = helpers.answer("stats")
    assert out.returncode == 2
    assert out.stderr.startswith("error: --config, --images: both or none given")
