"""Classifiers on folders of a subset of their classes, and on corruptions."""

import json

import helpers
import jax
import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file, save_file

import mimjax
from mimjax.errors import ConfigError
from mimjax.inference import robustness
from mimjax.models.vit import ViT
from mimjax.torch_io.read import load

NAMES = ["n01", "n02", "n03", "n04"]
SIDE = 8


@pytest.fixture(scope="module")
def model_file(tmp_path_factory):
    """A file whose classifier says class n for an image of the shade n, next the nearest shade."""
    folder = tmp_path_factory.mktemp("classifier")
    encoder = ViT(width=16, depth=1, heads=2, patch=4, image_size=(SIDE, SIDE))
    params = jax.jit(encoder.init)(jax.random.key(0), np.zeros((1, SIDE, SIDE, 3)))["params"]
    state = load.to_torch({"encoder": params}, "mae")
    save_file(state | {"pos_embed": np.zeros((1, 5, 16), np.float32)}, folder / "m.safetensors")
    config = {"num_heads": 2, "global_pool": "token", "label_names": NAMES}
    (folder / "config.json").write_text(json.dumps(config))
    bare = mimjax.load(folder / "m.safetensors", mean=(0.5,) * 3, std=(0.25,) * 3)
    shades = np.stack([np.full((SIDE, SIDE, 3), 60 * n, np.uint8) for n in range(4)])
    x = bare.encode(shades, pool="cls").astype(np.float64)
    apart = np.abs(np.subtract.outer(np.arange(4), np.arange(4)))
    weights = np.linalg.pinv(np.c_[x, np.ones(4)]) @ (10.0 - 3 * apart)
    head = {"head.weight": weights[:-1].T, "head.bias": weights[-1]}
    head = {k: np.ascontiguousarray(v, np.float32) for k, v in head.items()}
    save_file(load_file(folder / "m.safetensors") | head, folder / "m.safetensors")
    return folder / "m.safetensors"


@pytest.fixture(scope="module")
def model(model_file):
    return mimjax.load(model_file, mean=(0.5,) * 3, std=(0.25,) * 3)


def fill(folder, shades):
    """Class folders, each with one image per shade."""
    for name, values in shades.items():
        (folder / name).mkdir(parents=True)
        for i, n in enumerate(values):
            Image.new("RGB", (SIDE, SIDE), (60 * n,) * 3).save(folder / name / f"{i}.png")
    return folder


def test_only_the_classes_of_a_folder_compete(model, tmp_path):
    assert model.class_names == tuple(NAMES)
    # the image of class n01 in the folder of n02 is wrong where n01 competes; where it does not,
    # the image goes to the folder's class of the nearest shade
    folder = fill(tmp_path / "a", {"n02": [1, 1, 0], "n04": [3, 3]})
    one = robustness.accuracy(model, str(folder))
    every = robustness.accuracy(model, str(folder), every=True)
    assert (one.images, one.classes, one.left_out) == (5, 2, ())
    assert every.top1 == pytest.approx(80)
    assert every.top5 == 100
    assert one.top1 == 100


def test_folders_that_are_numbers_and_other_names(model, tmp_path):
    folder = fill(tmp_path / "v2", {"0": [0], "3": [3], "2": [2, 1]})
    assert robustness.accuracy(model, str(folder), every=True).top1 == pytest.approx(75)
    for name, said in (("N02", r"folder 'N02' is no class .*has 'n02'"), ("x", "allowed: n01, n0")):
        other = fill(tmp_path / name, {"n01": [0], name: [1]})
        with pytest.raises(ConfigError, match=f"--images: .*{said}"):
            robustness.accuracy(model, str(other))
    alone = fill(tmp_path / "alone", {"n01": [0]})
    with pytest.raises(ConfigError, match="1 class folders; allowed: two or more"):
        robustness.accuracy(model, str(alone))


def test_files_that_cannot_be_read_are_left_out_and_named(model, tmp_path):
    folder = fill(tmp_path / "bad", {"n01": [0, 0], "n02": [1]})
    (folder / "n01/0.png").write_bytes(b"no image")
    one = robustness.accuracy(model, str(folder))
    assert (one.top1, one.images) == (100, 2)
    ((path, _),) = one.left_out
    assert path.endswith("n01/0.png")


def test_corruptions_and_the_program(model_file, model, tmp_path):
    """Errors by severity, relative to AlexNet's; no mCE where corruptions are missing."""
    root = tmp_path / "c"
    for severity in range(1, 6):  # one of two images of n02 is wrong from severity 3 on
        shades = {"n01": [0, 0], "n02": [1, 1 if severity < 3 else 0]}
        fill(root / "fog" / str(severity), shades)
        fill(root / "jpeg_compression" / str(severity), {"n01": [0], "n02": [1]})
    fog, jpeg = robustness.corruption_errors(model, str(root), say=lambda _: None)
    assert fog.errors == (0, 0, 25, 25, 25)
    assert fog.relative == pytest.approx(100 * 15 / 81.9324)
    assert jpeg == ("jpeg_compression", (0,) * 5, 0)
    plain = fill(tmp_path / "plain", {"n01": [0], "n03": [2]})
    words = [f"--model={model_file}", "--mean=0.5,0.5,0.5", "--std=0.25,0.25,0.25"]
    place = tmp_path / "out.json"
    out = helpers.answer(
        "robustness", *words, f"--images={plain},{root}", f"--output={place}", check=True
    )
    assert "Mean over 2 of 15 corruptions, no mCE: 9.2 %" in out.stdout
    assert f"| {plain} | 100.00 " in out.stdout
    results = json.loads(place.read_text())["results"]
    assert results[str(plain)]["top1"] == 100
    assert [x["name"] for x in results[str(root)]] == ["fog", "jpeg_compression"]
    (root / "fog/4").rename(root / "fog/six")
    refused = helpers.answer("robustness", *words, f"--images={root}")
    assert refused.returncode == 2
    assert "fog/4 is missing; allowed: severities 1 to 5" in refused.stderr
    alone = f"--model={bare(model_file, tmp_path)}", "--heads=2", f"--images={plain}"
    with pytest.raises(ConfigError, match="classifier; allowed: a fine-tuned or probed model"):
        helpers.program("robustness", *alone, *words[1:])


def bare(model_file, folder):
    """The file without its head."""
    state = {k: v for k, v in load_file(model_file).items() if not k.startswith("head")}
    save_file(state, folder / "bare.safetensors")
    return folder / "bare.safetensors"
