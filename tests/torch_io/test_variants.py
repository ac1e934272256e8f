"""Names that training programs and other versions give to the tensors of an encoder."""

import functools

import jax
import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

import mimjax
from mimjax.errors import ConfigError
from mimjax.models.published_vit import coordinates
from mimjax.models.vit import ViT
from mimjax.rules import paths
from mimjax.torch_io.read import detect, load

SIDE, WIDTH = 8, 8
SIMMIM = {"rel_pos": "shared", "bias": "qv", "use_mask_token": True, "layer_scale": 0.1}


@functools.cache
def params(**changes):
    """Random parameters of a small encoder."""
    settings = {"image_size": (SIDE, SIDE), "pos_embed": "learned"} | changes
    module = ViT(WIDTH, 1, 2, 4, **settings)
    like = jax.eval_shape(module.init, jax.random.key(0), np.zeros((1, SIDE, SIDE, 3), np.float32))
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32), like["params"])


def tensors(layout, **changes):
    return load.to_torch({"encoder": params(**changes)}, layout)


def same(ours, theirs):
    assert ours.keys() == theirs.keys()
    for key, x in theirs.items():
        np.testing.assert_array_equal(ours[key], x, key)


def saved(path, state):
    if path.suffix == ".safetensors":
        save_file({k: np.ascontiguousarray(v) for k, v in state.items()}, path)
    else:
        torch.save({k: torch.tensor(v) for k, v in state.items()}, path)
    return str(path)


# ------------------------------------------------------------------ prefixes
@pytest.mark.parametrize(
    "prefix",
    [
        "model.",
        "module.",
        "encoder.",
        "backbone.",
        "base_encoder.",
        "module.base_encoder.",
        "model.encoder.",
        "model._orig_mod.",
    ],
)
def test_prefixes_of_training_programs(prefix, tmp_path):
    state = tensors("mae")
    wrapped = {prefix + k: v for k, v in state.items()}
    head = {} if prefix == "module." else {"projector.weight": np.ones((2, 2), np.float32)}
    read = load.read_file(saved(tmp_path / "a.safetensors", wrapped | head))
    same({k: v for k, v in read.items() if k not in head}, state)
    assert detect.detect(read) == "mae"


def test_of_moco_the_encoder_that_is_evaluated(tmp_path):
    state = tensors("mae")
    both = {f"base_encoder.{k}": v for k, v in state.items()}
    both |= {f"momentum_encoder.{k}": 2 * v for k, v in state.items()}
    read = load.read_file(saved(tmp_path / "a.safetensors", both))
    same({k: v for k, v in read.items() if not k.startswith("momentum")}, state)


def test_two_encoders_are_refused(tmp_path):
    state = tensors("mae")
    two = {f"{p}.{k}": v for p in ("encoder", "target_encoder") for k, v in state.items()}
    with pytest.raises(ConfigError, match=r"encoders under encoder., target_encoder.; allowed"):
        load.read_file(saved(tmp_path / "two.safetensors", two))
    twice = {f"model.{k}": v for k, v in state.items()} | {"norm.weight": state["norm.weight"]}
    with pytest.raises(ConfigError, match=r"norm.weight and model.norm.weight; allowed: one"):
        load.read_file(saved(tmp_path / "twice.safetensors", twice))


def test_prefixes_that_a_layout_has_stay(tmp_path):
    """CAE's own names begin with `encoder.`"""
    state = tensors("cae", pos_embed="none", bias="qv", layer_scale=0.1)
    read = load.read_file(saved(tmp_path / "cae.safetensors", state))
    same(read, state)
    assert detect.detect(read) == "cae"


# ------------------------------------------------------------------ SimMIM, data2vec, I-JEPA
def test_simmim(tmp_path):
    """Official names are BEiT's behind `encoder.`; the decoder is one convolution."""
    state = tensors("beit", pos_embed="none", **SIMMIM)
    official = {f"encoder.{k}": v for k, v in state.items()}
    official |= {"decoder.0.weight": np.ones((48, WIDTH, 1, 1), np.float32)}
    official |= {"encoder.rel_pos_bias.relative_position_index": np.zeros((5, 5), np.float32)}
    model = mimjax.load(saved(tmp_path / "simmim.pth", official))
    assert (model.module.rel_pos, model.module.heads) == ("shared", 2)
    same_tree(model.params["encoder"], params(pos_embed="none", **SIMMIM))
    with pytest.raises(ConfigError, match="no decoder"):
        model.reconstruct(np.zeros((1, SIDE, SIDE, 3), np.uint8))


def test_data2vec_is_no_beit(tmp_path):
    """Data2vec's head predicts a vector of the encoder's width, and no code of a tokenizer."""
    state = tensors("beit", pos_embed="none", **SIMMIM)
    head = {"lm_head.weight": np.ones((WIDTH, WIDTH)), "lm_head.bias": np.ones(WIDTH)}
    head = {k: v.astype(np.float32) for k, v in head.items()}
    model = mimjax.load(saved(tmp_path / "data2vec.safetensors", state | head))
    same_tree(model.params["encoder"], params(pos_embed="none", **SIMMIM))
    assert "lm_head" in model.report[-1]
    with pytest.raises(ConfigError, match="no decoder"):
        model.reconstruct(np.zeros((1, SIDE, SIDE, 3), np.uint8))


def same_tree(ours, theirs):
    flat = lambda tree: dict(zip(paths(tree), map(np.asarray, jax.tree.leaves(tree))))
    same(flat(ours), flat(theirs))


def test_ijepa_names_both_encoders(tmp_path):
    """The official file has the encoder and its average, under other names than other files."""
    encoder = {f"module.{k}": torch.tensor(v) for k, v in tensors("mae").items()}
    double = {k: 2 * v for k, v in encoder.items()}
    whole = {"encoder": encoder, "target_encoder": double, "predictor": {}, "epoch": 3}
    path = tmp_path / "jepa.pth.tar"
    torch.save(whole, path)
    read = load.read(str(path))
    same(read.state, tensors("mae"))
    assert read.average is not None
    same(read.average, {k: 2 * v for k, v in tensors("mae").items()})


# ------------------------------------------------------------------ who may hold them
@pytest.mark.parametrize("layout", ["dinov2", "dinov3", "capi"])
def test_no_method_begins_with_them(layout):
    """`init_from` and `convert` ask for an encoder as methods train it."""
    with pytest.raises(ConfigError, match=f"layout '{layout}', which holds vision; needed: enc"):
        detect.check_roots(layout, ["encoder"], "file")


def test_registers_go_around_the_image():
    """CAPI: a quarter on each side of the square that the outermost patches span."""
    found = coordinates("corners", (3, 2), 8)
    sides = [(0, 0), (0.5, 0), (1, 0), (1, 0.5), (1, 1), (0.5, 1), (0, 1), (0, 0.5)]
    patches = [(y, x) for y in (0, 0.5, 1) for x in (0, 1)]
    np.testing.assert_array_equal(found, np.float32(sides + patches))
