"""What a workdir or file says of its networks is used, or contradicted aloud."""

import json

import helpers
import numpy as np
import pytest
from safetensors.numpy import save_file

from mimjax import schema
from mimjax.errors import ConfigError
from mimjax.inference import contradictions, teachers
from mimjax.schema import section
from mimjax.storage import settings
from mimjax.storage.files import Workdir
from mimjax.targets.dvae import DVAE
from mimjax.targets.encoder import EncoderFeatures
from mimjax.task import Clock


def task_of(c):
    return schema.make_task(c, Clock(1, 1))


def workdir(folder, name="mae", **overrides):
    """The settings of a run, as its workdir keeps them."""
    c = helpers.small(name, **overrides)
    Workdir(str(folder)).write_text("config.json", settings.config_json(c))
    return str(folder)


KEY = "method.teacher_target.path"


def student(teacher):
    """CAE v2 with the small MAE encoder as its teacher, every setting given."""
    c = helpers.small("caev2")
    network = task_of(teacher).encoder
    mean, std = teacher.method.mean, teacher.method.std
    c.method.teacher_target = section(EncoderFeatures(network=network, mean=mean, std=std))
    return c


def readers_of(c, owner="teacher_target"):
    return task_of(c).frozen[owner].readers


def messages(path, readers, key=KEY):
    said = []
    contradictions.check(path, key, readers, said.append)
    return said


@pytest.mark.parametrize(
    ("setting", "value", "words"),
    [
        ("method.encoder.heads", 2, r"has heads 2 in encoder, but .* with heads 4"),
        ("method.encoder.pos_embed", "sincos_yx", r"has pos_embed sincos_yx .* sincos_xy"),
        ("method.encoder.fuse_layers", (0, 1), r"has fuse_layers \(0, 1\) .*\(-1,\)"),
        ("method.mean", (0.5, 0.5, 0.5), r"has mean \(0.5, 0.5, 0.5\) .*0.485"),
        ("method.std", (0.5, 0.5, 0.5), r"has std \(0.5, 0.5, 0.5\) .*0.229"),
    ],
)
def test_a_teacher_s_workdir_with_other_settings(tmp_path, setting, value, words):
    readers = readers_of(student(helpers.small("mae")))
    path = workdir(tmp_path, **{setting: value})
    with pytest.raises(ConfigError, match=words) as error:
        messages(path, readers)
    assert str(error.value).startswith(f"{KEY}: {path}/config.json has ")


def test_a_teacher_s_workdir_with_the_same_settings(tmp_path):
    """Settings of training alone may differ."""
    readers = readers_of(student(helpers.small("mae")))
    path = workdir(tmp_path, **{"method.encoder.drop_path": 0.2, "method.encoder.remat": "full"})
    assert readers.keys() == {"encoder"}
    assert messages(path, readers) == []


def test_a_tokenizer_s_workdir(tmp_path):
    c = helpers.small("cae")
    c.method.code_target = section(DVAE(mean=(0.4, 0.5, 0.5), std=(0.5,) * 3, size=(32, 32)))
    readers = readers_of(c, "code_target")
    with pytest.raises(ConfigError, match=r"mean \(0.5, 0.5, 0.5\) in encoder.*\(0.4, 0.5, 0.5\)"):
        messages(
            workdir(tmp_path, "dvae"), {k: v._replace(network=None) for k, v in readers.items()}
        )


def test_mae_s_teacher(tmp_path):
    """A teacher that follows the student is compared with the student's settings."""
    c = helpers.small("mae", **{"method.pixel_target": EncoderFeatures(layer=-1)})
    readers = readers_of(teachers.fill(c), "pixel_target")
    with pytest.raises(ConfigError, match="has heads 2 in encoder"):
        messages(workdir(tmp_path, **{"method.encoder.heads": 2}), readers)


def test_weights_to_begin_with(tmp_path):
    """Other heads are an error, other statistics of images are said."""
    task = task_of(helpers.small("mae"))
    readers = contradictions.own_readers(task, ("encoder", "decoder"))
    path = workdir(tmp_path / "a", **{"method.decoder.heads": 2})
    with pytest.raises(ConfigError, match=r"init_from: .* has heads 2 in decoder"):
        messages(path, readers, "init_from")
    path = workdir(tmp_path / "b", **{"method.mean": (0.5, 0.5, 0.5)})
    (said,) = messages(path, readers, "init_from")
    assert "has mean (0.5, 0.5, 0.5); this run has (0.485" in said


def test_published_files(tmp_path):
    """Metadata of our own exports, and a config of transformers or timm beside the file."""
    readers = contradictions.own_readers(task_of(helpers.small("mae")), ("encoder", "decoder"))
    file = str(tmp_path / "model.safetensors")
    arrays = {"a": np.zeros(3, np.float32)}
    about = {"method": "mae", "layout": "mae", "weights": "online", "mean": "0.5,0.5,0.5"}
    for heads, count in ((4, 0), (3, 1)):
        save_file(arrays, file, metadata=about | {"heads": str(heads)})
        if count:
            with pytest.raises(ConfigError, match=r"\(its metadata\) has heads 3 in encoder"):
                messages(file, readers, "init_from")
        else:
            assert len(messages(file, readers, "init_from")) == 1  # its mean
    save_file(arrays, file)
    assert messages(file, readers, "init_from") == []
    for beside in ({"num_attention_heads": 3}, {"model_args": {"num_heads": 3}}, {"num_heads": 3}):
        (tmp_path / "config.json").write_text(json.dumps(beside))
        with pytest.raises(ConfigError, match=r"config.json has heads 3 in encoder"):
            messages(file, readers, "init_from")
    (tmp_path / "config.json").write_text("no json")
    with pytest.raises(ConfigError, match=r"config.json: cannot be read"):
        messages(file, readers, "init_from")
