"""Which files are opened as images at all: formats, sizes, and none that starts a program."""

import ast
import io
import itertools
import os
import pathlib
import struct
import subprocess
import threading
import zlib

import helpers
import numpy as np
import pytest
from PIL import EpsImagePlugin, Image

from mimjax.data import make_source
from mimjax.data.bad_files import BadFiles
from mimjax.data.decoding import FORMATS, BadImage, Decoding, decode
from mimjax.data.files import Files
from mimjax.data.folder import read_bytes, read_image
from mimjax.data.in_memory import Reader
from mimjax.data.preparation import prepare
from mimjax.data.statistics import statistics
from mimjax.task import View

PHOTO = Image.fromarray(np.random.default_rng(0).integers(256, size=(20, 30, 3), dtype=np.uint8))
EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n(x) show\n%%EOF\n"
OTHERS = {
    "eps": EPS,
    "eps_binary": struct.pack("<IIIIIIIH", 0xC6D3D0C5, 30, len(EPS), 0, 0, 0, 0, 0xFFFF) + EPS,
    "svg": b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"><rect/></svg>',
    "pdf": b"%PDF-1.4\n1 0 obj<</Type/Catalog>>endobj\n%%EOF\n",
    "heic": b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(90),
    "wmf": struct.pack("<IHhhhhHIH", 0x9AC6CDD7, 0, 0, 0, 100, 100, 96, 0, 0) + bytes(40),
    "html": b"<!doctype html><html>not found</html>",
}


def encoded(kind, **options):
    out = io.BytesIO()
    PHOTO.save(out, kind, **options)
    return out.getvalue()


@pytest.fixture
def no_programs(monkeypatch):
    """A machine with Ghostscript, on which no program may be started."""

    def start(*args, **options):
        raise AssertionError(f"an image started a program: {args}")

    monkeypatch.setattr(EpsImagePlugin, "gs_binary", "gs")
    monkeypatch.setattr(EpsImagePlugin, "has_ghostscript", lambda: True)
    for name in ("Popen", "run", "call", "check_call", "check_output"):
        monkeypatch.setattr(subprocess, name, start)
    monkeypatch.setattr(os, "system", start)


@pytest.mark.parametrize("name", [*OTHERS, "ppm", "tga", "ico", "jp2", "pcx"])
def test_other_formats_are_bad_files(name, no_programs):
    kinds = {"jp2": "JPEG2000", "ppm": "PPM", "tga": "TGA", "ico": "ICO", "pcx": "PCX"}
    data = OTHERS.get(name) or encoded(kinds[name])
    with pytest.raises(BadImage, match=r"^a.jpg: not a readable image \(unknown format\)"):
        decode(data, "a.jpg")


def test_the_listed_formats_are_read_whatever_the_name():
    for kind in (*FORMATS, "MPO"):
        image = decode(encoded(kind), "a.jpg")
        assert (image.mode, image.size) == ("RGB", (30, 20)), kind


def test_no_program_opens_what_training_would_not(tmp_path, no_programs):
    """Source, statistics and `mimjax prepare` refuse such a file, and each names it."""
    folder = tmp_path / "in"
    folder.mkdir()
    PHOTO.save(folder / "b.png")
    (folder / "a.jpg").write_bytes(EPS)
    with pytest.raises(BadImage, match=r"^images: .*a.jpg: .*unknown format"):
        Files(str(folder / "a.jpg"), key="images").image(0)
    with pytest.raises(BadImage, match=r"^images: .*a.jpg: .*unknown format"):
        Reader()([folder / "b.png", folder / "a.jpg"], {"image": View((8, 8))})
    with pytest.raises(BadImage, match=r"^images: .*a.jpg: .*unknown format"):
        Reader()(folder, {"image": View((8, 8))})
    source, bad = make_source("folder", "train", path=str(folder), test_fraction=0), BadFiles(0.5)
    assert statistics(source, 9, bad)[2] == 1
    assert bad.paths == {str(folder / "a.jpg")}
    counts, errors = prepare(str(folder), str(tmp_path / "out"), short_side=8)
    assert (counts["written"], counts["failed"]) == (1, 1)
    assert "a.jpg: not a readable image (unknown format)" in errors[0]


