"""Bad files: what stands in for them, who is told, when it is too much; and the index of files."""

import os
import pickle
import shutil

import helpers
import numpy as np
import pytest
from PIL import Image

from mimjax.data import Augment, Pipeline, eval_batches, index, make_source
from mimjax.data import bad_files as bad_files_module
from mimjax.data import prefetch as prefetch_module
from mimjax.data.bad_files import BadFiles
from mimjax.data.decoding import BadImage
from mimjax.data.folder import EXTENSIONS
from mimjax.data.index import Index, scan
from mimjax.errors import ConfigError
from mimjax.storage.files import Workdir
from mimjax.task import View

VIEWS = {"image": View((8, 12))}
COUNT, BROKEN = 40, (3, 17, 18, 31)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Forty images, the color of each its number; four are broken in different ways."""
    root = tmp_path_factory.mktemp("images")
    for n in range(COUNT):
        place = root / "ab"[n % 2] / f"{n:02}.png"
        place.parent.mkdir(exist_ok=True)
        Image.new("RGB", (14, 10), (n, n, n)).save(place)
    (root / "b/03.png").write_bytes(b"no image")
    (root / "b/17.png").write_bytes((root / "b/17.png").read_bytes()[:40])
    (root / "a/18.png").unlink()
    (root / "a/18.png").symlink_to(root / "nowhere")
    (root / "b/31.png").write_bytes(b"")
    return root


def source_of(folder, **options):
    return make_source("folder", "train", path=str(folder), test_fraction=0, **options)


def make(folder, fraction=0.5, batch_size=8):
    pipeline = Pipeline(source_of(folder), VIEWS, Augment(), None, batch_size, 3)
    pipeline.bad_files = BadFiles(fraction)
    return pipeline


def joined(batches):
    batches = list(batches)
    return {k: np.concatenate([b[k] for b in batches]) for k in batches[0]}


def assert_same(a, b):
    assert a.keys() == b.keys()
    for key in a:
        np.testing.assert_array_equal(a[key], b[key], err_msg=key)


def number(pipeline, place):
    return int(pipeline.source.relative_path(place)[2:4])


def test_others_stand_in_and_no_other_row_changes(folder, tmp_path):
    """All rows but those of the bad files are what they would be if these were good."""
    pipeline = make(folder)
    mended = tmp_path / "mended"
    shutil.copytree(folder, mended, symlinks=True)
    for n in BROKEN:
        place = mended / "ab"[n % 2] / f"{n:02}.png"
        place.unlink()
        Image.new("RGB", (14, 10), (n, n, n)).save(place)
    whole = joined(make(mended).batch(s) for s in range(10))
    batch = joined(pipeline.batch(s) for s in range(10))
    assert set(batch) == {"image", "label", "index"}
    good = np.asarray([number(pipeline, i) not in BROKEN for i in whole["index"]])
    assert (~good).sum() == 8  # four files in two epochs
    for key in batch:
        np.testing.assert_array_equal(batch[key][good], whole[key][good])
    for image, place, label in zip(batch["image"], batch["index"], batch["label"]):
        n = number(pipeline, place)  # index and label are those of what stands in
        assert n not in BROKEN
        assert (image == n).all()
        assert label == n % 2
    stand_ins = batch["index"][~good]
    assert len(set(stand_ins)) > 2  # drawn for each file and epoch anew


@pytest.mark.parametrize("workers", [0, helpers.gate(2)])
def test_hosts_workers_and_restarts_change_nothing(folder, workers, monkeypatch):
    monkeypatch.setattr(prefetch_module, "PIECE_ROWS", 3)
    straight = [make(folder).batch(s) for s in range(10)]
    pipeline = make(folder)
    with pipeline.iterate(0, 10, workers=workers, threads=3) as batches:
        for batch, expected in zip(batches, straight, strict=True):
            assert_same(batch, expected)
    names = {os.path.basename(path) for path in pipeline.bad_files.paths}
    assert names == {f"{n:02}.png" for n in BROKEN}
    assert pipeline.bad_files.counts() == {"bad_files": 4}
    if not workers:
        again = make(folder)
        for rows in (slice(0, 3), slice(3, 8)):
            for step, batch in enumerate(again.iterate(6, 10, rows=rows), 6):
                assert_same(batch, {k: v[rows] for k, v in straight[step].items()})


def test_without_a_fraction_the_first_bad_file_is_an_error(folder):
    with pytest.raises(BadImage, match=r"^data.path: .*png: not a readable image|cannot read"):
        list(make(folder, fraction=0.0).iterate(0, 10))
    assert len(pickle.dumps(make(folder))) < 3000  # what workers get


def test_the_list_goes_on_after_a_restart(folder, tmp_path):
    lists = []
    for stops in ([10], [2, 10], [4, 3, 10]):  # the last one died behind its checkpoint
        workdir, start, said = tmp_path / str(stops), 0, []
        for stop in stops:
            pipeline = make(folder)
            pipeline.bad_files.open(Workdir(str(workdir)), "bad_files.txt", said.append)
            list(pipeline.iterate(start if stop > start else 2, stop))
            start = stop
        lists.append((workdir / "bad_files.txt").read_text())
        assert len(said) == 4  # each once
    assert lists[0] == lists[1] == lists[2]
    rows = dict(line.split("\t") for line in lists[0].splitlines())
    assert {os.path.relpath(path, folder) for path in rows} == {
        f"{'ab'[n % 2]}/{n:02}.png" for n in BROKEN
    }
    assert rows[f"{folder}/b/03.png"] == "unknown format"
    assert rows[f"{folder}/a/18.png"] == "cannot read: No such file or directory"
    assert rows[f"{folder}/b/31.png"] == "empty file"


def test_too_many_stop_the_run(folder, tmp_path):
    pipeline = make(folder, fraction=0.08)  # 3 of 40
    pipeline.bad_files.open(Workdir(str(tmp_path)), "bad_files.txt", lambda text: None)
    batches = pipeline.iterate(0, 5, threads=1)
    with pytest.raises(ConfigError) as error:
        list(batches)
    text = str(error.value)
    assert text.startswith("data.max_bad_fraction: 4 of ")
    assert "allowed: 0.08 of 40 files" in text
    assert str(tmp_path / "bad_files.txt") in text
    assert "\n" not in text
    assert len((tmp_path / "bad_files.txt").read_text().splitlines()) == 4
    list(make(folder, fraction=0.1).iterate(0, 5))  # 4 of 40: none too many
    with pytest.raises(ConfigError, match=r"max_bad_fraction: 51 files drawn at random"):
        bad_files_module.readable(_Nothing(), range(51), True)


class _Nothing:
    def image(self, index):
        raise BadImage("gone", "gone", "gone")


@pytest.mark.parametrize(
    ("bad", "seen", "total", "stops"),
    [
        (1, 1, 5, False),  # one is always allowed
        (2, 5, 5, True),
        (10, 12, 10**6, False),  # 1 % of the first thousand
        (11, 12, 10**6, True),
        (11, 1200, 10**6, False),
        (13, 1200, 10**6, True),
    ],
)
def test_the_rule(bad, seen, total, stops):
    judge = lambda: BadFiles(0.01).judge(bad, seen, total, ["p", "r"])
    if stops:
        with pytest.raises(ConfigError, match=rf"^data.max_bad_fraction: {bad} of "):
            judge()
    else:
        judge()


@pytest.mark.parametrize("fraction", [-0.1, 1.0])
def test_wrong_fraction(fraction):
    with pytest.raises(ConfigError, match=rf"^data.max_bad_fraction: {fraction}; allowed"):
        BadFiles(fraction)


def test_a_remote_list_is_complete_in_the_end(folder, tmp_path, monkeypatch):
    """The list is written as a whole, not at every file."""
    workdir, writes = Workdir(str(tmp_path)), []
    workdir.is_local = False
    monkeypatch.setattr(
        Workdir, "write_bytes", lambda self, name, data: writes.append(data.decode())
    )
    pipeline = make(folder)
    pipeline.bad_files.open(workdir, "bad_files.txt", lambda text: None)
    list(pipeline.iterate(0, 10, threads=1))
    assert len(writes[-1].splitlines()) == 4
    assert len(writes) <= 2


def test_names_cannot_break_the_list(tmp_path):
    list_ = BadFiles(0.5)
    said = []
    list_.open(Workdir(str(tmp_path)), "bad_files.txt", said.append)
    list_.add([["a\tb\nc\udcff.png", "why"]])
    list_.add([["a\tb\nc\udcff.png", "why"]])
    assert (tmp_path / "bad_files.txt").read_bytes() == b"a\\tb\\nc\xff.png\twhy\n"
    assert said == ["skipped a bad file: a\\tb\\nc\\udcff.png (why)"]


def test_evaluation_gives_bad_files_no_weight(folder):
    source, list_ = source_of(folder), BadFiles(0.5)
    batch = joined(eval_batches(source, VIEWS, 16, None, 0, bad_files=list_))
    numbers = [int(source.relative_path(i)[2:4]) for i in range(COUNT)]
    expected = [float(n not in BROKEN) for n in numbers] + [0.0] * 8
    assert batch["weight"].tolist() == expected
    for image, place in zip(batch["image"], batch["index"]):
        assert (image == numbers[place]).all()
    assert len(list_.paths) == 4
    with pytest.raises(BadImage):
        joined(eval_batches(source, VIEWS, 16, None, 0))


# ------------------------------------------------------------------ the index
@pytest.fixture
def tree(tmp_path):
    root = tmp_path / "tree"
    for name in ("a/1.jpg", "a/2.png", "b/ü.png", "b/deep/4.gif", "b/notes.txt"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"x" * 10)
    with open(os.fsencode(root) + b"/\xff.png", "wb") as file:
        file.write(b"y")
    return root


def test_the_index_comes_back_and_tells_what_changed(tree, monkeypatch):
    def listed():
        new = Index()
        new.files(str(tree), EXTENSIONS)
        return new

    first = listed()
    kept = Index.from_bytes(first.to_bytes())
    assert kept.listings == first.listings
    assert len(kept.files(str(tree), EXTENSIONS).names) == 5
    monkeypatch.setattr(index, "CHUNK", 2)  # many threads list the same
    assert listed().changes(kept) == ""
    (tree / "a/0.jpg").write_bytes(b"x")
    (tree / "a/2.png").unlink()
    (tree / "a/1.jpg").write_bytes(b"xx")
    os.utime(tree / "b/ü.png", ns=(0, 5))  # overwritten in place: no folder's time changes
    assert listed().changes(kept) == (
        "1 added (a/0.jpg), 1 removed (a/2.png), 1 of another size (a/1.jpg), "
        "1 of the same size written again (b/ü.png)"
    )
    assert Index.from_bytes(b"half a file") is None
    assert Index(kept).files(str(tree), EXTENSIONS) == kept.files(str(tree), EXTENSIONS)


def test_a_folder_that_cannot_be_listed(tree, monkeypatch):
    def refuse(path):
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(ConfigError, match=r"^data.path: cannot list .*tree \(Permission denied\)"):
        scan(str(tree), EXTENSIONS)


def test_one_listing_serves_both_splits(folder, monkeypatch):
    shared = Index()
    splits = [make_source("folder", s, path=str(folder), index=shared) for s in ("train", "test")]
    monkeypatch.setattr(index, "scan", None)  # a second listing would fail
    again = make_source("folder", "train", path=str(folder), index=shared)
    assert again.fingerprint == splits[0].fingerprint
    assert len(splits[0]) + len(splits[1]) == COUNT
