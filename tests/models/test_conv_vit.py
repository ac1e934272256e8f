"""The hierarchical encoder: what is masked stays unseen, and leaving it out changes nothing."""

import functools
import random

import helpers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from mimjax import schema
from mimjax.errors import ConfigError
from mimjax.inference.weights import read_params
from mimjax.masking.views import Complementary
from mimjax.methods.mcmae import MCMAE
from mimjax.models.conv_vit import CONV_ALTERNATIVES, CONV_SIZES, ConvViT, depthwise, neighbors
from mimjax.models.vit import sincos_table
from mimjax.rng import step_key
from mimjax.rules import paths
from mimjax.run.config_files import import_config
from mimjax.task import Clock, TrainState
from mimjax.torch_io.read import detect, load
from mimjax.torch_io.read import sizes as derive

config, mrmae = import_config("mcmae"), import_config("mrmae")

TINY = {
    "width": 16,
    "depth": 2,
    "heads": 2,
    "stage_widths": (8, 12),
    "stage_depths": (1, 1),
    "stage_mlp_ratios": (2.0, 2.0),
    "mlp_ratio": 2.0,
}
# image and strides: the official ones on an image that is not square; stages that keep their size
SHAPES = {
    "official": ((32, 64), (4, 2, 2)),
    "patch 8": ((24, 16), (2, 2, 2)),
    "fine": ((8, 12), (1, 2, 1)),
    "no cells": ((8, 8), (2, 1, 1)),
}


@functools.cache
def made(name):
    """Encoder, its parameters, images and the ids of visible patches."""
    size, strides = SHAPES[name]
    net = ConvViT(**TINY, image_size=size, strides=strides)
    rng = np.random.default_rng(0)
    images = rng.normal(size=(3, *size, 3)).astype(np.float32)
    noise = rng.random((3, net.num_patches))
    ids = np.sort(np.argsort(noise, axis=1)[:, : net.num_patches // 4 + 1], axis=1)
    ids = ids.astype(np.int32)
    params = jax.jit(net.init)(jax.random.key(2), images[:1])["params"]
    return net, params, images, ids


@functools.cache
def with_gradients(name, skip):
    net, params, images, ids = made(name)
    net = net.clone(skip_masked=skip)

    @jax.jit
    def run(params, images, ids):
        def loss(params, images):
            tokens = net.apply({"params": params}, images, ids).tokens
            return jnp.sin(tokens * 3).sum(), tokens

        return jax.grad(loss, (0, 1), has_aux=True)(params, images)

    return run(params, images, ids)


@pytest.mark.parametrize(
    "name",
    [
        helpers.gate("official"),
        "no cells",
        *(pytest.param(n, marks=pytest.mark.slow) for n in ("patch 8", "fine")),
    ],
)
def test_leaving_masked_positions_out_changes_nothing(name):
    (grads, tokens), (dense_grads, dense) = (with_gradients(name, s) for s in (True, False))
    np.testing.assert_allclose(tokens, dense, atol=2e-5)
    close = lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5 * float(np.abs(b).max()) + 1e-6)
    jax.tree.map(close, grads, dense_grads)
    net, _, _, ids = made(name)
    assert tokens.shape == (3, ids.shape[1], net.width)


@pytest.mark.parametrize("skip", [True, False])
def test_masked_pixels_have_no_influence_at_all(skip):
    net, params, images, ids = made("official")
    net = net.clone(skip_masked=skip)
    mask = np.ones((3, net.num_patches), bool)
    np.put_along_axis(mask, np.asarray(ids), False, axis=1)
    hidden = np.kron(mask.reshape(3, *net.grid), np.ones((1, net.patch, net.patch)))[..., None] > 0
    encode = jax.jit(lambda x: net.apply({"params": params}, x, jnp.asarray(ids)).tokens)
    once = encode(images)
    np.testing.assert_array_equal(once, encode(np.where(hidden, np.float32(9), images)))
    assert not np.any(np.where(hidden, with_gradients("official", skip)[0][1], 0))
    # a visible pixel reaches its neighbours' latents
    y, x = np.argwhere(~hidden[0, :, :, 0])[0]
    changed = images.copy()
    changed[0, y, x] += 1.0
    other = encode(changed)
    assert np.any(np.asarray(other[0]) != np.asarray(once[0]))


def test_the_convolution_equals_xla_s():
    """Values and gradients agree on all positions and on those of visible cells."""
    grid, side, c = (3, 4), 2, 5
    place = (*grid, side)
    maps = jax.random.normal(jax.random.key(0), (2, 6, 8, c))
    kernel = jax.random.normal(jax.random.key(1), (5, 5, c))
    split = lambda x: x.reshape(2, 3, 2, 4, 2, c).transpose(0, 1, 3, 2, 4, 5).reshape(2, 12, 4, c)
    ids = jnp.asarray([[0, 3, 5, 6], [1, 2, 7, 11]])
    shown = jnp.zeros((2, 12)).at[jnp.arange(2)[:, None], ids].set(1.0)
    take = lambda x: jnp.take_along_axis(x, ids[..., None, None], axis=1).reshape(2, -1, c)

    def theirs(maps, kernel, masked):
        if masked:
            by_pixel = shown.reshape(2, 3, 1, 4, 1).repeat(2, 2).repeat(2, 4).reshape(2, 6, 8, 1)
            maps = maps * by_pixel
        out = jax.lax.conv_general_dilated(
            maps,
            kernel[:, :, None],
            (1, 1),
            "SAME",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=c,
        )
        return take(split(out)) if masked else split(out).reshape(2, -1, c)

    def ours(maps, kernel, masked):
        if masked:
            return depthwise(take(split(maps)), kernel, neighbors(place, ids), place)
        return depthwise(split(maps).reshape(2, -1, c), kernel, None, place)

    def run(f, masked, maps, kernel):
        total = lambda maps, kernel: jnp.sin(f(maps, kernel, masked)).sum()
        return f(maps, kernel, masked), jax.grad(total, (0, 1))(maps, kernel)

    for masked in (False, True):
        a, b = (jax.jit(functools.partial(run, f, masked))(maps, kernel) for f in (ours, theirs))
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=3e-5), a, b)


