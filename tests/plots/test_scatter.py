"""Maps of points: where they stand, what color they have, what the legend says."""

import numpy as np
import pytest

from mimjax.plots import scatter


def corners():
    return np.array([[0.0, 0.0], [4.0, 0.0], [0.0, 4.0], [4.0, 4.0]])


def inner(sheet):
    """The picture without its margins, in which the points of `corners` lie."""
    return np.asarray(sheet)[scatter.MARGIN :, scatter.MARGIN :][: scatter.SIDE, : scatter.SIDE]


def test_points_stand_where_they_belong_in_the_color_of_their_label():
    sheet = inner(scatter.draw(corners(), labels=np.array([0, 1, 1, -1])))
    first, second = scatter.colors(2)
    low, high = 30, scatter.SIDE - 30
    assert tuple(sheet[high, low]) == first  # small coordinates: left, at the bottom
    assert tuple(sheet[high, high]) == tuple(sheet[low, low]) == second
    assert tuple(sheet[low, high]) == scatter.NO_LABEL


def test_thumbnails_are_framed_and_keep_their_shape():
    images = np.full((4, 8, 16, 3), 9, np.uint8)
    sheet = np.asarray(scatter.draw(corners(), thumbnails=images, size=32))
    inside = np.all(sheet == 9, axis=-1)
    assert inside.sum() == pytest.approx(4 * 32 * 16, rel=0.1)
    frames = 4 * (36 * 20 - 32 * 16)
    assert np.all(sheet == scatter.NO_LABEL, axis=-1).sum() == pytest.approx(frames, rel=0.3)


@pytest.mark.parametrize("flat", [True, False])
def test_one_scale_for_both_axes(flat):
    """A flat map, which is a low picture, and a steep one have it too."""
    points = np.array([[0.0, 0.0], [10.0, 1.0]])
    points = points if flat else points[:, ::-1]
    sheet = np.asarray(scatter.draw(points))
    ys, xs = np.nonzero(np.all(sheet == scatter.NO_LABEL, axis=-1))
    spans = np.ptp(xs) - 2 * scatter.DOT, np.ptp(ys) - 2 * scatter.DOT
    long, short = spans if flat else spans[::-1]
    assert long == pytest.approx(scatter.SIDE - 60, abs=4)
    assert short == pytest.approx(long / 10, abs=4)
    assert (sheet.shape[0] < 300) == flat


def test_points_that_coincide_and_long_legends():
    labels = np.arange(40)
    sheet = scatter.draw(
        np.ones((40, 2)), labels, [f"_$\\x$ {i}" * 9 for i in labels], caption="$\\b$"
    )
    assert sheet.size[0] == scatter.SIDE + 2 * scatter.MARGIN + scatter.LEGEND
    shown = {
        tuple(c) for c in np.asarray(sheet)[:, scatter.SIDE + 2 * scatter.MARGIN :].reshape(-1, 3)
    }
    assert set(scatter.colors(40)[: scatter.MOST_NAMES]) <= shown
    assert scatter.colors(40)[-2] not in shown


def test_colors_differ():
    assert len(set(scatter.colors(40))) == 40
