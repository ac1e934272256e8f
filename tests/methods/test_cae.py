"""CAE beyond its golden numbers: where gradients go, what influences what, options."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import method_runs as runs
import numpy as np
import optax
import pytest
from jax import lax

from mimjax.errors import ConfigError
from mimjax.losses import CrossEntropy
from mimjax.methods.cae import CAE
from mimjax.methods.parts import Average, Term
from mimjax.models.regressor import LatentDecoder, Regressor, RegressorBlock
from mimjax.rng import named
from mimjax.schedules import Constant
from mimjax.targets.own import OwnFeatures

ALIGNED = {"masked_share": 1.0, "noise": True}


def make(drop=0.0, depth=1, image_size=(16, 16), encoder=None, **options):
    sizes = {"depth": depth, "heads": 2, "drop_path": drop}
    about = {"pos_embed": "sincos_yx", "init_scheme": "cae", "drop_path": drop}
    about["depth"] = 2 if drop else 1  # the first block drops no path
    vit = runs.encoder(image_size=image_size, **about | (encoder or {}))
    base = {"regressor": Regressor(**sizes), "decoder": LatentDecoder(**sizes)}
    base |= {"encoder": vit, "masking": runs.HALF, "code_target": runs.Codes()}
    return CAE(**base | options)


def lagging(decay):
    """What makes the aligned target that of an average of weights before the optimizer's step."""
    average = Average(decay=Constant(decay), takes="old")
    return {"align_target": OwnFeatures("average", **ALIGNED), "average": average}


@pytest.fixture(scope="module")
def setting():
    """The plain task, its parameters and a prepared batch."""
    task = make()
    params = runs.start(task)
    return task, params, runs.prepare(task, runs.raw_batch(), params)


def latents(task, params, batch):
    return runs.predict(task, params, batch)[0].latents


@functools.cache
def encoding(encoder, train):
    apply = lambda params, image, ids, key: encoder.apply(
        {"params": params}, image, ids, None, train, rngs={"drop_path": key}
    )
    return jax.jit(lambda *args: apply(*args).tokens[:, 1:])


def encode(task, params, batch, ids, key=runs.KEY, train=False):
    """The encoder's tokens of these patches, without the class token."""
    return encoding(task.encoder, train)(params["encoder"], batch.image, ids, key)


def test_no_gradient_flows_into_the_aligned_latents(setting):
    """Gradients equal those with the aligned latents as constants."""
    task, params, batch = setting
    constant = encode(task, params, batch, batch.ids_m)

    def by_hand(p):
        encoded, made = task.predict(p, batch, runs.KEY, True)
        codes = CrossEntropy()(made["decoder"]["masked"], batch.targets["code"]["masked"])
        return codes.mean() + 2 * jnp.square(encoded.latents - constant).mean()

    @jax.jit
    def run(params):
        loss = lambda p: task.loss(p, {}, batch, runs.KEY, 0, True).total
        return jax.value_and_grad(loss)(params), jax.value_and_grad(by_hand)(params)

    runs.close(*run(params))
    gap = np.square(np.subtract(latents(task, params, batch), constant)).mean()
    assert gap > 0.01


def test_the_whole_step_has_the_gradient_of_the_loss_alone():
    """`prepare` and `loss` differentiated together give what the train step gives."""
    task, raw = make(), runs.raw_batch()
    params = runs.start(task)

    @jax.jit
    def run(params):
        def whole(p):
            state = runs.state_of(task, lax.stop_gradient(p))
            prepared = task.prepare(state, {}, raw, runs.KEY, True)[0]
            return task.loss(p, {}, prepared, runs.KEY, 0, True).total

        return jax.grad(whole)(params)

    tx = optax.sgd(1.0)
    after = runs.step(task, tx, params, raw)[0].params
    runs.close(jax.tree.map(np.subtract, params, after), run(params), 1e-4)


