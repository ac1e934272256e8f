"""Weights at another size of images: positions are interpolated as the official code does it."""

import json

import helpers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

import mimjax
from mimjax.errors import ConfigError
from mimjax.inference import resolution, teachers, weights
from mimjax.models.conv_vit import ConvViT
from mimjax.models.vit import ViT, at_size, sincos_table
from mimjax.patches import IMAGENET_MEAN, IMAGENET_STD, normalize
from mimjax.schema import section
from mimjax.storage import settings
from mimjax.storage.checkpoints import Checkpoints, versions
from mimjax.storage.files import Workdir
from mimjax.targets.encoder import EncoderFeatures
from mimjax.torch_io.read import load

WIDTH = 16
VIT = ViT(width=WIDTH, depth=1, heads=2, patch=2, image_size=(8, 8))
CONV = ConvViT(WIDTH, 1, 2, (8, 8), (1, 1), strides=(2, 1, 1), image_size=(8, 8), fuse_stages=False)


def official(table, source, target):
    """`interpolate_pos_embed` of MAE, BootMAE and CAE, [n d]."""
    x = torch.tensor(table).reshape(1, *source, -1).permute(0, 3, 1, 2)
    x = torch.nn.functional.interpolate(x, size=target, mode="bicubic", align_corners=False)
    return x.permute(0, 2, 3, 1).flatten(0, 2).numpy()


def random(tree, seed=0):
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: (0.3 * rng.normal(size=x.shape)).astype(np.float32), tree)


def published(encoder, layout, folder):
    """A file of an encoder with its fixed table, and its parameters."""
    images = np.zeros((1, *encoder.image_size, 3))
    params = random(jax.eval_shape(encoder.init, jax.random.key(0), images)["params"])
    state = load.to_torch({"encoder": params}, layout)
    table = sincos_table(encoder.grid, WIDTH, encoder.positions)
    state["pos_embed"] = np.pad(table, ((encoder.num_prefix, 0), (0, 0)))[None]
    save_file(state, folder / "encoder.safetensors")
    return folder / "encoder.safetensors", params


@pytest.mark.parametrize(
    ("encoder", "layout"),
    [
        (VIT, "mae"),
        (VIT.clone(pos_embed="sincos_yx", bias="qv", image_size=(6, 10)), "bootmae"),
        (CONV, "mcmae"),
    ],
)
def test_a_fixed_table_is_interpolated(encoder, layout, tmp_path):
    """Neither grid need be a square."""
    file, params = published(encoder, layout, tmp_path)
    new = encoder.clone(image_size=(12, 10))
    table = sincos_table(encoder.grid, WIDTH, encoder.positions)
    right = official(table, encoder.grid, new.grid)
    assert np.abs(right - sincos_table(new.grid, WIDTH, encoder.positions)).max() > 0.3
    pos = np.pad(right, ((encoder.num_prefix, 0), (0, 0)))[None]
    images = np.random.default_rng(0).integers(0, 256, (2, 12, 10, 3)).astype(np.uint8)
    x = normalize(images, IMAGENET_MEAN, IMAGENET_STD)
    whole = {"params": jax.tree.map(jnp.asarray, params | {"pos_embed": pos})}
    learned = new.clone(pos_embed="learned").apply(whole, x)
    model = mimjax.load(file, heads=2, image_size=(12, 10), mean=IMAGENET_MEAN, std=IMAGENET_STD)
    found = model.encode(images, pool="all")
    np.testing.assert_allclose(found, learned.tokens, atol=2e-5)
    assert model.config.method.encoder.pos_grid == encoder.grid
    sides = f"{encoder.grid[0]}x{encoder.grid[1]} to {new.grid[0]}x{new.grid[1]}"
    assert any(f"positions resized from {sides} patches" in line for line in model.report)
    # a network that is used at another size interpolates its own table
    used = encoder.apply({"params": jax.tree.map(jnp.asarray, params)}, x)
    np.testing.assert_allclose(used.tokens, learned.tokens, atol=2e-5)
    assert at_size(at_size(encoder, (12, 10)), encoder.image_size) == encoder


