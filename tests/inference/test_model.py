"""`mimjax convert` and `mimjax.load`: published files as workdirs and as objects in Python."""

import json
import re
import subprocess
import sys

import helpers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.numpy import save_file

import mimjax
from mimjax.errors import ConfigError
from mimjax.evaluators.pictures import Pictures
from mimjax.inference import published
from mimjax.inference import workdir as trained
from mimjax.inference.attention import Attention
from mimjax.inference.features import FeatureBank
from mimjax.inference.samples import Bench, Subset
from mimjax.models.vit import sincos_table
from mimjax.programs import convert
from mimjax.storage.checkpoints import Checkpoints
from mimjax.task import Pretraining
from mimjax.torch_io.read import load


def random_like(tree, seed):
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: (0.2 * rng.normal(size=x.shape)).astype(np.float32), tree)


def tables(grid, **widths):
    """Fixed positions with a row of zeros for CLS, BootMAE's order."""
    with_cls = lambda t: np.concatenate([np.zeros_like(t[:1]), t])[None]
    return {k: with_cls(sincos_table(grid, w, "yx")) for k, w in widths.items()}


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """A BootMAE file as the official script writes it, its weights and its average."""
    task, _ = helpers.make(helpers.small("bootmae"))
    shapes = jax.eval_shape(task.init, jax.random.key(0))[0]
    params, average = random_like(shapes, 0), random_like({"encoder": shapes["encoder"]}, 1)
    extra = tables((4, 4), pos_embed=32, de_pos_embed=32)
    tensors = lambda tree: {k: torch.tensor(v) for k, v in (tree | extra).items()}
    content = {
        "model": tensors(load.to_torch(params, "bootmae")),
        "model_ema": tensors(load.to_torch(average, "bootmae")),
        "epoch": 799,
    }
    path = tmp_path_factory.mktemp("published") / "bootmae.pth"
    torch.save(content, path)
    return path, params, average


@pytest.fixture(scope="module")
def workdir(file, tmp_path_factory):
    """The file as a workdir, by the command line, and what was printed."""
    folder = tmp_path_factory.mktemp("converted") / "run"
    config = "--config=configs/bootmae.py:demo"
    args = f"--model={file[0]}", config, f"--workdir={folder}", "--heads=4"
    out = helpers.answer("convert", *args)
    assert not out.returncode, out.stderr
    return folder, out.stdout


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for i, shape in enumerate([(20, 13, 3), (8, 8, 3), (9, 30, 3)]):
        image = Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8))
        image.save(folder / f"{i}.jpg")
    return folder


def same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_convert_writes_a_workdir(file, workdir):
    _, params, average = file
    folder, said = workdir
    settings = json.loads((folder / "config.json").read_text())["method"]
    assert settings["encoder"]["width"] == 32
    assert settings["encoder"]["depth"] == 2
    assert settings["pixel_decoder"]["depth"] == settings["feature_decoder"]["depth"] == 1
    assert "method.encoder.width=32 (config: 96)" in said
    assert "EMA: the moving average of the file" in said
    run = trained.read_run(str(folder))
    state = run.state()
    assert int(state.step) == 0
    same(state.params, params)
    same(state.ema, average)
    # main would continue from it: the optimizer's state is there too
    c = run.config
    _, program = helpers.make(c)
    _, found = Checkpoints(run.workdir, read_only=True).survey(program.abstract_state, print)
    whole = found.state
    assert found.data["step"] == 0
    same(whole.params, params)
    assert len(jax.tree.leaves(whole.opt_state)) > len(jax.tree.leaves(params))
    # the programs that look at a run
    maps = Attention(run.bench(None), 2, run.abstract_encoder)
    assert maps.read(run.encoder(), [1], None, "cls")[1]


