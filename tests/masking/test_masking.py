"""Which patches are hidden: counts, blocks, seeds. What is made on the device: `test_choose.py`."""

import collections
import dataclasses
import itertools
import pickle
import random
from unittest import mock

import jax.numpy as jnp
import numpy as np
import pytest

from mimjax import patches, schema
from mimjax.errors import ConfigError
from mimjax.masking import base, block
from mimjax.masking.base import Masking, Random, Regular
from mimjax.masking.block import Block, BlockAtMost, BlockRandom
from mimjax.masking.salient import Salient
from mimjax.masking.views import Complementary
from mimjax.methods.beit import BEiT
from mimjax.methods.bootmae import BootMAE
from mimjax.methods.cae import CAE
from mimjax.methods.mae import MAE
from mimjax.models.vit import ViT
from mimjax.storage import config_parts_from_3, config_version

GRIDS = [(14, 14), (4, 4), (8, 8), (3, 5), (16, 12), (2, 2), (32, 32)]
EXACT = {
    "Random": Random(),
    "Block": Block(ratio=0.75),
    "BlockRandom": BlockRandom(),
    "BlockRandom, large": BlockRandom(max_block=None),
    "Regular": Regular(),
}


def draw(masking, grid, seed):
    """The one mask of an image."""
    made = masking.sample(random.Random(seed), grid, 0)
    assert list(made) == ["mask"]
    assert made["mask"].dtype == bool
    assert made["mask"].shape == (grid[0] * grid[1],)
    return made["mask"]


@pytest.mark.parametrize("grid", GRIDS, ids=str)
@pytest.mark.parametrize("kind", EXACT)
def test_counts_are_exact_on_any_grid(kind, grid):
    m = EXACT[kind]
    counts = {int(draw(m, grid, seed).sum()) for seed in range(50)}
    assert counts == {m.num_masked(grid)}
    assert 0 < m.num_masked(grid) < grid[0] * grid[1]


@pytest.mark.parametrize("grid", [g for g in GRIDS if min(g) > 2], ids=str)
def test_beit_s_own_sampler_never_masks_too_many(grid):
    m = BlockAtMost(ratio=0.75)
    counts = [int(draw(m, grid, seed).sum()) for seed in range(50)]
    assert max(counts) <= m.num_masked(grid)
    assert min(counts) > 0  # on 2x2 it can be: its loss is then 0, see `test_choose.py`


@pytest.mark.parametrize("ratio", [0.1, 0.4, 0.5, 0.6, 0.9])
@pytest.mark.parametrize("kind", [Random, Block, BlockRandom])
def test_counts_are_exact_at_any_ratio(kind, ratio):
    masks = [draw(kind(ratio=ratio), (14, 14), seed) for seed in range(20)]
    assert {int(x.sum()) for x in masks} == {196 - int(196 * (1 - ratio))}


@pytest.mark.parametrize(
    ("masking", "count"),
    [
        (Random(0.15, rounding="cae"), 29),  # CAE's RandomMaskingGenerator: int(n * ratio)
        (Random(0.9, rounding="cae"), 176),
        (Block(0.15), 30),  # CAE v2's scripts
        (Block(0.25), 49),
        (Block(0.5), 98),
        (Random(0.15), 30),  # MAE's random_masking: int(n * (1 - ratio)) stay visible
        (Random(0.75), 147),
        (Block(0.38), 75),  # BEiT's script
        (BlockRandom(), 147),  # BootMAE's
        (Regular(), 147),
    ],
)
def test_a_ratio_becomes_the_official_number(masking, count):
    assert masking.num_masked((14, 14)) == count
    assert draw(masking, (14, 14), 0).sum() == count


@pytest.mark.parametrize("kind", [BlockAtMost, Salient, Complementary])
def test_other_kinds_follow_the_same_rule(kind):
    assert kind(ratio=0.38).num_masked((14, 14)) == 75
    assert kind(ratio=0.75).num_masked((14, 14)) == 147
    if kind is not BlockAtMost:
        assert kind(ratio=0.15, rounding="cae").num_masked((14, 14)) == 29


