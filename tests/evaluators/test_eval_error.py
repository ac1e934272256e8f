"""Held-out masked error: naive predictors by brute force, padding, devices, retracing."""

import dataclasses
import random
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from evaluators.evaluator_runs import SEED, measures, started, step_later, tiny_task

from mimjax import patches as pixels
from mimjax.data import make_source
from mimjax.evaluators import render
from mimjax.evaluators.error import NAIVE
from mimjax.inference.samples import Subset
from mimjax.losses import MSE, Cosine, CrossEntropy, SmoothL1, standardize
from mimjax.methods.mae import MAE
from mimjax.methods.parts import Term
from mimjax.patches import patchify
from mimjax.rng import example_seed
from mimjax.targets.base import Target
from mimjax.targets.own import OwnFeatures
from mimjax.targets.pixels import Pixels
from mimjax.task import LossOutput
from mimjax.train.run import Evaluation


@dataclasses.dataclass(frozen=True)
class Hidden(Pixels):
    """Pixels that are known at masked patches alone."""

    def places(self, encoder):
        return ("masked",)


@dataclasses.dataclass(frozen=True)
class Perfect(MAE):
    """A network that predicts the target off by `offset`; it says nothing of visible patches."""

    pixel_target: Target = Hidden()
    offset: float = 0.0

    def predict(self, params, prepared, key, train):
        return None, {"decoder": {"masked": prepared.targets["pixel"]["masked"] + self.offset}}


@dataclasses.dataclass(frozen=True)
class NoError(MAE):
    """A method that reports no error, as those that predict tokens."""

    def loss(self, *args):
        return LossOutput(super().loss(*args).total, {})


def as_kind(kind, task, **kwargs):
    values = {f.name: getattr(task, f.name) for f in dataclasses.fields(task)}
    return kind(**values | kwargs)


def mask_of(task, index):
    """The mask that evaluation gives a test image."""
    return task.sample(random.Random(example_seed(SEED, 0, index, "eval_mask")), 0)["mask"]


DISTANCES = {
    "MSE": lambda a, b: np.square(a - b).mean(-1),
    "Cosine": lambda a, b: (
        1 - (a * b).sum(-1) / np.linalg.norm(a, axis=-1) / np.linalg.norm(b, axis=-1)
    ),
    "SmoothL1": lambda a, b: np.where(
        np.abs(a - b) < 2, np.square(a - b) / 4, np.abs(a - b) - 1
    ).mean(-1),
}


def brute_force(task, train, test):
    """Both naive errors, image by image in numpy."""
    term, norm = task.pixel, task.pixel_target.norm
    form = lambda x: np.asarray(standardize(jnp.asarray(x, jnp.float32)), np.float64)

    def targets(split):
        images = np.stack([np.asarray(split.image(i)) for i in range(len(split))])
        patches = patchify(pixels.normalize(jnp.asarray(images), task.mean, task.std), 2)
        x = np.asarray(pixels.normalize_patches(patches, norm), np.float64)
        return x if term.normalize == "none" else form(x)

    mean_image, found = targets(train).mean(0), []
    for i, target in enumerate(targets(test)):
        mask = mask_of(task, i)
        guesses = mean_image[mask], np.broadcast_to(target[~mask].mean(0), target[mask].shape)
        if term.normalize == "both":
            guesses = [form(guess) for guess in guesses]
        distance = DISTANCES[type(term.loss).__name__]
        found.append([distance(guess, target[mask]).mean() for guess in guesses])
    return np.mean(found, axis=0)


@pytest.mark.parametrize(
    ("norm", "change"),
    [
        ("patch", {}),
        ("none", {}),
        ("none", {"normalize": "target", "loss": SmoothL1(2.0)}),
        ("channel", {"normalize": "both", "loss": MSE()}),
        ("none", {"loss": Cosine()}),
    ],
)
def test_naive_predictors_equal_brute_force(norm, change):
    """Errors are in the form that the term compares, by the term's own loss."""
    task, mesh, state = started()
    term = dataclasses.replace(task.pixel, **change)
    task = dataclasses.replace(task, pixel_target=Pixels(norm), pixel=term)
    evaluator = measures(task, mesh)["error"]
    values = dict(evaluator(state, {}))
    expected = brute_force(task, evaluator.bench.train, evaluator.bench.test)
    found = values["mean_image_error"], values["visible_mean_error"]
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert values["masked_error"] > 0
    assert evaluator.values == values


@dataclasses.dataclass(frozen=True)
class Shades(Target):
    """Codes without a network: the brightness of a patch in five steps."""

    kind: ClassVar[str] = "codes"

    def width(self, encoder):
        return 5

    def encode(self, frozen, images, encoder):
        return patchify(images / 255.0, encoder.patch)

    def read(self, frozen, hidden, key=None):
        return (hidden.mean(-1) * 4.999).astype(jnp.int32)


