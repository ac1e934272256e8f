"""Sheets of captioned columns: every image in its place, names, captions, channels."""

import io

import numpy as np
import pytest
from PIL import Image

from mimjax.plots import reconstructions


@pytest.mark.parametrize(("count", "rows", "blocks"), [(1, 1, 1), (3, 3, 1), (5, 3, 2)])
def test_sheet_holds_every_image_enlarged(count, rows, blocks):
    images = np.random.default_rng(0).integers(0, 256, (count, 8, 8, 3), dtype=np.uint8)
    sheet = np.asarray(reconstructions.draw({"a": images, "b": images}, "a caption " * 30))
    size, gap, margin = 128, reconstructions.GAP, reconstructions.MARGIN
    block = 2 * size + gap
    assert sheet.shape[1] == 2 * margin + blocks * block + (blocks - 1) * 2 * margin
    top = margin + reconstructions.FONT_SIZE + 5
    for i, image in enumerate(images):
        y, x = top + i // blocks * (size + gap), margin + i % blocks * (block + 2 * margin)
        tile = sheet[y : y + size, x + size + gap : x + block]
        np.testing.assert_array_equal(tile, image.repeat(16, 0).repeat(16, 1))
    below = sheet[top + rows * (size + gap) :]
    assert (below < 200).any()  # the caption
    assert (sheet[:, :margin] == 255).all()
    assert (sheet[:, -margin:] == 255).all()


def test_large_images_keep_their_size_and_names_are_drawn():
    images = np.zeros((1, 224, 200, 3), np.uint8)
    sheet = reconstructions.draw({"original": images})
    assert sheet.size == (200 + 2 * 16, 224 + 2 * 16 + 19)
    assert (np.asarray(sheet)[16:34] < 200).any()
    data = reconstructions.png(sheet)
    assert Image.open(io.BytesIO(data)).size == sheet.size


@pytest.mark.parametrize(
    ("channels", "note"), [(1, ""), (2, "Shown: channel 0 of 2."), (12, "0, 1 and 2 of 12.")]
)
def test_channels_that_no_screen_shows(channels, note, monkeypatch):
    images = np.random.default_rng(0).integers(0, 256, (1, 8, 8, channels), dtype=np.uint8)
    said, wrap = [], reconstructions.wrap
    monkeypatch.setattr(
        reconstructions, "wrap", lambda text, *a: said.append(text) or wrap(text, *a)
    )
    # columns may differ in their channels: a teacher's latents are always drawn as three
    sheet = np.asarray(reconstructions.draw({"original": images, "teacher": images[..., :1]}))
    top, left = reconstructions.MARGIN + reconstructions.FONT_SIZE + 5, reconstructions.MARGIN
    tile = sheet[top : top + reconstructions.TILE : 16, left : left + reconstructions.TILE : 16]
    expected = images[0, ..., :3] if channels > 2 else images[0, ..., :1].repeat(3, -1)
    np.testing.assert_array_equal(tile, expected)
    assert said[0].endswith(note)
    assert bool(said[0]) == bool(note)
