"""Frozen networks belong to their target: read from its path, recorded, checked, refused."""

import functools
import json
import os
import shutil

import helpers
import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

from mimjax import schema
from mimjax.errors import ConfigError
from mimjax.inference import teachers, weights
from mimjax.models.clip import CLIPVision
from mimjax.models.vit import ViT
from mimjax.programs import parser
from mimjax.run import changes, config_files, setup
from mimjax.storage import settings
from mimjax.storage.checkpoints import Checkpoints, versions
from mimjax.storage.files import Workdir
from mimjax.targets.clip import CLIP
from mimjax.targets.dvae import DVAE
from mimjax.targets.encoder import EncoderFeatures
from mimjax.targets.joint import Joint
from mimjax.targets.pixels import PCA
from mimjax.task import Clock
from mimjax.torch_io.read import load

KEYS = {"cae": "method.code_target.path", "caev2": "method.teacher_target.path"}
SIZES = {"width": 8, "depth": 1, "heads": 2, "patch": 2}


@functools.cache
def config(name):
    return helpers.small(name)


def named(name, path, owner=""):
    """The method's config with this path in the section of its target, and its program."""
    c = config(name).copy_and_resolve_references().unlock()
    for found in teachers.owners(c):
        if owner in found.key:
            found.section.path = path
    return c, helpers.make(c)[1]


def frozen_of(c, made, folder, meta=None):
    said = []
    workdir = Workdir(str(folder), writer=True)
    out, sources = weights.make_frozen(
        c, made.task, made.abstract_frozen, workdir, lambda n: None, said.append, meta
    )
    workdir.write_text(weights.TEACHER_FILE, json.dumps(sources))
    return out, sources, " ".join(said)


@pytest.fixture
def codes(tmp_path):
    """A d-VAE's file in the published layout, its weights, and a CAE config that names it."""
    task = schema.make_task(config("cae"), Clock(1, 1))
    trees = jax.tree.map(np.asarray, task.init_frozen(jax.random.key(3)))["code_target"]
    path = str(tmp_path / "dvae.safetensors")
    save_file(load.to_torch(trees, "dvae"), path)
    return *named("cae", path), trees, path


def test_a_file_is_read_and_its_checksum_recorded(codes, tmp_path):
    c, made, trees, path = codes
    out, sources, said = frozen_of(c, made, tmp_path / "run")
    jax.tree.map(np.testing.assert_array_equal, out, {"code_target": trees})
    with os.popen(f"sha256sum {path}") as tool:
        digest = tool.read().split()[0]
    assert sources == {"code_target": {"path": path, "sha256": digest}}
    assert digest in said


def test_other_weights_are_refused_and_a_moved_file_is_not(codes, tmp_path):
    _, _, trees, path = codes
    frozen_of(*named("cae", path), tmp_path / "run")
    moved = str(tmp_path / "moved.safetensors")
    shutil.move(path, moved)
    frozen_of(*named("cae", moved), tmp_path / "run")
    save_file(load.to_torch(jax.tree.map(lambda x: x + 1, trees), "dvae"), moved)
    wrong = r"method.code_target.path: .*but the workdir was made with"
    with pytest.raises(ConfigError, match=wrong):
        frozen_of(*named("cae", moved), tmp_path / "run")
    with pytest.raises(ConfigError, match=r"method.code_target.path: random .*was made with"):
        frozen_of(*named("cae", "random"), tmp_path / "run")


def test_a_record_of_an_older_version(codes, tmp_path):
    """One path and one checksum for all: understood, and the same weights are asked for."""
    c, made = codes[:2]
    _, sources, _ = frozen_of(c, made, tmp_path / "run")
    file = tmp_path / "run" / weights.TEACHER_FILE
    old = {"path": "then/dvae.safetensors", "sha256": sources["code_target"]["sha256"]}
    file.write_text(json.dumps(old))
    assert frozen_of(c, made, tmp_path / "run")[1] == sources
    file.write_text(json.dumps(old | {"sha256": "0" * 64}))
    with pytest.raises(ConfigError, match=r"was made with then/dvae.safetensors \(sha256 000"):
        frozen_of(c, made, tmp_path / "run")
    file.write_text('{"path": ')  # a checkpoint repeats it, in the old form too
    _, _, said = frozen_of(c, made, tmp_path / "run", {"teacher": old})
    assert "teacher.json is damaged: the checkpoint says what it held" in said
    file.write_text("[]")
    with pytest.raises(ConfigError, match=r"teacher.json is damaged; allowed"):
        frozen_of(c, made, tmp_path / "run")
    # two files, which stood in any order
    two = {"a": {"path": "a", "sha256": "1"}, "b": {"path": "b", "sha256": "2"}}
    known = weights.known_sources({"path": "b,a", "sha256": "2,1"}, two)
    assert {name: source["sha256"] for name, source in known.items()} == {"a": "1", "b": "2"}