@dataclasses.dataclass(frozen=True)
class Certain(MAE):
    """A network for which the true code has `confidence` times the odds of any other."""

    pixel_target: Target = Shades()
    pixel: Term = Term("pixel_target", "decoder", loss=CrossEntropy())
    confidence: float = 1.0

    def predict(self, params, prepared, key, train):
        codes: Any = prepared.targets["pixel"]["masked"]
        return None, {"decoder": {"masked": jnp.log(self.confidence) * jax.nn.one_hot(codes, 5)}}


def test_naive_predictors_of_codes_equal_brute_force():
    _, mesh, state = started()
    task = Certain(encoder=tiny_task().encoder, decoder=tiny_task().decoder, confidence=3.0)
    evaluator = measures(task, mesh)["error"]
    values = dict(evaluator(state, {}))
    bench = evaluator.bench

    def codes(split):
        images = jnp.stack([jnp.asarray(split.image(i)) for i in range(len(split))])
        patches = task.pixel_target.encode({}, images, task.encoder)
        return np.asarray(task.pixel_target.read({}, patches))

    train, found = codes(bench.train), []
    places = np.stack([(train == k).sum(0) for k in range(5)], axis=1)
    places = (places + 0.2) / (len(train) + 1)
    for i, code in enumerate(codes(bench.test)):
        mask = mask_of(task, i)
        own = np.bincount(code[~mask], minlength=5) + places.mean(0)
        own = own / own.sum()
        hidden = code[mask]
        found.append([-np.log(places[mask, hidden]).mean(), -np.log(own[hidden]).mean()])
    expected = np.mean(found, axis=0)
    got = values["mean_image_error"], values["visible_mean_error"]
    np.testing.assert_allclose(got, expected, rtol=1e-5)
    assert values["masked_error"] == pytest.approx(-np.log(3 / 7), rel=1e-5)
    text = render([Evaluation("error", evaluator)])
    assert "cross-entropy of codes in nats" in text
    assert "frequencies at the place in training images" in text


def test_perfect_predictor_and_known_error():
    task, mesh, state = started()
    for offset in (0.0, 0.5):
        other = as_kind(Perfect, task, offset=offset, pixel_target=Hidden())
        values = dict(measures(other, mesh)["error"](state, {}))
        assert values == {"masked_error": pytest.approx(offset**2, abs=1e-6)}


def test_same_on_one_and_eight_devices_and_padding_does_not_count():
    values = []
    for devices, size in ((1, 60), (8, 32)):  # 60 images: no padding, and four rows of it
        task, mesh, state = started(devices)
        values.append(dict(measures(task, mesh, batch_size=size)["error"](state, {})))
    assert values[0] == pytest.approx(values[1], rel=1e-5)


def test_second_call_does_not_retrace_nor_measure_naive_again():
    task, mesh, state = started()
    evaluator = measures(task, mesh)["error"]
    first = dict(evaluator(state, {}))
    evaluator._measure_naive = None  # would raise if called
    second = dict(evaluator(step_later(state), {}))
    sizes = [f._cache_size() for f in (evaluator._model, evaluator._targets, evaluator._naives)]
    assert sizes == [1, 1, 1]
    assert first["mean_image_error"] == second["mean_image_error"]
    assert first["masked_error"] != second["masked_error"]


def test_naive_errors_of_a_target_that_follows_the_run_are_measured_again():
    task, mesh, state = started()
    own = dataclasses.replace(task, pixel_target=OwnFeatures(of="current"))
    state = state.replace(params=jax.jit(own.init)(jax.random.key(0))[0])
    evaluator = measures(own, mesh)["error"]
    first = dict(evaluator(state, {}))
    second = dict(evaluator(step_later(state), {}))
    assert first.keys() == second.keys() == {"masked_error", *NAIVE}
    assert all(first[name] != second[name] for name in first)


def test_patches_known_in_part_have_no_naive_error():
    task, mesh, state = started()
    own = dataclasses.replace(task, pixel_target=OwnFeatures(of="current", masked_share=0.5))
    state = state.replace(params=jax.jit(own.init)(jax.random.key(0))[0])
    assert list(dict(measures(own, mesh)["error"](state, {}))) == ["masked_error"]


def test_task_without_error_yields_nothing():
    task, mesh, state = started()
    evaluator = measures(as_kind(NoError, task), mesh)["error"]
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
    bench = measures(task, mesh, batch_size=4096, max_images=20)["error"].bench
    assert bench.batch_size == 24
