"""The evaluator that writes pictures: names, fixed images, tasks of which nothing can be shown."""

import dataclasses
import io

import jax
import jax.numpy as jnp
import numpy as np
from evaluators.evaluator_runs import measures, started, step_later
from PIL import Image

from mimjax.methods.cae import CAE, ENCODER
from mimjax.methods.parts import Term
from mimjax.models.heads import LinearHead
from mimjax.models.regressor import LatentDecoder, Regressor
from mimjax.plots import reconstructions as pictures
from mimjax.targets.own import OwnFeatures
from mimjax.targets.pixels import Pixels
from mimjax.task import TrainState


def test_writes_the_same_images_at_every_step():
    files = {}
    task, mesh, state = started(8)  # three images and five padding rows
    evaluator = measures(task, mesh, write=files.__setitem__, pictures=3)["pictures"]
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
    assert evaluator.painter.predict._cache_size() == 1


def test_class_tokens_make_no_picture():
    task, mesh, state = started()
    own, term = OwnFeatures(of="current"), Term("pixel_target", "decoder", at="cls")
    task = dataclasses.replace(task, pixel_target=own, decoder=LinearHead(), pixel=term)
    state = state.replace(params=jax.jit(task.init)(jax.random.key(0))[0])
    files = {}
    made = measures(task, mesh, write=files.__setitem__)
    assert list(made["pictures"](state, {})) == []
    assert files == {}
    assert made["pictures"].painter.possible is False
    assert "pictures" not in measures(task, mesh, pictures=0)


def test_the_order_of_the_columns_is_kept():
    """CAE with pixels: the paper's Figure 4 beside the reconstruction."""
    files = {}
    _, mesh, _ = started()
    task = CAE(
        encoder=ENCODER.clone(width=16, depth=1, heads=2, patch=2, image_size=(8, 8)),
        code_target=Pixels(),
        regressor=Regressor(depth=1, heads=2),
        decoder=LatentDecoder(depth=1, heads=2),
        code=Term("code_target", "decoder"),
    )
    params, _ = jax.jit(task.init)(jax.random.key(0))
    state = TrainState(jnp.zeros((), jnp.int32), params, {}, {}, {})
    evaluator = measures(task, mesh, write=files.__setitem__, pictures=3)["pictures"]
    list(evaluator(state, {}))
    assert list(files) == ["reconstruction_0000000.png"]
    picture = np.asarray(Image.open(io.BytesIO(files["reconstruction_0000000.png"])))
    size = 8 * 16
    assert picture.shape[1] == 2 * pictures.MARGIN + 4 * (size + pictures.GAP) - pictures.GAP
    assert evaluator.painter.order == ["original", "masked", "reconstruction", "no regressor"]
    top = pictures.MARGIN + pictures.FONT_SIZE + 5
    column = lambda i: picture[top : top + size, pictures.MARGIN + i * (size + pictures.GAP) :]
    original, prediction = column(0)[:, :size], column(2)[:, :size]
    same = (original == prediction).all(-1).mean()
    assert 0.3 < same < 0.9  # visible patches are pasted, masked ones predicted by nobody yet
