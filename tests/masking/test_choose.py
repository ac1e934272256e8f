"""What maskings make on the device: ids, masks and weights of a batch, and rows of an image."""

import collections
import dataclasses
import functools
import itertools
import random
from typing import Any, get_args

import helpers
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mimjax import schema
from mimjax.errors import ConfigError
from mimjax.masking import base, salient
from mimjax.masking.base import Masking, Random, Regular
from mimjax.masking.block import Block, BlockAtMost, BlockRandom, hide
from mimjax.masking.salient import Salient
from mimjax.masking.views import Complementary
from mimjax.methods.mae import MAE
from mimjax.models.decoders import MAEDecoder
from mimjax.models.vit import ViT
from mimjax.task import TrainState

KEY = jax.random.key(0)
ENCODER = ViT(16, 1, 2, patch=4, image_size=(32, 32))  # a grid of 8x8


def made(masking, rows=8, seed=0, grid=(8, 8)):
    """What the masking samples for the images of a batch, and images that tell them apart."""
    examples = [masking.sample(random.Random(100 * seed + i), grid, 0) for i in range(rows)]
    arrays = {k: jnp.asarray(np.stack([x[k] for x in examples])) for k in examples[0]}
    images = jnp.arange(rows, dtype=jnp.float32)[:, None, None, None] * jnp.ones((1, 32, 32, 3))
    return {"image": images} | arrays


def chosen(masking, batch, attention=None, key=KEY):
    return masking.choose(batch, ENCODER, attention, key)


def assert_consistent(prepared, masking):
    """Ids in raster order that partition the patches, in static numbers, as the mask says."""
    masked = masking.num_masked((8, 8))
    assert prepared.ids_m.shape[1] == masked
    assert prepared.ids_v.shape[1] == 64 - masked
    for row in (*np.asarray(prepared.ids_v), *np.asarray(prepared.ids_m)):
        assert (np.diff(row) > 0).all()
    for mask, ids_v, ids_m in zip(
        *map(np.asarray, (prepared.mask, prepared.ids_v, prepared.ids_m))
    ):
        np.testing.assert_array_equal(np.flatnonzero(mask), ids_m)
        np.testing.assert_array_equal(np.flatnonzero(~mask), ids_v)


ALL = [Random(), Regular(), Block(), BlockRandom(), BlockRandom(roll="batch"), Salient()]


@pytest.mark.parametrize("weights", get_args(base.Weights))
@pytest.mark.parametrize("masking", ALL, ids=str)
def test_ids_mask_and_weights_agree(masking, weights):
    masking = dataclasses.replace(masking, weights=weights)
    batch, attention = made(masking), jax.random.uniform(KEY, (8, 64))
    prepared = chosen(masking, batch, attention)
    assert_consistent(prepared, masking)
    np.testing.assert_array_equal(prepared.image, batch["image"])
    if weights == "none":
        assert prepared.weight is None
        return
    near = np.asarray(base.neighbor_weight(prepared.mask, (8, 8)))
    expected = np.take_along_axis(near, np.asarray(prepared.ids_m), axis=1)
    if weights == "neighbors_mean":
        expected = expected / expected.mean()
    np.testing.assert_allclose(prepared.weight, expected, rtol=1e-6)


# ------------------------------------------------------------------ weights
def test_weights_of_a_batch_have_mean_one_and_those_of_its_images_do_not():
    """The mean is over the batch: an image with single patches counts less than one with blocks."""
    masks = np.zeros((2, 64), bool)
    masks[0].reshape(8, 8)[:4, :4] = True
    masks[1].reshape(8, 8)[::2, ::2] = True
    batch = {"image": jnp.zeros((2, 32, 32, 3)), "mask": jnp.asarray(masks)}
    weight = np.asarray(chosen(Block(0.25, weights="neighbors_mean"), batch).weight)
    np.testing.assert_allclose(weight.mean(), 1, rtol=1e-6)
    assert weight[0].mean() > 1.2
    assert weight[1].mean() < 0.8
    plain = np.asarray(chosen(Block(0.25, weights="neighbors"), batch).weight)
    np.testing.assert_allclose(plain[1], 10 / 9, rtol=1e-6)
    np.testing.assert_allclose(weight, plain / plain.mean(), rtol=1e-6)


