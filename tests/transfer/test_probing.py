"""Probing on the trainer: what is read of a model, exact accuracies, restarts, errors."""

import dataclasses
import functools
import json
import pathlib
import types

import helpers
import jax
import numpy as np
import optax
import pytest
from evaluators import evaluator_runs
from safetensors.numpy import load_file, save_file

import mimjax
from mimjax import schema
from mimjax.data import make_source
from mimjax.data.sources import Synthetic
from mimjax.errors import ConfigError
from mimjax.evaluators.accuracy import Accuracy
from mimjax.evaluators.health import Health
from mimjax.evaluators.probes import Probes
from mimjax.inference.samples import Subset
from mimjax.models.vit import ViT
from mimjax.run import mistakes, setup
from mimjax.storage import confusions
from mimjax.storage.checkpoints import Checkpoints
from mimjax.storage.files import Workdir
from mimjax.task import Clock, TrainState, init_state
from mimjax.train.step import train_step
from mimjax.transfer.attentive_probe import AttentiveProbe, EfficientProbe
from mimjax.transfer.frozen import FrozenEncoder
from mimjax.transfer.linear_probe import LinearProbe
from mimjax.transfer.probing import Probing

ENCODER = ViT(width=16, depth=2, heads=2, patch=2, image_size=(8, 8))
SHORT = ("--config.steps=3", "--config.optimizer.schedule.warmup_steps=1", "--config.log_every=1")
CONSTANT = ("--config.optimizer.schedule=Constant", "--config.optimizer.schedule.warmup_epochs=0.0")


def probe(place, path, *words, recipe="linear_probe", devices=1, check=True):
    config = f"--config=configs/{recipe}.py:demo"
    words = [config, f"--model={path}", *SHORT, *words, f"--workdir={place}"]
    return helpers.answer("train", *words, check=check, devices=devices)


def measured(place):
    """{metric: values in order} of a run's evaluations."""
    rows = [json.loads(r) for r in (pathlib.Path(place) / "metrics.jsonl").read_text().splitlines()]
    names = {k for row in rows for k in row if k.startswith("eval/")}
    return {k: [row[k] for row in rows if k in row] for k in names}


def state_of(place):
    """Parameters and statistics of the newest checkpoint, as numpy arrays."""
    c = json.loads((pathlib.Path(place) / "config.json").read_text())
    task = schema.build(Probing, c["method"], "method")
    like = jax.eval_shape(task.init, jax.random.key(0))
    saved = Checkpoints(Workdir(str(place), writer=False), read_only=True)
    state = TrainState(jax.ShapeDtypeStruct((), np.int32), *like, {}, ())
    state = saved.weights(state, max(saved.steps()))
    return jax.tree.map(np.asarray, (state.params["head"], state.model_state["head"]))


@pytest.fixture(scope="module")
def probed(model, tmp_path_factory):
    place = tmp_path_factory.mktemp("probe")
    return place, probe(place, model).stdout


def test_sizes_heads_and_statistics_come_from_the_run(probed, model):
    place, said = probed
    method = json.loads((place / "config.json").read_text())["method"]
    network = method["encoder"]["network"]
    assert (network["width"], network["heads"], network["image_size"]) == (16, 2, [8, 8])
    assert (method["encoder"]["mean"], method["classes"]) == ([0.4, 0.4, 0.4], 10)
    assert f"encoder: {model}, sha256 " in said
    assert "Picture" not in said
    assert "which of 10 classes an image belongs to" in said
    assert set(measured(place)) == {"eval/accuracy/top1", "eval/accuracy/top5"}
    (file,) = confusions.latest(Workdir(str(place)), 3)
    found = confusions.read(Workdir(str(place)), file)
    assert mistakes.sentence(found) in said
    assert mistakes.sentence(found) in (place / "report.html").read_text()
    for name in (f"tables/{file}", f"pictures/{found.picture}"):
        assert (place / name).exists()
        assert f"{place}/{name}" in said
    right = 100 * np.trace(found.counts) / len(make_source("digits", "test"))
    assert measured(place)["eval/accuracy/top1"][-1] == pytest.approx(right)


