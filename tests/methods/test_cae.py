"""CAE beyond its golden numbers: where gradients go, what influences what, options, pictures."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import method_runs as runs
import numpy as np
import optax
import pytest
from jax import lax

from mimjax.errors import ConfigError
from mimjax.losses import cross_entropy
from mimjax.methods.cae import CAE
from mimjax.models.regressor import LatentDecoder, Regressor, RegressorBlock
from mimjax.rng import named
from mimjax.targets.pixels import Pixels


def make(target=None, drop=0.0, depth=1, image_size=(16, 16), **options):
    sizes = {"depth": depth, "heads": 2, "drop_path": drop}
    encoder = runs.encoder(
        pos_embed="sincos_yx", init_scheme="cae", drop_path=drop, image_size=image_size
    )
    base = {"regressor": Regressor(**sizes), "decoder": LatentDecoder(**sizes)}
    base |= {"encoder": encoder, "masking": runs.HALF, "target": target or runs.Codes()}
    return CAE(**base | options)


@pytest.fixture(scope="module")
def setting():
    """The plain task, its parameters and a prepared batch."""
    task = make()
    return task, runs.start(task), runs.prepare(task, runs.raw_batch())


def latents(task, params, batch):
    return jax.jit(lambda p, b: task.latents(p, b, runs.KEY, False))(params, batch)


def align(task, params, batch, key=runs.KEY, train=False):
    return jax.jit(lambda p, b: task.align_latents(p, b, key, train))(params, batch)


def test_no_gradient_flows_into_the_aligned_latents(setting):
    """Gradients equal those with the aligned latents as constants."""
    task, params, batch = setting
    constant = align(task, params, batch)

    def by_hand(p):
        predicted = task.latents(p, batch, runs.KEY, True)
        logits = task.decode(p, predicted, batch["ids_m"], runs.KEY, True)
        codes = cross_entropy(logits, batch["target"])
        return codes + 2 * jnp.square(predicted - constant).mean()

    def alignment_alone(p):
        predicted = lax.stop_gradient(task.latents(p, batch, runs.KEY, True))
        return jnp.square(predicted - task.align_latents(p, batch, runs.KEY, True)).mean()

    @jax.jit
    def run(params):
        loss = lambda p: task.loss(p, {}, batch, runs.KEY, 0, True).total
        return (
            jax.value_and_grad(loss)(params),
            jax.value_and_grad(by_hand)(params),
            jax.value_and_grad(alignment_alone)(params),
        )

    ours, theirs, (gap, zero) = run(params)
    runs.close(ours, theirs)
    assert gap > 0.01
    assert not any(np.any(g) for g in jax.tree.leaves(zero))


def test_aligned_latents_are_the_encoder_s_on_masked_patches(setting):
    task, params, batch = setting
    tokens = jax.jit(lambda p: task.encode(p, batch, batch["ids_m"], runs.KEY, False))(params)
    np.testing.assert_allclose(align(task, params, batch), tokens[:, 1:], atol=1e-6)


def test_the_target_branch_has_noise_of_its_own():
    task = make(drop=0.5)
    params, batch = runs.start(task), runs.prepare(task, runs.raw_batch(8))
    noisy = align(task, params, batch, train=True)
    student = jax.jit(
        lambda p: task.encode(p, batch, batch["ids_m"], named(runs.KEY, "encoder"), True)
    )(params)[:, 1:]
    others = {
        "another key": align(task, params, batch, jax.random.key(8), True),
        "no noise": align(task, params, batch),
        "the student's noise": student,
    }
    for name, other in others.items():
        assert np.abs(noisy - other).max() > 1e-2, name
    np.testing.assert_array_equal(noisy, align(task, params, batch, train=True))


@pytest.mark.parametrize(("mode", "decay"), [("stale", 0.0), ("ema", 0.75)])
def test_lagging_alignment(mode, decay):
    """Two steps; the second is aligned with the weights before the first (or their average)."""
    task, tx, raw = make(align_target=mode, ema_decay=0.75), optax.sgd(0.1), runs.raw_batch()
    states = [runs.state_of(task, tx, runs.start(task))]
    run = jax.jit(lambda s, b: runs.train_step(s, {}, b, task=task, tx=tx))
    metrics = []
    for _ in range(2):
        state, m = run(states[-1], raw)
        states.append(state)
        metrics.append(m)
    encoders = [s.params["encoder"] for s in states]
    runs.close(states[1].ema["encoder"], encoders[0], 1e-6)
    lagging = jax.tree.map(lambda a, b: decay * a + (1 - decay) * b, *encoders[:2])
    runs.close(states[2].ema["encoder"], lagging, 1e-6)
    # by hand: parameters of one step later against the aligned latents of the first encoder
    current = make()
    batch = runs.prepare(current, raw)
    old, new = (s.params for s in states[:2])
    gap = lambda p, q: np.square(latents(current, p, batch) - align(current, q, batch)).mean()
    np.testing.assert_allclose(metrics[0]["loss/align"], gap(old, old), rtol=1e-4)
    np.testing.assert_allclose(metrics[1]["loss/align"], gap(new, old), rtol=1e-4)
    assert abs(gap(new, old) / gap(new, new) - 1) > 1e-3  # else it would tell nothing


@pytest.mark.parametrize("mode", ["current", "stale", "ema"])
def test_without_weight_there_is_no_alignment(mode, setting):
    class Never(CAE):
        def align_latents(self, *args):
            raise AssertionError("an alignment branch")

    task = Never(**vars(make(align_weight=0.0, align_target=mode)))
    _, params, batch = setting
    assert task.init_ema(params) == {}
    out = runs.loss(task, params, batch)
    assert set(out.metrics) == {"loss/codes", "accuracy"}
    assert float(out.total) == float(out.metrics["loss/codes"])


def test_no_decoder_is_a_linear_head(setting):
    task = make(decoder=LatentDecoder(depth=0, heads=2))
    params, batch = runs.start(task), setting[2]
    assert set(params["decoder"]) == {"head"}
    head = params["decoder"]["head"]
    pred = runs.loss(task, params, batch, train=False).preds["pred"]
    by_hand = latents(task, params, batch) @ head["kernel"] + head["bias"]
    np.testing.assert_allclose(pred, by_hand, atol=1e-5)


def test_masked_pixels_do_not_influence_the_prediction(setting):
    task, params, batch = setting
    hidden = jnp.repeat(jnp.repeat(batch["mask"].reshape(4, 4, 4, 1), 4, 1), 4, 2)
    changed = batch | {"image": jnp.where(hidden, 9.0, batch["image"])}
    before, after = (latents(task, params, b) for b in (batch, changed))
    np.testing.assert_array_equal(before, after)
    moved = align(task, params, batch) - align(task, params, changed)
    assert np.abs(moved).max() > 0.1


def test_images_do_not_influence_each_other(setting):
    task, params, batch = setting
    image = batch["image"].at[1:].set(5.0)
    before, after = (latents(task, params, b) for b in (batch, batch | {"image": image}))
    np.testing.assert_allclose(before[0], after[0], atol=1e-6)
    assert np.abs(before[1:] - after[1:]).max() > 0.1


def test_the_regressor_never_changes_visible_latents():
    """Every block gets the encoder's latents, not what a block made of them."""
    task = make(depth=3)
    params, batch = runs.start(task), runs.prepare(task, runs.raw_batch())
    given = []

    def record(call, args, kwargs, context):
        if isinstance(context.module, RegressorBlock) and context.method_name == "__call__":
            given.append(args[1])
        return call(*args, **kwargs)

    with nn.intercept_methods(record):
        run = lambda p: (task.latents(p, batch, runs.KEY, False), list(given))
        _, seen = jax.jit(run)(params)
    tokens = jax.jit(lambda p: task.encode(p, batch, batch["ids_v"], runs.KEY, False))(params)
    assert len(seen) == 3
    for x in seen:
        np.testing.assert_allclose(x, tokens[:, 1:], atol=1e-6)


