"""CAE v2 beyond its golden numbers: its options, what is read, distances."""

import jax.numpy as jnp
import method_runs as runs
import numpy as np
import pytest

from mimjax.errors import ConfigError
from mimjax.losses import distance
from mimjax.methods.caev2 import CAEv2
from mimjax.models.regressor import Regressor
from mimjax.run.config_files import import_config
from mimjax.targets.pixels import Pixels

config = import_config("caev2")


def make(depth=1, image_size=(16, 16), **options):
    encoder = runs.encoder(pos_embed="sincos_yx", init_scheme="cae", image_size=image_size)
    regressor = Regressor(depth=depth, heads=2, drop_path=0.0)
    base = {"encoder": encoder, "masking": runs.HALF, "regressor": regressor}
    return CAEv2(**base | {"target": runs.Teacher()} | options)


def run(task):
    """Parameters, the loss, and the distance of CLS, visible and masked tokens by hand."""
    params, batch = runs.start(task), runs.prepare(task, runs.raw_batch())
    out = runs.loss(task, params, batch)
    pred, target = out.preds["pred"], out.preds["target"]
    apart = np.asarray(distance(task.distance, jnp.asarray(pred), jnp.asarray(target)))
    return params, out, apart


@pytest.mark.parametrize(("size", "rate"), [("ti", 0.1), ("s", 0.1), ("b", 0.1), ("l", 0.2)])
def test_one_drop_path_for_encoder_and_regressor(size, rate):
    """Table 8."""
    method = config.get_config(f"size={size}").method
    assert (method.encoder.drop_path, method.regressor.drop_path) == (rate, rate)


def test_the_code_s_loss_is_one_mean_with_cls():
    task = make()
    _, out, apart = run(task)
    assert apart.shape == (4, 17)
    assert task.target.seen == [(4, 17, 6)]
    np.testing.assert_allclose(out.total, apart.mean(), rtol=1e-5)
    np.testing.assert_allclose(out.metrics["loss/visible"], apart[:, :9].mean(), rtol=1e-5)
    np.testing.assert_allclose(out.metrics["loss/masked"], apart[:, 9:].mean(), rtol=1e-5)


def test_the_paper_s_loss_is_two_means_without_cls():
    task = make(loss_form="paper")
    _, out, apart = run(task)
    assert apart.shape == (4, 16)
    assert task.target.seen == [(4, 16, 6)]
    np.testing.assert_allclose(out.total, apart[:, :8].mean() + apart[:, 8:].mean(), rtol=1e-5)


def test_tokens_meet_their_own_targets():
    """Targets stand in the order of the tokens: CLS, visible ids, masked ids."""
    task, raw = make(), runs.raw_batch()
    batch = runs.prepare(task, raw)
    true = np.asarray(task.target.encode({}, raw, task.encoder))
    for i in range(4):
        order = [0, *(np.flatnonzero(~raw["mask"][i]) + 1), *(np.flatnonzero(raw["mask"][i]) + 1)]
        np.testing.assert_allclose(batch["target"][i], true[i][order], atol=1e-4)


@pytest.mark.parametrize("form", ["code", "paper"])
def test_without_regressor_only_visible_tokens_count(form):
    for options in ({"depth": 0}, {"masked_weight": 0.0}):
        task = make(loss_form=form, **options)
        params, out, apart = run(task)
        assert set(params) == {"encoder", "head"}
        assert set(out.metrics) == {"loss/visible"}
        assert apart.shape == (4, 9 if form == "code" else 8)
        assert task.target.seen == [(*apart.shape, 6)]
        np.testing.assert_allclose(out.total, apart.mean(), rtol=1e-5)


@pytest.mark.parametrize("form", ["code", "paper"])
def test_without_visible_loss_only_masked_tokens_count(form):
    params, out, apart = run(make(loss_form=form, visible_weight=0.0))
    assert "regressor" in params
    assert set(out.metrics) == {"loss/masked"}
    np.testing.assert_allclose(out.total, apart[:, -8:].mean(), rtol=1e-5)


@pytest.mark.parametrize("kind", ["mse", "smooth_l1", "cosine"])
def test_distances_equal_torch(kind):
    import torch

    rng = np.random.default_rng(0)
    pred, target = rng.normal(size=(2, 3, 4, 5)).astype(np.float32) * 2
    a, b = torch.tensor(pred), torch.tensor(target)
    f = torch.nn.functional
    theirs = {
        "mse": lambda: f.mse_loss(a, b, reduction="none").mean(-1),
        "smooth_l1": lambda: f.smooth_l1_loss(a, b, reduction="none").mean(-1),
        "cosine": lambda: 1 - f.cosine_similarity(a, b, dim=-1),
    }[kind]()
    ours = distance(kind, jnp.asarray(pred), jnp.asarray(target))
    np.testing.assert_allclose(ours, theirs.numpy(), atol=1e-6)


@pytest.mark.parametrize("kind", ["mse", "smooth_l1"])
def test_other_distances_train(kind):
    _, out, apart = run(make(distance=kind))
    np.testing.assert_allclose(out.total, apart.mean(), rtol=1e-5)


def test_an_image_that_is_not_square():
    task, raw = make(image_size=(16, 24)), runs.raw_batch(2, 12, (16, 24))
    assert np.isfinite(runs.loss(task, runs.start(task), runs.prepare(task, raw)).total)


@pytest.mark.parametrize(("form", "depth"), [("code", 1), ("paper", 1), ("code", 0)])
def test_pictures_show_teacher_and_student_in_the_same_colors(form, depth):
    task = make(depth=depth, loss_form=form)
    batch = runs.prepare(task, runs.raw_batch())
    right = task.pictures({}, {}, batch, {"pred": batch["target"]})
    assert list(right) == ["original", "masked", "teacher", "student"]
    np.testing.assert_allclose(right["teacher"], right["student"], atol=1e-5)
    wrong = task.pictures({}, {}, batch, {"pred": -batch["target"]})
    assert np.abs(wrong["teacher"] - wrong["student"]).max() > 0.1
    for name, image in right.items():
        assert image.shape == (4, 16, 16, 3), name
        assert image.min() >= 0, name
        assert image.max() <= 1, name
    gray = np.all(np.asarray(right["teacher"]) == 0.5, axis=-1).mean()
    assert gray == (0 if depth else 0.5)  # nothing is said of masked patches without a regressor


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"target": runs.Codes()}, r"method\.target\.type: Codes is no teacher with a CLS token"),
        ({"target": Pixels()}, r"method\.target\.type: Pixels is no teacher with a CLS token"),
        ({"head_order": "fc_nl"}, r"method\.head_order: 'fc_nl'.*ln_fc, fc_ln"),
        ({"loss_form": "papr"}, r"method\.loss_form: 'papr'.*code, paper"),
        ({"distance": "l1"}, r"method\.distance: 'l1'.*mse, cosine, smooth_l1"),
        ({"visible_weight": 0.0, "masked_weight": 0.0}, "no loss is left"),
        ({"visible_weight": 0.0, "depth": 0}, "no loss is left"),
    ],
)
def test_wrong_settings_are_named(options, line):
    with pytest.raises(ConfigError, match=line):
        make(**options)
