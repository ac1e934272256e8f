"""What the folders of a data set mean: splits, classes, endings; and that all of it is said."""

import os
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from mimjax.data import layout, make_source
from mimjax.data.files import Files
from mimjax.data.folder import EXTENSIONS
from mimjax.data.index import Index, scan
from mimjax.data.sources import check_classes
from mimjax.errors import ConfigError
from mimjax.evaluators.probes import check_labels
from mimjax.inference.samples import Subset


def fill(root, *names):
    """An image at each path; a number of them where the name ends in "*5"."""
    for name in names:
        name, _, count = name.partition("*")
        for n in range(int(count or 1)):
            path = root / (f"{name}/{n}.jpg" if count else name)
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (6, 4), (n, 9, 9)).save(path, "JPEG")
    return root


def folder(root, split="train", **options):
    return make_source("folder", split, path=str(root), **{"test_fraction": 0, **options})


def names(source):
    return [source.relative_path(i) for i in range(len(source))]


# made by the version before there were other names of splits
MARKS = ["61c1a3c0b8e99942", "61c1a3c0b8e99942", "c4f1fad842bd5cb1"]


# ------------------------------------------------------------------ splits
PAIRS = [("Train", "Val"), ("train", "valid"), ("train", "dev"), ("training", "validation")]
PAIRS += [("train", "test"), ("TRAIN", "TEST"), ("train2017", "val2017"), ("training_set", "test")]


@pytest.mark.parametrize(("train", "test"), PAIRS)
def test_splits_go_by_many_names(tmp_path, train, test):
    fill(tmp_path, f"{train}/a*3", f"{train}/b*3", f"{test}/a*2", f"{test}/b*2")
    first, second = folder(tmp_path), folder(tmp_path, "test")
    assert (len(first), len(second)) == (6, 4)
    assert first.class_names == second.class_names == ["a", "b"]
    assert not set(first.notes) ^ {f"training images from '{train}', test images from '{test}'"}
    assert Files(str(tmp_path)).class_names == ["a", "b"]


def test_plain_folders_are_as_they_were(tmp_path):
    """They have the old fingerprint and no note: a run on them continues as before."""
    two = ("train/cats/1.jpg", "train/dogs/2.png", "val/cats/3.jpg")
    for name in ("one/cats/1.jpg", "one/dogs/2.png", "three/1.jpg", "three/below/2.jpg", *two):
        path = tmp_path / (f"two/{name}" if name in two else name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"nine such")
    marks = [folder(tmp_path / name).fingerprint for name in ("one", "two", "three")]
    assert marks == MARKS
    assert folder(tmp_path / "one").notes == []
    assert folder(tmp_path / "one", splits="none").fingerprint == marks[0]


@pytest.mark.parametrize(
    ("files", "text"),
    [
        (["train/a*2", "Train/a*2", "val/a*2"], "'Train', 'train', which name the same split"),
        (["train/a*2", "val/a*2", "valid/a*2"], "'val', 'valid', which name the same split"),
        (["val/a*2"], "'val' and no folder of training images; allowed: .*/val.*splits=none"),
        (["cats*2", "dogs*2", "Test*2"], "'Test' and no folder of training images"),
        (["train*2", "bus*2"], "'train' beside 'bus' and no folder of test images.*splits=none"),
    ],
)
def test_names_that_mean_two_things_are_refused(tmp_path, files, text):
    fill(tmp_path, *files)
    with pytest.raises(ConfigError, match=rf"^data.path: .* holds {text}") as error:
        folder(tmp_path)
    assert "\n" not in str(error.value)
    every = folder(tmp_path, splits="none")
    assert len(every) == len(scan(str(tmp_path), EXTENSIONS).names)
    assert every.class_names == sorted({name.split("/")[0] for name in names(every)})


