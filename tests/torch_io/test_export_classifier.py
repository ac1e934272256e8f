"""Classifiers of fine-tuned runs in files of other libraries, and read back with their names."""

import functools

import exports
import helpers
import jax
import numpy as np
import pytest
import stubs

import mimjax
from mimjax.errors import ConfigError
from mimjax.inference.encoders import encode_images
from mimjax.models.conv_vit import ConvViT
from mimjax.models.vit import ViT
from mimjax.programs import export as program
from mimjax.storage.classes import Classes
from mimjax.task import TrainState
from mimjax.torch_io.write import classifier, formats
from mimjax.torch_io.write.export import Export
from mimjax.transfer.attentive_probe import QueryProbe
from mimjax.transfer.fine_tune import FineTune, LinearClassifier
from mimjax.transfer.linear_probe import LinearProbe

NAMES = ("ant", "bee", "cat")
SIZES = {"width": 32, "depth": 2, "heads": 2, "patch": 4, "image_size": (16, 16)}
ENCODERS = {
    "mae": ViT(**SIZES),
    "bootmae": ViT(**SIZES, bias="qv"),
    "beit": ViT(**SIZES, bias="qv", rel_pos="shared", pos_embed="none", layer_scale=0.1),
    "mcmae": ConvViT(32, 1, 2, (8, 16), (1, 1), (2.0, 2.0), (2, 2, 1), (16, 16)),
}
HEADS = {
    "mean": LinearClassifier(),
    "token": LinearClassifier(pool="cls", layer=None, norm=False),
    "own_norm": LinearClassifier(pool="cls", layer=1),
    "first": LinearClassifier(pool="first", layer=None, norm=False),
    "normed": LinearClassifier(layer=None, norm=False),
    "probe": LinearProbe(layer=-1, layer_norm=True),
}
RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (3, 16, 16, 3), np.uint8)


@functools.cache
def run(encoder, head):
    """Task and state of a fine-tuned run whose parameters are none of them trivial."""
    made = FineTune(encoder=ENCODERS[encoder], head=HEADS[head], classes=3)
    params, stats = jax.eval_shape(made.init, jax.random.key(0))
    rng = np.random.default_rng(0)
    center = {"scale": 1.0, "gamma_1": 0.5, "gamma_2": 0.5}

    def draw(path, x):
        values = center.get(path[-1].key, 0.0) + 0.15 * rng.normal(size=x.shape)
        return values.astype(np.float32)

    params = jax.tree_util.tree_map_with_path(draw, params)
    stats = jax.tree.map(lambda x: rng.uniform(0.5, 2.0, x.shape).astype(np.float32), stats)
    return made, TrainState(np.int32(0), params, stats, {}, ())


def export(encoder, head, name, names=NAMES, **options):
    made, state = run(encoder, head)
    arrays = state.params, state.model_state, {}
    params, learned = classifier.of_run(made.classified, *arrays, Classes(3, names))
    return Export(made, params, name, about=exports.ABOUT, head=learned, **options)


def logits(job):
    """The run's logits of the images, by its own network."""
    task, params = job.task, job.params["encoder"]
    head = lambda p: job.head.logits(encode_images(task.encoder, p, IMAGES, task.mean, task.std))
    with jax.default_matmul_precision("highest"):
        return np.asarray(jax.jit(head)(params))


CASES = [
    ("mae", "mean", "timm"),
    ("mae", "token", "timm"),
    ("mae", "normed", "timm"),
    ("mae", "probe", "timm"),
    ("beit", "mean", "timm"),
    ("beit", "normed", "timm"),
    ("mae", "token", "hf"),
    ("mae", "own_norm", "hf"),
    ("mae", "mean", "hf"),  # by BEiT's class, without biases of keys
    ("beit", "mean", "hf"),
    ("bootmae", "token", "hf"),
    ("mae", "mean", "mae"),
    ("bootmae", "own_norm", "bootmae"),
    ("beit", "mean", "beit"),
    ("mcmae", "mean", "convmae"),
    ("mcmae", "first", "convmae"),
    ("mcmae", "mean", "safetensors"),
    ("bootmae", "probe", "safetensors"),
]


KEPT = [CASES[i] for i in (1, 3, 6, 8, 9, 12, 16)]