def test_the_grid_of_a_file_is_written_into_the_config(tmp_path):
    """First weights and teachers are alike, and only where the config names no grid."""
    file, _ = published(VIT, "mae", tmp_path)
    c = helpers.small("mae", **{"init_from": str(file), "method.encoder.image_size": (12, 8)})
    filled = resolution.fill(c)
    assert filled.method.encoder.pos_grid == (4, 4)
    assert resolution.fill(filled) is filled
    c.method.encoder.image_size = (8, 8)
    assert resolution.fill(c) is c
    beit = helpers.small("beit", **{"init_from": str(file), "method.encoder.image_size": (12, 8)})
    assert resolution.fill(beit) is beit  # nothing fixed there
    c = helpers.small("mae", **{"method.encoder.image_size": (12, 8)})
    c.method.pixel_target = section(EncoderFeatures(layer=-1, path=str(file)))
    network = teachers.fill(c).method.pixel_target.network
    assert (network.image_size, network.pos_grid) == ((12, 8), (4, 4))
    # a wrong grid is named, also where nothing was filled in
    encoder = VIT.clone(image_size=(12, 8))
    like = {"encoder": jax.eval_shape(encoder.init, jax.random.key(0), np.zeros((1, 12, 8, 3)))}
    like["encoder"] = like["encoder"]["params"]
    state = load.read_file(str(file))
    with pytest.raises(
        ConfigError, match=r"of a grid of 4x4 patches, .* of 6x4; allowed: pos_grid=4,4"
    ):
        load.from_torch(state, like, "mae", "f", *load.place_of(encoder))
    with pytest.raises(ConfigError, match=r"method\.encoder\.pos_grid: .*no network has fixed"):
        helpers.make(helpers.small("beit", **{"method.encoder.pos_grid": (4, 4)}))


def saved(c, folder):
    """A workdir with a checkpoint of a config's initial parameters, and these."""
    _, program = helpers.make(c)
    state = program.init()
    text = settings.config_json(c)
    workdir = Workdir(str(folder))
    checkpoints = Checkpoints(workdir)
    meta = {"config": json.loads(text), "versions": versions(), "teacher": {}}
    checkpoints.save(state, {"step": 0, "fingerprint": ""}, meta)
    checkpoints.close()
    workdir.write_text("config.json", text)
    return state.params["encoder"]


def test_a_run_begins_with_the_weights_of_another_size(tmp_path):
    """Learned positions of a workdir are resized; fixed ones keep the grid they are made for."""
    small = {"method.encoder.rel_pos": "shared", "method.encoder.pos_embed": "learned"}
    params = saved(helpers.small("beit", **small), tmp_path / "beit")
    task, program = helpers.make(
        helpers.small("beit", **small, **{"method.encoder.image_size": (12, 8)})
    )
    like, said = {"encoder": program.abstract_state.params["encoder"]}, []
    place = weights.place_of(task)
    read = weights.read_params(str(tmp_path / "beit"), like, "init_from", said.append, *place)
    assert "positions resized from 4x4 to 6x4 patches" in said[0]
    assert jax.tree.map(np.shape, read) == jax.tree.map(np.shape, like)
    pos = np.asarray(params["pos_embed"])
    found = np.asarray(read["encoder"]["pos_embed"])[0]
    np.testing.assert_allclose(found[1:], official(pos[0, 1:], (4, 4), (6, 4)), atol=1e-6)
    np.testing.assert_array_equal(found[0], pos[0, 0])
    np.testing.assert_array_equal(
        read["encoder"]["block_00"]["attn"]["qkv"]["kernel"],
        params["block_00"]["attn"]["qkv"]["kernel"],
    )


def test_a_run_that_is_continued_needs_its_first_weights_no_more(tmp_path):
    c = helpers.small("mae", **{"method.encoder.image_size": (12, 8)})
    kept = resolution.with_grid(c, (4, 4))
    saved(kept, tmp_path)
    assert resolution.of_workdir(str(tmp_path)) == (4, 4)
    assert resolution.continued(c, str(tmp_path)).method.encoder.pos_grid == (4, 4)
    assert resolution.continued(c, str(tmp_path / "new")) is c
    c.method.encoder.image_size = (8, 8)
    assert resolution.continued(c, str(tmp_path)) is c