def test_only_masked_tokens_are_read():
    task = make()
    runs.prepare(task, runs.raw_batch())
    assert task.target.seen == [(4, 8, 48)]


@pytest.mark.parametrize("kind", ["codes", "pixels"])
def test_pictures(kind):
    task = make(target=runs.Codes() if kind == "codes" else Pixels())
    params, batch = runs.start(task), runs.prepare(task, runs.raw_batch(), train=False)

    @jax.jit
    def draw(params, batch):
        out = task.loss(params, {}, batch, runs.KEY, 0, False)
        return task.pictures(params, {}, batch, out.preds)

    columns = draw(params, batch)
    names = {"original", "masked", "prediction", "no regressor"}
    assert set(columns) == names | ({"target codes"} if kind == "codes" else set())
    for name, image in columns.items():
        assert image.shape == (4, 16, 16, 3), name
        assert image.min() >= 0, name
        assert image.max() <= 1, name
        assert image.std() > 0.01, name
    hidden = np.repeat(np.repeat(batch["mask"].reshape(4, 4, 4, 1), 4, 1), 4, 2)
    true = columns["target codes" if kind == "codes" else "original"]
    gap = np.abs(columns["prediction"] - true)
    assert np.where(hidden, 0, gap).max() < 1e-5  # visible patches are the true ones
    assert np.where(hidden, gap, 0).max() > 0.05
    assert np.all(np.where(hidden, columns["masked"], 0.5) == 0.5)


def test_an_image_that_is_not_square():
    task, raw = make(image_size=(16, 24)), runs.raw_batch(2, 12, (16, 24))
    assert np.isfinite(runs.loss(task, runs.start(task), runs.prepare(task, raw)).total)


def test_wrong_settings_are_named():
    with pytest.raises(ConfigError, match=r"method\.align_target: 'curent'.*current, stale, ema"):
        make(align_target="curent")
    with pytest.raises(ConfigError, match=r"method\.ema_decay"):
        make(align_target="ema", ema_decay=1.0)
    with pytest.raises(ConfigError, match=r"method\.distance"):
        make(distance="mean")
    with pytest.raises(ConfigError, match=r"method\.regressor"):
        make(regressor=Regressor(depth=0, heads=2))