@pytest.mark.parametrize("case", helpers.gated(CASES, KEPT), ids="-".join)
def test_a_file_classifies_as_the_run(case, tmp_path):
    """Its library's logits are compared when it is written, and ours when it is read back."""
    stubs.replace("torchvision")
    _, _, name = case
    job = export(*case)
    job.check()
    folder = job.kind.folder
    output = str(tmp_path / ("out" if folder else f"out{job.kind.suffixes[0]}"))
    lines = program.write(job, output)
    said = next(x for x in lines if x.startswith("verified: "))
    assert ("logits of timm" in said, "logits of transformers" in said) == (
        name == "timm",
        name == "hf",
    )
    assert float(said.split("| ")[1].split()[0]) < 1e-5
    assert "note: classifies 3 classes: ant, bee, cat" in lines
    model = mimjax.load(output)
    assert model.class_names == NAMES
    ours = logits(job)
    assert np.ptp(ours, axis=0).max() > 0.1
    np.testing.assert_allclose(model.classify(IMAGES), ours, atol=1e-5)
    best = [[name for name, _ in row] for row in model.classify(IMAGES, top=3)]
    assert best == [[NAMES[i] for i in row] for row in np.argsort(-ours)]


def test_a_file_of_timm_alone_says_how_its_head_pools(tmp_path):
    stubs.replace("torchvision")
    for head in ("token", "normed"):
        output = str(tmp_path / f"{head}.safetensors")
        job = export("mae", head, "timm")
        lines = program.write(job, output)
        scope = {}
        exec(f"import timm\n{lines[-1]}", scope)
        assert scope["model"].num_classes == 3
        np.testing.assert_allclose(mimjax.load(output).classify(IMAGES), logits(job), atol=1e-5)
    with pytest.raises(ConfigError, match=r"normed.safetensors says 'avg'; allowed: that, or None"):
        mimjax.load(output, head_pool="token")


def test_the_settings_of_a_folder_name_the_classes():
    timm = export("mae", "mean", "timm").settings()["config.json"]
    assert (timm["num_classes"], timm["label_names"]) == (3, list(NAMES))
    assert timm["model_args"]["global_pool"] == "avg"
    hf = export("mae", "token", "hf").settings()["config.json"]
    assert hf["architectures"] == ["ViTForImageClassification"]
    assert hf["id2label"] == {"0": "ant", "1": "bee", "2": "cat"}
    assert hf["label2id"] == {"ant": 0, "bee": 1, "cat": 2}
    other = export("mae", "mean", "hf", names=None).settings()["config.json"]
    assert other["architectures"] == ["BeitForImageClassification"]
    assert len(other["id2label"]) == 3
    same = export("mae", "mean", "hf", names=("a", "a", "b")).settings()["config.json"]
    assert "label2id" not in same


def test_other_images_than_the_run_s(tmp_path):
    job = export("mae", "mean", "hf", image_size=(24, 24))
    program.write(job, str(tmp_path / "out"))
    assert mimjax.load(tmp_path / "out").image_size == (24, 24)


@pytest.mark.parametrize(
    ("encoder", "head", "name", "options", "text"),
    [
        (
            "mae",
            "normed",
            "hf",
            {},
            "hf has no place for a classifier that reads the mean of",
        ),
        ("mae", "mean", "detectron2", {}, "a norm of the patches' mean; allowed: timm, hf, mae"),
        ("mcmae", "mean", "timm", {}, "not supported .*; allowed: convmae"),
        ("mae", "mean", "timm", {"pool": "avg"}, "--pool: avg with a run that classifies"),
        ("mae", "mean", "mae", {"decoder": True}, "--decoder: True with a run that classifies"),
    ],
)
def test_what_a_format_cannot_hold_is_refused(encoder, head, name, options, text):
    with pytest.raises(ConfigError, match=text) as error:
        export(encoder, head, name, **options)
    assert "\n" not in str(error.value)


def test_a_head_that_no_format_has_is_refused():
    for head, text in (
        (QueryProbe(head_width=16), "the head QueryProbe on patches of the norm of this run is"),
        (LinearClassifier(layer=None), "the head LinearClassifier on mean of the norm of this run"),
    ):
        made = FineTune(encoder=ENCODERS["mae"], head=head, classes=3)
        shapes = jax.eval_shape(made.init, jax.random.key(0))
        state = TrainState(np.int32(0), *shapes, {}, ())
        with pytest.raises(ConfigError, match=text):
            classifier.blank(made.classified, state, {}, None)


def test_the_table_says_where_classifiers_go():
    lines = [line.split("  ", 1) for line in formats.table().splitlines() if "  " in line]
    found = {text: cells.strip() for text, *cells in lines for cells in cells}
    assert (
        found["a norm of the patches' mean"] == "timm, hf, mae, bootmae, beit, convmae, safetensors"
    )
    assert found["the mean of the normed patches"] == "timm, safetensors"
