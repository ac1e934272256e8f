"""A workdir on a store that cannot append, rename or lock: the restart test on it.

The store is a folder behind `epath`, whose paths refuse these three. Everything of ours goes
through it: config, metrics, log, lock, pictures, report. Orbax is told that it is a `gs://` path,
so that it commits checkpoints as it does there, by a file and without a rename. What is not shown:
the network, tensorstore's own `gs://` driver (here it writes the folder), a store's latency.
"""

import os
import pathlib
import shutil
import sys

import helpers
import jax
import numpy as np
import pytest
from etils import epath
from etils.epath import gpath
from orbax.checkpoint._src.path import gcs_utils
from train import inside

from mimjax.evaluators.pictures import Pictures
from mimjax.schema import section
from mimjax.storage.files import Workdir

ROOT = {}


def place(part):
    """Where a path of the store lies in reality."""
    text = os.fspath(part)
    return f"{ROOT['folder']}/{text.removeprefix('shop://')}" if "://" in text else text


@epath.register_path_cls("shop://")
class ShopPath(gpath.PosixGPath):
    """A path of the store; its operations are those of an object store."""

    refused: list = []

    if sys.version_info < (3, 12):

        def __new__(cls, *parts):
            return super().__new__(cls, *map(place, parts))

    else:

        def __init__(self, *parts):
            super().__init__(*map(place, parts))

    def open(self, mode="r", *args, **kwargs):
        if "a" in mode or "+" in mode or "x" in mode:
            self.refuse(f"open with mode {mode!r}")
        return super().open(mode, *args, **kwargs)

    def rename(self, target):
        self.refuse("rename")

    def replace(self, target):
        self.refuse("replace")

    def refuse(self, what):
        self.refused.append(what)
        raise OSError(f"{self}: this store knows no {what}")


@pytest.fixture
def shop(monkeypatch, tmp_path):
    ROOT["folder"] = str(tmp_path)
    ShopPath.refused.clear()
    real = gcs_utils.is_gcs_path
    like_gs = lambda path: isinstance(path, ShopPath) or real(path)
    monkeypatch.setattr(gcs_utils, "is_gcs_path", like_gs)
    inside.quick(monkeypatch)
    return tmp_path


def test_the_store_refuses_what_it_should(shop):
    path = epath.Path("shop://bucket") / "a.txt"
    path.parent.mkdir()
    path.write_text("x")
    assert (shop / "bucket" / "a.txt").read_text() == "x"
    for refused in (
        lambda: path.open("a"),
        lambda: path.rename("shop://b"),
        lambda: path.replace("c"),
    ):
        with pytest.raises(OSError, match="this store knows no"):
            refused()


def test_files_on_it(shop):
    workdir = Workdir("shop://bucket/run")
    assert not workdir.is_local
    for step in range(3):
        workdir.append("m.jsonl", f'{{"step": {step}}}')
    assert [r["step"] for r in workdir.read_lines("m.jsonl")[0]] == [0, 1, 2]
    workdir.write_bytes("deep/er/file", b"1")
    workdir.write_bytes("broken/deep/old", b"2")
    assert workdir.move_aside("deep", "broken/deep") == "broken/deep_2"
    assert (shop / "bucket/run/broken/deep_2/er/file").read_bytes() == b"1"
    assert not (shop / "bucket/run/deep").exists()
    assert (shop / "bucket/run/broken/deep/old").read_bytes() == b"2"  # nothing is replaced
    workdir.remove("m.jsonl")
    workdir.remove("m.jsonl")
    assert workdir.read_text("m.jsonl") == ""
    assert ShopPath.refused == []


@pytest.mark.gate
def test_restart_on_it(shop):
    """A run killed in mid-save, whose last checkpoint is broken, ends like one without all that."""
    settings = {"steps": 8, "checkpoint_every": 2, "log_every": 1, "optimizer.lr": 1e-3}
    settings |= {"method.encoder.drop_path": 0.1, "keep_checkpoints": 3}
    settings |= {"eval.pictures": section(Pictures(count=2))}
    c = helpers.small("mae", **inside.TINY, **settings)
    whole = inside.go(c, shop / "whole")[1]

    def interrupt(run):
        write = run.log.write

        def fail(step, values):
            write(step, values)
            if step == 7:
                raise KeyboardInterrupt

        run.log.write = fail

    with pytest.raises(KeyboardInterrupt):
        inside.go(c, "shop://bucket/run", interrupt)
    folder = shop / "bucket" / "run"
    assert (folder / "checkpoints/6/commit_success.txt").exists()
    # what a kill leaves of a save where no rename marks its end: a folder without the commit file
    shutil.copytree(folder / "checkpoints/6", folder / "checkpoints/8")
    (folder / "checkpoints/8/commit_success.txt").unlink()
    break_arrays(folder / "checkpoints" / "6")
    _, state = inside.go(c, "shop://bucket/run")
    inside.assert_same(state, whole)
    assert helpers.losses(folder) == helpers.losses(shop / "whole")
    said = (folder / "train.log").read_text()
    assert "checkpoint 6 cannot be read" in said
    assert "continued from step 4" in said
    assert (folder / "broken" / "6").is_dir()
    assert "data:image/png;base64," in (folder / "report.html").read_text()
    assert not (folder / "run.lock").exists()
    assert ShopPath.refused == []
    a, b = (helpers.final_params(w, c) for w in ("shop://bucket/run", shop / "whole"))
    jax.tree.map(np.testing.assert_array_equal, a, b)


def break_arrays(checkpoint: pathlib.Path):
    arrays = [p for p in checkpoint.rglob("*") if p.is_file() and "/d/" in str(p)]
    assert arrays
    for file in arrays:
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
