"""The evaluator that writes reconstructions: names, fixed images, tasks without pixels."""

import dataclasses
import io

import numpy as np
from evaluators.evaluator_runs import evaluators, started, step_later
from PIL import Image

from mimjax import pictures


def test_writes_the_same_images_at_every_step():
    files = {}
    task, mesh, state = started(8)  # three images and five padding rows
    evaluator = evaluators(task, mesh, files.__setitem__, pictures=3)["pictures"]
    for now in (state, step_later(state)):
        assert list(evaluator(now, {})) == []
    assert list(files) == ["reconstruction_0000000.png", "reconstruction_0000010.png"]
    first, second = (np.asarray(Image.open(io.BytesIO(data))) for data in files.values())
    size, top = 8 * 16, pictures.MARGIN + pictures.FONT_SIZE + 5
    third = pictures.MARGIN + 2 * (size + pictures.GAP)
    assert first.shape == second.shape
    rows = slice(top, top + 3 * (size + pictures.GAP) - pictures.GAP)
    np.testing.assert_array_equal(first[rows, :third], second[rows, :third])
    assert (first[rows, third:] != second[rows, third:]).any()
    assert evaluator._predict._cache_size() == 1


def test_tasks_without_pixels_make_no_picture():
    task, mesh, state = started()
    task = dataclasses.replace(task, target="pca", pca_components=12)  # as wide as a patch
    frozen = task.init_frozen(None)
    files = {}
    made = evaluators(task, mesh, files.__setitem__)
    assert list(made["pictures"](state, frozen)) == []
    assert files == {}
    assert "pictures" not in evaluators(task, mesh, pictures=0)
