"""Golden files: where they are looked for, and what keeps a pinned one from being written."""

import json
import os

import helpers
import numpy as np
import pin
import pytest
from faults import FAULTS
from golden_checks import files, recording

KIND = "mcmae.posinterp"  # of no network: its check takes no time


@pytest.fixture
def official(tmp_path, monkeypatch):
    """A folder with one official file and an empty place for pinned ones; writes the file anew."""
    monkeypatch.setattr(files, "PINNED", tmp_path / "pinned")
    monkeypatch.setenv("MIMJAX_GOLDEN", str(tmp_path))

    def write(wrong=0.0):
        arrays, meta = pin.make(KIND)
        arrays["out/pos_0"][0, 0, 0] += wrong
        np.savez(tmp_path / "mcmae_posinterp.npz", meta=json.dumps(meta), **arrays)

    write()
    return write


def test_a_pinned_file_names_the_commit_and_the_official_files(official):
    pin.pin(KIND, "abc")
    ((path, meta),) = files.pinned().items()
    assert path.name == f"{KIND}.npz"
    assert meta["pinned"] == {"commit": "abc", "official": ["mcmae_posinterp.npz"]}


@pytest.mark.parametrize(
    "reason", ["the official file fails", "there is none", "the pinned one is too large"]
)
def test_nothing_is_written_when(reason, official, tmp_path, monkeypatch):
    if reason == "the official file fails":
        official(wrong=1e-4)
    elif reason == "there is none":
        monkeypatch.setattr(files, "official", dict)
    else:
        monkeypatch.setattr(pin, "LIMIT", 1000)
    with pytest.raises((AssertionError, ValueError)):
        pin.pin(KIND, "abc")
    assert not list(tmp_path.glob("pinned/*"))


def test_folders_are_named_as_in_path(official, tmp_path, monkeypatch):
    other = tmp_path / "other"
    other.mkdir()
    monkeypatch.setenv("MIMJAX_GOLDEN", f"{tmp_path}{os.pathsep}{other}")
    with pytest.raises(ValueError, match=f"MIMJAX_GOLDEN: no .npz file in {other}"):
        files.official()
    (other / "again.npz").write_bytes((tmp_path / "mcmae_posinterp.npz").read_bytes())
    assert [p.name for p in files.official()] == ["mcmae_posinterp.npz", "again.npz"]
    monkeypatch.delenv("MIMJAX_GOLDEN")
    assert files.folders() == [files.HERE]


def test_a_check_says_where_its_numbers_belong():
    def check(z, meta):
        recording.common.close("x", np.arange(6.0).reshape(3, 2), z["out/x"].T[1:], 1e-6)
        np.testing.assert_array_equal([7, 8], z["out/ids"])
        recording.common.rel("rate", [0.5], meta["rates"], 1e-6)

    meta, shapes = {}, {"out/x": (2, 4), "out/ids": (2,), "meta/rates": (1,)}
    found = recording.record(check, meta, {"in/x": np.ones(1)}, shapes)
    np.testing.assert_array_equal(found["out/x"], [[np.nan, 0, 2, 4], [np.nan, 1, 3, 5]])
    assert found["out/ids"].dtype == np.int64
    assert meta == {"rates": [0.5]}
    assert found.keys() == {"in/x", "out/x", "out/ids"}
    with pytest.raises(ValueError, match="out/y: the check compares nothing with it"):
        recording.record(check, {}, {}, shapes | {"out/y": (1,)})


def test_every_fault_can_be_put_into_the_code():
    """The text that tests/mutations.py replaces stands once in its file, as the code is today."""
    for fault in FAULTS:
        assert (helpers.ROOT / fault.file).read_text().count(fault.old) == 1, fault.name
