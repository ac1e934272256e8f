"""The sources: splits, labels, fingerprints, cheap pickling and one-line errors."""

import importlib.util
import io
import math
import pickle
from collections import Counter

import numpy as np
import pytest
from etils import epath
from PIL import Image

from mimjax import plugs
from mimjax.data import SourceConfig, digits, make_source
from mimjax.data.bundled import PICTURES, TRAIN_WIDTH
from mimjax.data.decoding import decode
from mimjax.data.folder import EXTENSIONS, hash_split
from mimjax.data.index import _sorted, _stat_remote, _walk_remote, scan
from mimjax.data.sources import class_names, find_source, short_name
from mimjax.task import ConfigError


def write_image(path, color=(200, 30, 90), size=(20, 12), **save):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, color).save(path, **save)


@pytest.fixture
def tree(tmp_path):
    """Two classes, several depths and formats, and files that are no images."""
    for n in range(12):
        write_image(tmp_path / "cats" / f"{n:02}.jpg", (n, 0, 0))
        write_image(tmp_path / "dogs" / "deep" / f"{n:02}.png", (0, n, 0))
    write_image(tmp_path / "dogs" / "UPPER.JPEG")
    write_image(tmp_path / "dogs" / "web.webp")
    write_image(tmp_path / "dogs" / "map.bmp")
    (tmp_path / "cats" / "notes.txt").write_text("no image")
    (tmp_path / "cats" / "._00.jpg").write_text("a file that macOS leaves")
    return tmp_path


def arrays(source, indices=None):
    indices = range(len(source)) if indices is None else indices
    return [np.asarray(source.image(i)) for i in indices]


ALWAYS = [("digits", {}), ("photos", {}), ("synthetic", {"side": 16, "length": 50})]
ALWAYS += [("shifted_digits", {"part": "b"})]
SUMS = [12821, 18192, 15429]  # of the pixels of three images


@pytest.mark.parametrize(("name", "options"), ALWAYS)
@pytest.mark.parametrize("split", ["train", "test"])
def test_protocol_determinism_and_pickle(name, options, split):
    source = make_source(name, split, **options)
    assert source.name == name
    source.image(0)  # loads what is loaded lazily
    packed = pickle.dumps(source)
    assert len(packed) < 1000
    other = pickle.loads(packed)
    assert other.fingerprint == source.fingerprint
    assert len(other) == len(source)
    for index in (0, 7, len(source) - 1):
        image = source.image(index)
        assert image.mode == "RGB"
        np.testing.assert_array_equal(np.asarray(image), np.asarray(other.image(index)))
        assert 0 <= source.label(index) < source.num_classes
    assert len(class_names(source)) == source.num_classes


@pytest.mark.parametrize(("name", "options"), ALWAYS)
def test_fingerprint_tells_splits_apart(name, options):
    train, test = (make_source(name, split, **options) for split in ("train", "test"))
    assert train.fingerprint != test.fingerprint
    assert int(train.fingerprint, 16) >= 0


def test_digits_are_sklearns_split_per_class():
    from sklearn.datasets import load_digits

    train, test = make_source("digits", "train"), make_source("digits", "test")
    assert len(train) + len(test) == 1797
    values, labels = load_digits(return_X_y=True)
    known = {tuple(np.rint(v * 255 / 16).astype(int)): l for v, l in zip(values, labels)}
    assert len(known) == 1797  # no two alike, so the pictures tell whether the splits are disjoint
    seen = set()
    for source in (train, test):
        counts = np.zeros(10)
        for index in range(len(source)):
            pixels = np.asarray(source.image(index))
            assert (pixels[..., :1] == pixels).all()
            key = tuple(pixels[..., 0].ravel().astype(int))
            assert known[key] == source.label(index)
            seen.add(key)
            counts[source.label(index)] += 1
        share = counts / np.bincount(labels)
        np.testing.assert_allclose(share, 0.8 if source is train else 0.2, atol=0.01)
    assert len(seen) == 1797


