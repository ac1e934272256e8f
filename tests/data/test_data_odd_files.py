"""Files as people have them: all modes and states that a folder may hold; channels but three."""

import io
import os
import pickle
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, features

from mimjax.data import Augment, make_source
from mimjax.data.bands import Bands
from mimjax.data.decoding import BadImage, Decoding, decode, load_array, to_uint8
from mimjax.errors import ConfigError
from mimjax.task import View

HEIGHT, WIDTH = 12, 20
RAMP = np.linspace(0, 1, HEIGHT * WIDTH).reshape(HEIGHT, WIDTH)
GRAY = (RAMP * 255).round().astype(np.uint8)
COLOR = np.stack([GRAY, GRAY[::-1], 255 - GRAY], axis=-1)
RGB = Image.fromarray(COLOR)


def encoded(image, kind, **options):
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def turned():
    """An image as a camera on its side writes it: the EXIF block says how to see it upright."""
    exif = Image.Exif()
    exif[0x0112] = 6
    return encoded(RGB.transpose(Image.Transpose.ROTATE_90), "PNG", exif=exif)


def broken_exif():
    return encoded(RGB, "PNG", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff no such block")


DEEP = (RAMP * 65535).round().astype(np.uint16)
OTHER = Image.new("RGB", (WIDTH, HEIGHT), (9, 9, 9))
ALPHA = Image.merge("RGBA", [*RGB.split(), Image.fromarray(GRAY)])
CMYK = Image.fromarray(np.dstack([255 - COLOR, np.zeros_like(GRAY)]), "CMYK")
MASKED = RGB.quantize(32, dither=Image.Dither.NONE)
# file -> its bytes, what is to be seen, and how far off it may be
KINDS = {
    "gray.png": (encoded(Image.fromarray(GRAY), "PNG"), GRAY, 0),
    "gray_alpha.png": (encoded(ALPHA.convert("LA"), "PNG"), np.asarray(RGB.convert("L")), 0),
    "deep.png": (encoded(Image.fromarray(DEEP), "PNG"), GRAY, 1),
    "deep.tif": (encoded(Image.fromarray(DEEP), "TIFF"), GRAY, 1),
    "floats.tiff": (encoded(Image.fromarray(RAMP.astype(np.float32)), "TIFF"), GRAY, 0),
    "alpha.png": (encoded(ALPHA, "PNG"), COLOR, 0),
    "palette.png": (encoded(MASKED, "PNG", transparency=0), MASKED.convert("RGB"), 0),
    "animated.gif": (
        encoded(MASKED, "GIF", save_all=True, append_images=[OTHER, RGB], duration=9),
        MASKED.convert("RGB"),
        0,
    ),
    "cmyk.tif": (encoded(CMYK, "TIFF"), COLOR, 0),
    "cmyk.jpg": (encoded(CMYK, "JPEG", quality=100), COLOR, 12),
    "pages.tif": (encoded(RGB, "TIFF", save_all=True, append_images=[OTHER]), COLOR, 0),
    "bitmap.bmp": (encoded(RGB, "BMP"), COLOR, 0),
    "lossless.webp": (encoded(RGB, "WEBP", lossless=True), COLOR, 0),
    "turned.png": (turned(), COLOR, 0),
    "exif.png": (broken_exif(), COLOR, 0),
    "größe 写真.png": (encoded(RGB, "PNG"), COLOR, 0),
}


@pytest.fixture
def odd(tmp_path):
    """One file of every kind, some reached by links, and one with a name that is no text."""
    elsewhere = tmp_path / "elsewhere"
    folder = tmp_path / "odd"
    elsewhere.mkdir()
    folder.mkdir()
    for name, (data, _, _) in KINDS.items():
        (folder / name).write_bytes(data)
    (elsewhere / "linked.png").write_bytes(KINDS["bitmap.bmp"][0])  # of a wrong extension, too
    (folder / "link.png").symlink_to(elsewhere / "linked.png")
    with open(os.fsencode(folder) + b"/\xff\xfe\t.png", "wb") as file:
        file.write(KINDS["alpha.png"][0])
    return folder


@pytest.mark.skipif(not features.check("webp"), reason="a Pillow without WebP")
def test_every_kind_is_seen_as_it_is(odd):
    sources = [make_source("folder", split, path=str(odd)) for split in ("train", "test")]
    seen = {}
    for source in map(pickle.loads, map(pickle.dumps, sources)):
        for index in range(len(source)):
            image = source.image(index)
            assert image.mode == "RGB"
            seen[source.relative_path(index)] = np.asarray(image).astype(int)
    other = dict.fromkeys(["link.png", os.fsdecode(b"\xff\xfe\t.png")], (b"", COLOR, 0))
    assert seen.keys() == KINDS.keys() | other.keys()
    for name, (_, expected, close) in (KINDS | other).items():
        expected = np.asarray(expected).astype(int)
        expected = expected[..., None] if expected.ndim == 2 else expected
        assert seen[name].shape == (HEIGHT, WIDTH, 3), name
        assert np.abs(seen[name] - expected).max() <= close, name


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "TIFF", "BMP", "WEBP"])
def test_half_a_file_is_none(kind):
    noise = np.random.default_rng(0).integers(256, size=(64, 64, 3), dtype=np.uint8)
    data = encoded(Image.fromarray(noise), kind)
    decode(data, "whole")
    for part in (0, 10, len(data) // 2, len(data) - 200):
        with pytest.raises(BadImage, match=r"^cut: not a readable image") as error:
            decode(data[:part], "cut")
        assert "\n" not in str(error.value)
        assert "0x" not in error.value.reason  # an address would differ from run to run
    again = pickle.loads(pickle.dumps(error.value))  # as a worker process sends it
    assert (str(again), again.path, again.reason) == (str(error.value), "cut", error.value.reason)


def bomb(width, height):
    """A PNG of some bytes that says it is large."""
    data = encoded(Image.new("L", (1, 1)), "PNG")
    head = b"IHDR" + struct.pack(">II", width, height) + data[24:29]
    return data[:12] + head + struct.pack(">I", zlib.crc32(head)) + data[33:]


def test_the_bound_on_pixels_holds_before_decoding(monkeypatch):
    with pytest.raises(BadImage, match=r"20000x10000 pixels; data.max_pixels is 178956970"):
        decode(bomb(20_000, 10_000), "bomb.png")
    with pytest.raises(BadImage, match="decompression bomb"):  # beyond twice that Pillow is first
        decode(bomb(30_000, 30_000), "bomb.png")
    data = encoded(RGB, "PNG")
    with pytest.raises(BadImage, match=r"20x12 pixels; data.max_pixels is 239"):
        decode(data, "a.png", how=Decoding(max_pixels=239))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)  # Pillow's bound does not stand in the way
    assert decode(data, "a.png", how=Decoding(max_pixels=240)).size == (WIDTH, HEIGHT)