def test_convert_refuses(file, workdir, tmp_path):
    path, folder = str(file[0]), tmp_path / "new"

    def refused(match, path=path, config="bootmae", where=folder, layout="auto", **choice):
        c = helpers.CONFIGS[config].get_config("demo")
        with pytest.raises(ConfigError, match=match) as e:
            convert.convert(path, c, str(where), layout, published.Choice(**choice))
        assert "\n" not in str(e.value)
        assert not folder.exists()

    refused("holds a run already; allowed: a new folder", where=workdir[0])
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/a.jpg").write_text("photograph")
    refused("--workdir: .*/mine holds a.jpg, which mimjax has no record", where=tmp_path / "mine")
    refused(r"number of heads cannot be told from its tensors; give it: --heads=12 \(heads=")
    refused(r"bootmae.pth: heads: 5 does not divide its width 32", heads=5)
    refused(r"pixel_decoder of width 32 has 32 channels .* 5 heads", heads=4, decoder_heads=5)
    refused(r"is a file of BootMAE \(layout 'bootmae'\), --config is of MAE", config="mae", heads=4)
    refused("--layout: 'bootmea'; allowed: auto, mae", layout="bootmea")
    alone = {k: v for k, v in load.read_file(path).items() if k.startswith(("blocks", "norm"))}
    alone |= {k: np.zeros(1, np.float32) for k in ("pos_embed", "cls_token")}
    save_file(alone, tmp_path / "encoder.safetensors")
    kinds = "holds a ViT, and the encoder of --config is a ConvViT"
    refused(kinds, str(tmp_path / "encoder.safetensors"), config="mcmae", heads=4)
    tower = {"visual.class_embedding": np.zeros(8, np.float32)}
    save_file(tower, tmp_path / "clip.safetensors")
    refused("holds clip; needed: encoder", str(tmp_path / "clip.safetensors"), heads=4)
    refused("--config: mimjax.methods.dvae:DiscreteVAE has no transformer", config="dvae", heads=4)


def test_an_interrupted_convert_leaves_nothing(file, tmp_path, monkeypatch):
    save = Checkpoints.save

    def interrupt(*args):
        save(*args)
        raise KeyboardInterrupt

    monkeypatch.setattr(Checkpoints, "save", interrupt)
    c = helpers.CONFIGS["bootmae"].get_config("demo")
    args = str(file[0]), c, str(tmp_path / "deep/run"), "auto", published.Choice(heads=4)
    with pytest.raises(KeyboardInterrupt):
        convert.convert(*args)
    assert list(tmp_path.iterdir()) == []


def test_an_encoder_alone_begins_any_method(file, tmp_path):
    """MAE's encoder in BEiT: what is missing is initialized, and it is said."""
    task, _ = helpers.make(helpers.small("mae"))
    shapes = jax.eval_shape(task.init, jax.random.key(0))[0]
    state = load.to_torch(random_like({"encoder": shapes["encoder"]}, 2), "mae")
    table = sincos_table((4, 4), 32, "xy")
    state["pos_embed"] = np.concatenate([np.zeros_like(table[:1]), table])[None]
    save_file(state, tmp_path / "encoder.safetensors")
    c = helpers.CONFIGS["beit"].get_config("demo")
    args = str(tmp_path / "encoder.safetensors"), c, str(tmp_path / "run"), "auto"
    said = convert.convert(*args, published.Choice(heads=4))
    assert any("as initialized: head, encoder/mask_token" in line for line in said), said
    run = trained.read_run(str(tmp_path / "run"))
    encoder = run.encoder()
    assert run.config.method.encoder.pos_embed == "sincos_xy"
    assert run.config.method.encoder.bias == "full"
    assert "mask_token" in encoder
    del encoder["mask_token"], state["pos_embed"]
    same(load.to_torch({"encoder": encoder}, "mae"), state)


@pytest.fixture(scope="module")
def model(workdir):
    return mimjax.load(workdir[0])


def test_features_are_the_evaluators(file, model, workdir):
    run = trained.read_run(str(workdir[0]))
    subset = Subset(run.bench(None).test, 20)
    bench = Bench(run.task, run.mesh, subset, subset, batch_size=20)
    theirs = FeatureBank(bench).read("pretrained", run.state())
    images = [subset.image(i) for i in range(20)]
    for pool, layer, name in (("mean", None, "mean of norm"), ("cls", -1, "cls of block_01")):
        ours = model.encode(images, pool=pool, layer=layer)
        assert ours.dtype == np.float32
        np.testing.assert_array_equal(ours, theirs[name].test)
    # the file itself, in parts, as arrays of the right size
    arrays = np.stack([np.asarray(i.convert("RGB").resize((8, 8))) for i in images])
    again = mimjax.load(file[0], heads=4)
    assert again.config.method.pixel_decoder.depth == 1
    parts = again.encode(arrays, batch_size=8)
    np.testing.assert_allclose(parts, model.encode(arrays), atol=1e-5)
    every = again.encode(arrays, pool="all")
    np.testing.assert_allclose(every[:, 1:].mean(1), parts, atol=1e-5)
    average = mimjax.load(file[0], heads=4, ema=True).encode(arrays)
    assert np.abs(average - parts).max() > 0.1
    np.testing.assert_allclose(mimjax.load(workdir[0], ema=True).encode(arrays), average, atol=1e-5)