def test_shifted_digits_are_split_by_scan_and_rendered_when_read(monkeypatch):
    renderings, render = [], digits.render
    monkeypatch.setattr(digits, "render", lambda *args: renderings.append(1) or render(*args))
    labels = digits.scans("a test")[1]
    seen, marks = [], set()
    for split, part, scans, times in (
        ("train", "a", 1300, 6),
        ("test", "a", 248, 4),
        ("test", "b", 249, 4),
    ):
        source = make_source("shifted_digits", split, part=part, channels=1)
        assert len(source) == scans * times
        assert [source.label(i) for i in range(scans)] == labels[source._data[2]].tolist()
        assert source.label(scans + 1) == source.label(1)
        seen += source._data[2].tolist()
        marks.add(source.fingerprint)
    assert sorted(seen) == list(range(1797))
    assert (len(marks), renderings) == (3, [])
    gray, color = source.image(scans), make_source("shifted_digits", "test", part="b").image(scans)
    assert (len(gray.bands), gray.size, color.mode) == (1, (24, 24), "RGB")
    assert (np.asarray(gray) == np.asarray(color)).all()
    assert not (np.asarray(gray) == np.asarray(source.image(0))).all()  # the same scan again
    source.image(scans)
    assert len(renderings) == 3
    with pytest.raises(IndexError):
        source.image(len(source))


class Draws:
    """A generator that draws the numbers that it was given."""

    def __init__(self, *numbers):
        self.numbers = list(numbers)

    def uniform(self, low, high):
        return self.numbers.pop(0)


def test_shifted_digits_follow_their_recipe():
    """Size, turn, stretch and shift in this order, and what a fixed seed gives."""
    scan = digits.scans("a test")[0][5] / 16
    made = lambda *draws: digits.render(scan, Draws(*draws)).astype(int)
    plain = made(16.0, 0.0, 0.0, 0.0, 0.0)
    means = plain[4:20, 4:20].reshape(8, 2, 8, 2).mean((1, 3)) / 255
    assert np.abs(means - scan).mean() < 0.05  # 2x2 pixels for each of the scan
    assert max(plain[:3].max(), plain[:, :3].max()) < 10  # the spline overshoots a little
    np.testing.assert_array_equal(
        made(16.0, 0.0, 0.0, 3.0, -2.0)[1:19, 6:22], plain[3:21, 3:19]
    )  # right and up
    np.testing.assert_array_equal(made(16.0, 90.0, 0.0, 0.0, 0.0), np.rot90(plain, -1))  # clockwise
    wide = made(16.0, 0.0, math.log(1.5), 0.0, 0.0)
    extent = lambda x: [np.ptp(np.flatnonzero(x.max(axis) > 99)) + 1 for axis in (0, 1)]
    assert [a > b for a, b in zip(extent(wide), extent(plain))] == [True, False]
    source = make_source("shifted_digits", "train", channels=1)
    sums = [int(np.asarray(source.image(i)).sum(dtype=int)) for i in (0, 1300, 7799)]
    np.testing.assert_allclose(sums, SUMS, atol=9)  # of one version of SciPy


def test_photos_regions_of_train_and_test_are_disjoint():
    train, test = make_source("photos", "train"), make_source("photos", "test")
    assert (len(train), len(test)) == (2000, 400)
    assert train.num_classes == test.num_classes == len(PICTURES)
    for source in (train, test):
        for index in range(0, len(source), 7):
            left, top, right, bottom = source.box(index)
            width, height = source._picture(source.label(index)).size
            assert 0 <= left < right <= width
            assert 0 <= top < bottom <= height
            assert 0.7 < (right - left) / (bottom - top) < 1.4
            cut = round(TRAIN_WIDTH * width)
            assert right <= cut if source is train else left >= cut
    assert len({train.box(12 * n) for n in range(20)}) == 20
    assert np.asarray(train.image(0)).std() > 10


def test_photos_without_scikit_image(monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "skimage" else find(name)
    )
    with pytest.raises(ConfigError, match=r"^data.source: .*pip install 'mimjax\[demo\]'$"):
        make_source("photos", "train")