def test_values_beyond_8_bits():
    to = lambda values, *limits: to_uint8(np.asarray(values), limits or None).tolist()
    assert to(np.uint8([7, 255])) == [7, 255]
    assert to([False, True]) == [0, 255]
    assert to(np.uint16([255, 256, 65535])) == [0, 1, 255]
    assert to(np.float16([0.0, 0.5, 1.0])) == [0, 128, 255]
    assert to(np.int16([-5, 0, 50, 100, 300]), 0.0, 100.0) == [0, 0, 128, 255, 255]
    assert to(np.float64([-40.0, 10.0]), -40.0, 60.0) == [0, 128]
    for values, message in [
        (np.float32([0, 1.5]), r"floats from 0 to 1.5; allowed: 0 to 1"),
        (np.float32([0, np.nan]), "no numbers"),
        (np.int64([1, 2]), "int64 needs data.value_range"),
    ]:
        with pytest.raises(ValueError, match=message):
            to(values)


def test_three_bands_are_an_rgb_image_bit_for_bit():
    """Any number of channels takes the path that three take, crop, resize and flip."""
    noise = np.random.default_rng(1).integers(256, size=(90, 70, 3), dtype=np.uint8)
    views = {"image": View((24, 32)), "target_image": View((15, 20), "lanczos")}
    image = Image.fromarray(noise)
    for crop in ("random_resized", "fixed", "none"):
        for train in (True, False):
            augment, seeds = Augment(crop=crop, eval_crop=0.8), range(4)
            for seed in seeds:
                whole, parts = (
                    augment(x, views, np.random.default_rng(seed), train)
                    for x in (image, Bands(image.split()))
                )
                for name in views:
                    np.testing.assert_array_equal(whole[name], parts[name])


