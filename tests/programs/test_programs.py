"""Programs that look at a trained run, as real processes, and what they refuse."""

import io
import json
import os
import re
import shlex
import shutil
import sys
import types
from typing import Any

import flax.linen as nn
import helpers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file

import mimjax
from mimjax import stopping
from mimjax.data.augment import Augment
from mimjax.data.files import Files
from mimjax.errors import ConfigError
from mimjax.evaluators.pictures import Pictures
from mimjax.inference import workdir as trained
from mimjax.inference.attention import Attention
from mimjax.inference.encoders import EncoderAlone
from mimjax.inference.features import FeatureBank
from mimjax.inference.samples import Bench, Subset
from mimjax.models.attention import Block
from mimjax.models.layers import layer_norm
from mimjax.patches import patchify
from mimjax.plots import embedding, heat_maps, reconstructions
from mimjax.programs import attention, cli, usage
from mimjax.run import messages
from mimjax.sharding import make_mesh
from mimjax.storage import tables
from mimjax.task import View
from mimjax.torch_io.read import load

SHORT_PYTHON = os.path.relpath(sys.executable, helpers.ROOT)
SHORT = ["--config.steps=2", "--config.eval.probes=None", "--config.eval.error=None"]
SHORT += ["--config.eval.pictures.count=3", "--config.batch_size=16", "--config.checkpoint_every=1"]
SHORT += ["--config.optimizer.schedule.warmup_steps=0", "--config.seed=5"]
SHORT += [f"--config.method.encoder.{k}" for k in ("width=32", "depth=2")]
RUNS = {"mae": "configs/mae.py:demo", "cae": "configs/cae.py:demo,tokenizer=pixels"}
TILE = reconstructions.TILE + reconstructions.GAP


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Workdirs of two runs of two steps, by name."""
    made = {name: tmp_path_factory.mktemp(name) for name in RUNS}
    for name, workdir in made.items():
        words = f"--config={RUNS[name]}", *SHORT, f"--workdir={workdir}"
        helpers.answer("train", *words, check=True, devices=1)
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
    return 2 * reconstructions.MARGIN + columns * TILE - reconstructions.GAP


def files(folder):
    return {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_reconstruct_draws_the_runs_own_picture(runs):
    before = files(runs["mae"])
    out = helpers.answer("reconstruct", f"--model={runs['mae']}", "--count=3", check=True)
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
    assert after.keys() - before.keys() <= {place, place.with_name(".reconstruct.png.mimjax.json")}
    assert before == {p: after[p] for p in before}


def test_a_run_says_what_it_waits_for_before_the_first_step(runs):
    log = (runs["mae"] / "train.log").read_text()
    order = [
        *("compiling the train step", "train step compiled in"),
        *("evaluating before the first update", "evaluation at step 0: ", "step 1/"),
    ]
    places = [log.index(line) for line in order]
    assert places == sorted(places)


def test_a_tasks_own_columns(runs):
    """CAE's columns, in this process."""
    run = trained.read_run(str(runs["cae"]))
    sheet = Pictures(count=3).make(run.bench(None)).sheet(run.state(), {})
    own = runs["cae"] / "pictures/reconstruction_0000002.png"
    made = np.asarray(Image.open(io.BytesIO(sheet.png()))).astype(int)
    assert np.abs(made - np.asarray(Image.open(own))).max() <= 1  # compiled otherwise
    assert sheet.error.shape == (3,)


def test_reconstruct_reads_other_images(runs, images, tmp_path):
    place = tmp_path / "deep/picture.png"
    out = helpers.answer(
        "reconstruct",
        f"--model={runs['cae']}",
        f"--images={images}",
        f"--output={place}",
    )
    assert out.returncode == 0, out.stderr
    assert "  b.png        " in out.stdout
    assert "  below/a.jpg  " in out.stdout
    picture = np.asarray(Image.open(place))
    assert picture.shape[1] == width(4)  # original, masked, prediction, no regressor
    top, left = reconstructions.MARGIN + reconstructions.FONT_SIZE + 5, reconstructions.MARGIN
    tile = picture[top : top + reconstructions.TILE, left : left + reconstructions.TILE]
    crop = Augment()(Files(str(images)).image(0), {"image": View((8, 8))}, None, train=False)
    np.testing.assert_array_equal(tile, crop["image"].repeat(16, 0).repeat(16, 1))