def test_padded_masks_have_weights_of_mean_one():
    """Masks with too few patches are padded with visible ones, which weigh nothing."""
    masking = BlockAtMost(0.6)
    batch = made(masking, rows=64)
    numbers = np.asarray(batch["mask"].sum(1))
    assert numbers.min() < numbers.max() == masking.num_masked((8, 8))
    prepared = chosen(masking, batch)
    weight, ids_m = np.asarray(prepared.weight), np.asarray(prepared.ids_m)
    np.testing.assert_allclose(weight.mean(), 1, rtol=1e-6)
    assert len(np.unique(weight)) == 2
    np.testing.assert_array_equal((weight > 0).sum(1), numbers)
    np.testing.assert_array_equal(
        np.take_along_axis(np.asarray(prepared.mask), ids_m, 1), weight > 0
    )
    np.testing.assert_array_equal(prepared.mask, batch["mask"])


def task_of(masking):
    return MAE(encoder=ENCODER, masking=masking, decoder=MAEDecoder(16, 1, 2))


TASK = task_of(Random(0.6))  # the loss reads what is prepared, whatever the masking


@functools.cache
def params():
    return jax.jit(TASK.init)(jax.random.key(3))[0]


@jax.jit
def loss_of(params, prepared):
    """The loss and its gradients."""
    return jax.value_and_grad(lambda p: TASK.loss(p, {}, prepared, KEY, 0, True).total)(params)


def prepared_of(masking, **arrays):
    """Noise as `MIM.prepare` makes it; the arrays take the place of those that are sampled."""
    image = np.random.default_rng(0).integers(256, size=(8, 32, 32, 3), dtype=np.uint8)
    batch: Any = made(masking) | {"image": image} | arrays
    state = TrainState(jnp.int32(0), params(), {}, {}, ())
    return task_of(masking).prepare(state, {}, batch, KEY, True)[0]


def test_a_batch_without_masked_patches_has_loss_0():
    prepared = prepared_of(BlockAtMost(0.6), mask=jnp.zeros((8, 64), bool))
    assert not np.asarray(prepared.weight).any()
    assert float(loss_of(params(), prepared)[0]) == 0


@pytest.mark.parametrize(
    "masking",
    [
        helpers.gate(Block(0.6, weights="neighbors")),
        Block(0.6, weights="neighbors_mean"),
        helpers.gate(BlockAtMost(0.6)),
        BlockRandom(0.6, roll="batch", weights="neighbors"),
        helpers.gate(Complementary()),
    ],
    ids=str,
)
def test_micro_batches_change_nothing(masking):
    """Weights are those of the whole batch, however the train step cuts it."""
    prepared = prepared_of(masking)
    micros = [jax.tree.map(lambda x, n=n: x[n::4], prepared) for n in range(4)]
    if masking.weights != "none":  # those of a micro-batch have another mean
        assert np.ptp([float(jnp.mean(micro.weight)) for micro in micros]) > 1e-3
    whole, parts = loss_of(params(), prepared), [loss_of(params(), micro) for micro in micros]
    mean = jax.tree.map(lambda *x: sum(x) / 4, *parts)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-6), whole, mean)


# ------------------------------------------------------------------ the roll of a batch
def exchanged(prepared, order, number):
    """How many patches of the block each image shows."""
    block, mask = np.asarray(order)[:, -number:], np.asarray(prepared.mask)
    return (~np.take_along_axis(mask, block, axis=1)).sum(1)


NUMBER = round(120 * 64 / 196)  # patches in blocks on 8x8


def test_all_images_of_a_batch_exchange_the_same_number():
    """The device draws 0 to 3 from the step's key for all; otherwise images differ."""
    masking = BlockRandom(roll="batch")
    batch = made(masking)
    assert sorted(batch) == ["image", "order"]
    choose = jax.jit(functools.partial(chosen, masking, batch))
    numbers = []
    for n in range(80):
        prepared = choose(key=jax.random.key(n))
        per_image = exchanged(prepared, batch["order"], NUMBER)
        assert len(set(per_image)) == 1
        numbers.append(int(per_image[0]))
        for row, order in zip(np.asarray(prepared.mask), np.asarray(batch["order"])):
            expected = hide(order.tolist(), numbers[-1], masking.num_masked((8, 8)))
            np.testing.assert_array_equal(row, expected)
    assert min(collections.Counter(numbers)[n] for n in range(4)) > 10
    assert set(numbers) == set(range(4))

    alone = BlockRandom(roll="image")
    prepared = chosen(alone, made(alone, rows=40))
    orders = made(masking, rows=40)["order"]  # the same seeds, so the same blocks
    assert set(exchanged(prepared, orders, NUMBER)) == set(range(4))