def test_synthetic_labels_change_the_image():
    source = make_source("synthetic", "train", length=9, num_classes=3, side=24)
    assert [source.label(i) for i in range(5)] == [0, 1, 2, 0, 1]
    assert source.image(0).size == (24, 24)
    pixels = np.stack(arrays(source)).astype(float)
    assert pixels.std() > 20
    assert np.abs(np.diff(pixels, axis=2)).mean() < 25  # smooth
    unlabeled = make_source("synthetic", "train", length=9, num_classes=0, side=24)
    assert unlabeled.label(4) == -1
    with pytest.raises(IndexError):
        source.image(9)


def test_folder_labels_files_and_hash_split(tree):
    train = make_source("folder", "train", path=str(tree), test_fraction=0.3)
    test = make_source("folder", "test", path=str(tree), test_fraction=0.3)
    paths = [[s.relative_path(i) for i in range(len(s))] for s in (train, test)]
    assert len(train) + len(test) == 27
    assert not set(paths[0]) & set(paths[1])
    assert paths[0] == sorted(paths[0])
    for source, names in zip((train, test), paths):
        assert source.num_classes == 2
        assert source.class_names == ["cats", "dogs"]
        assert [source.label(i) for i in range(len(names))] == [
            ["cats", "dogs"].index(name.split("/")[0]) for name in names
        ]
    index = next(i for i, name in enumerate(paths[0]) if name.endswith(".png"))
    expected = np.asarray(Image.open(tree / paths[0][index]).convert("RGB"))
    np.testing.assert_array_equal(np.asarray(train.image(index)), expected)
    other = pickle.loads(pickle.dumps(train))
    assert other.relative_path(3) == train.relative_path(3)
    assert other.fingerprint == train.fingerprint


def test_folder_without_classes_has_no_labels(tmp_path):
    for n in range(5):  # an image beside class folders: test_data_layout.py
        write_image(tmp_path / f"{n}.jpg")
    source = make_source("folder", "train", path=str(tmp_path))
    assert source.num_classes == 0
    assert {source.label(i) for i in range(len(source))} == {-1}


def test_folder_with_split_folders_numbers_classes_alike(tmp_path):
    for name in ("train/a/1.jpg", "train/b/1.jpg", "train/c/1.jpg", "val/b/2.jpg", "test/3.jpg"):
        write_image(tmp_path / name)
    train = make_source("folder", "train", path=str(tmp_path))
    test = make_source("folder", "test", path=str(tmp_path))
    assert [train.label(i) for i in range(3)] == [0, 1, 2]
    assert (len(test), test.label(0), test.num_classes) == (1, 1, 3)


def test_folder_with_only_a_train_folder_is_split_inside(tmp_path):
    for n in range(20):
        write_image(tmp_path / "train" / "ab"[n % 2] / f"{n}.jpg")
    train = make_source("folder", "train", path=str(tmp_path))
    test = make_source("folder", "test", path=str(tmp_path))
    assert train.class_names == test.class_names == ["a", "b"]
    assert len(train) + len(test) == 20
    assert len(make_source("folder", "train", path=str(tmp_path), test_fraction=0)) == 20


def test_hash_split_is_stable_and_never_empty():
    files = [(f"{n}.jpg", 1) for n in range(2000)]
    test = set(hash_split(files, "test", 0.1))
    assert 150 < len(test) < 250
    assert test - set(hash_split(files[:1000], "test", 0.1)) <= set(files[1000:])
    for few in range(1, 6):
        assert hash_split(files[:few], "train", 0.99)
        assert few == 1 or hash_split(files[:few], "test", 1e-9)
    assert hash_split(files, "test", 0.0) == []


def test_folder_fingerprint_changes_with_the_files(tree):
    def mark():
        return make_source("folder", "train", path=str(tree), test_fraction=0).fingerprint

    first = mark()
    assert mark() == first
    write_image(tree / "cats" / "new.jpg")
    second = mark()
    (tree / "cats" / "new.jpg").rename(tree / "cats" / "renamed.jpg")
    third = mark()
    write_image(tree / "cats" / "renamed.jpg", size=(90, 80))
    assert len({first, second, third, mark()}) == 4