@pytest.mark.parametrize(
    ("name", "args", "columns"),
    [
        pytest.param("mae", [], 2, marks=pytest.mark.gate),
        ("cae", ["--layers=0,-1,1", "--show_heads=0,3", "--queries=mean", "--mass=0.6"], 5),
    ],
)
def test_attention(runs, images, tmp_path, name, args, columns):
    """MAE's as a real process."""
    place = tmp_path / "maps.png"
    out = (helpers.run if name == "mae" else helpers.answer)(
        "attention",
        f"--model={runs[name]}",
        f"--images={images / 'b.png'}",
        f"--output={place}",
        *args,
    )
    assert out.returncode == 0, out.stderr
    lines = [line.split()[:2] for line in out.stdout.splitlines() if " of it lies on " in line]
    assert len(lines) == columns - 1
    assert Image.open(place).size[0] == width(columns)


@pytest.mark.gate
def test_published_files_are_drawn_like_runs(images, tmp_path, capsys):
    """Errors are those of `mimjax.load`; the same statistics may be given; others change them."""
    task, _ = helpers.make(helpers.small("mae"))
    params = jax.device_get(jax.jit(task.init)(jax.random.key(0))[0])
    file, place = str(tmp_path / "mae.safetensors"), tmp_path / "picture.png"
    save_file(load.to_torch(params, "mae"), file)
    sizes = "--heads=4", "--decoder_heads=4", "--image_size=8,8", "--pixel_norm=patch"
    common = f"--model={file}", *sizes, f"--images={images}", f"--output={place}"
    model = mimjax.load(file, 4, 4, image_size=(8, 8), pixel_norm="patch")
    error = model.reconstruct([images / "b.png", images / "below/a.jpg"], seed=3).error
    mean, std = (",".join(map(str, x)) for x in model.statistics)

    def errors(*words):
        helpers.program("reconstruct", *common, "--seed=3", *words)
        said = capsys.readouterr().out
        assert "MAE of mae.safetensors: error is mean squared" in said
        assert f"model: {model.report[0]}\n" in said  # what the file is read as
        rows = [line.split() for line in said.splitlines() if line.startswith("  ")]
        return {name: float(value) for name, value in rows}

    for words in ([], [f"--mean={mean}", f"--std={std}", "--layout=mae"]):
        found = errors(*words)
        assert Image.open(place).size[0] == width(3)
        assert found.keys() == {"b.png", "below/a.jpg", "mean"}
        assert found["mean"] == pytest.approx(error.mean(), abs=1e-3)
    assert abs(errors("--mean=0.1,0.1,0.1", "--std=1,1,1")["mean"] - error.mean()) > 1e-2
    helpers.program("attention", *common, "--show_heads=0,3")
    said = capsys.readouterr().out
    assert "MAE of mae.safetensors: attention of cls on 2 images" in said
    assert Image.open(place).size[0] == width(3)
    for words, text in (
        (["--step=3"], "--step: with a file"),
        (["--weights=ema"], "--weights: ema, but .* holds no moving average; allowed: online"),
        (["--mean=a,b,c"], r"--mean: .*; allowed: a number per channel"),
        (["--layout=vit"], "--layout: 'vit'; allowed: auto"),
    ):
        with pytest.raises(ConfigError, match=text):
            helpers.program("reconstruct", *common, *words)


