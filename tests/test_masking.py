import pickle
import random

import jax.numpy as jnp
import numpy as np
import pytest

from mimjax import masking
from mimjax.errors import ConfigError
from mimjax.masking import Masking

GRIDS = [(14, 14), (4, 4), (8, 8), (3, 5), (16, 12), (2, 2), (32, 32)]


@pytest.mark.parametrize("grid", GRIDS, ids=str)
@pytest.mark.parametrize("kind", masking.KINDS)
def test_counts_are_exact_on_any_grid(kind, grid):
    m = Masking(kind)
    sampler = m.sampler(grid)
    counts = {int(sampler(random.Random(seed)).sum()) for seed in range(50)}
    assert counts == {m.num_masked(grid)}
    assert 0 < m.num_masked(grid) < grid[0] * grid[1]


@pytest.mark.parametrize("ratio", [0.1, 0.4, 0.5, 0.6, 0.9])
@pytest.mark.parametrize("kind", ["random", "block", "block_random"])
def test_counts_are_exact_at_any_ratio(kind, ratio):
    m = Masking(kind, ratio)
    masks = [m.sampler((14, 14))(random.Random(seed)) for seed in range(20)]
    assert {int(x.sum()) for x in masks} == {196 - int(196 * (1 - ratio))}


def test_a_mask_depends_on_its_seed_alone():
    sampler = pickle.loads(pickle.dumps(Masking("block_random").sampler((14, 14))))
    a, b, c = (sampler(random.Random(s)) for s in (1, 1, 2))
    np.testing.assert_array_equal(a, b)
    assert np.any(a != c)


def test_the_try_bound_never_changes_an_official_mask(monkeypatch):
    """The official generator has no bound: a tighter one than ours must already suffice."""
    monkeypatch.setattr(masking, "MAX_TRIES", 10**9)
    rng = random.Random(3)
    free = [masking.block_mask(rng, (14, 14), 120) for _ in range(300)]
    monkeypatch.undo()
    rng = random.Random(3)
    bound = [masking.block_mask(rng, (14, 14), 120) for _ in range(300)]
    np.testing.assert_array_equal(free, bound)


def test_tries_are_bounded_and_the_rest_is_filled(monkeypatch):
    monkeypatch.setattr(masking, "MAX_TRIES", 1)
    masks = [masking.block_mask(random.Random(s), (4, 4), 10, 16, 60) for s in range(20)]
    assert {int(m.sum()) for m in masks} == {10}


def test_small_grids_need_few_draws():
    """With the official constants a 4x4 grid needs over a thousand tries per mask."""

    class Counting(random.Random):
        calls = 0

        def uniform(self, a, b):
            Counting.calls += 1
            return super().uniform(a, b)

    sampler = Masking("block_random").sampler((4, 4))
    for seed in range(200):
        sampler(Counting(seed))
    assert Counting.calls / 200 < 100


def test_split_is_in_raster_order():
    mask = jnp.asarray([[True, False, True, False], [False, False, True, True]])
    visible, masked = masking.split(mask, 2)
    np.testing.assert_array_equal(visible, [[1, 3], [0, 1]])
    np.testing.assert_array_equal(masked, [[0, 2], [2, 3]])


def test_neighbor_weight_bounds():
    full = masking.neighbor_weight(jnp.ones((1, 25), bool), (5, 5)).reshape(5, 5)
    assert full[2, 2] == 2.0
    np.testing.assert_allclose(full[0, 0], 1 + 4 / 9, rtol=1e-6)
    alone = masking.neighbor_weight(jnp.asarray(np.eye(25, dtype=bool)[12:13]), (5, 5))
    np.testing.assert_allclose(alone.max(), 10 / 9, rtol=1e-6)
    assert (alone > 0).sum() == 1


@pytest.mark.parametrize("ratio", [0.0, 1.0, 1.5, -0.1])
def test_ratio_outside_0_1(ratio):
    with pytest.raises(ConfigError, match=r"method\.masking\.ratio: .* above 0 and below 1"):
        Masking(ratio=ratio)


def test_ratio_that_leaves_no_patch():
    with pytest.raises(ConfigError, match="masks 4 of 4 patches"):
        Masking(ratio=0.99).num_masked((2, 2))