def test_random_is_said_loudly_and_recorded(tmp_path):
    c, made = named("cae", "random")
    _, sources, said = frozen_of(c, made, tmp_path)
    assert "WARNING: method.code_target.path=random" in said
    assert "noise" in said
    assert sources == {"code_target": {"path": "random", "sha256": "random weights"}}


@pytest.mark.gate
def test_several_teachers_of_one_kind(tmp_path):
    """Each teacher has its file under its own field, and is named by it."""
    network = CLIPVision(**SIZES, pos_grid=(4, 4), proj_dim=4)
    files = []
    for seed in (0, 1):
        params = network.init(jax.random.key(seed), jax.numpy.zeros((1, 8, 8, 3)))["params"]
        files.append((f"{tmp_path}/clip_{seed}.safetensors", params))
        save_file(load.to_torch({"clip": params}, "clip_openai"), files[-1][0])
    (first, one), (second, two) = files
    both = Joint(CLIP(network, path=first), CLIP(network, path=second))
    c = helpers.small("mrmae", **{"method.mimic_target": both})
    assert teachers.paths(c) == [f"method.mimic_target.{k}.path" for k in ("first", "second")]
    made = helpers.make(c)[1]
    out, sources, _ = frozen_of(c, made, tmp_path / "run")
    wanted = {"mimic_target": {"first": {"clip": one}, "second": {"clip": two}}}
    jax.tree.map(np.testing.assert_array_equal, out, wanted)
    assert list(sources) == ["mimic_target.first", "mimic_target.second"]
    c.method.mimic_target.second.path = first
    with pytest.raises(ConfigError, match=r"^method.mimic_target.second.path: .*was made with"):
        frozen_of(c, helpers.make(c)[1], tmp_path / "run")
    c.method.mimic_target.second.path = None
    line = refused(c, helpers.make(c)[1], tmp_path)
    assert line.startswith("method.mimic_target.second.path: none, but")


def test_a_basis_beside_a_file(codes, tmp_path):
    """A basis that is estimated from the data is read from no file, so it needs no path."""
    c = helpers.small("mae", **{"method.pixel_target": PCA(4)})
    made = helpers.make(c)[1]
    photos = np.random.default_rng(0).integers(0, 256, (9, 8, 8, 3), np.uint8)
    out, sources = weights.make_frozen(
        c, made.task, made.abstract_frozen, Workdir(str(tmp_path)), lambda n: photos, print
    )
    assert sources == {}
    assert float(abs(out["pixel_target"]["pca"]["basis"]).sum()) > 0


def refused(c, made, tmp_path):
    with pytest.raises(ConfigError) as error:
        frozen_of(c, made, tmp_path / "refused")
    line = str(error.value)
    assert "\n" not in line
    assert line.startswith(tuple(f"{owner.key}.path" for owner in teachers.owners(c)))
    return line


def test_no_path_is_one_line_that_names_the_network(tmp_path):
    c, made = named("cae", None)
    line = refused(c, made, tmp_path)
    assert line.startswith("method.code_target.path: none, but mimjax.methods.cae:CAE learns from")
    assert "decoder, encoder" in line


def test_a_file_of_another_architecture_says_what_is_wrong(codes, tmp_path):
    c, made, trees, path = codes
    state = load.to_torch(trees, "dvae")
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
    clip = CLIPVision(**SIZES, pos_grid=(4, 4), proj_dim=4)
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


# ------------------------------------------------------------------ what a workdir brings
def workdir(folder, name, params=False, **overrides):
    """The settings of a run, as its workdir keeps them, and its first checkpoint."""
    c = helpers.small(name, **overrides)
    place = Workdir(str(folder))
    place.write_text("config.json", settings.config_json(c))
    if params:
        checkpoints = Checkpoints(place)
        meta = {"config": json.loads(settings.config_json(c)), "versions": versions()}
        data = {"step": 0, "fingerprint": ""}
        checkpoints.save(helpers.make(c)[1].init(), data, meta | {"teacher": {}})
        checkpoints.close()
    return str(folder)


def student(path, target=None, name="caev2", **overrides):
    """A small config whose target says nothing but where its network is."""
    field = {"caev2": "teacher_target", "cae": "code_target", "mae": "pixel_target"}[name]
    c = helpers.CONFIGS[name].get_config("demo").unlock()
    del c.method[field]
    c.method[field] = schema.section(target or EncoderFeatures(path=path))
    for key, value in overrides.items():
        c.method[field][key] = value
    return c, f"method.{field}"


