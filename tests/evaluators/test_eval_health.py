"""Monitors without labels: what they measure, and a target that collapses."""

import dataclasses
import functools

import helpers
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from evaluators.evaluator_runs import SEED, bench, made, measures, started
from scipy.stats import entropy

from mimjax import sharding
from mimjax.evaluators.health import Health, HealthMeasure, patches_of, rankme, variance_share
from mimjax.methods.bootmae import BootMAE
from mimjax.methods.cae import CAE
from mimjax.methods.dvae import DiscreteVAE
from mimjax.methods.parts import Average
from mimjax.models.decoders import InjectedDecoder
from mimjax.models.vit import ViT
from mimjax.targets.own import OwnFeatures
from mimjax.task import Clock, Prepared
from mimjax.train.program import make_program


def test_rankme_counts_directions():
    rng = np.random.default_rng(0)
    basis = np.linalg.qr(rng.normal(size=(64, 64)))[0]
    assert rankme(basis) == pytest.approx(64, rel=1e-3)
    assert rankme(np.outer(rng.normal(size=200), rng.normal(size=64))) == pytest.approx(1, abs=1e-3)
    x = rng.normal(size=(200, 64)) * np.geomspace(1, 1e-3, 64)
    values = np.linalg.svd(x, compute_uv=False)
    assert rankme(x) == pytest.approx(np.exp(entropy(values / values.sum())), rel=1e-3)


def test_the_share_of_a_target_that_depends_on_the_image():
    rng = np.random.default_rng(0)
    place = rng.normal(size=(1, 6, 5)) * 3  # differs by place alone
    image = rng.normal(size=(40, 6, 5))
    weight = jnp.ones(40)
    assert variance_share(jnp.asarray(np.repeat(place, 40, 0)), weight) < 1e-9
    assert variance_share(jnp.asarray(image), weight) == pytest.approx(1, abs=0.05)
    x = place + image
    expected = x.var(0).mean() / np.square(x).mean()
    assert variance_share(jnp.asarray(x), weight) == pytest.approx(expected, rel=1e-5)
    # rows that fill the last batch do not count
    filled = jnp.asarray(np.concatenate([x, np.full((8, 6, 5), 99.0)]))
    filled = variance_share(filled, jnp.asarray([1.0] * 40 + [0.0] * 8))
    assert filled == pytest.approx(expected, rel=1e-5)


def test_features_are_those_of_the_probes():
    """Health and probes read the encoder by different code; both see the same test images."""
    task, mesh, state = started()
    ready = measures(task, mesh, probes=True, health=True, pictures=0)
    values = dict(ready["health"](state, {}))
    assert set(values) == {"feature_std", "rankme"}  # MAE has no target of its own
    features = ready["knn"].bank.read("pretrained", state)["mean of norm"].test
    assert features.shape == (60, 16)
    assert values["feature_std"] == pytest.approx(features.std(0).mean(), rel=1e-4)
    assert values["rankme"] == pytest.approx(rankme(features), rel=1e-3)
    assert 1 < values["rankme"] <= 16
    constant = jax.tree.map(jnp.zeros_like, state.params)
    values = dict(ready["health"](state.replace(params=constant), {}))
    assert values["feature_std"] == 0


def test_an_average_that_is_evaluated_is_what_health_and_probes_read():
    task, mesh, state = started()
    task = dataclasses.replace(task, average=Average(evaluate=True))
    blank = jax.tree.map(jnp.zeros_like, state.params["encoder"])
    state = state.replace(ema={"encoder": blank})
    ready = measures(task, mesh, probes=True, health=True, pictures=0)
    assert dict(ready["health"](state, {}))["feature_std"] == 0
    assert not ready["knn"].bank.read("pretrained", state)["mean of norm"].test.any()
    assert ready["knn"].bank.read("untrained", state)["mean of norm"].test.any()


@functools.cache
def bootmae(masked_share=None):
    task = BootMAE(
        clock=Clock(1, 10),
        encoder=ViT(width=16, depth=2, heads=2, patch=2, image_size=(8, 8)),
        feature_target=OwnFeatures(of="average", blocks=(-1,), masked_share=masked_share),
        pixel_decoder=InjectedDecoder(width=16, depth=1, heads=2, inject=0),
        feature_decoder=InjectedDecoder(width=16, depth=1, heads=2),
    )
    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    program = make_program(task, optax.sgd(0.1), mesh, ((".*", "fsdp"),), batch_size=8, seed=SEED)
    return task, mesh, program.init()


@pytest.mark.parametrize("masked_share", [None, *map(helpers.gate, (1.0, 0.5))])
def test_a_collapsed_average_is_named_in_a_warning(masked_share):
    """It is named even where the average sees only some masked patches: the same ones in all."""
    task, mesh, state = bootmae(masked_share)
    said = []
    options = {"error": False, "pictures": 0, "health": True}
    health = measures(task, mesh, warn=lambda *x: said.append(x), **options)["health"]
    values = dict(health(state, {}))
    assert 0.01 < values["target_variance/feature_target"] < 1
    assert said == []
    # an average that sees no pixels: its features still differ from place to place
    ema = jax.tree.map(lambda x: x, state.ema)
    ema["encoder"]["patch_embed"]["kernel"] = jnp.zeros_like(
        ema["encoder"]["patch_embed"]["kernel"]
    )
    values = dict(health(state.replace(ema=ema, step=jnp.int32(70)), {}))
    assert values["target_variance/feature_target"] < 1e-6
    ((step, text),) = said
    assert step == 70
    found = "the target 'feature_target' has collapsed: 100.0 % of it is the same for every image"
    assert found in text


def test_no_warning_where_none_is_asked_for():
    task, mesh, state = bootmae()
    said = []
    sections = {"health": Health(warn_below=0.0), "strict": Health(warn_below=1.0)}
    for e in made(task, mesh, sections, warn=lambda *x: said.append(x)):
        values = dict(e.measure(state, {}))
        assert 0.01 < values["target_variance/feature_target"] < 1
        assert len(said) == (e.name == "strict")


def test_which_targets_are_a_run_s_own():
    """These are learned targets that read the run's weights: the current ones or an average."""
    _, mesh, _ = started()
    own = lambda task: HealthMeasure(bench(task, mesh)).own
    alone = dataclasses.replace(BootMAE().feature, weight=0.0)
    assert own(BootMAE()) == ["feature_target"]
    assert own(BootMAE(feature=alone, average=None)) == []
    assert own(CAE()) == ["align_target"]
    assert own(DiscreteVAE()) == []


def test_patches_are_compared_in_raster_order():
    """Patches 0 and 2 of the first image are masked, and 1 and 2 of the second."""
    ids = jnp.asarray([[1, 3], [0, 3]]), jnp.asarray([[0, 2], [1, 2]])
    values = {p: 10.0 * i[..., None] for p, i in zip(("visible", "masked"), ids)}
    prepared = Prepared(jnp.zeros((2, 2, 2, 3)), *ids, shown={"x": values}, shown_rows={"x": {}})
    expected = jnp.broadcast_to(10.0 * jnp.arange(4)[:, None], (2, 4, 1))
    np.testing.assert_array_equal(patches_of(prepared, "x"), expected)