def test_accuracy_is_that_of_every_test_image_on_one_and_on_eight_devices(probed, model, tmp_path):
    place, _ = probed
    probe(tmp_path, model, devices=8)
    ours, other = measured(place), measured(tmp_path)
    source = make_source("digits", "test")
    assert len(source) % 8
    head, stats = state_of(place)
    encoder = mimjax.load(model)
    x = encoder.encode([np.asarray(source.image(i)) for i in range(len(source))], "cls")
    norm = stats["batch_norm"]
    x = (x - norm["mean"]) / np.sqrt(norm["var"] + 1e-6)
    logits = x @ head["linear"]["kernel"] + head["linear"]["bias"]
    order = np.argsort(-logits, axis=1, kind="stable")
    labels = np.asarray([source.label(i) for i in range(len(source))])[:, None]
    for name, n in (("eval/accuracy/top1", 1), ("eval/accuracy/top5", 5)):
        right = 100 * (order[:, :n] == labels).any(1).mean()
        assert ours[name][-1] == pytest.approx(right)
        np.testing.assert_allclose(other[name], ours[name], atol=100.1 / len(source))
    # the run as a model, and that as a file in which the BatchNorm is part of the linear layer
    images = [np.asarray(source.image(i)) for i in range(8)]
    run, file = mimjax.load(place), tmp_path / "probe.safetensors"
    assert run.class_names == tuple("0123456789")
    np.testing.assert_allclose(run.classify(images), logits[:8], atol=1e-4)
    np.testing.assert_array_equal(run.encode(images, "cls"), encoder.encode(images, "cls"))
    words = f"--model={place}", "--format=timm", f"--output={file}"
    said = helpers.answer("export", *words, check=True).stdout
    assert "(probing, step 3, online weights)" in said
    read = mimjax.load(file)
    assert read.class_names == run.class_names
    np.testing.assert_allclose(read.classify(images), logits[:8], atol=1e-4)


def test_a_file_of_the_encoder_is_probed_like_the_run(probed, model, tmp_path):
    """Its metadata have no heads: the user gives their number, as for any file."""
    file = tmp_path / "encoder.safetensors"
    words = (f"--model={model}", "--format=timm", f"--output={file}")
    helpers.answer("export", *words, check=True)
    save_file(load_file(file), tmp_path / "bare.safetensors")
    said = probe(tmp_path / "unknown", tmp_path / "bare.safetensors", check=False)
    assert said.returncode == 2
    assert said.stderr.startswith("error: method.encoder.path: ")
    assert "heads" in said.stderr
    assert not (tmp_path / "unknown").exists()
    more = ("--config.method.encoder.heads=2", "--config.method.encoder.mean=(0.4,0.4,0.4)")
    out = probe(tmp_path / "probe", tmp_path / "bare.safetensors", *more)
    assert "from " in out.stdout
    ours, theirs = measured(tmp_path / "probe"), measured(probed[0])
    assert ours == theirs
    near = functools.partial(np.testing.assert_allclose, atol=1e-6)
    jax.tree.map(near, state_of(tmp_path / "probe"), state_of(probed[0]))


@pytest.mark.gate
def test_a_run_that_is_made_longer_is_the_longer_run(model, tmp_path):
    """Parameters, statistics and slots are restored: every number is that of one run."""
    settings = ("--config.method.head.pool=mean", "--config.accum=2", *CONSTANT)
    for place, lengths in (("straight", (4,)), ("parts", (2, 4))):
        for steps in lengths:
            probe(tmp_path / place, model, *settings, f"--config.steps={steps}")
    straight, parts = (state_of(tmp_path / p) for p in ("straight", "parts"))
    jax.tree.map(np.testing.assert_array_equal, straight, parts)
    assert helpers.losses(tmp_path / "straight") == helpers.losses(tmp_path / "parts")