def test_what_is_not_read_is_said(tmp_path):
    fill(tmp_path, "train/a*2", "val/a*2", "test/a*2", "unlabeled*3", "cover.jpg")
    source = folder(tmp_path)
    assert source.notes == [
        "training images from 'train', test images from 'val'; not read: the folders 'test', "
        "'unlabeled' and 1 image beside them ('cover.jpg')"
    ]
    shutil.rmtree(tmp_path / "val")
    (tmp_path / "val").mkdir()  # an empty folder is no reason to take another one
    with pytest.raises(ConfigError, match=r"no image for split 'test' below '.*/val'"):
        folder(tmp_path, "test")
    for name in ("val", "test", "unlabeled"):
        shutil.rmtree(tmp_path / name)
    (tmp_path / "notes").mkdir()  # holds no image, so that nothing is in doubt
    assert (
        folder(tmp_path)
        .notes[0]
        .startswith("training images from 'train', test images from the same folder, by a hash")
    )
    with pytest.raises(ConfigError, match=r"^data.splits: 'all'; allowed: auto, none"):
        folder(tmp_path, splits="all")


# ------------------------------------------------------------------ classes
def test_a_stray_image_takes_no_label_away(tmp_path):
    root = fill(tmp_path / "images", "cats*5", "dogs*4", "stray.jpg", "two\nlines.jpg")
    note = "2 images lie in no class folder and have no label: 'stray.jpg', 'two\\nlines.jpg'"
    for source in (folder(root), Files(str(root))):
        assert source.class_names == ["cats", "dogs"]
        labels = {source.relative_path(i): source.label(i) for i in range(len(source))}
        assert labels["stray.jpg"] == labels["two\nlines.jpg"] == -1
        assert sorted(labels.values()) == [-1] * 2 + [0] * 5 + [1] * 4
        assert source.notes == [note]
    few = fill(tmp_path / "few", "1.jpg", "2.jpg", "below/3.jpg")
    for source in (folder(few), Files(str(few))):
        assert source.num_classes == 0
        assert source.label(0) == -1
        assert source.notes == ["no labels: 2 images lie in no class folder, 1 in 'below'"]


def test_odd_class_folders(tmp_path):
    fill(tmp_path, "a/deep/er*2", "b.jpg*2", "c*1")
    (tmp_path / "empty/below").mkdir(parents=True)
    (tmp_path / ".hidden").mkdir()
    source = folder(tmp_path)
    assert source.class_names == ["a", "b.jpg", "c", "empty"]
    assert [source.label(i) for i in range(5)] == [0, 0, 1, 1, 2]
    assert source.notes == ["class folders without an image: 'empty'"]


@pytest.mark.parametrize(
    ("val", "note"),
    [
        (["a", "b", "c"], ""),
        (["a", "b"], "class folders of {train} that {val} lacks: 'c'"),
        (
            ["A", "b", " c"],
            "{val} that {train} lacks: ' c' ('c' there: another case or space), 'A'",
        ),
        (
            ["a", "b", "c", "d", "e"],
            "class folders of {val} that {train} lacks: 'd', 'e' (what rea",
        ),
    ],
)
def test_classes_of_both_splits_are_matched_by_name(tmp_path, val, note):
    """Numbers stay the same for both splits; that a class has no partner is said once."""
    fill(tmp_path, *(f"train/{n}*2" for n in "abc"), *(f"val/{n}*1" for n in val))
    (tmp_path / "val/empty").mkdir()
    train, test = folder(tmp_path), folder(tmp_path, "test")
    words = note.format(train=tmp_path / "train", val=tmp_path / "val")
    assert any(words in text for text in train.notes)
    assert not any("lacks" in text for text in test.notes)
    assert train.class_names == test.class_names == sorted({*"abc", *val, "empty"})
    unknown = sorted(set(val) - set("abc"))
    assert bool(train.unmatched) == bool(unknown)
    if unknown:
        with pytest.raises(ConfigError, match=r"^data.path: class folders of .* names$") as error:
            check_classes(train)
        assert all(repr(name) in str(error.value) for name in unknown)
        with pytest.raises(ConfigError, match=r"^data.path: class folders of "):
            check_labels(
                "eval.probes", SimpleNamespace(train=Subset(train, 9), test=Subset(test, 9))
            )
    check_classes(test)


