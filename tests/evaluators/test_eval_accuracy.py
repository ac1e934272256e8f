"""Accuracy, confusion and mistakes of one pass: counts by numpy, order, pictures, images lost."""

import dataclasses
import io
import json
from typing import ClassVar

import evaluator_runs
import jax
import numpy as np
import pytest
from PIL import Image

from mimjax import sharding
from mimjax.data import make_source
from mimjax.evaluators.accuracy import Accuracy
from mimjax.storage import confusions
from mimjax.storage.files import Workdir
from mimjax.task import Task, TrainState, View

COUNT, UNLABELED = 53, 7  # eight devices divide no such number
# products of whole numbers have no rounding, so that every order of sums gives the same logits
WEIGHTS = np.random.default_rng(0).integers(-3, 4, (192, 10)).astype(np.float32) / 4096


@dataclasses.dataclass(frozen=True)
class Linear(Task):
    """Logits are a product of the pixels; `params` holds the weights."""

    learns_labels: ClassVar[bool] = True

    @property
    def views(self):
        return {"image": View((8, 8))}

    def classify(self, state, frozen, batch):
        x = batch["image"].astype(np.float32).reshape(len(batch["image"]), -1)
        return x @ state.params


class Once:
    """The first digits, of which some have no label and some can be read once only."""

    name, num_classes, label_name, fingerprint = "once", 10, "digit", "0"
    class_names = tuple(f"digit {i}" for i in range(10))

    def __init__(self):
        self.digits, self.read = make_source("digits", "test"), []

    def __len__(self):
        return COUNT

    def image(self, index):
        self.read.append(index)
        if index % 5 == 0 and self.read.count(index) > 1:
            raise OSError("the store is gone")
        return self.digits.image(index)

    def label(self, index):
        return -1 if index == UNLABELED else self.digits.label(index)


def measured(tmp_path, devices, weights=WEIGHTS, **settings):
    """The values, and what was kept, of a pass on some devices."""
    mesh = sharding.make_mesh(devices=jax.devices()[:devices])
    workdir, source = Workdir(str(tmp_path / f"{devices}")), Once()
    bench = evaluator_runs.bench(
        Linear(),
        mesh,
        (source, source),
        batch_size=16,
        write=lambda name, data: workdir.write_bytes(f"pictures/{name}", data),
        keep=lambda name, text: workdir.write_text(f"tables/{name}", text),
    )
    (measure,) = Accuracy(**settings).parts("accuracy", bench).values()
    state = TrainState(jax.numpy.int32(40), jax.numpy.asarray(weights), {}, {}, ())
    values = dict(measure(state, {}))
    (file,) = confusions.latest(workdir, 40)
    return values, confusions.read(workdir, file), workdir


def test_counts_and_mistakes_are_those_of_numpy_on_one_and_on_eight_devices(tmp_path):
    source = Once()
    kept = np.delete(np.arange(COUNT), UNLABELED)
    x = np.stack([np.asarray(source.image(i)).reshape(-1) for i in kept]).astype(np.float32)
    logits, labels = x @ WEIGHTS, np.asarray([source.label(i) for i in kept])
    share = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    predicted = logits.argmax(1)
    counts = np.zeros((10, 10), int)
    np.add.at(counts, (labels, predicted), 1)
    wrong = [i for i in np.argsort(-share.max(1), kind="stable") if predicted[i] != labels[i]]
    assert len(wrong) > 12
    for devices in (1, 8):
        values, found, workdir = measured(tmp_path, devices, mistakes=12)
        np.testing.assert_array_equal(found.counts, counts)
        assert (found.images, found.wrong, found.step) == (len(kept), len(wrong), 40)
        assert values["top1"] == pytest.approx(100 * np.trace(counts) / len(kept))
        got = np.asarray([m[:3] for m in found.mistakes])
        expected = np.stack([kept, labels, predicted], 1)[wrong[:12]]
        np.testing.assert_array_equal(got, expected)
        sure = [m.probability for m in found.mistakes]
        np.testing.assert_allclose(sure, share.max(1)[wrong[:12]], rtol=1e-5)
        assert sure == sorted(sure, reverse=True)
        data = workdir.file(f"pictures/{found.picture}").read_bytes()
        picture = np.asarray(Image.open(io.BytesIO(data)))
        for m in found.mistakes:
            left, top, right, bottom = m.box
            tile = picture[top:bottom, left:right]
            if m.index % 5:  # enlarged sixteen times
                np.testing.assert_array_equal(tile[::16, ::16], source.digits.image(m.index))
            else:
                assert tile.shape == (128, 128, 3)
                assert tuple(tile[0, 0]) == (225, 225, 225)  # an empty place
        assert {m.index % 5 == 0 for m in found.mistakes} == {True, False}


def test_no_picture_where_none_is_wrong_or_none_is_asked_for(tmp_path, monkeypatch):
    _, found, workdir = measured(tmp_path / "none", 1, mistakes=0)
    assert found.wrong > 0
    monkeypatch.setattr(Once, "label", lambda self, index: 0)
    values, right, all_right = measured(tmp_path / "right", 1, np.zeros_like(WEIGHTS))
    assert (right.cells, values["top1"]) == (((0, 0, COUNT),), 100)
    for kept, place in ((found, workdir), (right, all_right)):
        assert kept.mistakes == ()
        assert not place.file("pictures").exists()


@pytest.mark.parametrize(
    "change",
    [
        {"classes": 3},
        {"step": 41},
        {"cells": [[0, 1]]},
        {
            "mistakes": [
                {"index": 1, "true": 0, "predicted": 11, "probability": 0.5, "box": [0] * 4}
            ]
        },
        {"mistakes": [{"index": 1, "true": 0, "predicted": 1, "probability": 7, "box": [0] * 4}]},
        {"mistakes": [{"index": 1}]},
        "{",
    ],
)
def test_a_damaged_file_is_none(tmp_path, change):
    workdir, found = Workdir(str(tmp_path)), confusions.Confusion("a", 40, 10, ((0, 9, 2),))
    good = json.loads(found.to_json())
    text = change if isinstance(change, str) else json.dumps(good | change)
    workdir.write_text("tables/a_0000040.json", found.to_json())
    assert confusions.read(workdir, "a_0000040.json") == found
    workdir.write_text("tables/a_0000040.json", text)
    assert confusions.read(workdir, "a_0000040.json") is None
    # files of steps that the run went back from, and others, are not its last
    workdir.write_text("tables/b_0000041.json", text)
    workdir.write_text("tables/a_0000020.json", text)
    workdir.write_text("tables/mine.json", text)
    assert confusions.latest(workdir, 40) == ["a_0000040.json"]
    assert confusions.latest(workdir, 39) == ["a_0000020.json"]