def test_aligned_latents_are_the_encoder_s_on_masked_patches(setting):
    task, params, batch = setting
    tokens = encode(task, params, batch, batch.ids_m)
    np.testing.assert_allclose(batch.targets["align"]["masked"], tokens, atol=1e-6)


def test_the_target_branch_has_noise_of_its_own():
    task = make(drop=0.5)
    params, raw = runs.start(task), runs.raw_batch(8)
    batch = runs.prepare(task, raw, params)
    noisy = batch.targets["align"]["masked"]
    student = encode(task, params, batch, batch.ids_m, named(runs.KEY, "encoder"), True)
    quiet = runs.prepare(make(drop=0.5, align_target=OwnFeatures("current", (), 1.0)), raw, params)
    others = {"the student's noise": student, "no noise": quiet.targets["align"]["masked"]}
    for name, other in others.items():
        assert np.abs(np.subtract(noisy, other)).max() > 1e-2, name
    again = runs.prepare(task, raw, params).targets["align"]["masked"]
    np.testing.assert_array_equal(noisy, again)


@pytest.mark.parametrize("decay", [0.0, 0.75])
def test_lagging_alignment(decay):
    """Two steps; the second is aligned with the weights before the first (or their average)."""
    task, tx, raw = make(**lagging(decay)), optax.sgd(0.1), runs.raw_batch()
    states = [runs.state_of(task, runs.start(task), tx)]
    run = jax.jit(lambda s, b: runs.train_step(s, {}, b, task=task, tx=tx))
    metrics = []
    for _ in range(2):
        state, m = run(states[-1], raw)
        states.append(state)
        metrics.append(m)
    encoders = [s.params["encoder"] for s in states]
    runs.close(states[1].ema["encoder"], encoders[0], 1e-6)
    mean = lambda a, b: decay * np.asarray(a) + (1 - decay) * np.asarray(b)
    mean = jax.tree.map(mean, *encoders[:2])
    runs.close(states[2].ema["encoder"], mean, 1e-6)
    # by hand: parameters of one step later against the aligned latents of the first encoder
    current = make()
    old, new = (s.params for s in states[:2])
    batch = runs.prepare(current, raw, old)
    aligned = lambda q: encode(current, q, batch, batch.ids_m)
    gap = lambda p, q: np.square(np.subtract(latents(current, p, batch), aligned(q))).mean()
    np.testing.assert_allclose(metrics[0]["loss/align"], gap(old, old), rtol=1e-4)
    np.testing.assert_allclose(metrics[1]["loss/align"], gap(new, old), rtol=1e-4)
    assert abs(gap(new, old) / gap(new, new) - 1) > 1e-3  # else it would tell nothing


@pytest.mark.parametrize("options", [{}, lagging(0.0)], ids=["current", "lagging"])
def test_without_weight_there_is_no_alignment(options, setting):
    task = make(align=Term("align_target", "regressor", weight=0.0), **options)
    _, params, batch = setting
    assert task.init_ema(params) == {}
    assert list(task.targets) == ["code_target"]
    out = runs.loss(task, params, runs.prepare(task, runs.raw_batch(), params))
    assert {k for k in out.metrics if k.startswith("loss/")} == {"loss/code"}
    assert float(out.total) == float(out.metrics["loss/code"])
    runs.close(out.total, runs.loss(make(), params, batch).metrics["loss/code"])


def test_no_decoder_is_a_linear_head(setting):
    task = make(decoder=LatentDecoder(depth=0, heads=2))
    params, batch = runs.start(task), setting[2]
    assert set(params["decoder"]) == {"head"}
    head = params["decoder"]["head"]
    pred = runs.loss(task, params, batch, train=False).predictions["code"].values["masked"]
    by_hand = np.matmul(latents(task, params, batch), head["kernel"]) + np.asarray(head["bias"])
    np.testing.assert_allclose(pred, by_hand, atol=1e-5)