def test_all_patches_and_other_image_sizes():
    net, params, images, _ = made("official")
    encode = jax.jit(lambda x, ids=None: net.apply({"params": params}, x, ids))
    f = encode(images)
    assert f.prefix == 0
    assert f.tokens.shape == (3, net.num_patches, 16)
    every = np.broadcast_to(np.arange(net.num_patches), (3, net.num_patches))
    np.testing.assert_allclose(f.tokens, encode(images, every).tokens, atol=2e-5)
    # the grid follows from the images
    assert encode(images[:, :, :48]).tokens.shape == (3, 6, 16)
    with pytest.raises(ValueError, match="no CLS"):
        f.read("cls")


def test_fused_layers_are_summed_before_the_norm():
    net, params, images, ids = made("fine")
    plain = {k: v for k, v in params.items() if not k.endswith("_fuse")}

    def apply(**kw):
        other = net.clone(fuse_stages=False, **kw)
        f = jax.jit(lambda p, x, ids: other.apply({"params": p}, x, ids))(plain, images, ids)
        return jax.tree.map(np.asarray, f)

    last, both = apply(), apply(fuse_layers=(0, -1))
    for f, x in ((last, last.blocks[-1]), (both, both.blocks[0] + both.blocks[1])):
        x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
        np.testing.assert_allclose(f.tokens, x, atol=2e-5)  # scale 1 and bias 0 at first


def test_drop_path_and_recomputation():
    """Rates rise over stages and transformer; recomputing blocks changes no number."""
    net, params, images, ids = made("no cells")

    def grads(**kw):
        rngs = {"drop_path": jax.random.key(5)}
        other = net.clone(**kw)
        apply = lambda p, x, i: other.apply({"params": p}, x, i, None, True, rngs=rngs).tokens
        grad = jax.jit(jax.grad(lambda p, x, i: jnp.sin(3 * apply(p, x, i)).sum()))
        return grad(params, images, ids)

    plain = with_gradients("no cells", True)[0][0]  # of the same loss
    dropped, again = grads(drop_path=0.5), grads(drop_path=0.5, remat="full")
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), dropped, again)
    fc2 = lambda g: np.asarray(g["block_01"]["mlp"]["fc2"]["kernel"])
    # more than rounding
    assert np.abs(fc2(plain) - fc2(dropped)).max() > 0.01 * np.abs(fc2(plain)).max()


@pytest.mark.gate
def test_bfloat16_keeps_statistics_and_loss_in_float32():
    c = helpers.small("mcmae")
    c.dtype = "bfloat16"
    task, _ = helpers.make(c)
    params, _ = jax.jit(task.init)(jax.random.key(0))
    batch = jax.tree.map(jnp.asarray, helpers.batches(c, task, 1)[0])

    @jax.jit
    def run(params, batch):
        state = TrainState(jnp.int32(0), params, {}, {}, ())
        batch, _ = task.prepare(state, {}, batch, jax.random.key(1), True)
        loss = lambda p: task.loss(p, {}, batch, jax.random.key(2), 0, True).total
        return jax.value_and_grad(loss)(params), batch

    (total, grads), batch = run(params, batch)
    assert total.dtype == jnp.float32
    assert all(x.dtype == jnp.float32 and np.isfinite(x).all() for x in jax.tree.leaves(grads))
    encode = lambda p, image, ids: task.encoder.apply({"params": p}, image, ids).tokens
    tokens = jax.eval_shape(encode, params["encoder"], batch.image, batch.ids_v)
    assert tokens.dtype == jnp.bfloat16


