"""A method in a user's own file: exported, loaded and drawn, though no line of mimjax names it."""

import json

import helpers
import jax
import numpy as np
import pytest
import stubs
import transformers
from PIL import Image
from torch_io import exports

import mimjax
from mimjax import plugs, schema
from mimjax.errors import ConfigError
from mimjax.inference import own_files
from mimjax.patches import normalize
from mimjax.task import Clock
from mimjax.torch_io import verify
from mimjax.torch_io.write.export import Export

FILE = helpers.ROOT / "tests/user/simmim_config.py"
IMAGES = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def made():
    """The settings, task and random parameters of a small run."""
    c = plugs.import_file(str(FILE)).get_config("demo").unlock()
    helpers.shrink(c.method.encoder)
    c.method.encoder.heads = 2
    task = schema.make_task(c, Clock(1, 1))
    like = jax.eval_shape(task.init, jax.random.key(0))[0]
    rng = np.random.default_rng(0)
    draw = lambda x: (0.2 * rng.normal(size=x.shape)).astype(np.float32)
    return c, task, jax.tree.map(draw, like)


@pytest.mark.parametrize("name", ["timm", "hf"])
def test_libraries_compute_its_features(made, tmp_path, name):
    stubs.replace("torchvision")
    job = Export(*made[1:], name, about=exports.ABOUT)
    path = str(tmp_path / "out")
    job.write(path)
    found = verify.prove(job, path)
    assert found.verified
    assert found.difference < 5e-6
    model = mimjax.load(path)
    want = verify.features(*job.plain, np.asarray(normalize(IMAGES, *model.statistics)))["tokens"][
        :, 1:
    ].mean(1)
    np.testing.assert_allclose(model.encode(IMAGES), want, atol=2e-5)
    if name == "hf":  # torchvision's default filter, which the official transform leaves
        photo = np.random.default_rng(1).integers(0, 256, (20, 31, 3), dtype=np.uint8)
        processor = transformers.AutoImageProcessor.from_pretrained(path, backend="pil")
        pixels = np.array(processor(Image.fromarray(photo)).pixel_values).transpose(0, 2, 3, 1)
        want = verify.features(*job.plain, pixels)["tokens"][:, 1:].mean(1)
        np.testing.assert_allclose(model.encode([photo]), want, atol=2e-5)


def test_it_is_drawn_where_its_file_was_imported(made, tmp_path, monkeypatch):
    """A file of weights never makes mimjax run a user's code; its encoder needs none."""
    c, task, params = made
    about = exports.ABOUT | {"settings": own_files.describe(c)}
    assert str(FILE.parent) not in about["settings"]  # nobody's folders
    path = str(tmp_path / "out.safetensors")
    Export(task, params, "safetensors", decoder=True, about=about).write(path)
    model = mimjax.load(path)
    assert type(model.task).__name__ == "SimMIM"
    assert json.loads(about["settings"])["task"] == "simmim.py:SimMIM"
    sheet = model.reconstruct(IMAGES)
    assert sheet.columns["reconstruction"].shape == IMAGES.shape
    features = model.encode(IMAGES)
    monkeypatch.setattr(plugs, "_FILES", {})
    model = mimjax.load(path)
    np.testing.assert_array_equal(model.encode(IMAGES), features)
    with pytest.raises(ConfigError, match=r"simmim.py:SimMIM, a class of a user's own.*import_fil"):
        model.reconstruct(IMAGES)


def test_a_head_of_pixels_is_no_head_of_codes(made):
    with pytest.raises(ConfigError, match="BEiT predicts codes of a tokenizer; the run has Pixels"):
        Export(*made[1:], "hf", decoder=True, about=exports.ABOUT).check()