def test_a_workdir_as_teacher_brings_its_settings(tmp_path):
    """Class, sizes, heads, position order and statistics; not what only training reads."""
    path = workdir(
        *(tmp_path / "t", "bootmae"),
        **{"method.encoder.heads": 2, "method.encoder.drop_path": 0.3, "method.mean": (0.4,) * 3},
    )
    c, _ = student(path)
    filled = teachers.fill(c.lock())
    assert c.method.teacher_target.network is None  # the config of the caller is as it was
    assert filled.is_locked
    target = schema.make_task(filled, Clock(1, 1)).teacher_target
    assert (target.network.width, target.network.depth, target.network.heads) == (32, 2, 2)
    assert target.network.pos_embed == "sincos_yx"
    assert target.network.drop_path == 0.0
    assert (target.mean, target.std) == ((0.4,) * 3, (0.5,) * 3)
    # what was resolved is read back without the workdir
    kept = json.loads(settings.to_json(filled))
    shutil.rmtree(path)
    again = teachers.fill(settings_of(kept))
    assert schema.make_task(again, Clock(1, 1)).teacher_target == target


def settings_of(saved):
    return schema.ConfigDict(saved)


def test_a_tokenizer_s_workdir_brings_its_sizes(tmp_path):
    path = workdir(tmp_path, "dvae", **{"method.encoder.vocab": 24, "method.mean": (0.4,) * 3})
    c, _ = student(path, DVAE(path=path, resample="bicubic"), "cae")
    target = schema.make_task(teachers.fill(c), Clock(1, 1)).code_target
    assert (target.encoder.vocab, target.encoder.hidden, target.encoder.step) == (24, 16, 2)
    assert target.decoder.codebook_dim == 8
    assert (target.mean, target.std) == ((0.4,) * 3, (0.5,) * 3)


def test_a_file_or_noise_brings_nothing(tmp_path):
    """An encoder's features follow the student then, a tokenizer is CAE's."""
    c, _ = student("random")
    task = schema.make_task(teachers.fill(c), Clock(1, 1))
    encoder, teacher = task.encoder, task.teacher_target.network
    assert (teacher.width, teacher.depth, teacher.heads) == (96, 4, 4)
    assert teacher.pos_embed == encoder.pos_embed
    assert teacher.drop_path == 0.0
    assert (task.teacher_target.mean, task.teacher_target.std) == (task.mean, task.std)
    c, _ = student("x.pth", DVAE(path="x.pth", size=(32, 32)), "cae")
    found = teachers.fill(c).method.code_target
    assert (found.encoder.vocab, found.decoder.codebook_dim) == (8192, 512)
    assert found.mean == (0.5, 0.5, 0.5)


def test_what_is_given_too_and_differs_is_an_error_that_names_both(tmp_path):
    path = workdir(tmp_path / "t", "mae", params=True)
    c, key = student(path, mean=(0.5, 0.5, 0.5))
    c = teachers.fill(c)
    made = helpers.make(c)[1]
    line = refused(c, made, tmp_path)
    assert line.startswith(f"{key}.path: {path}/config.json has mean (0.485")
    assert "it would be read with mean (0.5, 0.5, 0.5)" in line
    c, _ = student(path)
    c = teachers.fill(c)
    out, sources, _ = frozen_of(c, helpers.make(c)[1], tmp_path / "run")
    kept = Checkpoints(Workdir(path, writer=False), read_only=True).params(out["teacher_target"])
    jax.tree.map(np.testing.assert_array_equal, out["teacher_target"], kept)
    assert sources["teacher_target"]["path"] == path


def test_a_run_of_another_kind_is_no_teacher(tmp_path):
    path = workdir(tmp_path / "a", "dvae")
    with pytest.raises(ConfigError, match=r"teacher_target.path: .* trained the encoder DVAEEnc"):
        teachers.fill(student(path)[0])
    with pytest.raises(ConfigError, match=r"^method.teacher_target.path: .*none is no folder"):
        teachers.fill(student(str(tmp_path / "none"))[0])


def test_another_size_of_images_is_no_contradiction(tmp_path):
    """The teacher's view follows the student's grid; fixed positions are made for it."""
    path = workdir(tmp_path, "mae", **{"method.encoder.image_size": (16, 12)})
    task = schema.make_task(teachers.fill(student(path)[0]), Clock(1, 1))
    assert task.teacher_target.network.image_size == (16, 12)
    assert task.teacher_target.teacher(task.encoder).image_size == (8, 8)


# ------------------------------------------------------------------ continuing, old spellings
def test_a_path_may_change_and_settings_may_not(tmp_path):
    path = workdir(tmp_path, "mae")
    c = teachers.fill(student(path)[0])
    saved = json.loads(settings.to_json(c))
    c.unlock().method.teacher_target.path = "elsewhere"
    said = []
    changed = changes.check_workdir(c, Workdir(str(tmp_path)), saved, said.append)
    assert changed == {"method.teacher_target.path": (path, "elsewhere")}
    c.method.teacher_target.network.heads = 2
    with pytest.raises(ConfigError, match=r"^method.teacher_target.network.heads: 2"):
        changes.check_workdir(c, Workdir(str(tmp_path)), saved, said.append)


