"""`mimjax evaluate`: cells that are exact on any devices, and kept when they are done."""

import dataclasses
import errno
import json
import shutil
from typing import Any

import helpers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file

from mimjax import sharding
from mimjax.data.augment import Augment
from mimjax.errors import ConfigError, RunError
from mimjax.inference import feature_cache
from mimjax.inference.feature_cache import Cache, Features
from mimjax.inference.samples import Subset
from mimjax.run import labeled, published_numbers, scores, scoring
from mimjax.run import protocols as p
from mimjax.task import View
from mimjax.transfer.head import Reading
from mimjax.transfer.probing import feature_name

MEAN, ALL = Reading("mean", 0), Reading("patches", 0)
SPACE = p.Space((MEAN,), (ALL,), (ALL,), 8, 2)
SHAPES = (MEAN, (8,)), (ALL, (4, 8))
LINEAR: Any = p.PROTOCOLS["linear"]
ATTENTIVE: Any = p.PROTOCOLS["attentive"]
TUNE = ["--protocols=fine_tune"]
QUICK = ["--epochs=2", "--rates=1,10", "--ks=1,3", "--count=150", "--batch_size=32"]
QUICK += ["--protocols=knn,ep", "--rows=pretrained,raw_pixels", "--queries=4"]


@pytest.fixture(scope="module")
def run(tiny_run):
    return tiny_run


