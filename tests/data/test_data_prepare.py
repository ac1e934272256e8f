"""The program that rewrites a folder to a small short side."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import helpers
import numpy as np
import pytest
from PIL import Image

from mimjax.data import make_source
from mimjax.data.decoding import Decoding, decode
from mimjax.data.preparation import output_names, prepare, shrink
from mimjax.task import ConfigError

ROOT = Path(__file__).parents[2]


@pytest.fixture
def tree(tmp_path):
    def write(name, size):
        path = tmp_path / "in" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        y, x = np.mgrid[: size[1], : size[0]] % 256
        Image.fromarray(np.stack([x, y, x], -1).astype(np.uint8)).save(path)

    write("train/a/wide.jpg", (200, 100))
    write("train/a/wide.png", (200, 100))
    write("val/b/tall.JPEG", (50, 140))
    write("val/b/small.jpg", (30, 20))
    write("val/b/small.webp", (30, 20))
    return tmp_path


def test_tree_sizes_and_second_run(tree):
    source, output = tree / "in", tree / "out"
    counts, errors = prepare(str(source), str(output), short_side=40)
    assert (dict(counts), errors) == ({"written": 5}, [])
    files = {str(p.relative_to(output)): p for p in output.rglob("*") if p.is_file()}
    assert json.loads(files.pop("prepare.json").read_text())["short_side"] == 40
    sizes = {name: Image.open(path).size for name, path in files.items()}
    assert sizes == {
        "train/a/wide.jpg": (80, 40),
        "train/a/wide.png.jpg": (80, 40),
        "val/b/tall.JPEG": (40, 112),
        "val/b/small.jpg": (30, 20),
        "val/b/small.webp": (30, 20),
    }
    assert {
        n: Image.open(p).format for n, p in files.items() if Image.open(p).format != "JPEG"
    } == {"val/b/small.webp": "WEBP"}
    for name in ("val/b/small.jpg", "val/b/small.webp"):
        assert files[name].read_bytes() == (source / name).read_bytes()
    expected = Image.open(source / "train/a/wide.png").resize((80, 40), Image.Resampling.BICUBIC)
    error = np.asarray(Image.open(files["train/a/wide.png.jpg"]), float) - np.asarray(expected)
    assert np.abs(error).mean() < 2  # 4:4:4; with half the color resolution 3.4

    files["train/a/wide.jpg"].unlink()
    times = {name: path.stat().st_mtime_ns for name, path in files.items() if path.exists()}
    counts, _ = prepare(str(source), str(output), short_side=40)
    assert dict(counts) == {"written": 1, "skipped": 4}
    assert all(files[name].stat().st_mtime_ns == t for name, t in times.items())
    for split in ("train", "test"):
        before, after = (make_source("folder", split, path=str(p)) for p in (source, output))
        assert before.class_names == after.class_names
        assert len(before) == len(after)


def test_large_jpegs_are_decoded_smaller_and_look_the_same(tree):
    y, x = np.mgrid[:1200, :1603] / 90
    waves = np.stack([np.sin(x) * np.cos(y), np.sin(x + y), np.cos(x - y)], axis=-1)
    image = Image.fromarray((127 + 60 * waves).astype(np.uint8))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=95)
    small = Image.open(io.BytesIO(shrink(buffer.getvalue(), "a.jpg", 100, 95)))
    expected = image.resize(small.size, Image.Resampling.BICUBIC)
    assert small.size == (134, 100)
    assert np.abs(np.asarray(small).astype(float) - np.asarray(expected)).mean() < 3
    with pytest.raises(ConfigError, match=r"1603x1200 pixels; data.max_pixels is 1000"):
        shrink(buffer.getvalue(), "a.jpg", 100, 95, Decoding(max_pixels=1000))


def stripes(side):
    """Columns of red and blue, the worst case for half the color resolution."""
    out = np.zeros((side, side, 3), np.uint8)
    out[:, ::2], out[:, 1::2] = (220, 30, 30), (30, 30, 220)
    return out


def test_small_lossless_files_stay_and_large_ones_keep_their_colors():
    for kind in ("PNG", "BMP", "TIFF", "GIF"):
        buffer = io.BytesIO()
        Image.fromarray(stripes(32)).save(buffer, kind)
        assert shrink(buffer.getvalue(), f"a.{kind.lower()}", 32, 95) == buffer.getvalue()
    large = Image.fromarray(stripes(32)).resize((256, 256), Image.Resampling.NEAREST)
    buffer = io.BytesIO()
    large.save(buffer, "PNG")
    small = np.asarray(decode(shrink(buffer.getvalue(), "a.png", 32, 95), "a")).astype(int)
    expected = np.asarray(large.resize((32, 32), Image.Resampling.BICUBIC)).astype(int)
    assert np.abs(small - expected).mean() < 5


def test_other_settings_are_refused_and_changed_sources_made_anew(tree, capsys):
    source, output = tree / "in", tree / "out"
    prepare(str(source), str(output), short_side=40)
    files = lambda: {p: p.read_bytes() for p in output.rglob("*") if p.is_file()}
    before = files()
    for options, text in (
        ({"short_side": 20}, r"^short_side: 20, but the images in .*out were made with 40"),
        ({"short_side": 40, "quality": 50}, r"^quality: 50, but the images in .* made with 95"),
    ):
        with pytest.raises(ConfigError, match=text):
            prepare(str(source), str(output), **options)
    with pytest.raises(ConfigError, match=r"^path: .*/in/val', but the images in .* made with"):
        prepare(str(source / "val"), str(output), short_side=40)
    assert files() == before
    changed = source / "train/a/wide.jpg"  # overwritten by an older file, as `cp -p` does it
    Image.new("RGB", (200, 100), (9, 200, 9)).save(changed)
    os.utime(changed, ns=(0, 10**18))
    (source / "val/b/small.jpg").unlink()
    helpers.program("prepare", f"--path={source}", f"--output={output}", "--short_side=40")
    out = capsys.readouterr().out
    assert "1 written, 3 already there, 0 failed" in out
    assert "1 images that this source does not make, left as they are:\n  val/b/small.jpg\n" in out
    assert np.asarray(Image.open(output / "train/a/wide.jpg"))[0, 0, 1] > 150
    assert (output / "val/b/small.jpg").exists()


def test_files_of_the_user_are_not_replaced(tree, capsys):
    """Kept are files that came into the output later, and files of ours that were changed there."""
    source, output = tree / "in", tree / "out"
    (source / "train/a/wide.jpg").rename(tree / "later.jpg")
    prepare(str(source), str(output), short_side=40)
    (tree / "later.jpg").rename(source / "train/a/wide.jpg")
    for name in ("train/a/wide.jpg", "val/b/tall.JPEG"):
        (output / name).write_bytes(b"mine")
    with pytest.raises(SystemExit, match="1"):
        helpers.program("prepare", f"--path={source}", f"--output={output}", "--short_side=40")
    out, err = capsys.readouterr()
    assert "0 written, 3 already there, 2 failed" in out
    assert err.count("was not written by prepare, or was changed since; it is never replaced") == 2
    assert (output / "train/a/wide.jpg").read_bytes() == b"mine"
    assert (output / "val/b/tall.JPEG").read_bytes() == b"mine"


def test_a_folder_of_unknown_settings_is_left_alone(tree):
    with pytest.raises(ConfigError, match=r"^output: .*/val holds images and no prepare.json"):
        prepare(str(tree / "in/train"), str(tree / "in/val"))
    (tree / "out").mkdir()
    (tree / "out/prepare.json").write_text("{")
    with pytest.raises(ConfigError, match=r"^output: .*prepare.json is damaged"):
        prepare(str(tree / "in"), str(tree / "out"))
    (tree / "file").write_text("text")
    with pytest.raises(ConfigError, match=r"^output: .*file is a file"):
        prepare(str(tree / "in"), str(tree / "file"))


def test_no_two_files_get_one_name(tmp_path):
    names = output_names(["a.png", "a.png.jpg", "b.jfif", "b.PNG"])
    assert names == {
        "a.png": "a.png.2.jpg",
        "a.png.jpg": "a.png.jpg",
        "b.jfif": "b.jfif",
        "b.PNG": "b.PNG.jpg",
    }
    (tmp_path / "in").mkdir()
    for name in ("a.png", "a.png.jpg"):
        Image.new("RGB", (40, 30)).save(tmp_path / "in" / name)
    (tmp_path / "in/c.heic").write_bytes(b"x")
    said = []
    counts, _ = prepare(str(tmp_path / "in"), str(tmp_path / "out"), 8, say=said.append)
    assert counts == {"written": 2}
    assert said == [f"{tmp_path / 'in'}: left out by their endings: 1 .heic"]


def test_a_broken_file_is_reported_and_the_rest_written(tree, capsys):
    (tree / "in" / "train" / "a" / "broken.jpg").write_bytes(b"no image")
    argv = [f"--path={tree / 'in'}", f"--output={tree / 'out'}", "--short_side=40"]
    with pytest.raises(SystemExit, match="1"):
        helpers.program("prepare", *argv)
    out, err = capsys.readouterr()
    assert "5 written, 0 already there, 1 failed" in out
    assert err.count("\n") == 1
    assert "train/a/broken.jpg: not a readable image" in err
    assert not (tree / "out" / "train" / "a" / "broken.jpg").exists()


def test_errors(tree):
    folder = str(tree / "in")
    with pytest.raises(ConfigError, match=r"^output: .* lies inside"):
        prepare(folder, folder + "/out")
    with pytest.raises(ConfigError, match=r"^output: .* is the input"):
        prepare(folder, folder + "/")
    with pytest.raises(ConfigError, match=r"^path: '/no/such' is no folder"):
        prepare("/no/such", folder)
    with pytest.raises(ConfigError, match=r"short_side: found 0; allowed: 1 or more"):
        prepare(folder, str(tree / "out"), short_side=0)
    with pytest.raises(ConfigError, match=r"^path: "):
        helpers.program("prepare", f"--path={tree / 'none'}", "--output=x")


def test_as_a_program(tree):
    command = [
        sys.executable,
        "-m",
        "mimjax",
        "prepare",
        "--source=folder",
        "--short_side=16",
    ]
    env = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    run = subprocess.run(
        [*command, f"--path={tree / 'in'}", f"--output={tree / 'out'}"],
        env=env,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    assert "5 written" in run.stdout
    assert run.stderr == ""
