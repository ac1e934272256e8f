"""Held-out masked error: naive predictors by brute force, padding, devices, retracing."""

import dataclasses
import random

import jax.numpy as jnp
import numpy as np
import pytest
from evaluators.evaluator_runs import SEED, evaluators, started, step_later, tiny_task

from mimjax.data import make_source
from mimjax.evaluators import make_evaluators
from mimjax.evaluators.common import Subset
from mimjax.methods.mae import MAE
from mimjax.models.vit import patchify
from mimjax.rng import example_seed
from mimjax.targets import pixels
from mimjax.task import ConfigError, LossOutput


@dataclasses.dataclass(frozen=True)
class Perfect(MAE):
    """Predicts the target, off by `offset` everywhere; tells nothing of visible patches."""

    offset: float = 0.0

    def prepare(self, *args):
        batch = super().prepare(*args)
        return {k: v for k, v in batch.items() if k != "visible_target"}

    def predict(self, params, batch, key, train, all_patches=False):
        return batch["target"] + self.offset


@dataclasses.dataclass(frozen=True)
class NoError(MAE):
    """A method that reports no error, as those that predict tokens."""

    def loss(self, *args):
        return LossOutput(super().loss(*args).total, {})


def as_kind(kind, task, **kwargs):
    values = {f.name: getattr(task, f.name) for f in dataclasses.fields(task)}
    return kind(**values, **kwargs)


def brute_force(task, train, test):
    """Both naive errors, image by image in numpy."""

    def targets(split):
        images = np.stack([np.asarray(split.image(i)) for i in range(len(split))])
        patches = patchify(pixels.normalize(jnp.asarray(images), task.mean, task.std), 2)
        return np.asarray(pixels.normalize_patches(patches, task.pixel_norm), np.float64)

    mean_image, found = targets(train).mean(0), []
    for i, target in enumerate(targets(test)):
        mask = np.asarray(task.mask_fn(random.Random(example_seed(SEED, 0, i, "eval_mask"))))
        guesses = mean_image[mask], target[~mask].mean(0)
        found.append([np.square(target[mask] - guess).mean() for guess in guesses])
    return np.mean(found, axis=0)


@pytest.mark.parametrize("norm", ["mae", "none"])
def test_naive_predictors_equal_brute_force(norm):
    task, mesh, state = started()
    task = dataclasses.replace(task, pixel_norm=norm)
    evaluator = evaluators(task, mesh)["error"]
    values = dict(evaluator(state, {}))
    expected = brute_force(task, evaluator.bench.train, evaluator.bench.test)
    found = values["mean_image_error"], values["visible_mean_error"]
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert values["masked_error"] > 0
    assert evaluator.values == values


def test_perfect_predictor_and_known_error():
    task, mesh, state = started()
    for offset in (0.0, 0.5):
        other = as_kind(Perfect, task, offset=offset)
        values = dict(evaluators(other, mesh)["error"](state, {}))
        assert values == {"masked_error": pytest.approx(offset**2, abs=1e-6)}


def test_same_on_one_and_eight_devices_and_padding_does_not_count():
    values = []
    for devices, size in ((1, 60), (8, 32)):  # 60 images: no padding, and four rows of it
        task, mesh, state = started(devices)
        values.append(dict(evaluators(task, mesh, batch_size=size)["error"](state, {})))
    assert values[0] == pytest.approx(values[1], rel=1e-5)


def test_second_call_does_not_retrace_nor_measure_naive_again():
    task, mesh, state = started()
    evaluator = evaluators(task, mesh)["error"]
    first = dict(evaluator(state, {}))
    evaluator._measure_naive = None  # would raise if called
    second = dict(evaluator(step_later(state), {}))
    sizes = [f._cache_size() for f in (evaluator._model, evaluator._targets, evaluator._naives)]
    assert sizes == [1, 1, 1]
    assert first["mean_image_error"] == second["mean_image_error"]
    assert first["masked_error"] != second["masked_error"]


def test_task_without_error_yields_nothing():
    task, mesh, state = started()
    evaluator = evaluators(as_kind(NoError, task), mesh)["error"]
    assert list(evaluator(state, {})) == []
    assert evaluator.values == {}


def test_subset_is_a_fixed_sample_of_all_classes():
    source = make_source("synthetic", "train", length=1000)
    subset = Subset(source, 100)
    assert len(set(subset.indices)) == 100
    assert set(subset.labels()) == set(range(10))  # evenly spaced indices would give one class
    np.testing.assert_array_equal(subset.indices, Subset(source, 100).indices)
    assert len(Subset(source, 10**6)) == 1000


def test_small_splits_make_small_batches():
    task, mesh, _ = started(8)
    bench = evaluators(task, mesh, batch_size=4096, max_images=20)["error"].bench
    assert bench.batch_size == 24


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"probes": True}, "eval.probes: True, but the source 'synthetic' has no labels"),
        ({"max_images": 0}, "eval.max_images: 0; allowed: 2 or more"),
        ({"pictures": -1}, "eval.pictures: -1; allowed: 0 or more"),
    ],
)
def test_wrong_options(options, message):
    _, mesh, _ = started()
    source = make_source("synthetic", "train", num_classes=0)
    with pytest.raises(ConfigError, match=message):
        make_evaluators(tiny_task(), mesh, source, source, write=lambda *_: None, **options)