def test_files_that_cannot_be_read_are_named_and_others_shown(runs, tmp_path, capsys):
    """Four of nine files are broken in four ways, and one image lies beside the class folders."""
    some, place = tmp_path / "some", tmp_path / "a.png"
    (some / "cats").mkdir(parents=True)
    draw = lambda i: Image.new("RGB", (12, 9), (40 * i, 9, 200))
    for i in range(4):
        draw(i).save(some / f"cats/{i}.png")
    draw(4).save(some / "stray\n.png")
    (some / "notes.txt").write_text("no image")
    broken = {"cats/0a.png": b"", "cats/b.jpg": b"%!PS-Adobe-3.0 EPSF-3.0", "c.jpg": b"words"}
    broken |= {"d.png": (some / "cats/0.png").read_bytes()[:50]}
    for name, data in broken.items():
        (some / name).write_bytes(data)
    for program, count, shown in (("reconstruct", 9, 5), ("attention", 4, 4)):
        args = f"--model={runs['mae']}", f"--images={some}", f"--output={place}"
        helpers.program(program, *args, f"--count={count}")
        said = capsys.readouterr().out
        rows = said.partition("error is mean")[2].splitlines()[1:-2]  # without mean and picture
        if program == "attention":  # as many as are wanted, while there are others
            assert f"on {shown} images" in said
        else:
            assert len(rows) == shown
        assert not [row for row in rows if row.split()[0] in broken]
        if count == 9:
            assert "skipped 4 of 9 files that cannot be read or decoded:\n" in said
            assert all(f"  {some / name} (" in said for name in broken)
        assert "images: left out by their endings: 1 .txt" in said
        assert "have no label: 'c.jpg', 'd.png', 'stray\\n.png'" in said
        assert "stray\n" not in said
    for path in some.rglob("*.png"):
        path.unlink()
    before = place.read_bytes()
    with pytest.raises(
        ConfigError, match=r"^--images: none of 2 files can be read.*first: .*c.jpg"
    ):
        helpers.program("attention", *args)
    assert place.read_bytes() == before