def count(tree):
    """Millions of parameters."""
    return sum(x.size for x in jax.tree.leaves(tree)) / 1e6


def without_fusion(encoder):
    images = jax.ShapeDtypeStruct((1, *encoder.image_size, 3), jnp.float32)
    shapes = jax.eval_shape(encoder.init, jax.random.key(0), images)["params"]
    return count({k: v for k, v in shapes.items() if not k.endswith("_fuse")})


def published(size):
    """The task of a size's config."""
    return schema.make_task(config.get_config(f"size={size}"), Clock(1, 1))


@pytest.mark.gate
def test_published_sizes():
    """Pretraining B has 114.79 M; encoders as fine-tuned (S, L, H by a formula that gives B)."""
    table = {"s": 22.33, "b": 85.37, "l": 322.98, "h": 680.74}  # with a head of 1000 classes
    for size, expected in table.items():
        encoder = published(size).encoder
        alone = without_fusion(encoder)
        # the fine-tuned model has positions to learn and a head
        head = (encoder.width * 1001 - encoder.width + 1000 + 196 * encoder.width) / 1e6
        assert alone + head == pytest.approx(expected, abs=0.006), size
        if size == "b":
            whole = jax.eval_shape(MCMAE(encoder=encoder).init, jax.random.key(0))[0]
            assert count(whole) == pytest.approx(114.79, abs=0.005)
    assert set(table) == set(CONV_SIZES)
    assert config.SIZES == CONV_SIZES | CONV_ALTERNATIVES


@pytest.mark.parametrize("size", [*CONV_SIZES, *CONV_ALTERNATIVES])
def test_guessed_sizes_say_so_and_have_alternatives(size):
    task = published(size)
    assert bool(task.notes) == (size != "b")
    for other in CONV_ALTERNATIVES:
        if size[0] == other[0]:
            assert other in task.notes[0]
    mimic = schema.make_task(mrmae.get_config(f"size={size}"), Clock(1, 1))
    assert mimic.notes == task.notes
    assert mimic.encoder.fuse_layers[-1] == mimic.encoder.depth - 1


def test_a_file_shows_all_sizes_but_heads():
    sizes = {
        "width": 16,
        "depth": 3,
        "stage_widths": (8, 12),
        "stage_depths": (3, 1),
        "stage_mlp_ratios": (8.0, 4.0),
        "strides": (7, 2, 1),
        "image_size": (28, 28),
    }
    net = ConvViT(**sizes, heads=2)
    params = jax.eval_shape(net.init, jax.random.key(0), jnp.zeros((1, 28, 28, 3)))["params"]
    zeros = jax.tree.map(lambda x: np.zeros(x.shape, np.float32), {"encoder": params})
    state = load.to_torch(zeros, "mcmae")
    found = derive.conv_vit(derive.FileTensors(state, "mcmae"), (28, 28))
    assert {k: found[k] for k in sizes} == sizes
    assert "heads" not in found


def test_fast_views_fill_the_image():
    net, _, images, _ = made("official")
    task = MCMAE(encoder=net, masking=Complementary())
    masks = np.stack([task.sample(random.Random(i), 0)["mask"] for i in range(3)])
    batch = {"image": images, "mask": jnp.asarray(masks)}
    state = TrainState(jnp.int32(0), {}, {}, {}, ())

    def prepare(train):
        run = lambda b: task.prepare(state, {}, b, step_key(0, "train", 0), train)[0]
        return jax.jit(run)(batch)

    train = prepare(True)
    views = np.asarray(train.ids_v).reshape(3, 4, 2)
    np.testing.assert_array_equal(np.sort(views.reshape(3, 8), axis=1), [range(8)] * 3)
    assert np.any(views[0] != views[1])  # dealt out by chance
    np.testing.assert_array_equal(train.image[4:8], np.broadcast_to(images[1], (4, 32, 64, 3)))
    evaluated = prepare(False)
    np.testing.assert_array_equal(evaluated.ids_v, views[:, 0])  # the first set alone