def test_what_an_older_run_took_from_its_student_unsaid(tmp_path):
    """MAE's features of before had no settings of their own: None in the translated config."""
    c, _ = student("random", name="mae")
    saved = json.loads(settings.to_json(c))
    assert saved["method"]["pixel_target"]["network"] is None
    filled = teachers.fill(c)
    assert changes.check_workdir(filled, Workdir(str(tmp_path)), saved, print) == {}


@pytest.mark.parametrize("name", ["cae", "caev2", "mae"])
def test_the_old_spelling_on_the_command_line(name):
    words = f"--config=configs/{name}.py", "--config.teacher.path=x.pth"
    with pytest.raises(ConfigError) as error:
        helpers.program("train", *words, parse_only=True)
    allowed = KEYS.get(name, "nothing, no target here reads a frozen network")
    assert str(error.value) == f"config.teacher.path: unknown; allowed: {allowed}"


def test_the_old_spelling_in_a_config_of_the_user(tmp_path):
    c = helpers.small("cae")
    c.teacher = {"path": "x.pth"}
    with pytest.raises(ConfigError, match=r"^teacher: unknown; allowed: method.code_target.path$"):
        setup.check_settings(c)
    file = tmp_path / "mine.py"
    file.write_text(
        "from mimjax.run.sections import load\n\n\ndef get_config():\n"
        "    c = load('cae').unlock()\n    c.teacher.path = 'x.pth'\n    return c\n"
    )
    wanted = r"mine.py, line 6: config.teacher: unknown; allowed: .*c.method.code_target.path"
    with pytest.raises(ConfigError, match=wanted):
        config_files.load(str(file))


# ------------------------------------------------------------------ the argument of `mimjax.load`
def test_paths_that_an_argument_names(tmp_path):
    """One file for the only network, or one by the field of each target."""
    c = helpers.small("cae")
    c.method.code_target.path = None
    teachers.name_paths(c, "")
    assert c.method.code_target.path is None
    for given in ("w.pth", {"code_target": "w.pth"}):
        teachers.name_paths(c, given)
        assert c.method.code_target.path == "w.pth"
        c.method.code_target.path = None
    network = CLIPVision(**SIZES, pos_grid=(4, 4), proj_dim=4)
    joint = helpers.small("mrmae", **{"method.mimic_target": Joint(CLIP(network), CLIP(network))})
    teachers.name_paths(joint, {"mimic_target.second": "b.pth"})
    target = joint.method.mimic_target
    assert (target.first.path, target.second.path) == (None, "b.pth")
    both = "mimic_target.first, mimic_target.second"
    for config, given, line in (
        (joint, "a.pth", f"teacher: 'a.pth' for all; allowed: {{name: file}} of {both}"),
        (joint, {"mimic": "a.pth"}, f"teacher: 'mimic'; allowed: {both}"),
        (helpers.small("mae"), {"a": "b"}, "teacher: 'a'; allowed: none, this method has no froz"),
    ):
        with pytest.raises(ConfigError) as error:
            teachers.name_paths(config, given)
        assert str(error.value).startswith(line)


def test_networks_are_read_for_a_file_s_method(codes):
    _, made, trees, path = codes
    out = teachers.read_named(made.task)
    jax.tree.map(np.testing.assert_array_equal, out, {"code_target": trees})
    save_file({"a": np.zeros(1, np.float32)}, path)
    with pytest.raises(ConfigError, match=r"^teacher: .* unknown checkpoint layout"):
        teachers.read_named(made.task)
    wanted = r"^teacher: missing, but CAE reconstructs with a frozen network \(decoder, encoder\)"
    with pytest.raises(ConfigError, match=wanted):
        teachers.read_named(helpers.make(named("cae", None)[0])[0])


def test_a_tokenizer_s_sizes_on_the_command_line():
    """A section that is None and has one class is made when a setting of it is given."""
    c = config_files.load("cae")
    words = ["method.code_target=DVAE", "method.code_target.encoder.vocab=64"]
    parser.apply(c, parser.split([f"--config.{word}" for word in words])[1])
    target = schema.make_task(teachers.fill(c), Clock(1, 1)).code_target
    assert (target.encoder.vocab, target.encoder.hidden) == (64, 256)
    wrong = parser.Override("method.regressor.nothing.depth", "1")
    with pytest.raises(ConfigError, match=r"^config.method.regressor.nothing: unknown; allowed"):
        parser.apply(c, [wrong])
