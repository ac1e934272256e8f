import os
import types

import helpers
import numpy as np
import pytest

from mimjax.errors import ConfigError
from mimjax.programs import cli
from mimjax.storage import files
from mimjax.storage.files import Workdir
from mimjax.targets.clip import CLIP
from mimjax.targets.dino import DINO
from mimjax.targets.joint import Joint


def test_a_relative_path_is_made_absolute(tmp_path, monkeypatch):
    """What orbax needs: `--workdir=runs/mine` must work."""
    monkeypatch.chdir(tmp_path)
    workdir = Workdir("runs/mine")
    assert os.fspath(workdir.path) == str(tmp_path / "runs" / "mine")
    assert workdir.is_local
    assert not Workdir("gs://bucket/run", writer=False).is_local
    assert os.fspath(Workdir("gs://bucket/run", writer=False).path) == "gs://bucket/run"


def test_a_file_is_whole_or_absent(tmp_path, monkeypatch):
    workdir = Workdir(str(tmp_path))
    workdir.write_text("a.txt", "old")

    def fail(self, *_):
        raise OSError("no space left")

    monkeypatch.setattr(type(workdir.file("x")), "replace", fail)
    with pytest.raises(OSError, match="no space"):
        workdir.write_text("a.txt", "new")
    assert workdir.read_text("a.txt") == "old"


def test_json_lines_end_where_a_crash_cut_them(tmp_path):
    workdir = Workdir(str(tmp_path))
    for step in range(3):
        workdir.append("m.jsonl", f'{{"step": {step}}}')
    with (tmp_path / "m.jsonl").open("a") as f:
        f.write('{"step": 3, "lo')
    assert [r["step"] for r in workdir.read_lines("m.jsonl")[0]] == [0, 1, 2]
    assert workdir.read_lines("none.jsonl") == ([], 0)


def test_only_the_writer_writes(tmp_path):
    reader = Workdir(str(tmp_path / "r"), writer=False)
    reader.write_bytes("x", np.zeros(2).tobytes())
    reader.append("y", "line")
    assert not (tmp_path / "r").exists()


@pytest.mark.parametrize(
    ("path", "key", "stores", "text"),
    [
        (
            "gs://b/run",
            "--workdir",
            files.RUNS,
            r'needs gcsfs: pip install "mimjax\[gcs\]"; allowed',
        ),
        ("gs://b/x", "data.path", files.IMAGES, r'needs gcsfs: pip install "mimjax\[gcs\]"'),
        ("s3://b/x", "--images", files.IMAGES, r'needs s3fs: pip install "mimjax\[s3\]"'),
        (
            "s3://b/run",
            "resume",
            files.RUNS,
            "nothing can be read at s3:// here; allowed: a path on",
        ),
        (
            "s3://b/run",
            "--workdir",
            files.RUNS,
            "nothing can be written at s3:// here; allowed: a ",
        ),
        (
            "gs://b/w.pth",
            "init_from",
            (),
            r"read at gs:// here; .* this machine \(download it first",
        ),
        ("https://h/x", "--workdir", files.RUNS, "nothing can be written at https:// here"),
        (
            "https://h/x",
            "method.code_target.path",
            files.RUNS,
            r"read at https:// here; .*\(download it first\)",
        ),
        ("hf://o/m", "init_from", files.RUNS, "nothing can be read at hf:// here"),
        ("GS://b/run", "--workdir", files.RUNS, "written at GS:// here; .* gs://BUCKET"),
        ("file:///x", "--workdir", files.RUNS, "written at file:// here"),
        ("gs:/b/run", "--workdir", files.RUNS, "is no address of a store; allowed: a path on this"),
        ("s3:b/x", "data.path", files.IMAGES, "is no address of a store"),
        ("https:/h/x", "--images", files.IMAGES, "is no address of a store"),
        ("gs://", "--workdir", files.RUNS, "names no bucket"),
        ("gs:///run", "--workdir", files.RUNS, "names no bucket"),
    ],
)
def test_addresses_that_cannot_be_used(monkeypatch, path, key, stores, text):
    """One line that names the key, as where neither gcsfs nor s3fs nor TensorFlow is installed."""
    monkeypatch.setattr(files.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=f"^{key}: '{path}'.*{text}") as error:
        files.reachable_path(path, key, stores)
    assert "\n" not in str(error.value)


def test_places_on_this_machine(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    assert files.reachable_path("~/runs", "--workdir", files.RUNS) == "/home/me/runs"
    assert os.fspath(Workdir("~/runs", writer=False).path) == "/home/me/runs"
    for path in ("runs/a", "/a:b/c", "gs/b", ""):
        assert files.reachable_path(path, "--output", ()) == path


def test_a_store_that_does_not_answer(monkeypatch):
    """Any error of its client becomes one line, which names the key."""

    class Failing:
        def exists(self):
            raise RuntimeError("no credentials:\n  log in")

    monkeypatch.setattr(files.importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(files.epath, "Path", lambda path: Failing())
    monkeypatch.setenv("EPATH_USE_TF", "x")
    with pytest.raises(
        ConfigError, match=r"^data.path: 'gs://b/x' cannot be reached \(no cred"
    ) as e:
        files.reachable_path("gs://b/x", "data.path", files.IMAGES)
    assert "\n" not in str(e.value)
    assert files.os.environ["EPATH_USE_TF"] == "x"  # a choice of the user


class Flags(dict):
    """What `check_paths` needs of absl's flags."""

    def __init__(self, **values):
        super().__init__({k: types.SimpleNamespace(value=v) for k, v in values.items()})

    def flag_values_dict(self):
        return {name: flag.value for name, flag in self.items()}


def test_settings_and_flags_that_name_places(monkeypatch):
    """`~` and variables are expanded before anything is opened, in targets' paths too."""
    monkeypatch.setenv("HOME", "/home/me")
    target = Joint(CLIP(project=False), DINO())
    config = helpers.small("mrmae", **{"method.mimic_target": target}).lock()
    first, second = (f"method.mimic_target.{name}.path" for name in ("first", "second"))
    paths = {"init_from": "~/w.pth", "data.path": "~/photos", first: "~/a.pth", second: "~/run"}
    config.update_from_flattened_dict(paths)
    given = Flags(workdir="~/run", images=None, config=config)
    monkeypatch.setattr(cli, "FLAGS", given)
    cli.check_paths()
    assert given["workdir"].value == "/home/me/run"
    assert config.init_from == "/home/me/w.pth"
    assert config.data.path == "/home/me/photos"
    assert config.method.mimic_target.first.path == "/home/me/a.pth"
    assert config.method.mimic_target.second.path == "/home/me/run"
    for key, path in (("data.path", "https://h/x"), (second, "gs://b/w.pth")):
        with config.unlocked():
            config.update_from_flattened_dict({key: path})
        with pytest.raises(ConfigError, match=f"^{key}: .*nothing can be read at"):
            cli.check_paths()
        config.update_from_flattened_dict({key: ""})