def test_an_unknown_rounding_is_named():
    section = {"type": "Random", "rounding": "up"}
    with pytest.raises(ConfigError, match=r"method\.masking\.rounding: 'up'; allowed: mae, cae"):
        schema.build(Masking, section, "method.masking")


def test_a_kind_has_only_the_settings_that_it_reads():
    """One class for each kind: what it does not read cannot be set."""
    names = {
        cls: {f.name for f in dataclasses.fields(cls)}
        for cls in (Random, Regular, Block, BlockAtMost, BlockRandom, Salient, Complementary)
    }
    blocks = {"ratio", "min_block", "max_block", "min_aspect"}
    assert names == {
        Random: {"ratio", "rounding", "weights"},
        Regular: {"weights"},
        Block: blocks | {"weights"},
        BlockAtMost: blocks,
        BlockRandom: blocks | {"weights", "num_block", "roll_max", "roll"},
        Salient: {"ratio", "rounding", "weights", "reads", "select"},
        Complementary: {"ratio", "rounding", "weights"},
    }


def test_only_bootmae_s_blocks_have_a_largest_size():
    """BEiT's generator has none: the first block may be as large as all that is masked."""

    def largest(masking):
        """What a block may cover at most."""
        m = dataclasses.replace(masking, ratio=0.75)
        with mock.patch.object(block, "add_rectangle", wraps=block.add_rectangle) as add:
            for seed in range(20):
                m.sample(random.Random(seed), (14, 14), 0)
        return max(call.args[2] for call in add.call_args_list)

    tasks = MAE(masking=Block()), BEiT(), BEiT(masking=BlockAtMost()), CAE(), BootMAE()
    assert [largest(t.masking) for t in tasks] == [147, 147, 147, 147, 60]


@pytest.mark.parametrize(
    ("task", "kind", "most", "rounding", "then", "now"),
    [
        ("mimjax.methods.mae:MAE", "random", 60, "mae", None, Random(0.15)),
        ("mimjax.methods.mae:MAE", "block", 60, "mae", 60, Block(0.15, max_block=60)),
        ("mimjax.methods.cae:CAE", "block", 0, "cae", None, Block(0.15)),
        ("mimjax.methods.cae:CAE", "random", 0, "mae", None, Random(0.15)),
    ],
)
def test_an_older_workdir_keeps_its_masks(task, kind, most, rounding, then, now):
    old = {"task": task, "method": {"masking": {"kind": kind, "ratio": 0.15, "max_block": most}}}
    new = config_version.from_1(old)["method"]["masking"]
    assert new == {"kind": kind, "ratio": 0.15, "max_block": then, "rounding": rounding}
    usual = {"num_block": 120, "min_block": 16, "min_aspect": 0.3, "roll_max": 3}
    section = config_parts_from_3.masking(usual | new)
    masking = schema.build(Masking, section, "method.masking")
    assert masking == now
    mask = np.zeros(196, bool)
    if kind == "random":
        mask[random.Random(0).sample(range(196), 30)] = True
    else:
        mask = block.block_mask(random.Random(0), (14, 14), 30, 16, then or 30, 0.3)
    np.testing.assert_array_equal(draw(masking, (14, 14), 0), mask)


@pytest.mark.parametrize(
    "masking",
    [*EXACT.values(), BlockAtMost(), BlockRandom(roll="batch"), Complementary()],
    ids=str,
)
def test_a_mask_depends_on_its_seed_alone(masking):
    sample = pickle.loads(pickle.dumps(masking.sample))
    (a,), (b,), (c,) = (sample(random.Random(s), (14, 14), 7).values() for s in (1, 1, 2))
    np.testing.assert_array_equal(a, b)
    assert np.any(a != c) == (masking != Regular())


