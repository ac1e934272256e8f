import os

import numpy as np
import pytest

from mimjax.files import Workdir


def test_a_relative_path_is_made_absolute(tmp_path, monkeypatch):
    """What orbax needs: `--workdir=runs/mine` must work."""
    monkeypatch.chdir(tmp_path)
    workdir = Workdir("runs/mine")
    assert os.fspath(workdir.path) == str(tmp_path / "runs" / "mine")
    assert workdir.is_local
    assert not Workdir("gs://bucket/run", writer=False).is_local
    assert os.fspath(Workdir("gs://bucket/run", writer=False).path) == "gs://bucket/run"


def test_a_file_is_whole_or_absent(tmp_path, monkeypatch):
    workdir = Workdir(str(tmp_path))
    workdir.write_text("a.txt", "old")

    def fail(self, *_):
        raise OSError("no space left")

    monkeypatch.setattr(type(workdir.file("x")), "replace", fail)
    with pytest.raises(OSError, match="no space"):
        workdir.write_text("a.txt", "new")
    assert workdir.read_text("a.txt") == "old"


def test_json_lines_end_where_a_crash_cut_them(tmp_path):
    workdir = Workdir(str(tmp_path))
    for step in range(3):
        workdir.append("m.jsonl", f'{{"step": {step}}}')
    with (tmp_path / "m.jsonl").open("a") as f:
        f.write('{"step": 3, "lo')
    assert [r["step"] for r in workdir.read_lines("m.jsonl")[0]] == [0, 1, 2]
    assert workdir.read_lines("none.jsonl") == ([], 0)


def test_only_the_writer_writes(tmp_path):
    reader = Workdir(str(tmp_path / "r"), writer=False)
    reader.write_bytes("x", np.zeros(2).tobytes())
    reader.append("y", "line")
    assert not (tmp_path / "r").exists()
