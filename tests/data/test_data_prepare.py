"""The program that rewrites a folder to a small short side."""

import io
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mimjax.data import make_source
from mimjax.data.prepare import main, prepare, shrink
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
    sizes = {name: Image.open(path).size for name, path in files.items()}
    assert sizes == {
        "train/a/wide.jpg": (80, 40),
        "train/a/wide.png.jpg": (80, 40),
        "val/b/tall.JPEG": (40, 112),
        "val/b/small.jpg": (30, 20),
        "val/b/small.webp.jpg": (30, 20),
    }
    assert all(Image.open(path).format == "JPEG" for path in files.values())
    small = source / "val/b/small.jpg"
    assert files["val/b/small.jpg"].read_bytes() == small.read_bytes()
    expected = Image.open(source / "train/a/wide.png").resize((80, 40), Image.Resampling.BICUBIC)
    error = np.asarray(Image.open(files["train/a/wide.png.jpg"]), float) - np.asarray(expected)
    assert np.abs(error).mean() < 4

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
        shrink(buffer.getvalue(), "a.jpg", 100, 95, max_pixels=1000)


def test_a_broken_file_is_reported_and_the_rest_written(tree, capsys):
    (tree / "in" / "train" / "a" / "broken.jpg").write_bytes(b"no image")
    argv = [f"--path={tree / 'in'}", f"--output={tree / 'out'}", "--short_side=40"]
    assert main(argv) == 1
    out, err = capsys.readouterr()
    assert "5 written, 0 already there, 1 failed" in out
    assert err.count("\n") == 1
    assert "train/a/broken.jpg: not a readable image" in err
    assert not (tree / "out" / "train" / "a" / "broken.jpg").exists()


def test_errors(tree, capsys):
    folder = str(tree / "in")
    with pytest.raises(ConfigError, match=r"^output: .* lies inside"):
        prepare(folder, folder + "/out")
    with pytest.raises(ConfigError, match=r"^output: .* is the input"):
        prepare(folder, folder + "/")
    with pytest.raises(ConfigError, match=r"^path: '/no/such' is no folder"):
        prepare("/no/such", folder)
    with pytest.raises(ConfigError, match=r"short_side: found 0; allowed: 1 or more"):
        prepare(folder, str(tree / "out"), short_side=0)
    assert main([f"--path={tree / 'none'}", "--output=x"]) == 2
    assert capsys.readouterr().err.startswith("error: path: ")


def test_as_a_program(tree):
    command = [sys.executable, "-m", "mimjax.data.prepare", "--source=folder", "--short_side=16"]
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