def test_folder_follows_links_and_survives_a_loop(tree, tmp_path_factory):
    linked = tmp_path_factory.mktemp("linked")
    (linked / "all").symlink_to(tree)
    (tree / "cats" / "loop").symlink_to(tree)
    source = make_source("folder", "train", path=str(linked), test_fraction=0)
    assert len(source) == 27


def test_exif_orientation_alpha_palette_and_16_bit(tmp_path):
    pixels = np.zeros((10, 20, 3), np.uint8)
    pixels[:, :10] = 250
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: rotate 90 degrees clockwise to see it upright
    Image.fromarray(pixels).save(tmp_path / "turned.jpg", exif=exif, quality=95)
    Image.new("RGBA", (4, 4), (10, 20, 30, 0)).save(tmp_path / "alpha.png")
    Image.new("P", (4, 4), 0).save(tmp_path / "palette.png", transparency=0)
    deep = np.full((4, 4), 128 * 256, np.uint16)
    Image.fromarray(deep).save(tmp_path / "sixteen.png")
    source = make_source("folder", "train", path=str(tmp_path), test_fraction=0)
    images = {source.relative_path(i): np.asarray(source.image(i)) for i in range(4)}
    assert images["turned.jpg"].shape == (20, 10, 3)
    assert images["turned.jpg"][0, 5, 0] > 200 > 50 > images["turned.jpg"][-1, 5, 0]
    assert images["alpha.png"][0, 0].tolist() == [10, 20, 30]
    assert images["palette.png"].shape == (4, 4, 3)
    assert images["sixteen.png"][0, 0].tolist() == [128, 128, 128]


def test_broken_images_are_named(tree):
    buffer = io.BytesIO()
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(256, size=(64, 64, 3), dtype=np.uint8)).save(buffer, "JPEG")
    (tree / "cats" / "00.jpg").write_bytes(buffer.getvalue()[:500])
    (tree / "cats" / "01.jpg").write_bytes(b"not an image")
    (tree / "cats" / "02.jpg").write_bytes(b"")
    source = make_source("folder", "train", path=str(tree), test_fraction=0)
    for index in range(3):
        with pytest.raises(ConfigError, match=rf"^data.path: .*cats/0{index}.jpg: not a readable"):
            source.image(index)
    (tree / "cats" / "03.jpg").unlink()
    with pytest.raises(ConfigError, match=r"^data.path: cannot read .*cats/03.jpg"):
        source.image(3)
    with pytest.raises(ConfigError, match=r"^record 7: not a readable image"):
        decode(b"GIF89a", "record 7")


@pytest.fixture(scope="module")
def tfds_dir(tmp_path_factory):
    tfds = pytest.importorskip("tensorflow_datasets")
    pytest.importorskip("array_record")
    folder = tmp_path_factory.mktemp("tfds")

    class TinyShapes(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            features = tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(None, None, 3), encoding_format="png"),
                    "label": tfds.features.ClassLabel(num_classes=3),
                }
            )
            return tfds.core.DatasetInfo(builder=self, features=features)

        def _split_generators(self, dl_manager):
            return {"train": self._generate_examples(20)}

        def _generate_examples(self, number):
            for n in range(number):
                buffer = io.BytesIO()  # bytes, since tfds needs TensorFlow to encode an array
                Image.new("RGB", (8, 6), (n, n, n)).save(buffer, "PNG")
                buffer.seek(0)
                yield n, {"image": buffer, "label": n % 3}

    TinyShapes(data_dir=folder, file_format="array_record").download_and_prepare()
    return str(folder)


def test_tfds_array_record(tfds_dir):
    train = make_source("tfds", "train", dataset="tiny_shapes", data_dir=tfds_dir)
    test = make_source("tfds", "test", dataset="tiny_shapes", data_dir=tfds_dir)
    assert (len(train), len(test), train.num_classes) == (18, 2, 3)
    assert train.fingerprint != test.fingerprint
    train = pickle.loads(pickle.dumps(train))
    values = {}
    for source in (train, test):
        for index in range(len(source)):
            pixels = np.asarray(source.image(index))
            assert pixels.shape == (6, 8, 3)
            values[int(pixels[0, 0, 0])] = source.label(index)
    assert values == {n: n % 3 for n in range(20)}


