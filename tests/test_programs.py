"""Programs that look at a trained run, as real processes, and what they refuse."""

import io
import json
import shutil
import types
from typing import Any

import flax.linen as nn
import helpers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from mimjax import attention, cli, heatmaps, pictures, trained
from mimjax.data.augment import Augment
from mimjax.data.files import Files
from mimjax.errors import ConfigError
from mimjax.evaluators.attention import Attention
from mimjax.evaluators.common import Bench, Subset
from mimjax.evaluators.pictures import Pictures
from mimjax.models.layers import Block, layer_norm
from mimjax.models.vit import patchify
from mimjax.task import View
from mimjax.train.sharding import make_mesh

SHORT = ["--config.steps=2", "--config.eval.probes=False", "--config.eval.error=False"]
SHORT += ["--config.eval.pictures=3", "--config.batch_size=16", "--config.checkpoint_every=1"]
SHORT += ["--config.optimizer.warmup_steps=0", "--config.seed=5"]
SHORT += [f"--config.method.encoder.{k}" for k in ("width=32", "depth=2")]
RUNS = {"mae": "configs/mae.py:demo", "cae": "configs/cae.py:demo,tokenizer=pixels"}
TILE = pictures.TILE + pictures.GAP


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Workdirs of two runs of two steps, by name."""
    made = {name: tmp_path_factory.mktemp(name) for name in RUNS}
    for name, workdir in made.items():
        helpers.run("mimjax.main", f"--config={RUNS[name]}", *SHORT, f"--workdir={workdir}")
    return made


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Two files of other sizes and shapes, one in a sub-folder."""
    folder = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    (folder / "below").mkdir()
    draw = lambda *shape: Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8))
    draw(20, 13, 3).save(folder / "below/a.jpg")
    draw(5, 9).save(folder / "b.png")
    (folder / "notes.txt").write_text("no image")
    return folder


def width(columns):
    return 2 * pictures.MARGIN + columns * TILE - pictures.GAP


