"""Pictures of mistakes: every size of image has a place of a sensible size, long words are cut."""

import numpy as np
import pytest
from PIL import ImageFont

from mimjax.plots import mistakes
from mimjax.plots.reconstructions import png


@pytest.mark.parametrize(
    ("height", "width", "channels", "size"),
    [
        (1, 1, 3, (128, 128)),
        (24, 24, 1, (120, 120)),
        (100, 90, 3, (90, 100)),
        (300, 400, 12, (128, 96)),
        (2, 5000, 3, (126, 42)),  # its middle, three times as wide as high
        (900, 10, 3, (40, 120)),
    ],
)
def test_images_of_all_sizes_fit(height, width, channels, size):
    image = np.zeros((height, width, channels), np.uint8)
    image[height // 2, width // 2] = 255
    tile = mistakes.fitted(image)
    assert tile.size == size
    assert np.asarray(tile).any()


def test_a_picture_holds_each_image_where_its_boxes_say():
    images = [np.full((8, 8, 3), i, np.uint8) for i in range(11)]
    picture, boxes = mistakes.sheet(images, [("a " * 99, "b\n" * 99)] * 11, "words " * 99)
    tiles = mistakes.tiles(png(picture), boxes)
    assert tiles == [png(mistakes.fitted(image)) for image in images]
    assert (np.asarray(picture)[:, -16:] == 255).all()  # no word leaves its place
    for box in ((0, 0, 9999, 1), (3, 0, 3, 1), (-1, 0, 2, 2)):
        with pytest.raises(ValueError, match="outside"):
            mistakes.tiles(png(picture), [box])
    with pytest.raises(ValueError, match="no picture"):
        mistakes.tiles(b"text", boxes)


def test_words_are_cut_to_a_width():
    font = ImageFont.load_default(12)
    assert mistakes.cut("a\nshort  one", font, 128) == "a short one"
    said = mistakes.cut("a long one " * 9, font, 128)
    assert said.startswith("a long one")
    assert said.endswith("…")
    assert 100 < font.getlength(said) <= 128


def test_what_is_not_all_does_not_read_as_all():
    assert [mistakes.percent(x) for x in (0.5, 0.9994, 0.9996, 1.0)] == [
        "50.0 %", "99.9 %", "over 99.9 %", "over 99.9 %",
    ]  # fmt: skip