def test_tfds_errors(tfds_dir):
    with pytest.raises(ConfigError, match=r"^data.source.dataset: cannot open 'no_such_set'"):
        make_source("tfds", "train", dataset="no_such_set", data_dir=tfds_dir)
    with pytest.raises(
        ConfigError, match=r"^data.source.dataset: missing; source 'tfds' needs it$"
    ):
        make_source("tfds", "train")


@pytest.mark.parametrize(
    ("name", "split", "options", "message"),
    [
        (
            "imagnet",
            "train",
            {},
            r"data.source: 'imagnet'; allowed: Folder, Digits, ShiftedDigits,",
        ),
        ("digits", "val", {}, r"data.split: found 'val'; allowed: 'train', 'test'"),
        ("digits", "train", {"path": "x"}, r"data.path: 'x', but source 'digits' does"),
        (
            "photos",
            "train",
            {"size": 3},
            r"data.source.size: unknown for source 'photos'; allowed: length$",
        ),
        ("photos", "train", {"length": -1}, r"data.source.length: -1; allowed: "),
        ("synthetic", "train", {"length": 0}, r"data.source.length: 0; allowed: 1 or more"),
        ("synthetic", "train", {"side": 0}, r"data.source.side: 0"),
        ("shifted_digits", "test", {"part": "c"}, r"data.source.part: 'c'; allowed: a, b$"),
        ("shifted_digits", "test", {"channels": 4}, r"data.channels: 4, but source 'shifted_"),
        ("folder", "train", {}, r"data.path: missing; source 'folder' needs it"),
        ("folder", "train", {"path": "/no/such"}, r"data.path: '/no/such' is no folder"),
        ("folder", "train", {"path": "/", "test_fraction": 1.0}, r"data.source.test_fraction: 1.0"),
        ("folder", "train", {"path": "/", "_root": "/"}, r"data.source._root: unknown for source"),
    ],
)
def test_errors_are_one_line_with_the_key(name, split, options, message):
    with pytest.raises(ConfigError, match="^" + message) as error:
        make_source(name, split, **options)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("setting", "line"),
    [
        (
            {"splits": "none"},
            "data.splits: 'none', but source 'digits' does not read it; allowed: auto",
        ),
        ({"max_pixels": 9}, "data.max_pixels: 9, but source 'digits' does not read it"),
        ({"channels": 4}, "data.channels: 4, but source 'digits' has 3"),
    ],
)
def test_settings_that_a_source_would_ignore_are_refused(setting, line):
    with pytest.raises(ConfigError) as error:
        make_source("digits", "train", **setting)
    assert str(error.value).startswith(line)


def test_every_source_is_found_by_its_short_name():
    names = {"digits", "shifted_digits", "folder", "photos", "synthetic", "tfds"}
    shipped = plugs.shipped(SourceConfig).values()
    assert {short_name(cls()) for cls in shipped} == names
    assert all(find_source(short_name(cls())) is cls for cls in shipped)


def test_empty_folder(tmp_path):
    with pytest.raises(ConfigError, match=r"^data.path: found no image .* end in .bmp, .gif"):
        make_source("folder", "train", path=str(tmp_path))
    write_image(tmp_path / "one.jpg")
    assert len(make_source("folder", "train", path=str(tmp_path))) == 1
    with pytest.raises(ConfigError, match=r"^data.path: found no image for split 'test'.*1 in all"):
        make_source("folder", "test", path=str(tmp_path))


def test_remote_listing_equals_the_local_one(tree):
    """The gs:// branch, on a local path: the same files, sizes and order."""
    local = scan(str(tree), EXTENSIONS)
    entries = list(_walk_remote(epath.Path(tree), "", EXTENSIONS, Counter()))
    remote = _sorted(entries, _stat_remote, 1)
    assert local[:2] == remote[:2]
    assert [t // 10**9 for t in local.times] == [t // 10**9 for t in remote.times]
    assert len(local.names) == 27
