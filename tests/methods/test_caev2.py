"""CAE v2 beyond its golden numbers: its forms of the loss, what is read, distances."""

import dataclasses

import jax.numpy as jnp
import method_runs as runs
import numpy as np
import pytest

from mimjax.errors import ConfigError
from mimjax.losses import L1, MSE, Cosine, CrossEntropy, SmoothL1
from mimjax.methods.caev2 import CAEv2
from mimjax.methods.parts import Term
from mimjax.models.regressor import Regressor, SharedHead
from mimjax.run.config_files import import_config
from mimjax.targets.pixels import Pixels

config = import_config("caev2")
PAPER = {"token": {"at": "visible"}, "masked": {"weight": 1.0}}


def make(image_size=(16, 16), token=None, masked=None, **options):
    encoder = runs.encoder(pos_embed="sincos_yx", init_scheme="cae", image_size=image_size)
    regressor = Regressor(depth=1, heads=2, drop_path=0.0, final_norm=False)
    base = {"encoder": encoder, "masking": runs.HALF, "regressor": regressor}
    base |= {"teacher_target": runs.Teacher()}
    for name, changes in (("token", token), ("masked", masked)):
        default = next(f.default for f in dataclasses.fields(CAEv2) if f.name == name)
        base[name] = dataclasses.replace(default, **changes or {})
    return CAEv2(**base | options)


def run(task):
    """Parameters, the loss, and each term's distances by place."""
    params = runs.start(task)
    out = runs.loss(task, params, runs.prepare(task, runs.raw_batch(), params))
    loss = task.token.loss
    apart = {
        name: {k: np.asarray(loss(p.values[k], p.target[k])) for k in p.values}
        for name, p in out.predictions.items()
    }
    return params, out, apart


@pytest.mark.parametrize(("size", "rate"), [("ti", 0.1), ("s", 0.1), ("b", 0.1), ("l", 0.2)])
def test_one_drop_path_for_encoder_and_regressor(size, rate):
    """Table 8."""
    method = config.get_config(f"size={size}").method
    assert (method.encoder.drop_path, method.regressor.drop_path) == (rate, rate)


def test_the_code_s_loss_is_one_mean_with_cls():
    task = make()
    _, out, apart = run(task)
    assert {k: x.shape for k, x in apart["token"].items()} == {
        "cls": (4, 1),
        "visible": (4, 8),
        "masked": (4, 8),
    }
    assert set(task.teacher_target.seen) == {(4, 1, 6), (4, 8, 6)}
    every = np.concatenate(list(apart["token"].values()), axis=1)
    np.testing.assert_allclose(out.total, every.mean(), rtol=1e-5)


def test_the_paper_s_loss_is_two_means_without_cls():
    task = make(**PAPER)
    _, out, apart = run(task)
    assert list(apart["token"]) == ["visible"]
    assert list(apart["masked"]) == ["masked"]
    visible, masked = apart["token"]["visible"].mean(), apart["masked"]["masked"].mean()
    np.testing.assert_allclose(out.metrics["loss/token"], visible, rtol=1e-5)
    np.testing.assert_allclose(out.metrics["loss/masked"], masked, rtol=1e-5)
    np.testing.assert_allclose(out.total, visible + masked, rtol=1e-5)


def test_tokens_meet_their_own_targets():
    """Targets stand in the order of the tokens: visible ids, masked ids."""
    task, raw = make(), runs.raw_batch()
    targets = runs.prepare(task, raw).targets["token"]
    true = np.asarray(task.teacher_target.encode({}, raw["image"], task.encoder))
    for i, mask in enumerate(np.asarray(raw["mask"])):
        rows = {
            "cls": [0],
            "visible": np.flatnonzero(~mask) + 1,
            "masked": np.flatnonzero(mask) + 1,
        }
        for place, ids in rows.items():
            np.testing.assert_allclose(targets[place][i], true[i][ids], atol=1e-4)


