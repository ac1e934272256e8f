"""The recipes: parsed whole by the real command line, then run small on files as they describe."""

from unittest import mock

import helpers
import jax
import numpy as np
import pytest
from PIL import Image

import mimjax
from mimjax import schema, sharding
from mimjax.errors import ConfigError
from mimjax.run import setup
from mimjax.run.sections import load
from mimjax.task import Clock
from mimjax.train.loop import train

WHOLE = {
    "small_data": ["", ":size=s,res=64,patch=4,labels"],
    "small_labels": ["", ":method=bootmae,size=b"],
    "one_gpu": ["", ":method=bootmae,size=l,images=64", ":method=cae,path=random", ":method=mcmae"],
    "multi_channel": ["", ":channels=1,bits=12,flip"],
    "continued": [":path=a.pth", ":path=a.pth,method=bootmae,size=l,epochs=20"],
    "three_targets": [":path=random", ":size=l,teacher=dino,path=random", ":demo,path=random"],
    "imagenette": ["", ":method=bootmae,epochs=100"],
    "cifar10": ["", ":method=bootmae,patch=4"],
    "bootmae_conv": ["", ":size=l12,res=192", ":demo,data=photos"],
}


def test_every_recipe_is_covered():
    found = {p.stem for p in (helpers.ROOT / "configs/recipes").glob("*.py")}
    assert found == set(WHOLE)


@pytest.mark.parametrize(
    ("name", "arg"), [(name, arg) for name, args in WHOLE.items() for arg in args]
)
def test_whole(name, arg):
    """Tasks and batches at full size; nothing is computed."""
    c = helpers.config_of(f"--config=configs/recipes/{name}.py{arg}", "--config.seed=3")
    assert c.seed == 3
    task = schema.make_task(c, Clock(1, 1))
    assert task.views["image"].channels == c.data.channels
    setup.check_batch(c, 1)
    setup.check_settings(c)
    if name == "one_gpu":
        published = schema.make_task(helpers.CONFIGS["mae"].get_config(), Clock(1, 1))
        assert c.batch_size // c.accum == (64 if "images=64" in arg else 256)
        assert arg or task.encoder == published.encoder


@pytest.mark.parametrize(
    ("arg", "warmup"),
    [
        ("method=cae", 10.0),  # CAE's scripts: 10, 20 and 40 for 300, 800 and 1600
        ("method=cae,epochs=800", 20.0),
        ("method=cae,epochs=1600", 40.0),
        ("method=caev2", 10.0),
        ("method=mae", 40.0),  # mmpretrain's runs of 300 epochs
        ("method=mrmae", 60.0),  # 80 of 400
        ("method=mae,epochs=30", 6.0),
    ],
)
def test_one_gpu_warms_up_as_published_for_its_length(arg, warmup):
    c = load(f"recipes/one_gpu:{arg}")
    assert c.optimizer.schedule.warmup_epochs == pytest.approx(warmup)
    assert load(f"recipes/one_gpu:{arg},images=64").accum == 4 * c.accum