@pytest.mark.parametrize(
    ("program", "args", "text"),
    [
        ("attention", ["--layers=2"], "--layers: '2'; allowed: integers from -2 to 1,"),
        ("reconstruct", ["--step=7"], "--step: 7; allowed: 1, 2"),
    ],
)
def test_mistake_on_the_command_line(runs, program, args, text):
    before = files(runs["mae"])
    out = helpers.answer(program, f"--model={runs['mae']}", *args)
    assert out.returncode == 2
    assert "Traceback" not in out.stderr
    errors = [line for line in out.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, out.stderr
    assert text in errors[0]
    assert files(runs["mae"]) == before


def test_workdirs_that_hold_no_run(runs, tmp_path):
    with pytest.raises(ConfigError, match=r"--workdir: .* is no folder"):
        trained.read_run(str(tmp_path / "no"))
    with pytest.raises(ConfigError, match=r"--workdir: .* is empty; allowed: the workdir of a run"):
        trained.read_run(str(tmp_path))
    shutil.copy(runs["mae"] / "config.json", tmp_path)
    with pytest.raises(ConfigError, match=r"holds config.json, no checkpoints: the run saved"):
        trained.read_run(str(tmp_path))
    assert [p.name for p in tmp_path.iterdir()] == ["config.json"]
    out = helpers.answer("features", f"--model={tmp_path}", "--output=x.npz", "--images=x")
    assert f"error: --model: {tmp_path} holds config.json, no checkpoints" in out.stderr


def test_broken_checkpoints_and_wrong_files(runs, tmp_path):
    shutil.copytree(runs["mae"], tmp_path / "run")
    shutil.rmtree(tmp_path / "run/checkpoints/2/params/d")
    run = trained.read_run(str(tmp_path / "run"))
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
    mine = tmp_path / "mine.png"
    mine.write_bytes(b"a photograph")
    for call in (
        lambda: trained.check_flags(1, str(mine)),
        lambda: trained.save(run, "", str(mine), b"new"),
        lambda: trained.check_flags(1, None, str(tmp_path), "../mine.png"),
    ):
        with pytest.raises(ConfigError, match=r"mine\.png exists, and mimjax has no record"):
            call()
    assert mine.read_bytes() == b"a photograph"


def test_the_state_is_the_checkpoints(runs):
    """Parameters as the trainer restores them; averages of a method that has some."""
    run = trained.read_run(str(runs["mae"]), 1)
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
    with pytest.raises(
        ConfigError, match="--show_heads: '3'; allowed: mean, all or integers from 0"
    ):
        attention.heads_of(["3"], 3)
    for bad in ([], ["1.5"], ["x"], ["--1"], ["2"], ["mean", "0"]):
        with pytest.raises(ConfigError, match="--layers"):
            cli.integers("layers", bad, -2, 1)


class NoPrefix(nn.Module):
    """An encoder without CLS."""

    heads: int = 2
    dtype: Any = jnp.float32
    image_size, patch, grid, num_patches, num_prefix = (8, 16), 4, (2, 4), 8, 0
    class_tokens = 0
    width, out_width, depth, channels, positions, notes = 8, 8, 1, 3, "", ()
    behind, use_mask_token, fuses, pos_grid = (), False, False, None

    def check(self, key):
        pass

    def plain(self):
        return self

    @nn.compact
    def __call__(self, images):
        x = nn.Dense(8, dtype=self.dtype, name="patch_embed")(patchify(images, 4))
        x = Block(heads=self.heads, dtype=self.dtype, name="block_00")(x)
        return layer_norm("norm", self.dtype)(x)


def test_encoders_without_cls(images):
    encoder: Any = NoPrefix()
    task = EncoderAlone(encoder=encoder, mean=(0.5,) * 3, std=(0.2,) * 3)
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
    kept = lambda mass: heat_maps.smallest_set(share, mass).astype(int).tolist()
    assert kept(0.5) == [[0, 1, 0, 1], [1, 1, 0, 0]]
    assert kept(0.71) == [[0, 1, 1, 1], [1, 1, 1, 0]]
    assert kept(1.0) == [[1, 1, 1, 1], [1, 1, 1, 1]]
    inside = np.zeros((1, 6, 6), bool)
    inside[0, :4, 1:5] = True
    line = heat_maps.contour(inside, 1)
    assert line.sum() == 12  # the rim of 4x4, also where it touches the border
    assert not line[0, 1:3, 2:4].any()
    images = np.full((2, 8, 8, 3), 100, np.uint8)
    plain = heat_maps.overlay(images, share, (2, 2))
    brightest = 0.6 * np.asarray(heat_maps.COLORS[-1]) + 0.4 * 100
    np.testing.assert_allclose(plain[0, 0, 4], brightest, atol=0.51)
    assert (plain[1] == plain[1, 0, 0]).all()
    drawn = heat_maps.overlay(images, share, (2, 2), 0.5)
    assert (drawn[0, :, 4] == heat_maps.CONTOUR).all()
    np.testing.assert_array_equal(drawn[0, :, :4], plain[0, :, :4])
    sheet = reconstructions.png(
        reconstructions.draw(heat_maps.columns(images, {"a": share}, (2, 2), 0.5))
    )
    assert Image.open(io.BytesIO(sheet)).size[0] == width(2)


@pytest.fixture(scope="module")
def classes(tmp_path_factory):
    """Six images in two class folders, and a file that is none."""
    folder = tmp_path_factory.mktemp("classes")
    rng = np.random.default_rng(1)
    for i in range(6):
        place = folder / ("val/cats" if i % 2 else "train/bees")
        place.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 256, (9 + i, 12, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(place / f"{i}.png")
    (folder / "train/bees/2b.png").write_text("no image")
    return folder


LAYERS = ["--layers=norm,-1,1,0", "--pool=mean,cls,all", "--batch_size=4"]


def test_features_are_those_of_load(runs, classes, tmp_path, capsys):
    """Batch sizes play no part; a bad file is no row and shifts none; labels are class folders."""
    place, workdir = tmp_path / "deep/features.npz", str(runs["mae"])
    args = f"--model={workdir}", f"--images={classes}", f"--output={place}"
    helpers.program("features", *args, *LAYERS)
    said = capsys.readouterr().out
    assert "skipped 1 of 7 files that cannot be read" in said
    assert "2b.png" in said
    found = dict(np.load(place, allow_pickle=False))
    assert [p.split("/")[-1][0] for p in found["path"]] == list("024135")
    assert found["label"].tolist() == [0, 0, 0, 1, 1, 1]
    about = json.loads(str(found["about"]))
    assert (about["method"], about["step"], about["model"]) == ("MAE", "2", workdir)
    assert about["weights"] == "online"
    model = mimjax.load(workdir)
    images = [classes / str(p) for p in found["path"]]
    names = {(pool, layer) for pool in ("mean", "cls", "all") for layer in ("norm", 0, 1)}
    assert len(found) == len(names) + 3
    for pool, layer in names:
        key = f"{pool}_norm" if layer == "norm" else f"{pool}_block_{layer:02d}"
        assert found[key].dtype == np.float32
        theirs = model.encode(images, pool=pool, layer=None if layer == "norm" else layer)
        np.testing.assert_allclose(found[key], theirs, atol=1e-5)
    before = place.read_bytes()
    with pytest.raises(ConfigError, match=r"--output: .* exists .* allowed: --overwrite to"):
        helpers.program("features", *args)
    assert place.read_bytes() == before
    record = place.with_name(".features.npz.mimjax.json")
    assert sorted(place.parent.iterdir()) == [record, place]
    helpers.program("features", *args, "--overwrite", "--count=2")
    assert len(np.load(place)["path"]) <= 2


def test_features_are_those_of_the_probes(runs, tmp_path):
    """The program is a real process here, on the run's own images, and writes Parquet."""
    parquet = pytest.importorskip("pyarrow.parquet")
    place, workdir = tmp_path / "features.parquet", runs["mae"]
    args = f"--model={workdir}", f"--output={place}", "--count=20", "--pool=mean,all"
    helpers.answer("features", *args, check=True)
    run = trained.read_run(str(workdir))
    subset = Subset(run.bench(None).test, 20)
    bench = Bench(run.task, run.mesh, subset, subset, batch_size=20)
    theirs = FeatureBank(bench).read("pretrained", run.state())["mean of norm"].test
    table = parquet.read_table(place)
    columns = table.to_pydict()
    np.testing.assert_allclose(columns["mean_norm"], theirs, atol=1e-5)
    tokens = np.reshape(columns["all_norm"], (20, *json.loads(_meta(table, "all_norm")["shape"])))
    np.testing.assert_allclose(tokens[:, 1:].mean(1), theirs, atol=1e-5)
    assert columns["label"] == subset.labels().tolist()
    assert table.schema.metadata[b"method"] == b"MAE"


def _meta(table, name):
    return {k.decode(): v.decode() for k, v in table.schema.field(name).metadata.items()}


def test_tables_are_written_in_parts(tmp_path, monkeypatch):
    """Rows stay in order over row groups; what fails leaves nothing."""
    parquet = pytest.importorskip("pyarrow.parquet")
    rng = np.random.default_rng(0)
    parts = [rng.normal(size=(k, 3, 2)).astype(np.float32) for k in (4, 4, 1)]
    monkeypatch.setattr(tables, "GROUP_BYTES", 150)  # more than one part, less than two

    def write(path, error=None):
        with tables.create(str(path), False, {"method": "X"}) as table:
            for x in parts:
                table.add(["\udce9"] * len(x), np.arange(len(x)), {"all_norm": x})
            if error:
                raise error

    write(tmp_path / "a.npz")
    write(tmp_path / "a.parquet")
    ours = np.load(tmp_path / "a.npz", allow_pickle=False)
    np.testing.assert_array_equal(ours["all_norm"], np.concatenate(parts))
    assert ours["label"].tolist() == [0, 1, 2, 3, 0, 1, 2, 3, 0]
    file = parquet.ParquetFile(tmp_path / "a.parquet")
    assert file.metadata.num_row_groups == 2
    values = np.reshape(file.read().to_pydict()["all_norm"], (9, 3, 2))
    np.testing.assert_array_equal(values, np.concatenate(parts))
    for name in ("b.npz", "b.parquet"):
        with pytest.raises(ConfigError, match=f"cannot write .*{name} .No space"):
            write(tmp_path / name, OSError(28, "No space left"))
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        *(".a.npz.mimjax.json", ".a.parquet.mimjax.json", "a.npz", "a.parquet")
    ]
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ConfigError, match=r"needs pyarrow: pip install 'mimjax\[parquet\]'"):
        tables.check("c.parquet", False)


