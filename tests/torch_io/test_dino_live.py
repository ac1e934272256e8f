"""DINO's and CLIP's features and attention against transformers, and the files that hold them."""

import argparse

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

from mimjax import schema
from mimjax.errors import ConfigError
from mimjax.inference import weights
from mimjax.models.clip import CLIPVision
from mimjax.models.vit import ViT, sincos_table
from mimjax.rules import paths
from mimjax.targets.clip import CLIP
from mimjax.targets.dino import DINO
from mimjax.torch_io.read import detect, load

SIZES = {"width": 40, "depth": 2, "heads": 2, "patch": 4, "image_size": (12, 12)}
NETWORK = ViT(**SIZES, pos_embed="learned")
ENCODER = ViT(patch=4, image_size=(12, 12))
CONFIG = {
    "hidden_size": 40,
    "intermediate_size": 160,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 12,
    "patch_size": 4,
    "attn_implementation": "eager",
}


def live(name, **options):
    """A small model of transformers whose every parameter is random."""
    import torch
    import transformers

    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(**CONFIG, **options)
    model = getattr(transformers, f"{name}Model")(config).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(0.3 * torch.randn(p.shape) + (p.ndim == 1) * 0.5)
    return model


def shapes(target):
    return jax.eval_shape(lambda key: target.init_frozen(key, ENCODER), jax.random.key(0))


def compare(model, target, frozen, atol=1e-4):
    """The last block's output and CLS's attention of two random pictures."""
    import torch

    images = np.random.default_rng(0).normal(size=(2, 12, 12, 3)).astype(np.float32)
    both = jax.jit(lambda f, x: target.encode_with_attention(f, x, ENCODER))
    hidden, attention = both(frozen, images)
    with torch.no_grad():
        out = model(torch.tensor(images.transpose(0, 3, 1, 2)), output_attentions=True)
    assert attention.shape == (2, 2, 9)
    np.testing.assert_allclose(attention, out.attentions[-1][:, :, 0, 1:], atol=atol)
    return target.read(frozen, hidden), out.last_hidden_state


@pytest.mark.parametrize("eps", [1e-6, 1e-12])
def test_dino_equals_transformers(eps, tmp_path):
    """Transformers wrote the file; 1e-12 is its default epsilon, 1e-6 DINO's own."""
    model, target = live("ViT", layer_norm_eps=eps), DINO(NETWORK)
    model.save_pretrained(tmp_path)
    state = load.read_file(str(tmp_path / "model.safetensors"))
    assert detect.detect(state) == "vit_transformers"
    frozen = load.from_torch(state, shapes(target))
    ours, theirs = compare(model, target, frozen)
    np.testing.assert_allclose(ours, theirs, atol=1e-4)
    pre = DINO(NETWORK, feature="pre_norm")
    ours, _ = compare(model, pre, frozen)
    np.testing.assert_allclose(model.layernorm(theirs.new_tensor(ours)).detach(), theirs, atol=1e-4)
    back = load.to_torch(frozen, "vit_transformers")
    kept = {k: v for k, v in state.items() if not k.startswith("pooler.")}
    assert back.keys() == kept.keys()
    for key, value in back.items():
        np.testing.assert_array_equal(value, kept[key], key)


def test_clip_attention_equals_transformers(tmp_path):
    model = live("CLIPVision", projection_dim=24)
    target = CLIP(CLIPVision(40, 2, 2, 4, (3, 3), 24), feature="pre_norm")
    model.save_pretrained(tmp_path)
    state = load.read_file(str(tmp_path / "model.safetensors"))
    frozen = load.from_torch(state, shapes(target))
    assert target.width(ENCODER) == 40
    ours, theirs = compare(model, target, frozen)
    np.testing.assert_allclose(ours, theirs, atol=1e-4)
    for same in ({"feature": "post_norm"}, {"project": False}):
        target = CLIP(CLIPVision(40, 2, 2, 4, (3, 3), 24), **same)
        np.testing.assert_allclose(
            target.read(frozen, ours), model.post_layernorm(theirs).detach(), atol=1e-4
        )


def random_weights(target, seed=0):
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32), shapes(target))


def same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


class Unknown:
    """A class that no checkpoint may hold."""


