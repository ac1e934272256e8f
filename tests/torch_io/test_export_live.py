"""Exported files in timm, transformers and torch, run here: the same images, the same features.

timm imports torchvision, which is replaced by an empty package (`stubs`): what is tested runs for
real, and nothing here is skipped where a library is missing.
"""

import dataclasses

import exports
import jax
import numpy as np
import pytest
import stubs
from PIL import Image

import mimjax
from mimjax.errors import ConfigError
from mimjax.models.positions import resize_absolute
from mimjax.programs import export as program
from mimjax.torch_io import verify
from mimjax.torch_io.write import export, formats

stubs.replace("torchvision")

FOLDER = ""
CASES = [
    # method, format, pool, with decoder, suffix of the path, image size
    ("mae", "timm", "token", False, ".safetensors", None),
    ("mae", "timm", "avg", False, ".pth", None),
    ("mae", "timm", "token", False, FOLDER, (12, 8)),
    ("bootmae", "timm", "token", False, ".safetensors", None),
    ("beit", "timm", "token", False, FOLDER, (12, 12)),
    ("beit", "timm", "avg", False, ".safetensors", (12, 8)),
    ("cae", "timm", "avg", False, FOLDER, None),
    ("mrmae_vit", "timm", "token", False, ".pth", None),
    ("mae", "hf", "token", False, FOLDER, (12, 8)),
    ("mae", "hf", "token", True, FOLDER, None),
    ("bootmae", "hf", "token", False, FOLDER, None),
    ("beit", "hf", "avg", False, FOLDER, (12, 12)),
    ("beit", "hf", "token", True, FOLDER, None),
    ("cae", "hf", "token", False, FOLDER, None),
    ("mcmae", "convmae", "token", False, ".pth", (12, 8)),
    # no library of its own: read back, and its features those of the run
    ("cae", "detectron2", "token", False, ".pth", None),
    ("caev2", "cae", "token", True, ".safetensors", None),
    ("mcmae", "safetensors", "token", False, ".safetensors", (12, 8)),
]
ROWS = []


@pytest.fixture(scope="module", autouse=True)
def show_table(request):
    """Show for each format the library, its version and the largest difference."""
    yield
    row = "{:11} {:12} {:14} {:33} {}".format
    lines = ["", row("method", "format", "variant", "reader", "largest difference")]
    lines += [row(*words, f"{difference:.1e}") for *words, difference in ROWS]
    with request.config.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
        print("\n".join(lines))


@pytest.mark.parametrize(("method", "name", "pool", "decoder", "suffix", "size"), CASES)
def test_features_are_the_runs(tmp_path, method, name, pool, decoder, suffix, size):
    job = exports.export(method, name, pool, decoder, size)
    path = str(tmp_path / f"out{suffix}")
    job.write(path)
    found = verify.prove(job, path)
    assert found.verified
    assert found.ok
    assert found.difference < 5e-6  # so small that nothing can be exchanged
    if formats.FORMATS[name].library:
        assert found.reader.startswith(formats.FORMATS[name].library)
    variant = f"{pool}{' decoder' * decoder}{' resized' * bool(size)}"
    if decoder and name == "hf" and method == "mae":  # under the same noise
        assert found.outputs == ("prediction", "loss")
    ROWS.append((method, name, variant, found.reader, found.difference))


@pytest.mark.parametrize(("method", "crop"), [("mae", 1.0), ("bootmae", 0.875)])
def test_a_photo_is_prepared_as_by_the_run(tmp_path, method, crop):
    """The photo's features are those of `encode`, which crops as the evaluators do."""
    import torch
    import transformers
    from timm.data import resolve_data_config

    job = dataclasses.replace(exports.export(method, "hf"), eval_crop=crop)
    photo, path = str(tmp_path / "photo.png"), str(tmp_path / "hf")
    x, y = np.mgrid[:75, :114]
    Image.fromarray((127 + 120 * np.sin([x / 9, y / 5, x * y / 99])).T.astype(np.uint8)).save(photo)
    job.write(path)
    processor = transformers.AutoImageProcessor.from_pretrained(path, backend="pil")
    reader = transformers.AutoModel.from_pretrained(path, add_pooling_layer=False).eval()
    with torch.no_grad():
        theirs = reader(**processor(Image.open(photo), return_tensors="pt")).last_hidden_state
    ours = mimjax.load(path).encode([photo], pool="all")
    np.testing.assert_allclose(theirs, ours, atol=1e-5)
    # timm's transform needs torchvision, with which it gives the same numbers
    job = dataclasses.replace(job, format="timm")
    found = resolve_data_config(job.settings()["config.json"]["pretrained_cfg"])
    want = crop, "center", "bicubic", (3, *job.encoder.image_size), tuple(job.task.mean)
    keys = ("crop_pct", "crop_mode", "interpolation", "input_size", "mean")
    assert tuple(found[key] for key in keys) == want


