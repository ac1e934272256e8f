"""Maps of points: where they stand, what color they have, what the legend says."""

import numpy as np

from mimjax.plots import scatter


def corners():
    return np.array([[0.0, 0.0], [4.0, 0.0], [0.0, 4.0], [4.0, 4.0]])


def test_points_stand_where_they_belong_in_the_color_of_their_label():
    sheet = np.asarray(scatter.draw(corners(), labels=np.array([0, 1, 1, -1])))
    first, second = scatter.colors(2)
    low, high = scatter.MARGIN + 30, scatter.MARGIN + scatter.SIDE - 30
    assert tuple(sheet[high, low]) == first  # small coordinates: left, at the bottom
    assert tuple(sheet[high, high]) == tuple(sheet[low, low]) == second
    assert tuple(sheet[low, high]) == scatter.NO_LABEL


def test_thumbnails_are_framed_and_keep_their_shape():
    images = np.full((4, 8, 16, 3), 9, np.uint8)
    sheet = np.asarray(scatter.draw(corners(), thumbnails=images, size=30))
    inside = np.all(sheet == 9, axis=-1)
    assert inside.sum() == 4 * 30 * 15
    assert np.all(sheet == scatter.NO_LABEL, axis=-1).sum() == 4 * (34 * 19 - 30 * 15)


def test_one_scale_for_both_axes_and_points_that_coincide():
    wide = scatter.spread(np.array([[0.0, 0.0], [10.0, 1.0]]))
    np.testing.assert_allclose(wide, [[0, 0.45], [1, 0.55]])
    np.testing.assert_allclose(scatter.spread(np.ones((3, 2))), 0.5)


def test_a_flat_map_is_a_low_picture():
    flat = np.array([[0.0, 0.0], [10.0, 1.0]])
    tall, low = scatter.draw(corners(), caption="a"), scatter.draw(flat, caption="a")
    inner = scatter.SIDE - 60
    assert tall.size[1] - low.size[1] == inner - inner // 10


def test_colors_differ():
    assert len(set(scatter.colors(40))) == 40