@pytest.fixture
def arrays(tmp_path):
    """Twelve channels in every way that holds them."""
    values = np.random.default_rng(0).integers(256, size=(10, 14, 12), dtype=np.uint8)
    np.save(tmp_path / "bytes.npy", values)
    np.save(tmp_path / "deep.npy", values.astype(">u2") * 257)
    np.save(tmp_path / "floats.npy", np.asfortranarray(values / 255))
    first, *rest = [Image.fromarray(values[..., i]) for i in range(12)]
    first.save(tmp_path / "pages.tif", save_all=True, append_images=rest)
    return tmp_path, values


def test_twelve_channels(arrays):
    folder, values = arrays
    source = make_source("folder", "train", path=str(folder), test_fraction=0, channels=12)
    assert len(source) == 4
    for index in range(4):
        image = source.image(index)
        assert image.size == (14, 10)
        np.testing.assert_array_equal(np.asarray(image), values, source.relative_path(index))
    out = Augment()(image, {"image": View((8, 6))}, np.random.default_rng(0))
    assert out["image"].shape == (8, 6, 12)
    with pytest.raises(ConfigError, match=r"data.augment.color_jitter: found 0.4"):
        Augment(color_jitter=0.4)(image, {"image": View((8, 6))}, np.random.default_rng(0))
    with pytest.raises(ConfigError, match=r"data.channels: 4, but source 'digits' has 3"):
        make_source("digits", "train", channels=4)
    three = make_source("folder", "train", path=str(folder), test_fraction=0)
    assert [three.relative_path(i) for i in range(len(three))] == ["pages.tif"]


def test_one_and_four_channels(tmp_path):
    np.save(tmp_path / "flat.npy", GRAY)
    for name, (data, _, _) in KINDS.items():
        (tmp_path / name).write_bytes(data)
    one = make_source("folder", "train", path=str(tmp_path), test_fraction=0, channels=1)
    names = [one.relative_path(i) for i in range(len(one))]
    seen = {name: np.asarray(one.image(i)) for i, name in enumerate(names) if name != "pages.tif"}
    assert len(seen) == len(KINDS)
    assert {x.shape for x in seen.values()} == {(HEIGHT, WIDTH, 1)}
    np.testing.assert_array_equal(seen["flat.npy"][..., 0], GRAY)
    np.testing.assert_array_equal(seen["alpha.png"][..., 0], np.asarray(RGB.convert("L")))
    with pytest.raises(BadImage, match=r"2 pages; data.channels is 1"):
        one.image(names.index("pages.tif"))
    four = Decoding(channels=4)
    np.testing.assert_array_equal(decode(KINDS["alpha.png"][0], "a", how=four), ALPHA)
    np.testing.assert_array_equal(decode(KINDS["cmyk.tif"][0], "a", how=four), CMYK)
    with pytest.raises(BadImage, match=r"mode RGB; data.channels is 4"):
        decode(KINDS["bitmap.bmp"][0], "a", how=four)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.zeros((12, 10, 14), np.uint8), r"shape \(12, 10, 14\); allowed: \(h, w, 12\)"),
        (np.zeros((10, 14), np.uint8), r"shape \(10, 14\)"),
        (np.zeros((0, 14, 12), np.uint8), r"shape \(0, 14, 12\)"),
        (np.zeros((101, 100, 12), np.uint8), r"100x101 pixels; data.max_pixels is 10000"),
        (np.full((2, 2, 12), None), "Python objects|Object arrays"),
        (np.full((2, 2, 12), 3.0), r"floats from 3 to 3; allowed: 0 to 1, or data.value_range"),
    ],
)
def test_arrays_that_are_no_images(values, message, tmp_path):
    np.save(tmp_path / "a.npy", values, allow_pickle=True)
    how = Decoding(channels=12, max_pixels=10_000)
    for file in (str(tmp_path / "a.npy"), io.BytesIO((tmp_path / "a.npy").read_bytes())):
        with pytest.raises(BadImage, match=r"^data.path: a.npy: not a readable.*(" + message + ")"):
            load_array(file, "a.npy", "data.path", how)


@pytest.mark.parametrize(
    "options", [{"channels": 0}, {"max_pixels": 0}, {"value_range": (3, 3)}, {"value_range": (1,)}]
)
def test_wrong_settings_name_their_key(options):
    with pytest.raises(ConfigError, match=f"^data.{next(iter(options))}: .*; allowed: "):
        Decoding(**options)