# ------------------------------------------------------------------ without a run
def task(head, **settings):
    encoder = FrozenEncoder(network=ENCODER, **settings)
    return Probing(Clock(4, 8), encoder, head, classes=10)


@functools.cache
def images():
    source = make_source("digits", "test")
    stack = [np.asarray(source.image(i)).reshape(8, 8, -1) for i in range(8)]
    labels = np.asarray([source.label(i) for i in range(8)], np.int32)
    return {"image": np.stack(stack), "label": labels}


def test_micro_batches_change_nothing_without_statistics_of_the_batch():
    made = task(LinearProbe(batch_norm=False, pool="cls_mean", layer=1))
    tx = optax.sgd(1.0)
    state = jax.jit(functools.partial(init_state, task=made, tx=tx))(jax.random.key(0))
    frozen = helpers.frozen(made)
    step = lambda accum: jax.jit(functools.partial(train_step, task=made, tx=tx, accum=accum))
    (one, metrics), (four, split) = (step(a)(state, frozen, images()) for a in (1, 4))
    near = functools.partial(np.testing.assert_allclose, rtol=0, atol=1e-5)
    jax.tree.map(
        near, (four.params, split), (one.params, metrics | {"grad_norm": split["grad_norm"]})
    )
    assert {"loss/class", "train/top1"} <= metrics.keys()


def test_rows_that_do_not_count_enter_no_statistics():
    made = task(AttentiveProbe(official_bn=True))
    params, stats = jax.jit(made.init)(jax.random.key(0))
    params["head"]["query"] = jax.random.normal(jax.random.key(1), (1, 16))
    state = TrainState(0, params, stats, {}, ())
    frozen = helpers.frozen(made)
    whole = {k: v[:4] for k, v in images().items()} | {"weight": np.ones(4, np.float32)}
    padded = images() | {"weight": np.asarray([1, 0, 1, 1, 0, 1, 0, 0], np.float32)}
    at = padded["weight"] > 0
    for key in ("image", "label"):
        padded[key] = np.full_like(images()[key], 99 if key == "image" else 0)
        padded[key][at] = whole[key]
    ours, alone = (jax.jit(made.classify)(state, frozen, batch) for batch in (padded, whole))
    np.testing.assert_allclose(ours[at], alone, atol=1e-5)