def test_maps_of_images_and_patches(runs, classes, tmp_path, capsys):
    workdir = runs["mae"]
    maps = {
        "images_tsne": [f"--images={classes}", "--layer=0", "--pool=cls"],
        "patches_pca": ["--of=patches", "--method=pca", "--count=5"],
        "patches_tsne": ["--of=patches", "--count=40", "--nothumbnails"],
    }
    for name, args in maps.items():
        place = tmp_path / f"{name}.png"
        helpers.program("map", f"--model={workdir}", f"--output={place}", *args)
    said = capsys.readouterr().out
    assert "MAE, step 2: 6 images\nskipped 1 of 7 files" in said
    assert "MAE, step 2: 40 patches of 3 images" in said
    sheet = np.asarray(Image.open(tmp_path / "images_tsne.png"))
    for color in embedding.scatter.colors(2):  # both classes
        assert (sheet == color).all(-1).sum() > 100
    assert Image.open(tmp_path / "patches_pca.png").size[0] > 4 * reconstructions.TILE
    dots = np.asarray(Image.open(tmp_path / "patches_tsne.png"))
    assert (
        dots.shape[1]
        == embedding.scatter.SIDE + 2 * reconstructions.MARGIN + embedding.scatter.LEGEND
    )


@pytest.mark.parametrize("method", ["tsne", "pca"])
def test_places_keep_clusters_apart(method):
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(40, 60)) + 100 * np.repeat([[0], [1]], 20, 0)
    places = embedding.place(vectors, method)
    np.testing.assert_array_equal(places, embedding.place(vectors, method))
    center = [places[:20].mean(0), places[20:].mean(0)]
    nearest = [np.linalg.norm(places - c, axis=1) for c in center]
    assert ((nearest[1] < nearest[0]) == (np.arange(40) >= 20)).all()
    with pytest.raises(ConfigError, match="all features are the same"):
        embedding.place(np.ones((5, 3)), method)


