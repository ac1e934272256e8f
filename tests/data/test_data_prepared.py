"""The list of the files that a program adds to a folder."""

import os

import pytest

from mimjax.data.prepared import Prepared
from mimjax.task import ConfigError


def test_only_files_of_the_list_may_be_written_again(tmp_path):
    out = tmp_path / "deep/out"
    first = Prepared(str(out))
    first.check("a/1.jpg")
    assert not out.parent.exists()  # nothing is made by looking
    first.add("a/1.jpg", 3)
    out.mkdir()
    (out / "a").mkdir()
    (out / "a/1.jpg").write_bytes(b"123")
    (out / "a/2.jpg").write_bytes(b"mine")
    os.symlink("2.jpg", out / "a/3.jpg")
    second = Prepared(str(out))
    second.check("a/1.jpg")
    second.check("a/4.jpg")
    for name in ("a/2.jpg", "a/3.jpg"):
        with pytest.raises(ConfigError, match=rf"^output: .*{name} was not written by prepare, or"):
            second.check(name)
    (out / "a/1.jpg").write_bytes(b"12")
    with pytest.raises(ConfigError, match=r"1\.jpg .* or was changed since; it is never replaced"):
        Prepared(str(out)).check("a/1.jpg")
    (out / "a/1.jpg").write_bytes(b"123")
    second.add("a/1.jpg", 5)  # listed, then killed before it was written anew
    Prepared(str(out)).check("a/1.jpg")


def test_places(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=r"output: .* is the current folder"):
        Prepared(".")
    far = Prepared("gs://bucket/out")
    far.check("a.jpg")
    far.add("a.jpg", 1)


def test_a_damaged_list_still_says_what_it_can(tmp_path):
    prepared = Prepared(str(tmp_path / "out"))
    (tmp_path / "out").mkdir()
    for name in ("1.jpg", "é.jpg"):
        prepared.add(name, 1)
        (tmp_path / "out" / name).write_bytes(b"x")
    place = tmp_path / ".out.mimjax.jsonl"
    place.write_bytes(b"\xff\n[]\n{}\n" + place.read_bytes() + b'{"file": "2.')
    again = Prepared(str(tmp_path / "out"))
    assert again.listed == {("1.jpg", 1), ("é.jpg", 1)}
    again.check("é.jpg")
    again.add("3.jpg", 3)
    assert ("3.jpg", 3) in Prepared(str(tmp_path / "out")).listed