@pytest.mark.parametrize(
    ("recipe", "arg", "line"),
    [
        ("one_gpu", "images=100", "images=100; allowed: divisors of the batch 4096"),
        ("one_gpu", "method=dvae", "method='dvae'; allowed: mae, "),
        ("one_gpu", "path=a.pth", "path='a.pth' with method=mae"),
        ("continued", "", "path: missing"),
        ("multi_channel", "channels=0", "channels=0"),
        ("small_data", "size=xl", "size='xl'; allowed: ti, s, b, l, h"),
        ("bootmae_conv", "size=ti", "size='ti'; allowed: s, b, l, h, s12"),
        ("three_targets", "teacher=beit", "teacher='beit'; allowed: clip, dino, encoder"),
    ],
)
def test_wrong_arguments(recipe, arg, line):
    with pytest.raises(ConfigError, match=line):
        load(f"recipes/{recipe}:{arg}")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two classes of photographs, and arrays of 12 channels and 12 bits beside them."""
    root = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for n in range(40):
        place = root / "photos" / "ab"[n % 2]
        place.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(256, size=(20, 24, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(place / f"{n}.png")
        (root / "bands").mkdir(exist_ok=True)
        np.save(root / f"bands/{n}.npy", rng.integers(4096, size=(20, 20, 12), dtype=np.uint16))
    return root


def narrow(c):
    """A copy of an MAE with 4-pixel patches of small images."""
    c.unlock()
    e, m = c.method.encoder, c.method
    e.width, e.depth, e.heads, e.patch, e.image_size = 16, 1, 2, 4, (16, 16)
    m.decoder.width, m.decoder.depth, m.decoder.heads = 16, 1, 2
    return c


def run(c, workdir, path=None, devices=1):
    """Two updates; what the run said."""
    c.unlock()
    c.data.path, c.steps, c.optimizer.schedule.warmup_steps, c.log_every = path, 2, 1, 1
    c.batch_size = 8 * c.accum
    c.eval.probes, c.eval.error, c.eval.health, c.eval.pictures = None, None, None, None
    mesh = sharding.make_mesh(devices=jax.devices()[:devices])
    with mock.patch.object(sharding, "make_mesh", return_value=mesh):
        opened = helpers.opened(c, workdir)
    with opened as run:
        train(run)
    losses = [row["loss/total"] for row in helpers.losses(workdir).values()]
    assert len(losses) == 2
    assert np.isfinite(losses).all()
    return (workdir / "train.log").read_text()


@pytest.mark.gate
def test_runs_on_photographs(folder, tmp_path):
    """Small data, its weights continued, and accumulation."""
    first, second, third = (tmp_path / name for name in ("first", "second", "third"))
    photos = str(folder / "photos")
    run(narrow(load("recipes/small_data:labels")), first, photos)
    said = run(narrow(load(f"recipes/continued:path={first}")), second, photos)
    assert f"weights: all of decoder, encoder from {first}" in said
    assert "schedule: from its beginning" in said
    said = run(narrow(load("recipes/one_gpu:images=1024")), third, photos, devices=8)
    assert "batch       32 = 8 devices x 1 x 4 accumulated" in said


def test_runs_on_bands(folder, tmp_path):
    c = narrow(load("recipes/multi_channel:bits=12"))
    said = run(c, tmp_path / "run", str(folder / "bands"))
    assert "image 16x16x12" in said


# ------------------------------------------------------------------ compositions of no paper
def test_bootmae_on_convolutions_joins_two_methods():
    """The encoder is MCMAE's, everything else BootMAE's but the spared class token."""
    c, boot, conv = (load(name) for name in ("recipes/bootmae_conv", "bootmae", "mcmae"))
    assert c.method.encoder == conv.method.encoder
    same = lambda x: {k: v for k, v in x.method.to_dict().items() if k != "encoder"}
    assert same(c) == same(boot)
    task = schema.make_task(c, Clock(1, 1))
    assert (task.encoder.num_prefix, task.num_masked) == (0, 147)
    params = jax.eval_shape(task.init, jax.random.key(0))[0]
    # keys and values come from a block of the transformer stage, 768 wide
    cross = jax.tree.leaves(params["pixel_decoder"]["block_00"]["cross"])
    assert 768 in {x.shape[0] for x in cross if x.ndim == 2}


def test_three_targets_leave_each_other_out():
    """A term of weight 0 takes its decoder, its target and an average that nobody reads with it."""
    c = load("recipes/three_targets:path=random").unlock()
    whole = schema.make_task(c, Clock(1, 1))
    assert list(whole.targets) == ["pixel_target", "feature_target", "teacher_target"]
    assert "CLIP" in str(whole.describe())
    c.method.teacher.weight = c.method.feature.weight = 0.0
    task = schema.make_task(c, Clock(1, 1))
    params = jax.eval_shape(task.init, jax.random.key(0))[0]
    assert sorted(params) == ["encoder", "pixel_decoder"]
    assert task.init_frozen(jax.random.key(0)) == {} == task.init_ema(params)


@pytest.mark.gate
def test_class_of_a_recipe_is_found_from_any_folder(tmp_path, monkeypatch):
    """The workdir names the file as it lies in a checkout or a wheel, not where it lies here."""
    monkeypatch.chdir(tmp_path)
    c = load("recipes/three_targets:demo,path=random").unlock()
    assert c.task == "configs/recipes/three_targets.py:ThreeTargets"
    c.method.encoder.depth = c.method.teacher_target.network.depth = 1
    said = run(c, tmp_path / "run")
    table = [line.split()[0] for line in said.splitlines() if "_decoder = " in line]
    assert table == ["pixel", "feature", "teacher"]
    assert mimjax.load(tmp_path / "run").config.task == c.task
