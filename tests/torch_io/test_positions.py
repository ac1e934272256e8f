"""Learned positions resized to other grids: against torch, and where a file is read."""

import jax
import numpy as np
import pytest

from mimjax.errors import ConfigError
from mimjax.models.attention import table_rows
from mimjax.models.positions import bicubic_weights, resize_absolute
from mimjax.models.vit import ViT
from mimjax.torch_io.read import load, positions

RNG = np.random.default_rng(0)
GRIDS = [((4, 4), (7, 7)), ((6, 6), (3, 4)), ((3, 5), (5, 3)), ((4, 4), (4, 9)), ((1, 1), (2, 3))]


@pytest.mark.parametrize(("source", "target"), GRIDS, ids=str)
def test_absolute_positions_equal_torch(source, target):
    import torch

    pos = RNG.normal(size=(1, 1 + source[0] * source[1], 5)).astype(np.float32)
    ours = positions.resize_absolute(pos, source, target)
    patches = torch.tensor(pos[:, 1:].reshape(1, *source, 5).transpose(0, 3, 1, 2))
    theirs = torch.nn.functional.interpolate(
        patches, size=target, mode="bicubic", align_corners=False
    )
    theirs = theirs.permute(0, 2, 3, 1).reshape(1, -1, 5).numpy()
    np.testing.assert_array_equal(ours[:, 0], pos[:, 0])
    np.testing.assert_allclose(ours[:, 1:], theirs, atol=2e-6)


@pytest.mark.parametrize("traced", [False, True])
@pytest.mark.parametrize(("source", "target"), [((4, 4), (6, 6)), ((5, 5), (3, 8))], ids=str)
def test_positions_while_running_equal_torch(source, target, traced):
    """DINO's code resizes by factors of (target + 0.1) / source; other prefixes are tried too."""
    import torch

    pos = RNG.normal(size=(1, 2 + source[0] * source[1], 5)).astype(np.float32)
    resize = lambda x: resize_absolute(x, source, target, 0.1, num_prefix=2)
    ours = np.asarray(jax.jit(resize)(pos) if traced else resize(pos))
    theirs = torch.nn.functional.interpolate(
        torch.tensor(pos[:, 2:].reshape(1, *source, 5).transpose(0, 3, 1, 2)),
        scale_factor=tuple((t + 0.1) / s for s, t in zip(source, target)),
        mode="bicubic",
    )
    theirs = theirs.permute(0, 2, 3, 1).reshape(1, -1, 5).numpy()
    assert ours.dtype == np.float32
    np.testing.assert_array_equal(ours[:, :2], pos[:, :2])
    np.testing.assert_allclose(ours[:, 2:], theirs, atol=5e-6)
    assert np.abs(ours - resize_absolute(pos, source, target, num_prefix=2)).max() > 0.01
    same = resize_absolute(jax.numpy.asarray(pos) if traced else pos, source, source, 0.1, 2)
    np.testing.assert_array_equal(same, pos)


@pytest.mark.parametrize(("source", "target"), GRIDS, ids=str)
def test_weights_of_a_point_sum_to_one(source, target):
    for s, t in zip(source, target):
        for extra in (0.0, 0.1):
            np.testing.assert_allclose(bicubic_weights(s, t, extra).sum(1), 1.0, atol=1e-12)


