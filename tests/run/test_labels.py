"""A task that learns from labels: which data it takes, and that a label stays the same class."""

import dataclasses
import json
import shutil

import helpers
import pytest
from PIL import Image
from train import inside

from mimjax.data.sources import Folder, Synthetic
from mimjax.errors import ConfigError
from mimjax.methods.mae import MAE
from mimjax.run.setup import setup
from mimjax.storage.classes import FILE


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    inside.quick(monkeypatch)


@dataclasses.dataclass(frozen=True)
class Labeled(MAE):
    """A task whose loss reads labels."""

    learns_labels = True


def config(classes=10, **overrides):
    source = Synthetic(length=48, side=8, num_classes=classes)
    c = helpers.small("mae", **inside.TINY, **{"steps": 1, "data.source": source} | overrides)
    c.task = f"{Labeled.__module__}:Labeled"
    return c


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        inside.quick(patch)
        workdir = tmp_path_factory.mktemp("finished")
        inside.go(config(), workdir)
        return workdir


def test_a_run_keeps_the_names_of_its_classes(finished):
    content = json.loads((finished / FILE).read_text())
    names = [str(n) for n in range(10)]
    assert content == {"label": "wave", "num_classes": 10, "names": names}
    helpers.begun(config(), finished)


@pytest.mark.parametrize("resume", [False, True])
@pytest.mark.parametrize(
    ("classes", "renamed", "line"),
    [
        (11, {}, "11 classes, they were 10: class 10 is '10', it is new; "),
        (9, {}, "9 classes, they were 10: class 9 is gone, it was '9'; "),
        (10, {3: "three"}, "a class of another name: class 3 is '3', it was 'three'; "),
        (10, {0: "1", 1: "0"}, "classes in another order: class 0 is '0', it was '1'; "),
    ],
)
def test_other_classes_are_refused_where_labels_are_learned(
    finished, tmp_path, classes, renamed, line, resume, monkeypatch, capsys
):
    """The workdir's own run and one that takes its state refuse; others say it and go on."""
    before = shutil.copytree(finished, tmp_path / "before")
    content = json.loads((before / FILE).read_text())
    content["names"] = [renamed.get(n, name) for n, name in enumerate(content["names"])]
    (before / FILE).write_text(json.dumps(content))
    workdir = tmp_path / "new" if resume else before
    c = config(classes, **({"resume": str(before)} if resume else {}))
    with pytest.raises(ConfigError) as error:
        helpers.begun(c, workdir)
    assert str(error.value).startswith(f"data: {line}")
    assert "\n" not in str(error.value)
    assert json.loads((before / FILE).read_text()) == content  # nothing was written
    assert resume != (workdir / FILE).exists()
    monkeypatch.setattr(Labeled, "learns_labels", False)
    helpers.begun(c, workdir)
    assert f"the last start (no label is learned): {line[:-2]}\n" in capsys.readouterr().out
    assert json.loads((workdir / FILE).read_text())["num_classes"] == classes


def test_new_weights_have_no_classes_to_keep(finished, tmp_path):
    """A run that takes weights alone has a head of its own."""
    helpers.begun(config(11, init_from=str(finished)), tmp_path)
    assert json.loads((tmp_path / FILE).read_text())["num_classes"] == 11


def test_a_file_that_no_run_wrote_is_not_replaced(tmp_path):
    (tmp_path / FILE).write_text('{"0": "ant"}')
    with pytest.raises(ConfigError, match=r"^--workdir: .* holds classes.json, and no run made it"):
        helpers.begun(config(), tmp_path)
    assert (tmp_path / FILE).read_text() == '{"0": "ant"}'


def test_labels_are_needed(tmp_path):
    with pytest.raises(
        ConfigError,
        match=r"^task: .*:Labeled learns from labels, but the source 'synthetic' has none; allowed",
    ):
        setup(config(0))
    helpers.begun(helpers.small("mae", **{"data.source": Synthetic(num_classes=0)}), tmp_path)
    assert not (tmp_path / FILE).exists()


def test_a_class_of_the_test_images_alone_is_refused(tmp_path):
    for name in ("train/ant", "train/bee", "val/ant", "val/Bee"):
        (tmp_path / name).mkdir(parents=True)
        for n in range(9):
            Image.new("RGB", (8, 8), (n, 0, 0)).save(tmp_path / name / f"{n}.png")
    data = {"data.source": Folder(), "data.path": str(tmp_path)}
    with pytest.raises(ConfigError, match=r"^data.path: .* lacks: 'Bee' \('bee' there: another ca"):
        setup(config(**data))
    shutil.move(tmp_path / "val/Bee", tmp_path / "val/bee")
    setup(config(**data))