def features(count=77, classes=3, seed=0):
    """Features of so many images that tell the classes apart, but not perfectly."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % classes
    tokens = rng.normal(size=(count, 4, 8)) + np.eye(8)[labels][:, None]
    arrays = {ALL: tokens.astype(np.float32), MEAN: tokens.mean(1).astype(np.float32)}
    return Features(arrays, np.arange(count), labels.astype(np.int32))


# ------------------------------------------------------------------ which images
def test_labels_that_are_drawn():
    labels = np.repeat([0, 1, 2], [50, 30, 20])
    names = ("a", "b", "c")
    counts = lambda text, seed=0: np.bincount(
        labels[labeled.draw(labels, text, seed, names)]
    ).tolist()
    assert counts("all") == [50, 30, 20]
    assert counts("10%") == [5, 3, 2]
    assert counts("4") == [4, 4, 4]
    one, other = (labeled.draw(labels, "10%", seed, names) for seed in (0, 1))
    assert (one != other).any()
    for text in ("5%", "1"):
        with pytest.raises(
            ConfigError, match=r"--labels: .* keeps [01] of the .* of class '[abc]'"
        ):
            labeled.draw(labels, text, 0, names)
    for text in ("0", "0%", "101%", "some", "-3", "1e2%", ""):
        with pytest.raises(ConfigError, match="--labels"):
            labeled.label_share(text)


def test_every_class_is_held_out_and_learned():
    labels = np.repeat([0, 1, 2], [100, 12, 2])
    fit, held = labeled.hold_out(labels, 3)
    assert np.bincount(labels[held]).tolist() == [10, 1, 1]
    assert np.bincount(labels[fit]).tolist() == [90, 11, 1]
    assert not np.intersect1d(fit, held).size


# ------------------------------------------------------------------ scores
@pytest.mark.parametrize("devices", [1, 8])
def test_heads_are_scored_exactly_on_any_devices(devices, tmp_path):
    """77 images, which 8 does not divide: none is counted twice, and none is left out."""
    train, test = features(), features(53, seed=1)
    fit, held = (train.take(x) for x in labeled.hold_out(train.labels, 0))
    mesh = sharding.make_mesh(devices=jax.devices()[:devices])
    protocol = dataclasses.replace(LINEAR, epochs=30, rates=(1000.0, 3000.0))
    size = p.batch_of(len(fit), mesh.size)
    assert size == 32
    grid = scoring.Grid(protocol, SPACE, 3, SHAPES, size, 2, mesh)
    readings = protocol.readings(SPACE)
    order = lambda epoch: np.random.default_rng(epoch).permutation(len(fit))
    feed = scoring.Feed(
        lambda epoch: scoring.cached_batches(fit, readings, size, order(epoch)),
        lambda: scoring.cached_batches(held, readings, 16),
        lambda: scoring.cached_batches(test, readings, 16),
        len(fit),
        len(held),
    )
    result = scoring.train_heads(grid, feed, 0, "x")
    assert (result.learned, result.chosen_on, result.tested) == (69, 8, 53)
    assert (result.top1 * 53 / 100) == pytest.approx(round(result.top1 * 53 / 100))
    assert result.top1 > 50
    known = tmp_path.parent / "scores.json"
    if known.exists():
        assert json.loads(known.read_text()) == list(result)
    known.write_text(json.dumps(list(result)))


def test_scores_of_logits():
    logits = np.asarray([[3.0, 2, 1, 0, 0, 0, 0], [0, 0, 0, 0, 0, 1, 2], [np.nan] * 7])
    one = scoring.score(logits[:2], np.asarray([0, 0]))
    assert (one.top1, one.top5) == (50, 100)
    broken = scoring.score(logits, np.asarray([0, 0, 0]))
    assert broken.top1 == pytest.approx(100 / 3)
    assert broken.loss == np.inf


def test_a_broken_head_is_not_chosen():
    """A rate that makes a head diverge moves no other head, and is not chosen."""
    train = features(64)
    protocol = dataclasses.replace(ATTENTIVE, epochs=3, rates=(10.0, 1e30))
    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    once = lambda *_: scoring.cached_batches(train, protocol.readings(SPACE), 32)
    grid = scoring.Grid(protocol, SPACE, 3, SHAPES, 32, 2, mesh)
    result = scoring.train_heads(grid, scoring.Feed(once, once, once, 64, 64), 0, "x")
    assert result.setting == "patches of block 0, lr 0.125"
    assert result.top1 > 33


# ------------------------------------------------------------------ the cache
@dataclasses.dataclass
class Gray:
    """Images of one shade each, of a size that needs no resizing."""

    count: int = 21
    name = "gray"
    num_classes = 3
    label_name = "shade"
    fingerprint = "gray"

    def __len__(self):
        return self.count

    def image(self, index):
        return Image.new("RGB", (4, 4), (index, index, index))

    def label(self, index):
        return -1 if index == 20 else index % 3


def cache(folder, calls=None, batch_size=8):
    def encode(images):
        if calls is not None:
            calls.append(len(images))
        x = images.astype(jnp.float32)
        return {feature_name(MEAN): x.mean((1, 2)), feature_name(ALL): x.reshape(len(x), 4, 12)}

    view = View((4, 4))
    shapes = {MEAN: (3,), ALL: (4, 12)}
    mesh = sharding.make_mesh(devices=jax.devices()[:2])
    return Cache(folder, encode, shapes, view, Augment(), mesh, 3, batch_size, 2)


def test_a_cache_continues_where_it_was(tmp_path):
    whole = Subset(Gray(), 100)
    read = lambda c: c.read(whole, [MEAN, ALL], {}, "features")
    made = read(cache(tmp_path / "a"))
    np.testing.assert_array_equal(made.read(MEAN)[:, 0], np.arange(20))  # 20 has no label
    np.testing.assert_array_equal(made.labels, np.arange(20) % 3)
    calls = []
    other = cache(tmp_path / "b", calls)
    read(other)
    assert calls == [8, 8, 8]
    # killed in the middle of a row of the second batch
    with open(other.file(ALL), "r+b") as file:
        file.truncate(13 * other.bytes_of(ALL) + 5)
    calls.clear()
    again = read(cache(tmp_path / "b", calls))
    assert calls == [8, 8]
    for reading in (MEAN, ALL):
        np.testing.assert_array_equal(again.read(reading), made.read(reading))
    calls.clear()
    read(cache(tmp_path / "b", calls))
    assert calls == []
    # further readings are computed beside those that are there
    part = cache(tmp_path / "c", calls)
    part.read(whole, [MEAN], {}, "features")
    read(cache(tmp_path / "c", calls))
    assert calls == [8, 8, 8, 8, 8, 8]


def test_a_full_disk_is_one_line_and_keeps_what_is_there(tmp_path, monkeypatch):
    calls = []

    def encode(images):
        calls.append(1)
        if len(calls) > 1:
            raise OSError(errno.ENOSPC, "No space left on device")
        return cache(tmp_path).encode(images)

    broken = dataclasses.replace(cache(tmp_path / "a"), encode=encode)
    whole = Subset(Gray(), 100)
    with pytest.raises(RunError, match=r"No space left on device; the feature cache lacks .* GB"):
        broken.read(whole, [MEAN, ALL], {}, "features")
    assert broken.done(ALL) == 8
    again = cache(tmp_path / "a", calls).read(whole, [MEAN, ALL], {}, "features")
    np.testing.assert_array_equal(again.read(MEAN)[:, 0], np.arange(20))


def test_a_digest_knows_weights_and_preprocessing():
    params = {"a": jnp.arange(3.0), "b": jnp.zeros(2)}
    digest = feature_cache.digest(["view", 1], params)
    assert digest == feature_cache.digest(["view", 1], jax.tree.map(np.asarray, params))
    others = [
        (["view", 2], params),
        (["view", 1], params | {"b": jnp.asarray([0.0, 1e-30])}),
        (["view", 1], {"a": params["a"], "c": params["b"]}),
    ]
    assert len({feature_cache.digest(*x) for x in others} | {digest}) == 4


# ------------------------------------------------------------------ the program
def evaluation(out):
    return json.loads((out / "evaluation.json").read_text())


def test_the_table_and_a_second_start(run, tmp_path):
    out = tmp_path / "table"
    words = [f"--model={run}", f"--output={out}", "--seeds=0,1", "--labels=5", *QUICK]
    made = helpers.answer("evaluate", *words, check=True)
    cells = evaluation(out)["cells"]
    assert [c["row"] for c in cells] == ["pretrained"] * 4 + ["raw_pixels"] * 4
    text = (out / "evaluation.md").read_text()
    assert text in made.stdout
    for part in (
        "| 5 images per class ",
        "| raw pixels ",
        " ± ",
        "What was chosen",
    ):
        assert part in text
    assert "another one may be better (--rates" in text
    few = [c for c in cells if c["protocol"] == "ep"]
    assert {(c["learned"], c["chosen_on"], c["tested"]) for c in few} == {(40, 10, 150)}
    shutil.copytree(out, tmp_path / "copy")
    again = helpers.answer("evaluate", *words, check=True)
    assert f"{len(cells)} of {len(cells)} results are kept" in again.stdout
    assert (out / "evaluation.md").read_text() == text
    # killed between two cells and in the middle of the features
    content = evaluation(out)
    content["cells"] = content["cells"][:3]
    (out / "evaluation.json").write_text(json.dumps(content))
    for file in out.glob("features/*/patches_block_0.f32"):
        file.write_bytes(file.read_bytes()[:-100])
    last = helpers.answer("evaluate", *words, check=True)
    assert f"3 of {len(cells)} results are kept" in last.stdout
    numbers = lambda cells: [{k: v for k, v in c.items() if k != "seconds"} for c in cells]
    assert numbers(evaluation(out)["cells"]) == numbers(cells)
    assert (out / "evaluation.md").read_text() == text
    # other settings: new cells, the ones before are kept beside them
    both = "--protocols=knn", "--count=80", "--seeds=0,1", "--rows=raw_pixels"
    helpers.answer("evaluate", *words[:2], *both, check=True)
    content = evaluation(out)
    assert len(content["cells"]) == 1  # k-NN with all labels depends on no seed
    assert len(content["earlier"]) == len(cells)


def test_augmented_training_images(run, tmp_path):
    words = [f"--model={run}", f"--output={tmp_path / 'a'}", "--protocols=linear", "--augment"]
    words += ["--rows=pretrained", "--epochs=1", "--count=60", "--rates=1,3"]
    made = helpers.answer("evaluate", *words, check=True)
    assert "cropped and mirrored anew" in made.stdout
    assert not (tmp_path / "a/features").exists()
    (cell,) = evaluation(tmp_path / "a")["cells"]
    assert (cell["learned"], cell["chosen_on"], cell["tested"]) == (50, 10, 60)


@pytest.mark.parametrize(
    ("words", "answer"),
    [
        (
            ["--protocols=knn,fine"],
            "--protocols: 'fine'; allowed: knn, linear,",
        ),
        (["--rows=teacher"], "--rows: 'teacher'; allowed: pretrained, untrained, raw_pixels"),
        (["--layers=norm,7"], "--layers: '7'; allowed: norm, -1 to 0"),
        (["--labels=1"], "--labels: 1 keeps 1 of the"),
        (["--labels=0.1%"], "--labels: 0.1% keeps 0 of the"),
        (["--ks=5000", "--count=60"], "--ks: 5000, but there are 60 training images"),
        (["--rates=0"], "--rates: '0'; allowed: numbers above 0"),
        (["--rates=nan"], "--rates: 'nan'; allowed: numbers above 0"),
        (["--epochs=0"], "--epochs: 0; allowed: 1 or more"),
        (["--protocols=knn", "--epochs=3"], "--epochs: no protocol of knn reads it"),
        (["--protocols=knn", "--fine_tune=steps=3"], "--fine_tune: no protocol of knn reads it"),
        ([*TUNE, "--fine_tune=method.no=1"], "--fine_tune: config.method.no: unknown; allowed: "),
        ([*TUNE, "--fine_tune=accum"], "--fine_tune: config.accum: no value; allowed: "),
        ([*TUNE, "--fine_tune=seed=1"], "--fine_tune: seed: the evaluation decides it; allowed: "),
        (
            [*TUNE, "--fine_tune=steps=9", "--epochs=2"],
            "steps: --epochs=2 is given too; allowed: one of them",
        ),
        ([*TUNE, "--fine_tune=batch_size=99", "--count=60"], "99, but 50 labeled images are l"),
        (
            [*TUNE, "--fine_tune=method.mixing.mixup=0.5", "--fine_tune=batch_size=15"],
            "--fine_tune: batch_size: 15 with method.mixing; allowed: even numbers",
        ),
        ([*TUNE, "--rows=raw_pixels"], "--rows: fine-tuned has a number for none"),
        (["--seeds=a"], "--seeds: 'a'"),
        (["--count=-1"], "--count: -1; allowed: 0 (all) or more"),
        (["--source=no_such"], "data.source"),
        (["--source=digits", "--images=x"], "--source: with --images"),
        (["--weights=ema"], "--weights: ema"),
    ],
)
def test_bad_input(run, tmp_path, words, answer):
    out = tmp_path / "none"
    made = helpers.answer("evaluate", f"--model={run}", f"--output={out}", *words, devices=1)
    assert made.returncode == 2, made.stderr
    (line,) = [x for x in made.stderr.splitlines() if x.startswith("error: ")]
    assert answer in line
    assert not out.exists()


def test_images_without_labels_and_classes_that_training_lacks(run, tmp_path):
    draw = lambda path, shade: Image.new("RGB", (8, 8), (shade,) * 3).save(path)
    for split, classes in (("train", ["a", "b"]), ("val", ["a", "b", "c"])):
        for name in classes:
            (tmp_path / "unknown" / split / name).mkdir(parents=True)
            for i in range(3):
                draw(tmp_path / "unknown" / split / name / f"{i}.png", 20 * i)
    (tmp_path / "flat").mkdir()
    for i in range(12):
        draw(tmp_path / "flat" / f"{i}.png", i)
    words = [f"--model={run}", f"--output={tmp_path / 'out'}"]
    for folder, answer in (("unknown", "c"), ("flat", "has no labels")):
        made = helpers.answer("evaluate", *words, f"--images={tmp_path / folder}")
        assert made.returncode == 2, made.stderr
        assert answer in made.stderr.splitlines()[-1]
    assert not (tmp_path / "out").exists()


def test_a_published_file_needs_images_and_a_place(tmp_path):
    save_file({"x": np.zeros(2, np.float32)}, tmp_path / "a.safetensors")
    made = helpers.answer("evaluate", f"--model={tmp_path / 'a.safetensors'}", "--source=digits")
    assert made.returncode == 2
    assert "--output: missing" in made.stderr


def test_published_numbers_stand_beside_imagenet_alone():
    names = ["n01440764", *map(str, range(999))]
    assert published_numbers.is_imagenet(names, 50_000)
    assert not published_numbers.is_imagenet(names, 1000)
    assert published_numbers.of_method("mimjax.methods.mae:MAE", 768)["linear"].top1 == 67.8
    assert published_numbers.of_method("mimjax.methods.mae:MAE", 96) == {}
    assert scores.spread([1.0]) == "1.00"
    assert scores.spread([1.0, 3.0]) == "2.00 ± 1.41"