def files(folder):
    return {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_reconstruct_draws_the_runs_own_picture(runs):
    before = files(runs["mae"])
    out = helpers.run("mimjax.reconstruct", f"--workdir={runs['mae']}", "--count=3")
    assert "error is mean squared" in out.stdout
    rows = [line.split() for line in out.stdout.splitlines() if line.startswith("  ")]
    assert [row[0] for row in rows] == ["digits"] * 3 + ["mean"]
    values = [float(row[-1]) for row in rows]
    assert values[-1] == pytest.approx(np.mean(values[:3]), abs=1e-4)
    place = runs["mae"] / "pictures/reconstruct.png"
    assert out.stdout.endswith(f"picture: {place}\n")
    own = runs["mae"] / "pictures/reconstruction_0000002.png"
    np.testing.assert_array_equal(Image.open(place), Image.open(own))
    after = files(runs["mae"])
    assert after.keys() - before.keys() <= {place}
    assert before == {p: after[p] for p in before}


def test_a_tasks_own_columns(runs):
    """CAE's columns, in this process."""
    run = trained.open_run(str(runs["cae"]))
    sheet = Pictures(run.bench(None), 3, write=lambda name, data: None).sheet(run.state(), {})
    own = runs["cae"] / "pictures/reconstruction_0000002.png"
    made = np.asarray(Image.open(io.BytesIO(sheet.png()))).astype(int)
    assert np.abs(made - np.asarray(Image.open(own))).max() <= 1  # compiled otherwise
    assert sheet.error.shape == (3,)


def test_reconstruct_reads_other_images(runs, images, tmp_path):
    place = tmp_path / "deep/picture.png"
    out = helpers.run(
        "mimjax.reconstruct", f"--workdir={runs['cae']}", f"--images={images}", f"--output={place}"
    )
    assert "  b.png        " in out.stdout
    assert "  below/a.jpg  " in out.stdout
    picture = np.asarray(Image.open(place))
    assert picture.shape[1] == width(4)  # original, masked, prediction, no regressor
    top, left = pictures.MARGIN + pictures.FONT_SIZE + 5, pictures.MARGIN
    tile = picture[top : top + pictures.TILE, left : left + pictures.TILE]
    crop = Augment()(Files(str(images)).image(0), {"image": View((8, 8))}, None, train=False)
    np.testing.assert_array_equal(tile, crop["image"].repeat(16, 0).repeat(16, 1))


@pytest.mark.parametrize(
    ("name", "args", "columns"),
    [
        ("mae", [], 2),
        ("cae", ["--layers=0,-1,1", "--heads=0,3", "--queries=mean", "--mass=0.6"], 5),
    ],
)
def test_attention(runs, images, tmp_path, name, args, columns):
    place = tmp_path / "maps.png"
    out = helpers.run(
        "mimjax.attention",
        f"--workdir={runs[name]}",
        f"--images={images / 'b.png'}",
        f"--output={place}",
        *args,
    )
    lines = [line.split()[:2] for line in out.stdout.splitlines() if " of it lies on " in line]
    assert len(lines) == columns - 1
    assert Image.open(place).size[0] == width(columns)


@pytest.mark.parametrize(
    ("program", "args", "text"),
    [
        ("attention", ["--layers=2"], "--layers: '2'; allowed: integers from -2 to 1,"),
        ("reconstruct", ["--step=7"], "--step: 7; allowed: 1, 2"),
    ],
)
def test_mistake_on_the_command_line(runs, program, args, text):
    before = files(runs["mae"])
    out = helpers.run(f"mimjax.{program}", f"--workdir={runs['mae']}", *args, check=False)
    assert out.returncode == 1
    assert "Traceback" not in out.stderr
    errors = [line for line in out.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, out.stderr
    assert text in errors[0]
    assert files(runs["mae"]) == before


def test_workdirs_that_hold_no_run(runs, tmp_path):
    with pytest.raises(ConfigError, match=r"--workdir: .* is no folder"):
        trained.open_run(str(tmp_path / "no"))
    with pytest.raises(ConfigError, match=r"--workdir: no config\.json in"):
        trained.open_run(str(tmp_path))
    shutil.copy(runs["mae"] / "config.json", tmp_path)
    with pytest.raises(ConfigError, match="--workdir: no checkpoint in"):
        trained.open_run(str(tmp_path))
    assert [p.name for p in tmp_path.iterdir()] == ["config.json"]


def test_broken_checkpoints_and_wrong_files(runs, tmp_path):
    shutil.copytree(runs["mae"], tmp_path / "run")
    shutil.rmtree(tmp_path / "run/checkpoints/2/params/d")
    run = trained.open_run(str(tmp_path / "run"))
    with pytest.raises(ConfigError, match="checkpoint 2: its files cannot be read"):
        run.state()
    assert run.checkpoints.manager.all_steps()  # nothing was moved aside
    assert not (tmp_path / "run/broken").exists()
    with pytest.raises(ConfigError, match="--images: no image below"):
        run.bench(str(tmp_path / "run/checkpoints"))
    with pytest.raises(ConfigError, match=r"--images: .*config.json: not a readable image"):
        Files(str(tmp_path / "run/config.json")).image(0)
    with pytest.raises(ConfigError, match=r"--images: .* is no folder and no file"):
        run.bench("/no/images")
    for count, output, flag in ((0, None, "--count"), (1, "a.jpg", "--output")):
        with pytest.raises(ConfigError, match=flag):
            trained.check_flags(count, output)
    with pytest.raises(ConfigError, match="--output: cannot write"):
        trained.save(run, "", str(tmp_path / "run/config.json/a.png"), b"")


def test_the_state_is_the_checkpoints(runs):
    """Parameters as the trainer restores them; averages of a method that has some."""
    run = trained.open_run(str(runs["mae"]), 1)
    state = run.state()
    assert int(state.step) == run.step == 1
    assert state.opt_state == ()
    jax.tree.map(np.testing.assert_array_equal, run.encoder(), state.params["encoder"])
    assert (
        json.loads((runs["mae"] / "config.json").read_text())["seed"] == run.bench(None).seed == 5
    )
    assert run.bench(None, 7).seed == 7


def test_numbers_of_a_flag():
    assert cli.integers("layers", ["-1", " 0", "0"], -2, 1) == [-1, 0]
    assert attention.heads_of(["all"], 3) == [0, 1, 2]
    assert attention.heads_of(["mean"], 3) is None
    with pytest.raises(ConfigError, match="--heads: '3'; allowed: mean, all or integers from 0"):
        attention.heads_of(["3"], 3)
    for bad in ([], ["1.5"], ["x"], ["--1"], ["2"], ["mean", "0"]):
        with pytest.raises(ConfigError, match="--layers"):
            cli.integers("layers", bad, -2, 1)


class NoPrefix(nn.Module):
    """An encoder without CLS."""

    heads: int = 2
    dtype: Any = jnp.float32
    grid = 2, 4

    @nn.compact
    def __call__(self, images):
        x = nn.Dense(8, dtype=self.dtype, name="patch_embed")(patchify(images, 4))
        x = Block(heads=self.heads, dtype=self.dtype, name="block_00")(x)
        return layer_norm("norm", self.dtype)(x)


def test_encoders_without_cls(images):
    view = View((8, 16))
    task = types.SimpleNamespace(
        encoder=NoPrefix(), mean=(0.5,) * 3, std=(0.2,) * 3, views={"image": view}
    )
    params = task.encoder.init(jax.random.key(0), jnp.zeros((1, 8, 16, 3)))["params"]
    subset = Subset(Files(str(images)), 9)
    bench = Bench(task, make_mesh(devices=jax.devices()[:1]), subset, subset)
    reader = Attention(bench, 5, params)
    assert (reader.depth, reader.num_prefix, reader.queries(None)) == (1, 0, "mean")
    with pytest.raises(ConfigError, match="--queries: 'cls'"):
        reader.queries("cls")
    crops, found = reader.read(params, [0], [1], "mean")
    assert crops.shape == (2, 8, 16, 3)
    (share,) = found.values()
    np.testing.assert_allclose(share.sum(-1), 1, rtol=1e-5)
    assert share.shape == (2, 8)
    with pytest.raises(ConfigError, match="no attention"):
        Attention(bench, 5, {"conv": {}})


def test_the_smallest_set_and_its_contour():
    share = np.asarray([[0.1, 0.4, 0.2, 0.3], [0.25, 0.25, 0.25, 0.25]])
    kept = lambda mass: heatmaps.smallest_set(share, mass).astype(int).tolist()
    assert kept(0.5) == [[0, 1, 0, 1], [1, 1, 0, 0]]
    assert kept(0.71) == [[0, 1, 1, 1], [1, 1, 1, 0]]
    assert kept(1.0) == [[1, 1, 1, 1], [1, 1, 1, 1]]
    inside = np.zeros((1, 6, 6), bool)
    inside[0, :4, 1:5] = True
    line = heatmaps.contour(inside, 1)
    assert line.sum() == 12  # the rim of 4x4, also where it touches the border
    assert not line[0, 1:3, 2:4].any()
    images = np.full((2, 8, 8, 3), 100, np.uint8)
    plain = heatmaps.overlay(images, share, (2, 2))
    brightest = 0.6 * np.asarray(heatmaps.COLORS[-1]) + 0.4 * 100
    np.testing.assert_allclose(plain[0, 0, 4], brightest, atol=0.51)
    assert (plain[1] == plain[1, 0, 0]).all()
    drawn = heatmaps.overlay(images, share, (2, 2), 0.5)
    assert (drawn[0, :, 4] == heatmaps.CONTOUR).all()
    np.testing.assert_array_equal(drawn[0, :, :4], plain[0, :, :4])
    sheet = pictures.png(pictures.draw(heatmaps.columns(images, {"a": share}, (2, 2), 0.5)))
    assert Image.open(io.BytesIO(sheet)).size[0] == width(2)
