"""`mimjax evaluate` on files of timm and transformers: its features are those of the libraries."""

import json

import helpers
import numpy as np
import pytest
import stubs
import torch
import transformers
from PIL import Image
from safetensors.torch import save_file

from mimjax.models.vit import sincos_table
from mimjax.patches import IMAGENET_MEAN, IMAGENET_STD

stubs.replace("torchvision")
timm = pytest.importorskip("timm")
SIDE, CLASSES, COUNT = 16, 2, 5


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """A folder of two classes, and the images of its training split in the order of their paths."""
    root, rng = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    shown = []
    for split in ("train", "val"):
        for name in range(CLASSES):
            (root / split / f"class_{name}").mkdir(parents=True)
            for i in range(COUNT):
                pixels = rng.integers(0, 256, (SIDE, SIDE, 3), np.uint8)
                Image.fromarray(pixels).save(root / split / f"class_{name}" / f"{i}.png")
                shown += [pixels] if split == "train" else []
    return root, np.stack(shown)


def read(out, name):
    """The cached training features of a reading."""
    for about in out.glob("features/*/about.json"):
        said = json.loads(about.read_text())
        if (said["row"], said["split"]) == ("pretrained", "train"):
            x = np.fromfile(about.parent / f"{name}.f32", np.float32)
            return x.reshape(CLASSES * COUNT, -1)
    raise AssertionError("no cache of the training split")


def pixels(images):
    x = (images / 255.0 - np.asarray(IMAGENET_MEAN)) / np.asarray(IMAGENET_STD)
    return torch.tensor(x.transpose(0, 3, 1, 2), dtype=torch.float32)


def evaluate(model, images, out, *words):
    words = [f"--model={model}", f"--images={images}", f"--output={out}", *words]
    made = helpers.answer(
        "evaluate", *words, "--protocols=knn", "--ks=1,3", "--rows=pretrained,untrained", check=True
    )
    cells = json.loads((out / "evaluation.json").read_text())["cells"]
    assert {c["tested"] for c in cells} == {CLASSES * COUNT}
    assert "| untrained encoder " in made.stdout


@pytest.mark.gate
def test_a_timm_file(images, tmp_path):
    root, shown = images
    torch.manual_seed(0)
    net = timm.models.VisionTransformer(
        img_size=SIDE, patch_size=4, embed_dim=32, depth=2, num_heads=4, num_classes=0
    ).eval()
    save_file(net.state_dict(), tmp_path / "vit.safetensors")
    mean, std = (",".join(map(str, x)) for x in (IMAGENET_MEAN, IMAGENET_STD))
    words = ["--heads=4", f"--model={tmp_path / 'vit.safetensors'}", f"--images={root}"]
    refused = helpers.answer("evaluate", *words, f"--output={tmp_path / 'out'}")
    assert refused.returncode == 2
    assert "--mean, --std: neither" in refused.stderr
    assert not (tmp_path / "out").exists()
    words = ["--heads=4", f"--mean={mean}", f"--std={std}"]
    evaluate(tmp_path / "vit.safetensors", root, tmp_path / "out", *words)
    with torch.no_grad():
        tokens = net.forward_features(pixels(shown)).numpy()
    found = read(tmp_path / "out", "cls_norm"), read(tmp_path / "out", "mean_norm")
    np.testing.assert_allclose(found[0], tokens[:, 0], atol=1e-5)
    np.testing.assert_allclose(found[1], tokens[:, 1:].mean(1), atol=1e-5)


def test_a_transformers_folder(images, tmp_path):
    root, shown = images
    torch.manual_seed(0)
    net = transformers.ViTMAEModel(
        transformers.ViTMAEConfig(
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=4,
            intermediate_size=128,
            image_size=SIDE,
            patch_size=4,
            mask_ratio=0.0,
            layer_norm_eps=1e-6,
        )
    ).eval()
    with torch.no_grad():
        for name, x in net.named_parameters():  # a new one has zeros at many places
            x.copy_(0.2 * torch.randn(x.shape) + (1.0 if "norm" in name else 0.0))
        table = np.concatenate([np.zeros((1, 32)), sincos_table((4, 4), 32, "xy")])
        net.embeddings.position_embeddings.copy_(torch.tensor(table)[None])
    net.save_pretrained(tmp_path / "folder")
    transformers.ViTImageProcessor(
        size={"height": SIDE, "width": SIDE},
        image_mean=list(IMAGENET_MEAN),
        image_std=list(IMAGENET_STD),
        resample=3,
    ).save_pretrained(tmp_path / "folder")
    evaluate(tmp_path / "folder", root, tmp_path / "out")
    noise = torch.arange(16.0).expand(len(shown), 16)  # nothing is masked and the order stays
    with torch.no_grad():
        tokens = net(pixels(shown), noise=noise).last_hidden_state.numpy()
    np.testing.assert_allclose(read(tmp_path / "out", "cls_norm"), tokens[:, 0], atol=1e-5)