def test_the_try_bound_never_changes_an_official_mask(monkeypatch):
    """The official generator has no bound: a tighter one than ours must already suffice."""
    monkeypatch.setattr(block, "MAX_TRIES", 10**9)
    rng = random.Random(3)
    free = [block.block_mask(rng, (14, 14), 120) for _ in range(300)]
    monkeypatch.undo()
    rng = random.Random(3)
    bound = [block.block_mask(rng, (14, 14), 120) for _ in range(300)]
    np.testing.assert_array_equal(free, bound)


def test_tries_are_bounded_and_the_rest_is_filled(monkeypatch):
    monkeypatch.setattr(block, "MAX_TRIES", 1)
    masks = [block.block_mask(random.Random(s), (4, 4), 10, 16, 60) for s in range(20)]
    assert {int(m.sum()) for m in masks} == {10}


def test_small_grids_need_few_draws():
    """With the official constants a 4x4 grid needs over a thousand tries per mask."""

    class Counting(random.Random):
        calls = 0

        def uniform(self, a, b):
            Counting.calls += 1
            return super().uniform(a, b)

    for seed in range(200):
        BlockRandom(max_block=None).sample(Counting(seed), (4, 4), 0)
    assert Counting.calls / 200 < 100


def test_split_is_in_raster_order():
    mask = jnp.asarray([[True, False, True, False], [False, False, True, True]])
    visible, masked = patches.split(mask, 2)
    np.testing.assert_array_equal(visible, [[1, 3], [0, 1]])
    np.testing.assert_array_equal(masked, [[0, 2], [2, 3]])


def test_neighbor_weight_bounds():
    full = base.neighbor_weight(jnp.ones((1, 25), bool), (5, 5)).reshape(5, 5)
    assert full[2, 2] == 2.0
    np.testing.assert_allclose(full[0, 0], 1 + 4 / 9, rtol=1e-6)
    alone = base.neighbor_weight(jnp.asarray(np.eye(25, dtype=bool)[12:13]), (5, 5))
    np.testing.assert_allclose(alone.max(), 10 / 9, rtol=1e-6)
    assert (alone > 0).sum() == 1


KINDS = [Random, Block, BlockAtMost, BlockRandom, Salient, Complementary]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("ratio", [0.0, 1.0, 1.5, -0.1])
def test_ratio_outside_0_1(ratio, kind):
    line = r"method\.masking\.ratio: .* above 0 and below 1"
    with pytest.raises(ConfigError, match=line):
        MAE(masking=kind(ratio=ratio))
    with pytest.raises(ConfigError, match=line):
        schema.build(Masking, {"type": kind.__name__, "ratio": ratio}, "method.masking")


@pytest.mark.parametrize(("ratio", "masked"), [(0.99, 4), (1e-9, 1)])
@pytest.mark.parametrize("kind", KINDS)
def test_ratio_that_leaves_no_patch(kind, ratio, masked):
    encoder = ViT(patch=16, image_size=(32, 32))
    if masked == 4:
        line = r"^method\.masking\.ratio: 0.99 masks 4 of 4 patches; allowed: at least one masked"
        with pytest.raises(ConfigError, match=line):
            kind(ratio=ratio).check("method.masking", encoder)
    else:
        assert kind(ratio=ratio).num_masked(encoder.grid) == masked


def test_a_regular_mask_of_too_small_a_grid():
    with pytest.raises(ConfigError, match=r"^method\.masking: Regular masks 0 of 1 patches; "):
        Regular().check("method.masking", ViT(patch=16, image_size=(16, 16)))


def test_random_masks_are_drawn_without_replacement():
    """Frequencies of all visible pairs of five patches, chi-squared."""
    draws = 20_000
    rng, m = random.Random(0), Random(0.6)
    visible = (np.flatnonzero(~m.sample(rng, (1, 5), 0)["mask"]).tolist() for _ in range(draws))
    seen = collections.Counter(map(tuple, visible))
    pairs = list(itertools.combinations(range(5), 2))
    assert set(seen) == set(pairs)
    chi2 = sum((seen[p] - draws / 10) ** 2 / (draws / 10) for p in pairs)
    assert chi2 < 33.7  # 9 degrees of freedom: exceeded once in ten thousand seeds