def test_the_features_program_reads_files(file, photos, tmp_path):
    """And refuses what has no encoder."""
    place = tmp_path / "features.npz"
    args = f"--model={file[0]}", "--heads=4", f"--images={photos}", f"--output={place}"
    helpers.program("features", *args, "--weights=ema", "--pool=cls", "--layers=0")
    found = np.load(place)
    ours = mimjax.load(file[0], heads=4, ema=True)
    theirs = ours.encode([photos / p for p in found["path"]], pool="cls", layer=0)
    np.testing.assert_allclose(found["cls_block_00"], theirs, atol=1e-5)
    with pytest.raises(ConfigError, match=r"--model: .*the number of heads cannot be told"):
        helpers.program("features", *args[:1], *args[2:], "--overwrite")
    assert not isinstance(helpers.make(helpers.small("dvae"))[0], Pretraining)


def test_compiled_once_for_each_shape(model):
    before = model._candidates._cache_size()
    for count in (3, 3, 5):
        model.encode(np.zeros((count, 8, 8, 3), np.uint8))
        model.encode(np.zeros((count, 8, 8, 3), np.uint8), pool="cls", layer=0)
    assert model._candidates._cache_size() == before + 2


def test_reconstruction_is_the_programs(file, model, workdir, photos):
    run = trained.read_run(str(workdir[0]))
    program = Pictures(count=3).make(run.bench(str(photos)))
    theirs = program.sheet(run.state(), run.frozen())
    ours = model.reconstruct(sorted(photos.glob("*.jpg")))
    assert list(ours.columns) == ["original", "masked", "reconstruction"]
    for name, images in ours.columns.items():
        assert np.abs(images.astype(int) - theirs.columns[name]).max() <= 1  # compiled otherwise
    np.testing.assert_allclose(ours.error, theirs.error, rtol=1e-5)
    task = run.task
    mask = np.zeros((3, 16), bool)
    mask[:, : task.num_masked] = True
    chosen = model.reconstruct(sorted(photos.glob("*.jpg")), mask=mask)
    gray = (chosen.columns["masked"] == 128).all(-1)[:, ::2, ::2].reshape(3, 16)
    assert gray[mask].all()
    mask[0, 0] = False
    with pytest.raises(ConfigError, match=r"mask: bool \[3, 16\]; allowed: .* masked patches"):
        model.reconstruct(sorted(photos.glob("*.jpg")), mask=mask)


def test_wrong_input_is_named(file, model, tmp_path):
    good = np.zeros((2, 8, 8, 3), np.uint8)
    for match, call in {
        r"images: float32 \[2, 8, 8, 3\]; allowed: uint8": lambda: model.encode(good.astype("f4")),
        r"images: none": lambda: model.encode([]),
        r"number 1 is uint8 \[8, 8\]": lambda: model.encode([good[0], good[0, ..., 0]]),
        r"images: '.*none.jpg' is no folder": lambda: model.encode([tmp_path / "none.jpg"]),
        r"pool: 'max'; allowed: cls, mean, all": lambda: model.encode(good, pool="max"),
        r"layer: 2; allowed: None, or -2 to 1": lambda: model.encode(good, layer=2),
        r"no classifier; allowed: files of fine-tuned": lambda: model.classify(good),
        r"the number of heads cannot be told": lambda: mimjax.load(file[0]),
        r"none is no folder": lambda: mimjax.load(tmp_path / "none"),
    }.items():
        with pytest.raises(ConfigError, match=match) as e:
            call()
        assert "\n" not in str(e.value)


def test_importing_the_package_is_light():
    code = "import mimjax, sys; assert mimjax.load and 'jax' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=helpers.ROOT)


def test_the_script_of_the_readme(workdir, photos, tmp_path, monkeypatch, capsys):
    """Executed as it stands, on a run at the path that it names."""
    text = (helpers.ROOT / "README.md").read_text()
    (script,) = re.findall(r"```python\n(.*?mimjax\.load\(.*?)```", text, re.S)
    assert len(script.strip().splitlines()) <= 12
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs/bootmae_digits_0").symlink_to(workdir[0])
    (tmp_path / "photos").symlink_to(photos)
    monkeypatch.chdir(tmp_path)
    exec(compile(script, "README.md", "exec"), {})
    assert capsys.readouterr().out.startswith("(3, 32) (3, 17, 32) ")
    assert Image.open("reconstruction.png").size[0] > 100
    assert jnp.zeros(1).dtype == np.float32  # nothing global was changed