def test_full_checkpoints_hold_a_teacher_and_a_student(tmp_path):
    """DINO's main_dino.py: two networks with heads; the student is DistributedDataParallel's."""
    import torch

    target = DINO(NETWORK)
    teacher, student = random_weights(target, 1), random_weights(target, 2)
    head = {"head.last_layer.weight_g": np.ones((3, 1), np.float32)}
    full = lambda params, prefix: {
        f"{prefix}{key}": torch.tensor(value)
        for key, value in (
            {f"backbone.{k}": v for k, v in load.to_torch(params, "dino").items()} | head
        ).items()
    }
    flags = argparse.Namespace(arch="vit_base", lr=5e-4, crops=(0.4, 1.0))
    both = {"student": full(student, "module."), "teacher": full(teacher, ""), "args": flags}
    path = str(tmp_path / "checkpoint.pth")
    torch.save(both, path)
    same(load.from_torch(load.read_file(path), shapes(target)), teacher)
    torch.save({"student": both["student"], "epoch": 3}, path)
    same(load.from_torch(load.read_file(path), shapes(target)), student)
    flags.what = Unknown()  # what the flags hold is as restricted as everything else
    torch.save(both, path)
    with pytest.raises(ConfigError, match="pickled objects, which mimjax never loads"):
        load.read_file(path)
    path = str(tmp_path / "flat.safetensors")  # in one level, as .safetensors must be
    flat = {f"{who}.{k}": v.numpy() for who in ("student", "teacher") for k, v in both[who].items()}
    save_file(flat, path)
    same(load.from_torch(load.read_file(path), shapes(target)), teacher)


def test_the_same_keys_are_mae_s_or_dino_s():
    """A backbone of DINO and an encoder of MAE differ in no key: what is asked for decides."""
    target, mae = DINO(NETWORK), ViT(**SIZES)
    images = jax.numpy.zeros((1, 12, 12, 3))
    like = {"encoder": jax.eval_shape(mae.init, jax.random.key(0), images)["params"]}
    fill = lambda x: np.random.default_rng(0).normal(size=x.shape).astype(np.float32)
    encoder = jax.tree.map(fill, like)
    table = np.concatenate([np.zeros((1, 40), np.float32), sincos_table((3, 3), 40, "xy")])
    file = load.to_torch(encoder, "mae") | {"pos_embed": table[None]}
    assert detect.detect(file) == detect.detect(file, roots=["encoder"]) == "mae"
    assert detect.detect(file, roots=["dino"]) == "dino"
    same(load.from_torch(file, like), encoder)
    # MAE's encoder read as DINO's is the same network: its fixed positions stand in the file
    frozen = load.from_torch(file, shapes(target))
    images = jax.random.normal(jax.random.key(0), (1, 12, 12, 3))
    hidden = target.encode(frozen, images, ENCODER)
    tokens = mae.apply({"params": encoder["encoder"]}, images).tokens
    np.testing.assert_allclose(target.read(frozen, hidden), tokens, atol=1e-5)
    # the other way around DINO's learned positions are refused
    with pytest.raises(ConfigError, match="pos_embed is not the fixed sine-cosine table"):
        load.from_torch(load.to_torch(random_weights(target), "dino"), like)


def test_files_that_do_not_fit(tmp_path):
    """One line says what is wrong, on the way that a target's `path` takes."""
    target, path = DINO(NETWORK), str(tmp_path / "dino.safetensors")
    state = load.to_torch(random_weights(target), "dino")
    said = []

    def read(state, like):
        save_file(state, path)
        return weights.read_params(path, like, "method.t.path", said.append, (3, 3))

    same(
        read(state | {"head.weight": np.zeros((2, 40), np.float32)}, shapes(target)),
        random_weights(target),
    )
    assert "(dino)" in said[-1]
    deeper = state | {"blocks.2.norm1.weight": state["norm.weight"]}
    with pytest.raises(ConfigError, match=r"no place .* blocks\.2\.norm1\.weight"):
        read(deeper, shapes(target))
    other = shapes(DINO(NETWORK.clone(image_size=(16, 16))))
    with pytest.raises(ConfigError, match=r"pos_embed has shape \[1, 10, 40\]"):
        read(state, other)
    with pytest.raises(ConfigError, match=r"'mae', which holds .*; needed: clip"):
        read(state, shapes(CLIP(CLIPVision(40, 2, 2, 4, (3, 3), 24))))


# Keys of dino_vitbase16_pretrain.pth and the parameters of ViT-B/16 with 196 + 1 positions.
def test_published_size():
    like = shapes(DINO())
    rows = detect.rows_for("dino", paths(like))
    assert len({key for row in rows for key in row.keys}) == 150
    assert sum(x.size for x in jax.tree.leaves(like)) == 85_798_656


def test_settings_are_checked():
    with pytest.raises(ConfigError, match=r"network\.pos_embed: 'sincos_xy'.*allowed: learned"):
        DINO(ViT()).check("method.target", ENCODER)
    for target, words in ((DINO, "post_norm, pre_norm"), (CLIP, "proj, post_norm, pre_norm")):
        section = schema.section(target, feature="x")
        with pytest.raises(ConfigError, match=rf"target\.feature: 'x'; allowed: {words}"):
            schema.build(target, section, "method.target")