@pytest.mark.parametrize("at", ["cls+visible", "visible"])
def test_without_regressor_only_visible_tokens_count(at):
    for options in ({"regressor": None}, {}):
        task = make(token={"at": at}, **options)
        params, out, apart = run(task)
        assert set(params) == {"encoder", "head"}
        assert "loss/masked" not in out.metrics
        every = np.concatenate(list(apart["token"].values()), axis=1)
        assert every.shape == (4, 9 if at == "cls+visible" else 8)
        np.testing.assert_allclose(out.total, every.mean(), rtol=1e-5)


def test_without_visible_loss_only_masked_tokens_count():
    params, out, apart = run(make(token={"at": "masked"}))
    assert "regressor" in params
    np.testing.assert_allclose(out.total, apart["token"]["masked"].mean(), rtol=1e-5)


@pytest.mark.parametrize(
    "loss", [MSE(), L1(), SmoothL1(), SmoothL1(2.0), Cosine()], ids=lambda loss: repr(loss)
)
def test_distances_equal_torch(loss):
    import torch

    rng = np.random.default_rng(0)
    pred, target = rng.normal(size=(2, 3, 4, 5)).astype(np.float32) * 2
    a, b = torch.tensor(pred), torch.tensor(target)
    f = torch.nn.functional
    beta = getattr(loss, "beta", 1.0)
    theirs = {
        "MSE": lambda: f.mse_loss(a, b, reduction="none").mean(-1),
        "L1": lambda: f.l1_loss(a, b, reduction="none").mean(-1),
        "SmoothL1": lambda: f.smooth_l1_loss(a, b, reduction="none", beta=beta).mean(-1),
        "Cosine": lambda: 1 - f.cosine_similarity(a, b, dim=-1),
    }[type(loss).__name__]()
    ours = loss(jnp.asarray(pred), jnp.asarray(target))
    np.testing.assert_allclose(ours, theirs.numpy(), atol=1e-6)


@pytest.mark.parametrize("loss", [MSE(), SmoothL1()])
def test_other_distances_train(loss):
    _, out, apart = run(make(token={"loss": loss}))
    every = np.concatenate(list(apart["token"].values()), axis=1)
    np.testing.assert_allclose(out.total, every.mean(), rtol=1e-5)


def test_an_image_that_is_not_square():
    task, raw = make(image_size=(16, 24)), runs.raw_batch(2, 12, (16, 24))
    params = runs.start(task)
    assert np.isfinite(runs.loss(task, params, runs.prepare(task, raw, params)).total)


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (
            {"teacher_target": runs.Codes()},
            r"method\.token\.at: 'cls\+visible\+masked' of teacher_",
        ),
        (
            {"teacher_target": Pixels()},
            r"method\.token\.at: 'cls\+visible\+masked' of teach",
        ),
        ({"regressor": None}, r"method\.token\.at: .*; allowed: cls, visible$"),
        ({"head": SharedHead(order="fc_nl")}, r"method\.head\.order: 'fc_nl'.*ln_fc, fc_ln"),
        (
            {"token": {"loss": CrossEntropy()}},
            r"method\.token\.loss: CrossEntropy; allowed: a",
        ),
        ({"token": {"weight": 0.0}}, r"method\.terms: all weights 0; allowed: one above 0"),
        (
            {"token": {"target": "teacher"}},
            r"method\.token\.target: 'teacher'; allowed: teach",
        ),
        (
            {"token": {"network": "haed"}},
            r"method\.token\.network: 'haed'; allowed: regressor, ",
        ),
        ({"token": {"weight": -1.0}}, r"method\.token\.weight: -1.0; allowed: 0 or more"),
    ],
)
def test_wrong_settings_are_named(options, line):
    with pytest.raises(ConfigError, match=line):
        make(**options)


def test_a_term_that_nothing_names_is_no_term():
    """The two terms share target and head; the head's width is the teacher's."""
    task = make(**PAPER)
    assert isinstance(task.token, Term)
    assert task.network("head").out == 6
    assert task.asked("network", "head") == ("visible", "masked")
