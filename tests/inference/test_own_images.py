"""Runs on a folder as people have it: four channels, not square, some files broken."""

import dataclasses
import json
import os
import shutil

import helpers
import jax
import numpy as np
import pytest
from train import inside

from mimjax.data.sources import Digits, Folder
from mimjax.errors import ConfigError
from mimjax.evaluators.pictures import Pictures
from mimjax.inference import workdir as trained
from mimjax.losses import MSE, Cosine
from mimjax.methods.cae import CAE
from mimjax.schema import section
from mimjax.targets.clip import CLIP
from mimjax.targets.pixels import Pixels


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    inside.quick(monkeypatch)


FOUR = {"method.mean": (0.2, 0.4, 0.6, 0.8), "method.std": (0.1, 0.2, 0.2, 0.1)}
WIDE = {"method.encoder.image_size": (32, 48), "method.encoder.patch": 8}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Eighty images of four channels, one empty and two cut in half."""
    root = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for n in range(80):
        np.save(root / f"{n:02}.npy", rng.integers(256, size=(40, 50, 4), dtype=np.uint8))
    for name in ("07.npy", "31.npy"):
        (root / name).write_bytes((root / name).read_bytes()[:4000])
    (root / "55.npy").write_bytes(b"")
    return root


def config(folder, method="mae", **overrides):
    settings = {
        "data.source": Folder(),
        "data.path": str(folder),
        "data.channels": 4,
        "data.max_bad_fraction": 0.1,
        "checkpoint_every": 4,
        "method.encoder.depth": 1,
    }
    return helpers.small(method, **(FOUR | WIDE | settings | overrides))


def start(c, workdir):
    """What the run said."""
    inside.go(c, workdir)
    return (workdir / "train.log").read_text()


@pytest.fixture(scope="module")
def straight(folder, tmp_path_factory):
    """An uninterrupted run."""
    workdir = tmp_path_factory.mktemp("straight")
    with pytest.MonkeyPatch.context() as patch:
        inside.quick(patch)
        return workdir, start(config(folder), workdir)


def test_bad_files_are_listed_and_counted(folder, straight):
    workdir, text = straight
    rows = dict(r.split("\t") for r in (workdir / "bad_files.txt").read_text().splitlines())
    assert rows.keys() == {str(folder / name) for name in ("07.npy", "31.npy", "55.npy")}
    assert "image 32x48x4, 24 patches, 18 masked" in text
    assert text.splitlines()[-1].endswith("| 3 bad files skipped")
    assert text.count("skipped a bad file: ") == 3
    last = json.loads((workdir / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["bad_files"] == 3
    assert np.isfinite(last["loss/total"])


def test_restart_is_bit_for_bit(folder, straight, tmp_path):
    """The lists of files are equal too."""
    workdir = tmp_path / "copy"
    shutil.copytree(straight[0], workdir)
    shutil.rmtree(workdir / "checkpoints" / "8")
    text = start(config(folder), workdir)
    assert "continued from step 4" in text
    assert "files changed" not in text
    assert helpers.losses(workdir) == helpers.losses(straight[0])
    for name in ("bad_files.txt", "data_index.npz"):
        assert (workdir / name).read_bytes() == (straight[0] / name).read_bytes()
    a, b = (helpers.final_params(w, config(folder)) for w in (workdir, straight[0]))
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_changed_files_are_said(folder, straight, tmp_path, capsys):
    workdir, images = tmp_path / "copy", tmp_path / "images"
    shutil.copytree(straight[0], workdir)
    shutil.copytree(folder, images)
    c = config(images)

    def said(**overrides):
        c.data.update(overrides)
        helpers.begun(c, workdir)
        return capsys.readouterr().out

    said()  # the copies are another folder
    assert "files changed" not in said()
    os.utime(images / "00.npy", ns=(0, 7))  # overwritten in place, as large as before
    text = said()
    assert "files changed since the last start: 1 of the same size written again (00.npy)" in text
    (images / "new.npy").write_bytes((images / "00.npy").read_bytes())
    text = said(trust_index=True)
    assert "none was looked at" in text
    assert "files changed" not in text
    text = said(trust_index=False)
    assert "files changed since the last start: 1 added (new.npy)" in text
    assert "the data are not those of the checkpoint" in text


def test_the_start_says_what_the_folders_mean(straight, tmp_path, capsys):
    """A run whose images come from elsewhere now goes on, and says that the data differ."""
    images, workdir = tmp_path / "images", tmp_path / "run"
    shutil.copytree(straight[0], workdir)
    for n in range(41):
        place = images / ("Train", "Val")[n % 2] / "ab"[n % 3 == 0] / f"{n}.npy"
        place.parent.mkdir(parents=True, exist_ok=True)
        np.save(place, np.full((40, 50, 4), n, np.uint16) * 100)
    shutil.copy(place, images / "Train/stray.npy")
    (images / "Train/a/x.heic").write_bytes(b"x")
    helpers.begun(config(images), workdir)
    said = capsys.readouterr().out
    assert "folder: 22 images" in said
    assert "data: training images from 'Train', test images from 'Val'\n" in said
    assert "data: 1 image lies in no class folder and has no label: 'stray.npy'\n" in said
    assert "data: left out by their endings: 1 .heic\n" in said
    assert "WARNING: 16 of 16 sampled files hold values beyond 8 bits" in said
    assert "data.value_range=(0,4095) fits them" in said
    assert "weights: continued from step 8" in said
    assert "the data are not those of the checkpoint" in said


def test_programs_read_the_runs_own_kind_of_image(folder, straight):
    run = trained.read_run(str(straight[0]))
    sheet = Pictures(count=1).make(run.bench(str(folder / "00.npy"))).sheet(run.state(), {})
    np.testing.assert_array_equal(sheet.columns["original"].shape, (1, 32, 48, 4))
    with pytest.raises(ConfigError, match=r"^--images: .*55.npy: not a readable image"):
        list(run.bench(str(folder / "55.npy")).batches(run.bench(str(folder / "55.npy")).test))


@pytest.mark.gate
def test_too_many_bad_files_stop_the_run(folder, tmp_path):
    """BootMAE, not square as well; the last good checkpoint stays."""
    c = config(folder, "bootmae", **{"data.max_bad_fraction": 0.01, "batch_size": 64, "steps": 4})
    with pytest.raises(ConfigError, match=r"^data.max_bad_fraction: 2 of \d+ files cannot be read"):
        start(c, tmp_path)
    assert len((tmp_path / "bad_files.txt").read_text().splitlines()) >= 2


@pytest.mark.parametrize("name", helpers.gated(("mcmae", "cae", "beit", "dvae"), ("beit", "dvae")))
def test_every_kind_of_method_reads_four_channels(name, folder):
    """A whole update is traced for each; those of MAE and BootMAE were trained above."""
    c = helpers.small(name, **FOUR | {"data.channels": 4})
    if "code_target" in c.method:  # published tokenizers read three
        c.method.code_target, c.method.code.loss = section(Pixels()), section(MSE())
    program = helpers.make(c)[1]
    assert program.abstract_batch["image"].shape[-1] == 4
    state, metrics = jax.eval_shape(
        program.step, program.abstract_state, program.abstract_frozen, program.abstract_batch
    )
    same = lambda a, b: a.shape == b.shape and a.dtype == b.dtype
    assert all(jax.tree.leaves(jax.tree.map(same, state, program.abstract_state)))
    assert metrics["loss/total"].shape == ()


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        ({"data.channels": 3}, "data.channels: 3, but method.mean has 4 numbers"),
        ({"data.augment.color_jitter": 0.4}, "data.augment.color_jitter: 0.4, but data.channels"),
        (
            {"data.augment.rand_augment": "rand"},
            "data.augment.rand_augment: rand, but data.channels",
        ),
        ({"method.std": (0.1, 0.2)}, "method.mean, method.std: "),
        ({"method.encoder.image_size": (30, 48)}, "method.encoder.image_size: height 30 is not"),
        (
            {"data.source": Digits(), "data.path": None},
            "data.channels: 4, but source 'digits' has 3",
        ),
        ({"data.max_bad_fraction": 1.5}, "data.max_bad_fraction: 1.5; allowed"),
        ({"data.max_pixels": 0}, "data.max_pixels: 0; allowed"),
        (
            {"data.trust_index": True, "data.source": Digits()},
            "data.trust_index: True, but source 'digits'",
        ),
    ],
)
def test_what_does_not_fit_is_one_line(folder, tmp_path, overrides, line):
    with pytest.raises(ConfigError) as error:
        helpers.begun(config(folder, **overrides), tmp_path / "run")
    assert str(error.value).startswith(line)
    assert "\n" not in str(error.value)
    assert not list((tmp_path / "run").glob("*.json"))


def test_a_pretrained_teacher_of_three_channels_is_refused():
    code = dataclasses.replace(CAE().code, loss=Cosine())
    line = r"^method.code_target: it reads 3 channels; allowed: 4, as method.mean has$"
    with pytest.raises(ConfigError, match=line):
        CAE(code_target=CLIP(), code=code, mean=FOUR["method.mean"], std=FOUR["method.std"])
