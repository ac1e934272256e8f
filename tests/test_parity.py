"""The table of docs/proofs.md says what checks find, and a deviation shows in it."""

import json

import numpy as np
import parity
import pytest
from golden_checks import CHECKS, common, files

ROWS = parity.read()
OWN = {path: files.meta(path) for path in sorted(files.HERE.glob("*.npz"))}
PINNED = files.pinned()
QUICK = ("mae.masking", "beit.interp")  # whose checks compile next to nothing


def test_every_kind_has_a_row():
    assert list(ROWS) == list(CHECKS)
    for kind, row in ROWS.items():
        assert row["here"] == sorted(p.name for p, meta in OWN.items() if meta["kind"] == kind)
        assert set(row["here"]) <= set(row["official"])
        assert row["source"], kind
    for meta in PINNED.values():
        assert set(meta["pinned"]["official"]) <= set(ROWS[meta["kind"]]["official"])


@pytest.mark.parametrize("kind", ROWS)
def test_no_row_exceeds_its_bound(kind):
    row = ROWS[kind]
    assert row["numbers"] > 0
    assert 0 <= row["bound"] <= 1
    assert 0 <= row["deviation"] < 1e-2
    assert bool(row["deviation"]) == bool(row["at"])


@pytest.mark.parametrize("kind", QUICK)
def test_a_row_is_what_the_check_finds(kind):
    paths = [path for path, meta in OWN.items() if meta["kind"] == kind]
    assert [path.name for path in paths] == ROWS[kind]["official"]
    found = parity.measure(kind, paths)
    assert found.numbers == ROWS[kind]["numbers"]
    np.testing.assert_allclose(found.deviation, ROWS[kind]["deviation"], rtol=0.5)


def test_a_comparison_is_measured():
    theirs = np.array([0.0, 2.0, -4.0])
    with parity.watched() as found:
        common.close("close", theirs + np.array([0, 0, 0.002]), theirs, 0.01)
        common.rel("rel", theirs * 1.0001, theirs, 1e-3)
        np.testing.assert_array_equal([1, 2], [1, 2])
    assert (found.numbers, found.at) == (8, "close")
    np.testing.assert_allclose([found.deviation, found.bound], [0.0005, 0.2], rtol=1e-6)


def test_movement_is_measured_where_it_is_compared():
    start, theirs = {"a": np.zeros(4), "b": np.zeros(2)}, {"a": np.ones(4), "b": np.ones(2)}
    ours = {"a": theirs["a"] + [1e-3, 0, 0, 0], "b": theirs["b"] + 5e-5}
    skip = lambda key, size: np.arange(size) > 0  # the first of each is not compared
    with parity.watched() as found:
        common.check_movement("final", ours, theirs, start, skip)
    assert (found.numbers, found.at) == (4, "final/b")
    np.testing.assert_allclose([found.deviation, found.bound], [5e-5, 0.5], rtol=1e-6)


def test_what_a_check_refuses_is_still_refused():
    with pytest.raises(AssertionError, match="wrong"), parity.watched():
        common.close("wrong", np.ones(2), np.zeros(2), 0.5)
    assert np.testing.assert_allclose.__module__.startswith("numpy")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with one official file, and an empty place for the table; writes the file anew."""
    monkeypatch.setenv("MIMJAX_GOLDEN", str(tmp_path))
    monkeypatch.setattr(parity, "FILE", tmp_path / "parity.json")
    monkeypatch.setattr(parity, "git", lambda *words: "" if words[0] == "status" else "abc")
    own = next(path for path, meta in OWN.items() if meta["kind"] == "beit.interp")

    def write(wrong):
        arrays = dict(np.load(own))
        arrays["out/src_coords"] = arrays["out/src_coords"] + wrong
        np.savez(tmp_path / own.name, **arrays)

    return write


@pytest.mark.parametrize("wrong", [0.0, 1e-3])
def test_a_kind_is_written_if_its_files_pass(wrong, folder, capsys):
    folder(wrong)
    with pytest.raises(SystemExit) as end:
        parity.main(["beit.interp"])
    assert bool(end.value.code) == bool(wrong)
    if wrong:
        assert not parity.FILE.exists()
        assert "beit.interp: not written" in capsys.readouterr().out
    else:
        assert json.loads(parity.FILE.read_text())["beit.interp"]["commit"] == "abc"


def test_a_wrong_command_is_refused(folder, monkeypatch):
    folder(0.0)
    with pytest.raises(SystemExit, match=r"mae\.mask: unknown; allowed: mae\.pretrain"):
        parity.main(["mae.mask"])
    monkeypatch.delenv("MIMJAX_GOLDEN")
    with pytest.raises(SystemExit, match="MIMJAX_GOLDEN is not set; allowed"):
        parity.main([])
