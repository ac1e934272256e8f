"""Sizes from tensors where the published files leave room for doubt; what is wrong is listed."""

import jax
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

import mimjax
from mimjax.errors import ConfigError
from mimjax.inference import published
from mimjax.models.vit import ViT, sincos_table
from mimjax.torch_io.read import detect, load, positions, sizes
from mimjax.torch_io.tables import imports

WIDTH, PATCH = 16, 2


def shapes(**options):
    net = ViT(width=WIDTH, depth=2, heads=2, patch=PATCH, **options)
    images = np.zeros((1, *net.image_size, 3), np.float32)
    return net, jax.eval_shape(net.init, jax.random.key(0), images)["params"]


def file(table=None, **options):
    """The encoder of an official MAE file, random, with some position table."""
    _, like = shapes(**options)
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32), like)
    state = load.to_torch({"encoder": params}, "mae")
    return state if table is None else state | {"pos_embed": table}


def with_cls(table):
    return np.concatenate([np.zeros_like(table[:1]), table])[None]


@pytest.mark.parametrize("order", ["xy", "yx"])
def test_fixed_positions_show_a_grid_of_any_shape(order):
    state = file(with_cls(sincos_table((3, 5), WIDTH, order)), image_size=(6, 10))
    found = sizes.vit(sizes.FileTensors(state, "mae"))
    assert found["image_size"] == (6, 10)
    assert found["pos_embed"] == f"sincos_{order}"


def test_learned_positions_that_fill_no_square_ask_for_the_size():
    state = file(image_size=(6, 10), pos_embed="learned")
    with pytest.raises(ConfigError, match=r"the image size cannot be told .* --image_size=224,224"):
        sizes.vit(sizes.FileTensors(state, "mae"))
    found = sizes.vit(sizes.FileTensors(state, "mae"), image_size=(6, 10))
    assert (found["image_size"], found["pos_embed"]) == ((6, 10), "learned")


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_fixed_positions_in_half_precision_are_fixed(dtype):
    """A table rounded to half misses the formula by over 1e-4, and still counts as fixed."""
    table = sincos_table((14, 14), 64, "yx")
    rounded = table.astype(dtype).astype(np.float32)
    assert positions.fixed(rounded) == ("sincos_yx", (14, 14))
    assert positions.fixed(rounded + 0.05) is None
    assert positions.fixed(table + 0.001) is None


def test_positions_without_a_row_for_cls():
    """DeiT-III adds CLS after the positions."""
    state = file(image_size=(8, 8), pos_embed="learned", layer_scale=0.1)
    bare = state | {"pos_embed": state["pos_embed"][:, 1:]}
    out = imports.official_names(bare)["pos_embed"]
    np.testing.assert_array_equal(out[:, 1:], state["pos_embed"][:, 1:])
    assert not out[:, 0].any()
    assert imports.official_names(state)["pos_embed"] is state["pos_embed"]
    assert sizes.vit(sizes.FileTensors(imports.official_names(bare), "mae"))["layer_scale"] > 0


def test_names_of_wrappers():
    probe = {f"module.{k}": np.ones(2) for k in ("head.0.running_mean", "head.1.weight")}
    assert set(imports.official_names(probe)) == {"head.0.running_mean", "head.weight"}


def test_at_most_twenty_keys_are_listed():
    state = file(with_cls(sincos_table((4, 4), WIDTH, "xy")), image_size=(8, 8))
    _, like = shapes(image_size=(8, 8))
    like = {"encoder": like}
    none = {k: v for k, v in state.items() if not k.startswith("blocks")}
    with pytest.raises(ConfigError, match="24 keys of layout 'mae' are missing") as e:
        load.from_torch(none | {"more": np.zeros(1)}, like, "mae", "f")
    assert str(e.value).count("blocks.") == 20
    assert "; 2 keys of the file fit nothing: more, pos_embed" in str(e.value)
    wrong = {k: np.zeros(3) if k.endswith("bias") else v for k, v in state.items()}
    with pytest.raises(ConfigError, match="14 tensors of layout 'mae' do not fit: ") as e:
        load.from_torch(wrong, like, "mae", "f")
    assert str(e.value).count("has shape [3]") == 14
    assert "\n" not in str(e.value)


def test_every_table_of_heads_is_one():
    assert set(imports.HEADS) <= set(detect.TABLES)
    assert all("classifier" in detect.roots_of(layout) for layout in imports.HEADS)


def test_a_norm_of_queries_is_another_function():
    state = file(with_cls(sincos_table((4, 4), WIDTH, "xy")), image_size=(8, 8))
    held = sizes.FileTensors(state | {"blocks.0.attn.q_norm.weight": np.ones(8)}, "mae", "f")
    with pytest.raises(ConfigError, match=r"f: 1 keys in blocks .*: blocks\.0\.attn\.q_norm"):
        held.check_blocks()
    assert published.method_of(held) == ""


def test_channels_need_as_many_means(tmp_path):
    state = file(image_size=(8, 8), pos_embed="learned")
    kernel = state["patch_embed.proj.weight"]
    state["patch_embed.proj.weight"] = np.ascontiguousarray(kernel[:, :1])
    save_file(state, tmp_path / "gray.safetensors")
    with pytest.raises(ConfigError, match=r"mean: 3 values, but .* images of 1 channels"):
        mimjax.load(tmp_path / "gray.safetensors", heads=2)
    model = mimjax.load(tmp_path / "gray.safetensors", heads=2, mean=(0.5,), std=(0.5,))
    assert model.encode(np.zeros((2, 8, 8, 1), np.uint8)).shape == (2, WIDTH)