def test_masked_pixels_do_not_influence_the_prediction(setting):
    task, params, batch = setting
    hidden = runs.hidden_pixels(batch.mask)
    changed = batch.replace(image=np.where(hidden, np.float32(9), batch.image))
    before, after = (latents(task, params, b) for b in (batch, changed))
    np.testing.assert_array_equal(before, after)
    moved = [encode(task, params, b, b.ids_m) for b in (batch, changed)]
    assert np.abs(np.subtract(*moved)).max() > 0.1


def test_images_do_not_influence_each_other(setting):
    task, params, batch = setting
    image = np.array(batch.image)
    image[1:] = 5.0
    other = batch.replace(image=image)
    before, after = (np.asarray(latents(task, params, b)) for b in (batch, other))
    np.testing.assert_allclose(before[0], after[0], atol=1e-6)
    assert np.abs(before[1:] - after[1:]).max() > 0.1


def test_the_regressor_never_changes_visible_latents():
    """Every block gets the encoder's latents, not what a block made of them."""
    task = make(depth=3)
    params = runs.start(task)
    batch = runs.prepare(task, runs.raw_batch(), params)
    given = []

    def record(call, args, kwargs, context):
        if isinstance(context.module, RegressorBlock) and context.method_name == "__call__":
            given.append(args[1])
        return call(*args, **kwargs)

    with nn.intercept_methods(record):
        run = lambda p: (task.predict(p, batch, runs.KEY, False)[0].latents, list(given))
        _, seen = jax.jit(run)(params)
    tokens = encode(task, params, batch, batch.ids_v)
    assert len(seen) == 3
    for x in seen:
        np.testing.assert_allclose(x, tokens, atol=1e-6)


def test_a_narrower_regressor_reads_projected_tokens():
    """CAE-Large as its script runs: the aligned target passes the projection, too."""
    task = make(encoder={"project": 8})
    params = runs.start(task)
    assert set(params) == {"encoder", "regressor", "decoder"}
    projection = jax.tree.map(np.asarray, params["encoder"]["projection"])
    assert projection["linear"]["kernel"].shape == (16, 8)
    batch = runs.prepare(task, runs.raw_batch(), params)
    assert batch.targets["align"]["masked"].shape == (4, 8, 8)
    plain = make(encoder={"project": None})
    tokens = np.asarray(encode(plain, params, batch, batch.ids_m))
    x = tokens @ projection["linear"]["kernel"] + projection["linear"]["bias"]
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
    by_hand = x * projection["norm"]["scale"] + projection["norm"]["bias"]
    np.testing.assert_allclose(batch.targets["align"]["masked"], by_hand, atol=1e-4)


def test_only_masked_tokens_are_read():
    task = make()
    runs.prepare(task, runs.raw_batch())
    assert task.code_target.seen == [(4, 8, 48)]


def test_an_image_that_is_not_square():
    task, raw = make(image_size=(16, 24)), runs.raw_batch(2, 12, (16, 24))
    params = runs.start(task)
    assert np.isfinite(runs.loss(task, params, runs.prepare(task, raw, params)).total)


def test_wrong_settings_are_named():
    with pytest.raises(ConfigError, match=r"method\.align_target\.of: 'average'; allowed: with m"):
        make(align_target=OwnFeatures("average", **ALIGNED))
    with pytest.raises(ConfigError, match=r"method\.regressor\.depth: 0; allowed: 1 or more"):
        make(regressor=Regressor(depth=0, heads=2))
    with pytest.raises(ConfigError, match=r"method\.regressor\.heads: 17; allowed: 1 to 16"):
        make(regressor=Regressor(depth=1, heads=17))
    with pytest.raises(ConfigError, match=r"method\.encoder\.use_mask_token: True; allowed: False"):
        make(encoder={"use_mask_token": True})
    with pytest.raises(ConfigError, match=r"method\.encoder\.project: 90; allowed: multiples of"):
        make(encoder={"project": 90})