@pytest.mark.parametrize(
    ("program", "args", "text"),
    [
        (
            "features",
            ["--model=W", "--layers=2"],
            "--layers: 2; allowed: 'norm', -2 to 1",
        ),
        ("features", ["--model=W", "--layers=last"], "--layers: 'last'; allowed: norm, or"),
        ("features", ["--model=W", "--pool=max"], "--pool: 'max'; allowed: cls, mean, all"),
        ("features", ["--model=W", "--pool="], "--pool: empty"),
        ("features", ["--model=W", "--batch_size=0"], "--batch_size: 0; allowed: 1 or more"),
        ("features", ["--model=W", "--output=a.csv"], "--output: 'a.csv'; allowed: file names"),
        ("features", ["--model=W", "--weights=ema"], "--weights: ema, but .* averages no encoder"),
        ("features", ["--model=W", "--heads=4"], "--heads: with a workdir"),
        ("attention", ["--model=W", "--heads=4"], "--heads: with a workdir.*--show_heads"),
        ("features", ["--model=W", "--images=I", "--split=test"], "--split: with --images"),
        ("features", ["--weights=a.pth"], "--weights: 'a.pth'; allowed: .* is --model=a.pth"),
        ("features", ["--weights", "a.pth"], "--weights: 'a.pth'; allowed: .* is --model=a.pth"),
        ("features", ["--workdir=W"], "--workdir: the flag is --model here; allowed: --model=/"),
        ("features", ["--model=W", "--ema"], "--ema: the flag is --weights; .* --weights=ema"),
        ("features", ["--output=a.npz"], "--model: missing"),
        ("features", ["--model=a.jpg", "--output=a.npz"], "--model: a.jpg is no folder"),
        ("features", ["--model=a.pth", "--output=a.npz"], "--model: a.pth: no such file"),
        ("reconstruct", ["--model=a.pth", "--output=a.png"], "--images: missing"),
        ("attention", ["--model=a.pth", "--images=I"], "--output: missing"),
        ("reconstruct", ["--model=W", "--weights=ema"], "--weights: ema; .* allowed: online"),
        ("export", ["--model=a.pth", "--format=mae", "--output=a.pth"], "--model: a.pth is a file"),
        ("features", ["--model=W", "--images=B"], "--images: none of 1 files can be read"),
        ("map", ["--model=W", "--images=I"], "--images: 2 images; allowed: 4 or more"),
        ("map", ["--model=W", "--count=3"], "--count: 3; allowed: 4 or more"),
        ("map", ["--model=W", "--layer=9"], "--layer: 9; allowed: 'norm', -2 to 1"),
        ("map", ["--model=W", "--output=a.npz"], "--output: 'a.npz'; allowed: a file"),
        ("map", ["--model=W", "--of=patches", "--pool=cls"], "--pool: with --of=pat"),
    ],
)
def test_mistakes_with_features(runs, images, tmp_path, monkeypatch, program, args, text):
    (tmp_path / "bad.png").write_text("no image")
    places = {"=W": f"={runs['mae']}", "=I": f"={images}", "=B": f"={tmp_path / 'bad.png'}"}
    for short, place in places.items():
        args = [a.removesuffix(short) + place if a.endswith(short) else a for a in args]
    monkeypatch.chdir(tmp_path)
    before = files(runs["mae"])
    with pytest.raises(ConfigError, match=text) as error:
        helpers.program(program, *args)
    assert "\n" not in str(error.value)
    assert files(runs["mae"]) == before
    assert [p.name for p in tmp_path.iterdir()] == ["bad.png"]


