"""Files that mimjax wrote are read by `mimjax.load` alone: they say what no tensor shows."""

import jax
import numpy as np
import pytest

import exports  # isort: skip
import mimjax
from mimjax import patches
from mimjax.errors import ConfigError
from mimjax.torch_io.write import files


def expected(job, images):
    encoder, params = job.plain
    x = patches.normalize(images, job.task.mean, job.task.std)
    return jax.jit(lambda p, x: encoder.apply({"params": p}, x).read("mean"))(params, x)


@pytest.mark.parametrize(
    ("method", "name", "file"),
    [
        ("bootmae", "timm", "a.safetensors"),
        ("cae", "timm", "a.pth"),
        ("mcmae", "safetensors", "a.safetensors"),
    ],
)
def test_heads_and_statistics_come_from_the_file(tmp_path, method, name, file):
    job = exports.export(method, name)
    path = str(tmp_path / file)
    job.write(path)
    h, w = job.task.encoder.image_size
    images = np.random.default_rng(0).integers(0, 256, (2, h, w, 3), dtype=np.uint8)
    model = mimjax.load(path)
    assert model.config.method.encoder.heads == job.task.encoder.heads
    assert tuple(model.config.method.mean) == pytest.approx(job.task.mean)
    np.testing.assert_allclose(model.encode(images), expected(job, images), atol=2e-5)


def test_another_versions_file_is_refused_in_one_line(tmp_path):
    job = exports.export("mae", "safetensors")
    encoder = job.metadata["encoder"].replace('"width"', '"breadth"')
    path = str(tmp_path / "a.safetensors")
    metadata = job.metadata | {"encoder": encoder}
    files.write_tensors(path, job.tensors, "", metadata)
    with pytest.raises(ConfigError, match="breadth; it was made by another version"):
        mimjax.load(path)
