"""BEiT beyond its golden numbers: unequal counts of masked patches, accumulation, what is read."""

import jax
import jax.numpy as jnp
import method_runs as runs
import numpy as np
import optax
import pytest

from mimjax.errors import ConfigError
from mimjax.masking.base import Masking
from mimjax.methods.beit import BEiT

COUNTS = [7, 4, 7, 2]


def make(kind="block_at_most", target=None, **options):
    base = {"pos_embed": "none", "rel_pos": "shared", "init_scheme": "beit"}
    encoder = runs.encoder(**base | {"use_mask_token": True} | options)
    target = target or runs.Codes()
    return BEiT(encoder=encoder, masking=Masking(kind, 0.4, max_block=None), target=target)


def by_hand(task, params, raw):
    """Cross-entropy and hits of every masked patch, from the logits of all patches."""

    @jax.jit
    def run(params, raw):
        batch = task.masked_batch(raw)
        f = task.encoder.apply({"params": params["encoder"]}, batch["image"], None, batch["mask"])
        codes = task.target.read({}, task.target.encode({}, raw, task.encoder))
        return task.head.apply({"params": params["head"]}, f.tokens[:, 1:]), codes

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
    out = runs.loss(task, params, runs.prepare(task, raw))
    losses, hits = by_hand(task, params, raw)
    assert len(losses) == sum(counts)
    np.testing.assert_allclose(out.total, losses.mean(), rtol=1e-5)
    np.testing.assert_allclose(out.metrics["loss/codes"], losses.mean(), rtol=1e-5)
    np.testing.assert_allclose(out.metrics["accuracy"], hits.mean(), rtol=1e-5)


def test_accumulation_changes_nothing():
    """Images of unequal counts in one micro-batch or two: weights are those of the whole batch."""
    task, raw, tx = make(), runs.raw_batch(counts=COUNTS), optax.sgd(1.0)
    params = runs.start(task)
    results = [runs.step(task, tx, runs.state_of(task, tx, params), raw, a) for a in (1, 2)]
    (one, metrics), (two, split) = results
    runs.close(two.params, one.params)
    runs.close(split, metrics)
    moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), one.params, params)
    assert max(jax.tree.leaves(moved)) > 1e-2


def test_a_batch_without_a_masked_patch_has_no_loss_and_no_nan():
    """The official loss is then the mean of nothing."""
    task, raw = make(), runs.raw_batch(counts=[0] * 4)
    params = runs.start(task)
    batch = runs.prepare(task, raw)
    loss = lambda p: task.loss(p, {}, batch, runs.KEY, 0, True).total
    value, grads = jax.jit(jax.value_and_grad(loss))(params)
    assert value == 0
    assert not any(np.any(g) for g in jax.tree.leaves(grads))


def test_masked_pixels_are_not_seen():
    task, raw = make("block"), runs.raw_batch(masked=7)
    params, batch = runs.start(task), runs.prepare(task, raw)
    hidden = jnp.repeat(jnp.repeat(raw["mask"].reshape(4, 4, 4, 1), 4, 1), 4, 2)
    changed = batch | {"image": jnp.where(hidden, 9.0, batch["image"])}
    before, after = (runs.loss(task, params, b).preds["pred"] for b in (batch, changed))
    np.testing.assert_array_equal(before, after)


def test_only_masked_tokens_are_read():
    task, raw = make(), runs.raw_batch(counts=COUNTS)
    runs.prepare(task, raw)
    assert task.target.seen == [(4, 7, 48)]
    out = runs.prepare(task, raw, train=False)
    assert task.target.seen[1:] == [(4, 7, 48), (4, 9, 48)]
    assert out["visible_codes"].shape == (4, 9)


def test_an_image_that_is_not_square():
    task, raw = make(image_size=(16, 24)), runs.raw_batch(2, 10, (16, 24))
    assert task.num_masked == 10
    params = runs.start(task)
    assert params["encoder"]["rel_pos"]["table"].shape == (7 * 11 + 3, 2)
    assert np.isfinite(runs.loss(task, params, runs.prepare(task, raw)).total)


def test_an_encoder_without_mask_token_is_refused():
    with pytest.raises(ConfigError, match=r"method\.encoder\.use_mask_token"):
        make(use_mask_token=False)