def test_the_end_of_a_run_has_one_form(runs):
    for name, workdir in runs.items():
        said = (workdir / "train.log").read_text()
        what, picture, *_, next_ = (
            said.rpartition(t)[2] for t in ("predicted: ", "Picture: ", "Next:")
        )
        task = trained.read_run(str(workdir)).task
        assert what.startswith(task.story + "\n\nPicture: "), name
        assert picture.split("\n")[0].endswith("pictures/reconstruction_0000002.png")
        commands = [line for line in next_.splitlines() if "mimjax " in line]
        programs = []
        for command in commands:
            called, _, rest = command.partition("mimjax ")
            assert called.strip() in ("", f"{sys.executable} -m", f"{SHORT_PYTHON} -m"), command
            program, *words = shlex.split(rest)
            helpers.program(program, *words, parse_only=True)
            assert f"--model={workdir}" in words
            programs.append(program)
        assert programs == ["reconstruct", "attention", "features", "export"]


def test_commands_can_be_typed_where_mimjax_is_not_on_the_path(monkeypatch):
    monkeypatch.setattr("shutil.which", lambda name: None)
    monkeypatch.setattr(sys, "executable", f"{helpers.ROOT}/.venv/bin/python")
    monkeypatch.chdir(helpers.ROOT)
    assert messages.typed_program() == ".venv/bin/python -m mimjax"
    monkeypatch.setattr(sys, "executable", "/other place/bin/python")
    assert messages.typed_program() == "'/other place/bin/python' -m mimjax"


@pytest.mark.parametrize("name", helpers.CONFIGS)
def test_every_method_says_what_it_predicts(name, monkeypatch):
    monkeypatch.setattr("shutil.which", lambda name: f"/env/bin/{name}")
    task, compiled = helpers.make(helpers.small(name))
    assert task.story[0].islower()
    assert task.story.endswith(".")
    assert type(task).__name__ not in task.story
    workdir = types.SimpleNamespace(path="runs/a b")
    setup = types.SimpleNamespace(program=compiled)
    found = messages.commands(types.SimpleNamespace(setup=setup, workdir=workdir), True)
    wanted = ["reconstruct", "attention", "features", "export"]
    if name == "dvae":
        wanted = ["reconstruct", "export"]
    assert [shlex.split(line)[1] for line in found] == wanted
    assert all("'runs/a b'" in line for line in found)


@pytest.mark.parametrize("program", usage.PROGRAMS)
def test_help_names_every_flag(program, capsys, monkeypatch):
    """The program's own text above, then its flags, in groups that fit a screen."""
    module = helpers.module_of(program)
    monkeypatch.setattr(stopping, "install", lambda: None)  # the handlers of a program would stay
    cli.run(module, ["--help"])
    shown = capsys.readouterr().out
    assert shown.startswith(module.__doc__.split("\n")[0])
    groups = shown.split("flags")
    assert all(group.count("\n") < 24 for group in groups)
    for flag in helpers.program(program, parse_only=True):
        assert re.search(rf"^  --(\[no\])?{flag}\b", shown, re.M), flag
    assert "--pdb" not in shown  # absl's own, see --helpfull
