"""Exports in mmpretrain's and mmseg's own backbones (make test-all installs them)."""

import exports
import pytest
import stubs

from mimjax.torch_io import verify
from mimjax.torch_io.write import formats

CASES = [case for name in ("mmpretrain", "mmseg") for case in exports.variants(name)]


@pytest.fixture(scope="module", autouse=True)
def openmmlab():
    stubs.openmmlab()


@pytest.mark.slow
@pytest.mark.parametrize("size", [None, (12, 8)])
@pytest.mark.parametrize(("method", "name", "pool", "decoder"), CASES)
def test_backbones_compute_the_runs_features(tmp_path, method, name, pool, decoder, size):
    """The libraries' classes load every tensor; a skip would prove nothing, so there is none."""
    job = exports.export(method, name, pool, decoder, size)
    path = str(tmp_path / "out.pth")
    job.write(path)
    found = verify.prove(job, path)
    assert found.verified
    assert found.difference < 5e-6
    assert found.reader.startswith(formats.FORMATS[name].library)