def wrong_heads(self):
    name, args = self.true_timm
    return name, args | {"num_heads": 4}


@pytest.mark.parametrize("spoil", ["heads", "weights", "mask_token"])
def test_a_wrong_file_is_not_kept(tmp_path, monkeypatch, spoil):
    """Keys that match and features that do not; a tensor that changed; a key of DINO v2's."""
    job = exports.export("cae", "timm")
    if spoil == "heads":  # a preset's number instead of the run's
        monkeypatch.setattr(export.Export, "true_timm", export.Export.timm, raising=False)
        monkeypatch.setattr(export.Export, "timm", property(wrong_heads))
        text = r"the file is wrong and was not kept: max \|difference\| .* of timm"
    else:
        write = export.Export.write

        def spoiled(self, path):
            key = "mask_token" if spoil == "mask_token" else "blocks.1.mlp.fc2.bias"
            new = dataclasses.replace(self)
            new.__dict__["tensors"] = self.tensors | {key: np.zeros(32, np.float32)}
            write(new, path)

        monkeypatch.setattr(export.Export, "write", spoiled)
        text = {
            "mask_token": "1 keys differ between file and run: mask_token",
            "weights": "fc2/bias is not the s",
        }
        text = text[spoil]
    with pytest.raises(ConfigError, match=text):
        program.write(job, str(tmp_path / "deep/out.safetensors"))
    assert list(tmp_path.iterdir()) == []  # nor the folder that was made for it


def test_resized_positions_are_torchs(tmp_path):
    """--image_size gives the table that torch's bicubic interpolation gives."""
    import torch
    from torch.nn import functional as F

    small, large = exports.export("mae", "mae"), exports.export("mae", "mae", image_size=(12, 8))
    table = small.tensors["pos_embed"]
    grid = torch.from_numpy(table[:, 1:]).transpose(1, 2).unflatten(2, (4, 4))
    want = F.interpolate(grid, (6, 4), mode="bicubic", align_corners=False).flatten(2).mT
    got = large.tensors["pos_embed"]
    np.testing.assert_allclose(got[:, 1:], want.numpy(), atol=2e-6)
    np.testing.assert_array_equal(got[:, :1], table[:, :1])
    assert resize_absolute(table, (4, 4), (6, 4)).shape == got.shape


def test_the_torch_module_serves_dense_prediction():
    """The module's maps are those of the JAX stages; another image size interpolates positions."""
    import torch

    from mimjax.torch_io.write.convmae_module import ConvMAE

    job = exports.export("mcmae", "convmae")
    model = ConvMAE({k: v.shape for k, v in job.tensors.items()}, heads=2).eval()
    model.load_state_dict({k: torch.from_numpy(v) for k, v in job.tensors.items()})
    encoder, params = job.plain
    images = np.random.default_rng(0).normal(size=(2, 8, 8, 3)).astype(np.float32)
    with torch.no_grad():
        x = torch.from_numpy(images.transpose(0, 3, 1, 2).copy())
        maps = model.stages(x)
        tokens = model(x)
        assert model(torch.zeros(1, 3, 12, 16)).shape == (1, 48, 32)
    strides = np.cumprod(encoder.strides)
    assert [tuple(m.shape[2:]) for m in maps] == [(8 // s, 8 // s) for s in strides]
    f = jax.jit(lambda p, x: encoder.apply({"params": p}, x))(params, images)
    np.testing.assert_allclose(tokens, f.tokens, atol=5e-6)
    last = maps[2].flatten(2).mT
    np.testing.assert_allclose(last, f.blocks[-1], atol=5e-6)
    with pytest.raises(ConfigError, match="heads: 5; allowed: divisors of the width 32"):
        ConvMAE({k: v.shape for k, v in job.tensors.items()}, heads=5)
