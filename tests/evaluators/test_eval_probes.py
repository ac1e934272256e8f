"""The search over classifiers and features: blind to test labels, fair to all rows."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from evaluators.evaluator_runs import made, measures, started, step_later
from PIL import Image
from sklearn.linear_model import RidgeClassifier

from mimjax.data import make_source
from mimjax.data.bad_files import BadFiles
from mimjax.errors import ConfigError
from mimjax.evaluators import render
from mimjax.evaluators.probes import Probes, search, split_rows
from mimjax.inference.features import ROWS, FeatureBank, Splits
from mimjax.inference.samples import Bench, Subset
from mimjax.train.run import Evaluation
from mimjax.transfer.neighbors import ridge, standardize, vote

FOLDS = ("train", "test")


def blobs(rows=240, width=12, classes=5, spread=1.5):
    """Overlapping clusters: train and test features, train and test labels."""
    rng = np.random.default_rng(0)
    centers, y = rng.normal(size=(classes, width)), rng.integers(classes, size=rows)
    x = (centers[y] + spread * rng.normal(size=(rows, width))).astype(np.float32)
    cut = rows * 2 // 3
    return Splits(x[:cut], x[cut:]), Splits(y[:cut], y[cut:])


def test_validation_rows_are_stratified_and_disjoint():
    y = np.repeat(np.arange(4), [100, 50, 10, 40])
    fit, held = split_rows(y)
    assert sorted([*fit, *held]) == list(range(200))
    np.testing.assert_allclose(np.bincount(y[held]), [20, 10, 2, 8], atol=1)
    np.testing.assert_array_equal(held, split_rows(y)[1])
    assert len(split_rows(np.arange(100))[1]) == 20  # one row per class still leaves something


@pytest.mark.parametrize("classify", [vote, ridge])
def test_search_never_sees_test_labels(classify):
    x, y = blobs()
    noise = np.random.default_rng(1).normal(size=x.train.shape).astype(np.float32)
    # Flawless on the test split and worthless in training: only a cheat would choose it.
    cheat = Splits(noise, np.eye(12, dtype=np.float32)[y.test])
    features = {"honest": x, "cheat": cheat}
    score = search(features, y, classify)
    permuted = Splits(y.train, np.random.default_rng(2).permutation(y.test))
    other = search(features, permuted, classify)
    assert score.features == "honest"
    assert score[1:] == other[1:]
    assert score.accuracy > other.accuracy + 10


def test_search_finds_the_better_features_and_refits_on_all_rows():
    x, y = blobs()
    rng = np.random.default_rng(3)
    noise = Splits(*(rng.normal(size=part.shape).astype(np.float32) for part in x))
    score = search({"noise": noise, "signal": x}, y, ridge)
    assert score.features == "signal"
    scaled = "standardized" in score.setting
    alpha = float(score.setting.split("alpha=")[1])
    a, b = standardize(*x, scaled)
    reference = RidgeClassifier(alpha).fit(a, y.train)
    assert score.accuracy == pytest.approx(100 * (reference.predict(b) == y.test).mean())


def test_labels_need_not_start_at_zero():
    x, y = blobs()
    shifted = Splits(y.train * 7 + 3, y.test * 7 + 3)
    assert search({"x": x}, shifted, vote) == search({"x": x}, y, vote)


def run(devices, calls=1):
    task, mesh, state = started(devices)
    ready = measures(task, mesh, probes=True, max_images=200)
    values = []
    for i in range(calls):
        now = step_later(state) if i else state
        values.append({name: dict(ready[name](now, {})) for name in ("knn", "linear")})
    return ready, values


def test_a_section_chooses_classifiers_and_what_they_try():
    task, mesh, state = started()
    sections = {"probes": Probes(classifiers=("knn",), ks=(7, 3, 3)), "mine": Probes(alphas=(2.0,))}
    ready = {e.name: e.measure for e in made(task, mesh, sections)}
    assert list(ready) == ["knn", "mine/knn", "mine/linear"]
    found = {name: dict(measure(state, {})) for name, measure in ready.items()}
    assert all(list(values) == list(ROWS) for values in found.values())
    settings = lambda name: {s.setting.split(", ")[-1] for s in ready[name].scores.values()}
    assert settings("knn") <= {"k=3", "k=7"}
    assert settings("mine/linear") == {"alpha=2"}
    assert not ready["knn"].bank._kept  # the one classifier was the last to read the features
    table = render([Evaluation(name, measure) for name, measure in ready.items()])
    assert table.count("60 test images, learned from 60 training images") == 2


@pytest.mark.parametrize(
    ("kwargs", "settings", "message"),
    [
        (
            {"splits": "unlabeled"},
            {},
            r"eval\.mine: on, but the source 'synthetic' has no labels; allowed: None, or a lab",
        ),
        ({}, {"ks": (49, 80)}, r"eval\.mine\.ks: 49 or more, but only 48 labeled training images"),
    ],
)
def test_data_that_do_not_suit_are_refused(kwargs, settings, message):
    task, mesh, _ = started()
    if kwargs:
        kwargs = {"splits": [make_source("synthetic", s, num_classes=0) for s in FOLDS]}
    with pytest.raises(ConfigError, match=f"^{message}"):
        made(task, mesh, {"mine": Probes(**settings)}, **kwargs)


def test_the_smallest_k_that_fits_is_allowed():
    task, mesh, state = started()
    (knn,) = made(task, mesh, {"probes": Probes(classifiers=("knn",), ks=(80, 48))})
    assert dict(knn.measure(state, {}))["raw_pixels"] > 0


def test_three_rows_on_one_and_eight_devices_without_retracing():
    _, (alone,) = run(1)
    ready, (first, second) = run(8, calls=2)
    for name in ("knn", "linear"):
        assert list(first[name]) == ["raw_pixels", "untrained", "pretrained"]
        # At step 0 the "pretrained" encoder is the untrained one: same numbers, same search.
        assert first[name]["untrained"] == first[name]["pretrained"]
        assert second[name]["untrained"] == first[name]["untrained"]
        assert first[name]["raw_pixels"] > 60
        for row, value in alone[name].items():
            assert value == pytest.approx(first[name][row], abs=1.01)  # two images may flip
    bank = ready["knn"].bank
    assert bank._encode._cache_size() == bank._flatten._cache_size() == 1
    assert not bank._kept  # features are freed after the last probe has read them


def test_candidates_are_the_encoder_s_features():
    task, mesh, state = started()
    bank = measures(task, mesh, probes=True)["knn"].bank
    features = bank.read("pretrained", state)
    layers = ("block_00", "norm")
    assert set(features) == {f"{pool} of {layer}" for pool in ("cls", "mean") for layer in layers}
    split = bank.bench.test
    images = np.stack([np.asarray(split.image(i)) for i in range(len(split))])
    normal = jnp.asarray((images / 255.0 - task.mean) / task.std, jnp.float32)
    params = jax.device_get(state.params["encoder"])
    expected = task.encoder.apply({"params": params}, normal)
    for name, layer in (("mean of block_00", 0), ("mean of norm", None)):
        np.testing.assert_allclose(features[name].test, expected.read("mean", layer), atol=1e-4)
    assert features["cls of norm"].train.shape == (60, 16)
    assert features["cls of norm"].train.dtype == np.float32
    np.testing.assert_array_equal(bank.labels.test, split.labels())


@pytest.mark.gate
def test_untrained_row_does_not_depend_on_where_the_run_starts():
    task, mesh, state = started()
    bank = measures(task, mesh, probes=True)["knn"].bank
    at_start = bank.read("pretrained", state)
    for name, later in bank.read("untrained", step_later(state)).items():
        np.testing.assert_array_equal(at_start[name].test, later.test)
    trained = bank.read("pretrained", step_later(state))["mean of block_00"].test
    assert np.abs(trained - at_start["mean of block_00"].test).max() > 1e-3


@pytest.mark.parametrize("classify", [vote, ridge])
@pytest.mark.parametrize("fold", FOLDS)
def test_features_that_are_not_finite_have_no_accuracy(classify, fold):
    x, y = blobs()
    broken = Splits(x.train.copy(), x.test.copy())
    getattr(broken, fold)[3, 5] = np.inf
    score = search({"mean of block_00": x, "mean of norm": broken}, y, classify)
    assert np.isnan([score.accuracy, score.validation]).all()
    assert score.features == "mean of norm"


def test_a_broken_encoder_is_said_and_the_others_are_scored():
    task, mesh, state = started()
    said = []
    warn = lambda step, text: said.append((step, text))
    ready = measures(task, mesh, probes=True, health=True, error=False, pictures=0, warn=warn)
    params = state.params | {
        "encoder": jax.tree.map(lambda x: x * jnp.nan, state.params["encoder"])
    }
    broken = state.replace(params=params)
    for kind in ("knn", "linear"):
        values = dict(ready[kind](broken, {}))
        assert np.isnan(values["pretrained"])
        assert values["raw_pixels"] > 20
        text = f"eval/{kind}/pretrained is NaN: cls of block_00 is not finite"
        assert said.pop() == (int(state.step), text)
    assert np.isnan([x for _, x in ready["health"](broken, {})]).all()
    assert said == [(int(state.step), "features are not finite: health is NaN")]
    table = render([Evaluation("knn", ready["knn"]), Evaluation("linear", ready["linear"])])
    assert "not comparable with raw pixels (features that are not finite)" in table


def test_images_that_cannot_be_read_have_no_features_and_no_labels(tmp_path):
    for n in range(30):
        (tmp_path / "abc"[n % 3]).mkdir(exist_ok=True)
        Image.new("RGB", (8, 8), (n, n, n)).save(tmp_path / "abc"[n % 3] / f"{n}.png")
    (tmp_path / "a/12.png").write_bytes(b"no image")
    splits = (
        Subset(make_source("folder", "train", path=str(tmp_path), test_fraction=0), 99),
        Subset(make_source("folder", "test", path=str(tmp_path), test_fraction=0.5), 99),
    )
    task, mesh, state = started()
    bank = FeatureBank(Bench(task, mesh, *splits, batch_size=7, bad_files=BadFiles(0.5)))
    features = bank.read("raw_pixels", state)["all pixels"]
    assert len(features.train) == len(bank.labels.train) == 29
    assert len(features.test) == len(bank.labels.test)
    for x, y in zip(features, bank.labels, strict=True):
        np.testing.assert_array_equal(np.rint(x[:, 0] * 255) % 3, y)  # each with its own label


def test_images_without_a_class_take_no_part(tmp_path):
    """One beside the class folders, whose value is that of no class."""
    for n in range(60):
        place = tmp_path / f"class {n % 3}" / f"{n:02}.png"
        place.parent.mkdir(exist_ok=True)
        Image.new("RGB", (8, 8), (n, n, n)).save(place)
    for n in range(20):
        Image.new("RGB", (8, 8), (200, 200, 200)).save(tmp_path / f"stray {n}.png")
    splits = (make_source("folder", s, path=str(tmp_path), test_fraction=0.5) for s in FOLDS)
    task, mesh, state = started()
    bank = FeatureBank(Bench(task, mesh, *(Subset(s, 99) for s in splits), batch_size=16))
    features = bank.read("raw_pixels", state)["all pixels"]
    assert len(bank.labels.train) + len(bank.labels.test) == 60
    for x, y in zip(features, bank.labels, strict=True):
        np.testing.assert_array_equal(np.rint(x[:, 0] * 255) % 3, y)
        assert set(y) == {0, 1, 2}
