"""Values beyond 8 bits that do not fill their range: a warning that proposes another one."""

import struct
import warnings
import zlib

import helpers
import numpy as np
import pytest
from PIL import Image

from mimjax.data import make_source, value_range
from mimjax.data.decoding import BadImage, Decoding, decode
from mimjax.data.files import Files
from mimjax.data.in_memory import Reader
from mimjax.data.preparation import prepare
from mimjax.task import View

RAMP = np.linspace(0, 1, 12 * 20).reshape(12, 20)


def gray(bits):
    """Values of so many bits in 16."""
    return (RAMP * (2**bits - 1)).round().astype(np.uint16)


def color_png(x):
    """A PNG of 16-bit colors, uint16 [h w c], which Pillow cannot write."""
    chunk = lambda tag, data: (
        struct.pack(">I", len(data)) + tag + data + struct.pack(">I", zlib.crc32(tag + data))
    )
    kind = {2: 4, 3: 2, 4: 6}[x.shape[2]]
    head = struct.pack(">IIBBBBB", x.shape[1], x.shape[0], 16, kind, 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in x)
    parts = [(b"IHDR", head), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)


@pytest.mark.parametrize("bits", [8, 10, 12, 14])
@pytest.mark.parametrize("kind", ["png", "tif", "color.png"])
def test_the_proposal_shows_what_was_black(tmp_path, bits, kind):
    for n in range(3):
        if kind == "color.png":
            (tmp_path / f"{n}.png").write_bytes(color_png(np.dstack([gray(bits)] * 3)))
        else:
            Image.fromarray(gray(bits)).save(tmp_path / f"{n}.{kind}")
    source = make_source("folder", "train", path=str(tmp_path), test_fraction=0)
    text = value_range.advise(source)
    assert text == (
        f"3 of 3 sampled files hold values beyond 8 bits, from 0 to {2**bits - 1}; read as 0 to "
        f"65535, they come out black or nearly so; data.value_range=(0,{2**bits - 1}) fits them"
    )
    assert np.asarray(source.image(0)).max() < 64
    options = {"value_range": (0, 2**bits - 1), "test_fraction": 0}
    source = make_source("folder", "train", path=str(tmp_path), **options)
    assert value_range.advise(source) == ""
    seen = np.asarray(source.image(0)).astype(int)[..., 1]
    assert np.abs(seen - (RAMP * 255).round()).max() <= 1
    assert "fits them" in value_range.advise(Files(str(tmp_path)))


def test_what_fits_is_not_spoken_of(tmp_path):
    plain = tmp_path / "plain"
    plain.mkdir()
    Image.fromarray(np.zeros((9, 9, 3), np.uint8)).save(plain / "black.png")
    Image.fromarray(gray(16)).save(plain / "a.png")
    Image.fromarray(gray(12)).save(plain / "b.png")  # some of them are dark
    Image.fromarray(RAMP.astype(np.float32)).save(plain / "c.tiff")
    (plain / "broken.png").write_bytes(b"no image")
    assert value_range.advise(Files(str(plain))) == ""
    assert value_range.advise(make_source("synthetic", "train")) == ""


def test_other_ranges():
    say = lambda x, *limits: value_range.advice(
        [np.asarray(x)], Decoding(value_range=limits or None)
    )
    assert "read as 0 to 1, they come out black or nearly so; data.value_range=(0,0.05)" in say(
        np.float32([[0, 0.05]])
    )
    assert "data.value_range=(-1024,3071)" in say(np.int32([[-1024, 3071]]))  # as of a CT
    assert "values outside are clipped; data.value_range=(0,131071)" in say(np.int32([[0, 70000]]))
    assert "clipped; data.value_range=(0,65535)" in say([[60000] * 20 + [9]], 0, 4095)
    assert say([[0, 500, 4000]], 100, 1000) == ""  # a window that somebody chose
    assert say([[0, 0]]) == ""


def test_colors_of_16_bits_keep_them(tmp_path):
    x = np.random.default_rng(0).integers(0, 1024, (6, 9, 4)).astype(np.uint16)
    for channels in (3, 4):
        how = Decoding(channels=channels, value_range=(0, 1023))
        found = np.asarray(decode(color_png(x[..., :channels]), "a.png", how=how)).astype(int)
        np.testing.assert_allclose(found, x[..., :channels] / 1023 * 255, atol=0.51)
    with pytest.raises(BadImage, match="gray with alpha of 16 bits"):
        decode(color_png(x[..., :2]), "a.png", how=Decoding(value_range=(0, 1023)))
    decode(color_png(x[..., :2]), "a.png")
    (tmp_path / "a.png").write_bytes(color_png(x[..., :2] * 4))
    assert "data.value_range=(0,4095)" in value_range.advise(Files(str(tmp_path)))


def test_programs_and_the_interface_say_it(tmp_path, capsys):
    folder = tmp_path / "in"
    folder.mkdir()
    Image.fromarray(gray(12)).save(folder / "a.png")
    helpers.program("stats", f"--images={folder}")
    assert "WARNING: 1 of 1 sampled files hold values beyond 8 bits" in capsys.readouterr().out
    said = []
    prepare(str(folder), str(tmp_path / "out"), 6, say=said.append)
    assert said[-1].endswith("--value_range=(0,4095) fits them")
    args = [f"--path={folder}", f"--output={tmp_path / 'fit'}", "--short_side=6"]
    helpers.program("prepare", *args, "--value_range=(0,4095)")
    assert np.asarray(Image.open(tmp_path / "fit/a.png.jpg")).max() > 240
    view = {"image": View((8, 8))}
    for given in (str(folder / "a.png"), Image.open(folder / "a.png")):
        with pytest.warns(UserWarning, match=r"data.value_range=\(0,4095\) fits them"):
            Reader()([given], view)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Reader(how=Decoding(value_range=(0, 4095)))([str(folder / "a.png")], view)
        Reader()([np.zeros((9, 9, 3), np.uint8)], view)
