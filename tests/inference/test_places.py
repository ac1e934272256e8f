"""A path that is no model says what lies there, whoever names it."""

import helpers
import pytest

import mimjax
from mimjax.errors import ConfigError
from mimjax.inference import places, teachers, weights
from mimjax.schema import section
from mimjax.storage import settings
from mimjax.targets.encoder import EncoderFeatures
from mimjax.task import Frozen

RUN = settings.config_json(helpers.small("mae"))
IMAGES = {f"{i}.png": "" for i in range(19)}
FOLDERS = {
    "holds 19 images; allowed: the workdir of a run": IMAGES,
    "is empty; allowed: the workdir of a run with a checkpoint, or a folder with model": {".x": ""},
    "holds 1 image, 2 folders (cats, dogs), notes.txt;": {
        "cats/a.png": "",
        "dogs/b.png": "",
        "notes.txt": "",
        "c.jpg": "",
    },
    "holds config.json, train.log, no checkpoints: the run saved no step;": {
        "config.json": RUN,
        "train.log": "",
        "checkpoints/": "",
    },
    "holds config.json, metrics.jsonl, no checkpoints, though metrics.jsonl speaks of step 3;": {
        "config.json": RUN,
        "metrics.jsonl": '{"step": 3, "loss": 1.0}\n',
    },
    # transformers'
    "holds config.json, x.pth; allowed: one of its files of weights by its own path, the workdir": {
        "config.json": '{"hidden_size": 8}',
        "x.pth": "",
    },
    "holds b-1-of-2.bin, b.index.json; allowed: one file instead of the shards of b.index": {
        "b.index.json": "{}",
        "b-1-of-2.bin": "",
    },
    "holds config.json; allowed": {"config.json": "{"},
    "holds a, b, c, d, e, ...;": dict.fromkeys("abcdefg", ""),
}


def make(folder, files):
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(exist_ok=True, parents=True)
        path.mkdir() if name.endswith("/") else path.write_text(text)
    return str(folder)


@pytest.mark.parametrize("words", FOLDERS)
def test_what_is_there_is_said(words, tmp_path):
    path = make(tmp_path, FOLDERS[words])
    frozen = Frozen("method.t.path", path)
    said = {
        "path": lambda: mimjax.load(path),
        "init_from": lambda: weights.read_params(path, {}, "init_from", print),
        "method.t.path": lambda: weights.read_network(path, {}, frozen, print, None),
    }
    if "no checkpoints" not in words and FOLDERS[words].get("config.json") != "{":
        c = helpers.small("caev2")
        c.method.teacher_target = section(EncoderFeatures(path=path))
        said["method.teacher_target.path"] = lambda: teachers.fill(c)
    for key, call in said.items():
        with pytest.raises(ConfigError) as error:
            call()
        assert str(error.value).startswith(f"{key}: {path} {words}")
        assert "\n" not in str(error.value)


def test_a_run_with_a_checkpoint_and_a_file_are_taken(tmp_path):
    places.check_source(make(tmp_path / "run", {"checkpoints/3/x": ""}), "init_from")
    places.check_source(str(tmp_path / "x.pth"), "init_from")
    other = make(tmp_path, {"model.onnx": ""}) + "/model.onnx"
    with pytest.raises(ConfigError, match=r"path: .* is no folder; allowed: .* or weights: \.safe"):
        mimjax.load(other)


def test_a_run_whose_settings_are_lost_is_called_as_it_was_named(tmp_path):
    path = make(tmp_path / "run", {"checkpoints/3/x": "", "config.json": "{"})
    with pytest.raises(ConfigError, match=r"^path: .*config.json .* no checkpoint holds the"):
        mimjax.load(path)
