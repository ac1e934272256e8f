"""Frozen networks from files and workdirs: recorded, checked, and refused in one line."""

import functools
import json
import os
import shutil

import helpers
import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

from mimjax.errors import ConfigError
from mimjax.inference import weights
from mimjax.models.clip import CLIPVision
from mimjax.models.vit import ViT
from mimjax.storage.files import Workdir
from mimjax.torch_io.read import load


@functools.cache
def program(name):
    c = helpers.small(name)
    return c, *helpers.make(c)


def named(name, path):
    """The method's config with this `teacher.path`, and its program."""
    c, _, made = program(name)
    c = c.copy_and_resolve_references()
    c.teacher.path = path
    return c, made


def frozen_of(c, made, folder):
    said = []
    workdir = Workdir(str(folder), writer=True)
    out, source = weights.make_frozen(
        c, made.task, made.abstract_frozen, workdir, lambda n: None, said.append
    )
    workdir.write_text(weights.TEACHER_FILE, json.dumps(source))
    return out, source, " ".join(said)


@pytest.fixture
def codes(tmp_path):
    """A d-VAE's file in the published layout, its weights, and a CAE config that names it."""
    task = program("cae")[1]
    weights = jax.tree.map(np.asarray, task.init_frozen(jax.random.key(3)))
    path = str(tmp_path / "dvae.safetensors")
    save_file(load.to_torch(weights, "dvae"), path)
    return *named("cae", path), weights, path


def test_a_file_is_read_and_its_checksum_recorded(codes, tmp_path):
    c, made, weights, path = codes
    out, source, said = frozen_of(c, made, tmp_path / "run")
    jax.tree.map(np.testing.assert_array_equal, out, weights)
    with os.popen(f"sha256sum {path}") as tool:
        assert source["sha256"] == tool.read().split()[0]
    assert source["sha256"] in said


def test_other_weights_are_refused_and_a_moved_file_is_not(codes, tmp_path):
    c, made, weights, path = codes
    frozen_of(c, made, tmp_path / "run")
    c.teacher.path = str(tmp_path / "moved.safetensors")
    shutil.move(path, c.teacher.path)
    frozen_of(c, made, tmp_path / "run")
    save_file(load.to_torch(jax.tree.map(lambda x: x + 1, weights), "dvae"), c.teacher.path)
    with pytest.raises(ConfigError, match=r"teacher.path: .*but the workdir was made with"):
        frozen_of(c, made, tmp_path / "run")
    c.teacher.path = "random"
    with pytest.raises(ConfigError, match=r"teacher.path: random .*but the workdir was made with"):
        frozen_of(c, made, tmp_path / "run")


def test_random_is_said_loudly_and_recorded(tmp_path):
    c, made = named("cae", "random")
    _, source, said = frozen_of(c, made, tmp_path)
    assert "WARNING" in said
    assert "noise" in said
    assert source == {"path": "random", "sha256": "random weights"}


def refused(c, made, tmp_path):
    with pytest.raises(ConfigError) as error:
        frozen_of(c, made, tmp_path / "refused")
    line = str(error.value)
    assert "\n" not in line
    assert line.startswith("teacher.path")
    return line


def test_no_path_is_one_line_that_names_the_network(tmp_path):
    c, made = named("cae", "")
    assert "decoder, encoder" in refused(c, made, tmp_path)


def test_a_file_of_another_architecture_says_what_is_wrong(codes, tmp_path):
    c, made, weights, path = codes
    state = load.to_torch(weights, "dvae")
    save_file({k: v for k, v in state.items() if k != "encoder.0.0.bias"}, path)
    assert "encoder.0.0.bias" in refused(c, made, tmp_path)  # missing
    wide = dict(state)
    wide["codebook.weight"] = np.zeros((17, 8), np.float32)
    save_file(wide, path)
    line = refused(c, made, tmp_path)
    assert "codebook.weight" in line  # of other shape: a vocabulary that is not the head's
    assert "17" in line
    save_file({k: v for k, v in state.items() if k.startswith("encoder.")}, path)
    assert "decoder" in refused(c, made, tmp_path)


def test_a_file_of_another_network_says_which_would_do(codes, tmp_path):
    c, made, _, path = codes
    clip = CLIPVision(width=8, depth=1, heads=2, patch=2, pos_grid=(4, 4), proj_dim=4)
    params = {"clip": clip.init(jax.random.key(0), jax.numpy.zeros((1, 8, 8, 3)))["params"]}
    save_file(load.to_torch(params, "clip_openai"), path)
    line = refused(c, made, tmp_path)
    assert "clip_openai" in line
    assert "dvae" in line


def test_a_teacher_of_another_width_is_refused(tmp_path):
    path = str(tmp_path / "teacher.safetensors")
    teacher = ViT(width=16, depth=4, heads=4, patch=2, image_size=(8, 8))
    params = {"encoder": teacher.init(jax.random.key(0), jax.numpy.zeros((1, 8, 8, 3)))["params"]}
    save_file(load.to_torch(params, "mae"), path)
    line = refused(*named("caev2", path), tmp_path)
    assert "16" in line
    assert "96" in line  # the width that is configured


def test_a_workdir_without_checkpoint_is_one_line(tmp_path):
    line = refused(*named("caev2", str(tmp_path / "none")), tmp_path)
    assert "is no folder" in line
