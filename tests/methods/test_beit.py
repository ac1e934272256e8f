"""BEiT beyond its golden numbers: unequal counts of masked patches, accumulation, what is read."""

import jax
import method_runs as runs
import numpy as np
import optax
import pytest

from mimjax import patches
from mimjax.errors import ConfigError
from mimjax.masking.block import Block, BlockAtMost
from mimjax.methods.beit import BEiT

COUNTS = [7, 4, 7, 2]


def make(masking=None, **options):
    base = {"pos_embed": "none", "rel_pos": "shared", "init_scheme": "beit"}
    encoder = runs.encoder(**base | {"use_mask_token": True} | options)
    masking = masking or BlockAtMost(0.4)
    return BEiT(encoder=encoder, masking=masking, code_target=runs.Codes())


def by_hand(task, params, raw):
    """Cross-entropy and hits of every masked patch, from the logits of all patches."""

    @jax.jit
    def run(params, raw):
        image = patches.normalize(raw["image"], task.mean, task.std)
        f = task.encoder.apply({"params": params["encoder"]}, image, None, raw["mask"])
        target = task.code_target
        codes = target.read({}, target.encode({}, raw["image"], task.encoder))
        tokens = {"visible": f.tokens[:, 1:]}
        return task.network("head").apply({"params": params["head"]}, tokens)["visible"], codes

    logits, codes = (np.asarray(x) for x in run(params, raw))
    logits = logits.astype(np.float64)
    logs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    loss = -np.take_along_axis(logs, codes[..., None], -1)[..., 0]
    masked = np.asarray(raw["mask"])
    return loss[masked], (logits.argmax(-1) == codes)[masked]


@pytest.mark.parametrize("counts", [COUNTS, [7] * 4])
def test_the_loss_is_the_mean_over_truly_masked_patches(counts):
    task, raw = make(), runs.raw_batch(counts=counts)
    assert task.num_masked == 7
    params = runs.start(task)
    out = runs.loss(task, params, runs.prepare(task, raw, params))
    losses, hits = by_hand(task, params, raw)
    assert len(losses) == sum(counts)
    np.testing.assert_allclose(out.total, losses.mean(), rtol=1e-5)
    np.testing.assert_allclose(out.metrics["loss/code"], losses.mean(), rtol=1e-5)
    np.testing.assert_allclose(out.metrics["accuracy/code"], hits.mean(), rtol=1e-5)


def test_accumulation_changes_nothing():
    """Images of unequal counts in one micro-batch or two: weights are those of the whole batch."""
    task, raw, tx = make(), runs.raw_batch(counts=COUNTS), optax.sgd(1.0)
    params = runs.start(task)
    results = [runs.step(task, tx, params, raw, a) for a in (1, 2)]
    (one, metrics), (two, split) = results
    runs.close(two.params, one.params)
    runs.close(split, metrics)
    moved = jax.tree.map(lambda a, b: np.abs(np.subtract(a, b)).max(), one.params, params)
    assert max(jax.tree.leaves(moved)) > 1e-2


def test_a_batch_without_a_masked_patch_has_no_loss_and_no_nan():
    """The official loss is then the mean of nothing."""
    task, raw = make(), runs.raw_batch(counts=[0] * 4)
    params = runs.start(task)
    batch = runs.prepare(task, raw, params)
    loss = lambda p: task.loss(p, {}, batch, runs.KEY, 0, True).total
    value, grads = jax.jit(jax.value_and_grad(loss))(params)
    assert value == 0
    assert not any(np.any(g) for g in jax.tree.leaves(grads))


def test_masked_pixels_are_not_seen():
    task, raw = make(Block(0.4)), runs.raw_batch(masked=7)
    params = runs.start(task)
    batch = runs.prepare(task, raw, params)
    changed = np.where(runs.hidden_pixels(raw["mask"]), np.float32(9), batch.image)
    before, after = (
        runs.loss(task, params, b).predictions["code"].values["masked"]
        for b in (batch, batch.replace(image=changed))
    )
    np.testing.assert_array_equal(before, after)


def test_only_masked_tokens_are_read():
    task, raw = make(), runs.raw_batch(counts=COUNTS)
    runs.prepare(task, raw)
    assert task.code_target.seen == [(4, 7, 48)]
    out = runs.prepare(task, raw, train=False)
    assert sorted(task.code_target.seen[1:]) == [(4, 7, 48), (4, 9, 48)]
    assert out.shown["code_target"]["visible"].shape == (4, 9)


def test_an_image_that_is_not_square():
    task, raw = make(image_size=(16, 24)), runs.raw_batch(2, 10, (16, 24))
    assert task.num_masked == 10
    params = runs.start(task)
    assert params["encoder"]["rel_pos"]["table"].shape == (7 * 11 + 3, 2)
    assert np.isfinite(runs.loss(task, params, runs.prepare(task, raw, params)).total)


def test_an_encoder_without_mask_token_is_refused():
    with pytest.raises(ConfigError, match=r"method\.code\.at: 'masked' of.*; allowed: visible"):
        make(use_mask_token=False)