# ------------------------------------------------------------------ endings
def test_all_endings_of_jpeg_are_read_and_the_others_counted(tmp_path):
    fill(tmp_path, "a/1.jpg", "a/2.JPG", "a/3.jfif", "b/4.JFIF", "b/5.jpe", "b/6.jif", "b/7.Tif")
    for name in ("x.heic", "y.HEIC", "notes.txt", "7f3a", "a sentence. With a point"):
        (tmp_path / "a" / name).write_bytes(b"x")
    for name in (".DS_Store", "._1.jpg", ".secret.png", "prepare.json", "Thumbs.db"):
        (tmp_path / "b" / name).write_bytes(b"x")
    source = folder(tmp_path)
    assert [name[2] for name in names(source)] == list("1234567")
    assert np.asarray(source.image(2)).shape == (4, 6, 3)
    assert source.num_classes == 2
    expected = "left out by their endings: 2 .heic, 2 without an ending, 1 .txt, 1 hidden, 1 .db"
    assert sorted(source.notes[0].split(": ")[1].split(", ")) == sorted(
        expected.split(": ")[1].split(", ")
    )
    assert Files(str(tmp_path)).notes[0].startswith("left out by their endings: 2 ")


def test_a_folder_without_images_says_what_it_holds(tmp_path):
    for n in range(12):
        (tmp_path / f"{n}.heic").write_bytes(b"x")
    (tmp_path / "readme.txt").write_bytes(b"x")
    held = r"allowed: files that end in \.bmp.*; left out by their endings: 12 \.heic, 1 \.txt$"
    with pytest.raises(ConfigError, match=r"^data.path: found no image.*" + held):
        folder(tmp_path)
    with pytest.raises(ConfigError, match=r"^--images: no image below.*" + held):
        Files(str(tmp_path))


def test_links_in_circles_and_closed_folders(tmp_path):
    fill(tmp_path, "a/1.jpg")
    (tmp_path / "a/loop.jpg").symlink_to(tmp_path / "a/loop.jpg")
    (tmp_path / "a/loop").symlink_to(tmp_path / "a/loop")
    (tmp_path / "a/back").symlink_to(tmp_path)
    source = folder(tmp_path)
    assert names(source) == ["a/1.jpg", "a/loop.jpg"]
    assert source.notes == ["left out by their endings: 1 without an ending"]
    with pytest.raises(ConfigError, match=r"cannot read .*loop.jpg \(Too many levels"):
        source.image(1)


def test_a_closed_folder_is_one_line(tmp_path, monkeypatch):
    def refuse(path):
        raise PermissionError(13, "Permission denied", path)

    fill(tmp_path, "a/1.jpg")
    monkeypatch.setattr(os, "listdir", refuse)
    with pytest.raises(ConfigError, match=r"^data.path: cannot list .* \(Permission denied\)$"):
        folder(tmp_path)


def test_files_that_older_versions_left_out_are_said(tmp_path):
    """The list of a workdir was made with fewer endings."""
    fill(tmp_path, "1.jpg", "2.jfif")
    old, new = Index(), Index()
    old.files(str(tmp_path), (".jpg",))
    new.files(str(tmp_path), EXTENSIONS)
    assert new.changes(old) == "1 added (2.jfif)"
    assert os.path.basename(str(tmp_path)) not in new.changes(old)


def test_roles():
    known = {"Train": 0, "training": 0, "train2017": 0, "VALID": 1, "dev": 1, "val_images": 1}
    known |= {"test": 2, "evaluation": 2, "test-set": 2, "trains": None, "test1": None, "": None}
    assert {name: layout.role(name) for name in known} == known