def test_images_are_read_two_batches_ahead_of_who_takes_them():
    """A long list needs no more memory than a short one; images keep their order."""
    taken = []

    def endless():
        for n in itertools.count():
            taken.append(n)
            yield np.full((9, 9, 3), n % 251, np.uint8)

    batches = Reader(threads=3).batches(endless(), {"image": View((4, 4))}, 20)
    for number, batch in enumerate(itertools.islice(batches, 6)):
        x = batch["image"]
        assert x.shape == (20, 4, 4, 3)
        np.testing.assert_array_equal(x[:, 0, 0, 0], np.arange(20 * number, 20 * number + 20) % 251)
        assert len(taken) <= 20 * (number + 2)
    threads = threading.active_count()
    batches.close()
    assert threading.active_count() < threads


def test_one_function_opens_all_images():
    """Pillow's `open` is called in `decoding.open_image` and nowhere else in the package."""
    found = []
    for path in sorted((helpers.ROOT / "mimjax").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute) and node.attr in ("open", "imread"):
                owner = ast.unparse(node.value)
                if owner.endswith(("Image", "PIL", "plt", "imageio", "skimage.io", "cv2")):
                    found.append((path.name, owner))
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("PIL"):
                assert "open" not in {alias.name for alias in node.names}, path
    assert found == [("decoding.py", "Image")]


def tiff(*tags):
    """A TIFF of 10 x 10 pixels with these further tags: (number, type, count, value)."""
    usual = [(256, 4, 1, 10), (257, 4, 1, 10), (258, 3, 1, 8), (259, 3, 1, 8), (262, 3, 1, 1)]
    rows = sorted([*usual, (277, 3, 1, 1), *tags])
    head = b"II*\0" + struct.pack("<IH", 8, len(rows))
    return head + b"".join(struct.pack("<HHII", *row) for row in rows) + bytes(300)


def test_a_small_image_with_a_huge_tile_takes_no_memory():
    """40,000 x 40,000 values would be 1.6 GB, for an image of 100 pixels."""
    data = tiff((322, 4, 1, 40_000), (323, 4, 1, 40_000), (324, 4, 1, 200), (325, 4, 1, 50))
    with pytest.raises(BadImage, match=r"40000x40000 pixels; data.max_pixels is 178956970"):
        decode(data, "a.tif")


def test_text_that_unpacks_to_much_is_refused():
    """A PNG whose 3 kB of text are 3 MB."""
    data = encoded("PNG")
    text = b"zTXtcomment\0\0" + zlib.compress(bytes(3_000_000))
    chunk = struct.pack(">I", len(text) - 4) + text + struct.pack(">I", zlib.crc32(text))
    with pytest.raises(BadImage, match="too large"):
        decode(data[:33] + chunk + data[33:], "a.png")


def test_what_is_no_file_or_a_giant_is_not_read(tmp_path):
    os.mkfifo(tmp_path / "pipe.jpg")  # opening one waits for a writer
    with pytest.raises(BadImage, match=r"pipe.jpg: not a readable image \(no regular file\)"):
        read_bytes(str(tmp_path / "pipe.jpg"))
    with open(tmp_path / "giant.jpg", "wb") as file:
        file.truncate(1 << 40)  # on paper alone
    with pytest.raises(BadImage, match=r"1,099,511,627,776 bytes; data.max_pixels allows"):
        read_image(str(tmp_path / "giant.jpg"), "data.path", Decoding())
    PHOTO.save(tmp_path / "a.jpg")
    source = make_source("folder", "train", path=str(tmp_path), test_fraction=0)
    assert [source.relative_path(i) for i in range(len(source))] == ["a.jpg", "giant.jpg"]
    assert source.notes == ["left out by their endings: 1 no regular file"]


def test_an_error_is_one_line_whatever_the_name(tmp_path):
    place = tmp_path / "two\nlines.png"
    for content in (b"", b"words"):
        place.write_bytes(content)
        with pytest.raises(BadImage) as error:
            read_image(str(place), "data.path", Decoding())
        assert "\n" not in str(error.value)
        assert error.value.path == str(place)
    place.unlink()
    with pytest.raises(BadImage, match=r"cannot read .*two\\nlines.png"):
        read_bytes(str(place))
    assert not list(pathlib.Path(tmp_path).iterdir())