@pytest.mark.parametrize(("source", "target"), GRIDS[:-1], ids=str)
def test_relative_tables_keep_what_every_grid_has(source, target):
    table = RNG.normal(size=(table_rows(source), 2)).astype(np.float32)
    new = positions.resize_relative(table, source, target)
    assert new.shape == (table_rows(target), 2)
    np.testing.assert_array_equal(new[-3:], table[-3:])
    # the displacement 0 stands in the middle of both
    middle = lambda t: t[(len(t) - 3) // 2]
    np.testing.assert_allclose(middle(new), middle(table), atol=1e-6)
    # neighbours are neighbours in every grid
    at = lambda t, g, y, x: t[(y + g[0] - 1) * (2 * g[1] - 1) + x + g[1] - 1]
    for y, x in ((0, 1), (-1, 0), (1, -1)):
        np.testing.assert_allclose(at(new, target, y, x), at(table, source, y, x), atol=1e-6)
    assert positions.resize_relative(table, source, source).tobytes() == table.tobytes()


def test_an_axis_of_the_same_length_is_not_touched():
    """One axis at a time: rows equal those of a table that never changes along the other."""
    table = RNG.normal(size=(table_rows((4, 4)), 1)).astype(np.float32)
    cells = table[:-3].reshape(7, 7)
    new = positions.resize_relative(table, (4, 4), (4, 9))[:-3].reshape(7, 17)
    assert abs(new[2, 8] - cells[2, 3]) < 1e-6
    np.testing.assert_allclose(new[:, [7, 8, 9]], cells[:, [2, 3, 4]], atol=1e-6)


def test_one_patch_has_no_distances():
    with pytest.raises(ConfigError, match="1x1 grid"):
        positions.resize_relative(np.zeros((4, 2)), (1, 1), (2, 2))


def encoder(rel_pos, size):
    return ViT(
        width=8,
        depth=2,
        heads=2,
        patch=4,
        image_size=size,
        pos_embed="learned",
        rel_pos=rel_pos,
        bias="qv",
        init_scheme="beit",
        layer_scale=0.1,
    )


def like(vit):
    images = np.zeros((1, *vit.image_size, 3), np.float32)
    return {"encoder": jax.eval_shape(vit.init, jax.random.key(0), images)["params"]}


@pytest.mark.parametrize("rel_pos", ["shared", "per_block"])
def test_a_file_of_another_grid_is_resized(rel_pos):
    small, large = encoder(rel_pos, (16, 16)), encoder(rel_pos, (20, 24))
    fill = lambda x: RNG.normal(size=x.shape).astype(np.float32)
    params = jax.tree.map(fill, like(small))
    state = load.to_torch(params, "beit")
    new = load.from_torch(state, like(large), "auto", grid=large.grid)["encoder"]
    grids = small.grid, large.grid
    expected = positions.resize_absolute(params["encoder"]["pos_embed"], *grids)
    np.testing.assert_array_equal(new["pos_embed"], expected)
    tables = [k for k in new if k.startswith("rel_pos")]
    assert len(tables) == (1 if rel_pos == "shared" else 2)
    for k in tables:
        expected = positions.resize_relative(params["encoder"][k]["table"], *grids)
        np.testing.assert_array_equal(new[k]["table"], expected)
    kept = params["encoder"]["block_01"]["mlp"]["fc1"]["kernel"]
    np.testing.assert_array_equal(new["block_01"]["mlp"]["fc1"]["kernel"], kept)
    same = load.from_torch(state, like(small), "beit")
    jax.tree.map(np.testing.assert_array_equal, same, params)


def test_lengths_that_fit_no_grid_are_errors():
    vit = encoder("shared", (16, 16))
    state = load.to_torch(jax.tree.map(lambda x: np.zeros(x.shape), like(vit)), "beit")
    odd = state | {"pos_embed": np.zeros((1, 13, 8))}
    with pytest.raises(ConfigError, match=r"pos_embed has shape \[1, 13, 8\]"):
        load.from_torch(odd, like(vit), "beit")
    odd = state | {"rel_pos_bias.relative_position_bias_table": np.zeros((50, 2))}
    with pytest.raises(ConfigError, match=r"bias_table has shape \[50, 2\]"):
        load.from_torch(odd, like(vit), "beit")
    wide = state | {"pos_embed": np.zeros((1, 10, 12))}
    with pytest.raises(ConfigError, match=r"pos_embed has shape \[1, 10, 12\]"):
        load.from_torch(wide, like(vit), "beit")
    # a model that is not square, whose grid nobody gave
    with pytest.raises(ConfigError, match=r"pos_embed has shape"):
        load.from_torch(state, like(encoder("shared", (20, 24))), "beit")