def test_the_roll_of_a_step_follows_its_key():
    """`prepare` hands the key on; in evaluation every call has the same."""
    task: Any = task_of(BlockRandom(roll="batch", roll_max=30))
    batch, state = made(task.masking), TrainState(jnp.int32(0), {}, {}, {}, ())
    prepare = jax.jit(lambda key: task.prepare(state, {}, batch, key, True)[0].mask)
    masks = [np.asarray(prepare(jax.random.key(n))).tobytes() for n in (0, 1, 2, 3, 0)]
    assert masks[0] == masks[4]
    assert len(set(masks)) > 2


def test_nothing_is_exchanged_without_a_roll():
    masking = BlockRandom(roll="batch", roll_max=0)
    batch = made(masking)
    assert not exchanged(chosen(masking, batch), batch["order"], NUMBER).any()


# ------------------------------------------------------------------ several rows of an image
@pytest.mark.parametrize(("ratio", "sets"), [(0.75, 4), (0.5, 2), (0.875, 8)])
def test_complementary_sets_fill_the_image(ratio, sets):
    masking = Complementary(ratio)
    batch = made(masking, rows=3)
    assert batch["mask"].shape == (3, sets, 64)
    visible = ~np.asarray(batch["mask"])
    np.testing.assert_array_equal(visible.sum(1), 1)  # every patch is seen in exactly one set
    assert (visible.sum(2) == 64 // sets).all()
    rows = masking.expand(batch, train=True)
    images = np.asarray(rows["image"])[:, 0, 0, 0]
    np.testing.assert_array_equal(images, np.repeat([0, 1, 2], sets))  # rows of an image together
    np.testing.assert_array_equal(rows["mask"], np.asarray(batch["mask"]).reshape(-1, 64))
    assert_consistent(chosen(masking, rows), masking)


def test_evaluation_reads_the_first_set_alone():
    batch = made(Complementary(), rows=3)
    rows = Complementary().expand(batch, train=False)
    np.testing.assert_array_equal(rows["image"], batch["image"])
    np.testing.assert_array_equal(rows["mask"], batch["mask"][:, 0])


def test_sets_that_do_not_fill_the_image_are_refused():
    line = r"^method\.masking\.ratio: 0.6 shows 25 of 64 patches; allowed: visible sets that fill"
    with pytest.raises(ConfigError, match=line):
        task_of(Complementary(0.6))


# ------------------------------------------------------------------ by a teacher's attention
@pytest.mark.parametrize("select", get_args(salient.Selection))
@pytest.mark.parametrize("ratio", [0.1, 0.75])
def test_salient_patches_stay_visible(select, ratio):
    masking = Salient(ratio, select=select)
    assert masking.sample(random.Random(0), (8, 8), 0) == {}
    attention = jax.random.uniform(jax.random.key(5), (8, 64)) ** 4
    prepared = chosen(masking, made(masking), attention)
    assert_consistent(prepared, masking)
    ids = salient.select_visible(attention, 64 - masking.num_masked((8, 8)), select, KEY)
    np.testing.assert_array_equal(prepared.ids_v, ids[0])
    np.testing.assert_array_equal(prepared.ids_m, ids[1])
    np.testing.assert_array_equal(prepared.attention, attention)
    seen = np.take_along_axis(np.asarray(attention), np.asarray(prepared.ids_v), axis=1)
    hidden = np.take_along_axis(np.asarray(attention), np.asarray(prepared.ids_m), axis=1)
    assert seen.mean() > hidden.mean()
    assert (seen.min(1) >= hidden.max(1)).all() == (select == "topk")


def test_an_unknown_selection_is_named():
    section = {"type": "Salient", "select": "best"}
    with pytest.raises(ConfigError, match=r"^method.masking.select: 'best'; allowed: topk, sample"):
        schema.build(Masking, section, "method.masking")


@pytest.mark.parametrize("reads", ["", "teacher", "pixel_target"])
def test_a_masking_without_a_teacher_that_it_can_read(reads):
    with pytest.raises(ConfigError, match=r"^method\.masking\.reads: '" + reads):
        task_of(Salient(reads=reads))


@functools.partial(jax.jit, static_argnums=(1, 2))
def select(attention, num_visible, how, key=KEY):
    return salient.select_visible(attention, num_visible, how, key)


@pytest.mark.parametrize("how", get_args(salient.Selection))
@pytest.mark.parametrize("num_visible", [0, 1, 5, 12])
def test_selected_ids_are_a_partition_in_raster_order(how, num_visible):
    attention = jax.random.uniform(KEY, (3, 12)) * (jax.random.uniform(KEY, (3, 12)) > 0.3)
    visible, masked = select(attention, num_visible, how)
    assert visible.shape == (3, num_visible)
    assert masked.shape == (3, 12 - num_visible)
    for row in (*np.asarray(visible), *np.asarray(masked)):
        assert (np.diff(row) > 0).all()
    both = np.sort(np.concatenate([visible, masked], axis=1), axis=1)
    np.testing.assert_array_equal(both, np.tile(np.arange(12), (3, 1)))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_the_largest_attention_is_visible_and_the_first_of_equals(dtype):
    attention = jnp.asarray([[0.1, 0.4, 0.0, 0.3, 0.2], [0.2, 0.5, 0.2, 0.2, 0.0]], dtype)
    visible, masked = select(attention, 2, "topk")
    np.testing.assert_array_equal(visible, [[1, 3], [0, 1]])
    np.testing.assert_array_equal(masked, [[0, 2, 4], [2, 3, 4]])
    np.testing.assert_array_equal(select(attention, 2, "topk", jax.random.key(7))[0], visible)


def probabilities(weights, k):
    """Probabilities of every set of k that is drawn one after the other without replacement."""
    out = collections.Counter()
    for order in itertools.permutations(range(len(weights)), k):
        left, p = sum(weights), 1.0
        for i in order:
            p *= weights[i] / left
            left -= weights[i]
        out[tuple(sorted(order))] += p
    return out


@pytest.mark.parametrize("scale", [1.0, 1e-4])
def test_selections_are_drawn_without_replacement(scale):
    """Frequencies of all sets of two in five beside the exact probabilities, chi-squared."""
    weights, draws = [0.05, 0.4, 0.1, 0.25, 0.2], 20_000
    attention = jnp.tile(scale * jnp.asarray(weights), (draws, 1))
    visible, _ = select(attention, 2, "sample")
    exact = probabilities(weights, 2)
    seen = collections.Counter(map(tuple, np.asarray(visible).tolist()))
    assert set(seen) <= set(exact)
    chi2 = sum((seen[s] - draws * p) ** 2 / (draws * p) for s, p in exact.items())
    assert (
        chi2 < 33.7
    )  # 9 degrees of freedom: exceeded once in ten thousand keys; this one is fixed
    other = probabilities([1.0] * 5, 2)
    assert sum((seen[s] - draws * p) ** 2 / (draws * p) for s, p in other.items()) > 1000


def test_what_gets_no_attention_is_drawn_last():
    attention = jnp.tile(jnp.asarray([0.0, 1e-30, 0.0, 0.5, 0.0]), (50, 1))
    visible, _ = select(attention, 2, "sample")
    np.testing.assert_array_equal(visible, np.tile([1, 3], (50, 1)))
    visible, _ = select(attention, 3, "sample")  # and among those in raster order
    np.testing.assert_array_equal(visible, np.tile([0, 1, 3], (50, 1)))


@pytest.mark.parametrize("how", get_args(salient.Selection))
def test_selection_needs_no_communication(how):
    """A batch that is sharded stays where it is."""
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    run = jax.jit(
        lambda x: salient.select_visible(x, 4, how, KEY),
        in_shardings=sharding,
        out_shardings=sharding,
    )
    text = run.lower(jax.ShapeDtypeStruct((16, 12), jnp.float32)).compile().as_text()
    for word in ("all-gather", "all-reduce", "all-to-all", "collective-permute"):
        assert word not in text