def test_accuracy_counts_labels_alone_and_breaks_ties_by_order():
    made = task(LinearProbe())
    params, stats = jax.jit(made.init)(jax.random.key(0))
    frozen = helpers.frozen(made)
    mesh = evaluator_runs.started()[1]
    said, kept = [], []
    hear = {"warn": lambda *x: said.append(x), "keep": lambda *x: kept.append(x)}
    bench = evaluator_runs.bench(made, mesh, max_images=20, **hear)
    measure = Accuracy(top=(1, 3, 30), max_images=50).make(bench)
    state = TrainState(
        jax.numpy.int32(0), jax.tree.map(jax.numpy.zeros_like, params), stats, {}, ()
    )
    # all classes are equally likely: the first ones come first
    split = Subset(bench.test.source, 50)
    labels = split.labels()
    expected = {f"top{n}": pytest.approx(100 * np.mean(labels < n)) for n in (1, 3)}
    assert dict(measure(state, frozen)) == expected
    assert not said
    broken = state.replace(params=jax.tree.map(lambda x: x * np.nan, params))
    assert all(np.isnan(v) for _, v in measure(broken, frozen))
    assert said == [(0, "eval/accuracy is NaN: 50 rows of logits are not finite")]
    assert len(kept) == 1  # and none of what is not finite


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"method.head.layer": 5}, "method.head.layer: 5, and the encoder has 2 blocks; allowed:"),
        ({"method.classes": 9}, "method.classes: 9, but the data have 10; allowed: that, or None"),
        ({"method.classes": 1}, "method.classes: 1; allowed: 2 or more"),
        (
            {"data.source": Synthetic(num_classes=1)},
            "task: mimjax.transfer.probing:Probing learns from labels, but the source 'synthetic' "
            "has one class; allowed: ",
        ),
        (
            {"data.source": Synthetic(num_classes=0)},
            "task: mimjax.transfer.probing:Probing learns from labels, but the source 'synthetic' "
            "has none; allowed: ",
        ),
        ({"eval.health": Health()}, "eval.health: on, but mimjax.transfer.probing:Probing learns"),
        ({"eval.probes": Probes()}, "eval.probes: on, but mimjax.transfer.probing:Probing learns"),
        (
            {"method.encoder.size": (9, 8)},
            "method.encoder.size: 9; allowed: multiples of the patch",
        ),
        (
            {"method.head": EfficientProbe(queries=5)},
            "method.head.queries: 5; allowed: divisors of 16, the width of the values",
        ),
    ],
)
def test_wrong_settings_are_one_line(change, line):
    c = helpers.ALL["linear_probe"].get_config("demo").unlock()
    c.method.encoder.network = schema.section(ENCODER)
    c.method.encoder.network.update(schema.naming(ViT))
    c.method.encoder.path = "random"
    for key, value in change.items():
        *parents, last = key.split(".")
        node = functools.reduce(getattr, parents, c)
        value = schema.section(value) if dataclasses.is_dataclass(value) else value
        del node[last]
        node[last] = value
    with pytest.raises(ConfigError) as error:
        setup.setup(c)
    assert str(error.value).startswith(line)
    assert "\n" not in str(error.value)


def test_classes_of_the_test_images_are_those_of_the_training_images():
    names = lambda *words: types.SimpleNamespace(
        name="a", num_classes=len(words), class_names=words
    )
    setup.check_test(names("cat", "dog"), names("cat", "dog"))
    for other, line in (
        (
            names("cat", "Dog"),
            "data.source: class 'Dog' of the test images is none of the training",
        ),
        (names("dog", "cat"), "data.source: 2 classes in training and 2 in the test images; allow"),
        (names(), "data.source: the test images of 'a' have no labels; allowed: labeled images"),
    ):
        with pytest.raises(ConfigError) as error:
            setup.check_test(names("cat", "dog"), other)
        assert str(error.value).startswith(line)


def test_model_is_for_recipes_that_begin_with_one(model, tmp_path):
    words = (f"--model={model}", f"--workdir={tmp_path / 'new'}")
    for config, more, line in (
        ("mae:demo", (), "mimjax.methods.mae:MAE begins with no trained model; allowed: a transf"),
        ("linear_probe:demo", ("--config.method.encoder.path=random",), "but --config.method."),
    ):
        said = helpers.answer("train", f"--config={config}", *more, *words)
        assert said.returncode == 2
        assert line in said.stderr
    said = helpers.answer("train", "--config=linear_probe:demo", words[1])
    assert "method.encoder.path: none, and " in said.stderr
    assert "allowed: --model=PATH of a workdir" in said.stderr
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("recipe", ["attentive_probe", "linear_probe"])
def test_every_method_and_size_has_a_recipe(recipe):
    config = helpers.ALL[recipe]
    heads = set()
    for method in ("mae", "bootmae", "beit", "cae", "caev2", "mcmae", "mrmae"):
        for size in ("ti", "s", "b", "l", "h"):
            c = config.get_config(f"method={method},size={size}")
            made = schema.make_task(c, Clock(10, 900))
            heads.add(made.head)
            assert c.optimizer.weight_decay == 0
            assert c.epochs in (50, 90)
        assert method in config.__doc__
        schema.make_task(config.get_config(f"method={method},demo"), Clock(10, 600))
    wanted = {"linear_probe": 4, "attentive_probe": 1}  # BootMAE's depends on the size
    assert len(heads) == wanted[recipe]