MISTAKES = {
    "an image that the strides do not divide": (
        {"image_size": (40, 64)},
        r"image_size: height 40 .* 16, the product of .*strides \(4, 2, 2\); allowed: multiples of",
    ),
    "a layer that is not there": ({"fuse_layers": (0, 2)}, r"fuse_layers: 2; allowed: -2 to 1"),
    "no layer": ({"fuse_layers": ()}, "fuse_layers: empty"),
    "two strides": ({"strides": (4, 4)}, "strides"),
    "no stride": ({"strides": (4, 0, 4)}, "strides"),
    "one width": ({"stage_widths": (8,)}, "stage_widths"),
    "no depth": ({"stage_depths": (1, 0)}, "stage_depths"),
    "heads": ({"heads": 3}, "heads"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_bad_input_is_one_line(name):
    change, message = MISTAKES[name]
    settings = {**TINY, "image_size": (32, 64), **change}
    with pytest.raises(ConfigError, match=message) as e:
        MCMAE(encoder=ConvViT(**settings))
    assert "\n" not in str(e.value)


def test_fast_needs_sets_that_fill_the_image():
    net = made("official")[0]
    with pytest.raises(ConfigError, match=r"method\.masking\.ratio: 0\.6 shows 3 of 8 patches"):
        MCMAE(encoder=net, masking=Complementary(ratio=0.6))


def random_params(task):
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(task.init, jax.random.key(0))[0]
    return jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32), shapes)


@pytest.mark.gate
def test_published_files(tmp_path):
    """Whole files, encoders alone without the fusion (as released), and fine-tuned models."""
    net = made("official")[0]
    task = MCMAE(encoder=net)
    params = random_params(task)
    state = load.to_torch(params, "mcmae")
    state["pos_embed"] = sincos_table(net.grid, 16, "xy")[None]
    assert detect.detect(state) == "mcmae"
    back = load.from_torch(state, params)
    jax.tree.map(np.testing.assert_array_equal, back, params)
    again = load.to_torch(back, "mcmae")
    for key, value in again.items():
        np.testing.assert_array_equal(value, state[key])
    assert state["blocks1.0.attn.weight"].shape == (8, 1, 5, 5)
    assert state["blocks1.0.conv1.weight"].shape == (8, 8, 1, 1)

    lacking = ("decoder_", "mask_token", "stage")
    released = {k: v for k, v in state.items() if not k.startswith(lacking)}
    file = str(tmp_path / "released.safetensors")
    save_file(released, file)
    advice = r"4 keys .* missing: stage1_output_decode.*method\.encoder\.fuse_stages=False"
    with pytest.raises(ConfigError, match=advice) as e:
        read_params(file, params, "init_from", print)
    assert "\n" not in str(e.value)
    alone = MCMAE(encoder=net.clone(fuse_stages=False))
    said = []
    like = random_params(alone)
    got = read_params(file, like, "init_from", said.append)
    np.testing.assert_array_equal(
        got["encoder"]["stage1_block_00"]["depthwise"]["kernel"],
        params["encoder"]["stage1_block_00"]["depthwise"]["kernel"],
    )
    assert "decoder not in the file: random" in said[0]
    tuned = {k: v for k, v in released.items() if not k.startswith("norm.")}
    tuned |= {f"fc_norm.{k}": np.ones(16, np.float32) for k in ("weight", "bias")}
    # a fine-tuned model has a norm of its own, and none for tokens
    got = load.from_torch(tuned, {"encoder": like["encoder"]})
    assert got["encoder"]["norm"] == {"scale": None, "bias": None}
    del tuned["fc_norm.weight"], tuned["fc_norm.bias"]
    with pytest.raises(ConfigError, match=r"missing: norm\.bias, norm\.weight"):
        load.from_torch(tuned, {"encoder": like["encoder"]})


def test_positions_of_another_order_are_refused():
    net = ConvViT(**TINY, image_size=(32, 32), strides=(2, 2, 2))
    params = random_params(MCMAE(encoder=net))
    state = load.to_torch(params, "mcmae")
    for order, fits in (("xy", True), ("yx", False)):
        state["pos_embed"] = sincos_table((4, 4), 16, order)[None]
        if fits:
            load.from_torch(state, params)
        else:
            with pytest.raises(ConfigError, match="pos_embed is not the fixed sine-cosine table"):
                load.from_torch(state, params)


def test_every_name_of_the_official_base_is_there():
    shapes = jax.eval_shape(MCMAE().init, jax.random.key(0))[0]
    keys = {k for row in detect.rows_for("mcmae", paths(shapes)) for k in row.keys}
    assert len(keys) == 311  # the state dict's 313 entries, less two fixed tables
