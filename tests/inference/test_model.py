"""`mimjax convert` and `mimjax.load`: published files as workdirs and as objects in Python."""

import inspect
import json
import pathlib
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
from mimjax.inference import loading, published
from mimjax.inference import workdir as trained
from mimjax.inference.attention import Attention
from mimjax.inference.features import FeatureBank
from mimjax.inference.samples import Bench, Subset
from mimjax.models.vit import sincos_table
from mimjax.programs import convert
from mimjax.storage.checkpoints import Checkpoints
from mimjax.task import Pretraining
from mimjax.torch_io.read import load


@pytest.fixture(scope="module")
def encoder_alone(file, tmp_path_factory):
    """The encoder of the file with learned positions, as a file of its own."""
    state = load.read_file(str(file[0]))
    names = ("blocks.", "norm.", "patch_embed.", "cls_token")
    alone = {k: v for k, v in state.items() if k.startswith(names)}
    alone["pos_embed"] = np.random.default_rng(0).normal(size=(1, 17, 32)).astype(np.float32)
    path = tmp_path_factory.mktemp("alone") / "encoder.safetensors"
    save_file({k: np.asarray(v) for k, v in alone.items()}, path)
    return path


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
        ours = model.encode(images, pool=pool, layer=layer, batch_size=20)
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
    """Files without an encoder are refused."""
    place = tmp_path / "features.npz"
    args = f"--model={file[0]}", "--heads=4", f"--images={photos}", f"--output={place}"
    helpers.program("features", *args, "--weights=ema", "--pool=cls", "--layers=0")
    found = np.load(place)
    ours = mimjax.load(file[0], heads=4, ema=True)
    theirs = ours.encode([photos / p for p in found["path"]], pool="cls", layer=0)
    np.testing.assert_allclose(found["cls_block_00"], theirs, atol=1e-5)
    half = "--dtype=bfloat16", "--overwrite"
    helpers.program("features", *args, "--weights=ema", "--pool=cls", "--layers=0", *half)
    off = np.abs(np.load(place)["cls_block_00"] - theirs).max() / np.abs(theirs).max()
    assert 1e-4 < off < 0.02
    with pytest.raises(ConfigError, match=r"--model: .*the number of heads cannot be told"):
        helpers.program("features", *args[:1], *args[2:], "--overwrite")
    assert not isinstance(helpers.make(helpers.small("dvae"))[0], Pretraining)


def test_compiled_for_two_sizes_whatever_the_number_of_images(file):
    model = mimjax.load(file[0], heads=4)
    images = np.random.default_rng(0).integers(0, 256, (21, 8, 8, 3), dtype=np.uint8)
    whole = model.encode(images, batch_size=9)
    for count in (1, 3, 8, 9, 10, 20):
        part = model.encode(images[:count], batch_size=9)
        np.testing.assert_allclose(part, whole[:count], atol=1e-5)
        model.encode(images[:count], pool="cls", layer=0, batch_size=9)
    assert model._candidates._cache_size() == 2


def test_every_form_of_images(model, photos, tmp_path):
    """One of them, or any iterable of all kinds; a folder stands for all its files."""
    paths = sorted(photos.glob("*.jpg"))
    (photos / "note.txt").write_text("no image")
    rows = model.encode(paths)
    assert rows.shape == (3, 32)
    arrays = [np.asarray(Image.open(p)) for p in paths]
    forms = {
        "path": (str(paths[1]), rows[1:2]),
        "pathlib": (paths[1], rows[1:2]),
        "folder": (photos, rows),
        "Pillow": (Image.open(paths[2]), rows[2:]),
        "array": (arrays[0], rows[:1]),
        "arrays": (np.stack([arrays[1]] * 2), rows[[1, 1]]),
        "array of paths": (np.asarray(list(map(str, paths))), rows),
        "generator": ((p for p in paths), rows),
        "of all kinds": (
            [paths[2], photos, arrays[0], np.stack([arrays[1]] * 2), Image.open(paths[0])],
            rows[[2, 0, 1, 2, 0, 1, 1, 0]],
        ),
    }
    for name, (images, expected) in forms.items():
        np.testing.assert_allclose(model.encode(images), expected, atol=1e-5, err_msg=name)
    assert len(model.reconstruct(str(paths[0])).error) == 1
    assert len(model.reconstruct(photos).error) == 3


def test_layer_norm_has_its_name(model, photos):
    named, alone = (model.encode(photos, layer=layer) for layer in ("norm", None))
    np.testing.assert_array_equal(named, alone)
    np.testing.assert_array_equal(
        model.encode(photos, layer=np.int64(1)), model.encode(photos, layer=-1)
    )


def test_it_says_what_it_is(file, model):
    text = repr(mimjax.load(file[0], heads=4, dtype=jnp.bfloat16))
    count = sum(x.size for x in jax.tree.leaves(model.params["encoder"]))
    assert "ViT: width 32, depth 2, heads 4, patch 2; " in text
    assert "parameters, computes in bfloat16; images 8x8x3, mean (0.5, 0.5, 0.5), std (0." in text
    assert "bootmae.pth (layout 'bootmae'): " in text
    assert f"heads 4, patch 2; {count:,} parameters, computes in float32" in repr(model)
    assert "\n" not in text


def test_what_cannot_be_taken_is_refused(file, workdir, encoder_alone):
    """Refused are for a workdir what its run knows, for a file what it says itself or lacks."""
    with_run = {
        "image_size": (16, 16),
        "mean": (0.5,) * 3,
        "std": (0.5,) * 3,
        "heads": 4,
        "decoder_heads": 4,
        "layout": "bootmae",
        "teacher": "a.pth",
    }
    cases = [
        (workdir[0], {k: v}, f"{k}: .*, a workdir whose run knows") for k, v in with_run.items()
    ]
    for path in (file[0], encoder_alone):
        cases += [
            (path, {"heads": 4, "step": 5}, "step: 5 with .*, a file of one; allowed: with a work"),
            (path, {"heads": 4, "image_size": (9, 8)}, "image_size: height 9 is not divisible by"),
            (path, {"heads": 4, "image_size": (8, 1)}, "image_size: width 1 is not divisible by"),
            (path, {"heads": 4, "image_size": (0, 8)}, r"image_size: 0 in \(0, 8\); allowed: 1 or"),
            (path, {"heads": 4, "image_size": (8, 8, 8)}, "image_size: .*; allowed: 2 values"),
            (path, {"heads": 4, "image_size": 8.5}, "image_size: 8.5; allowed: 2 values"),
            (path, {"heads": 0}, "heads: 0; allowed: 1 or more"),
            (path, {"heads": 4, "std": (0, 0, 0)}, "std: 0 in .*; allowed: above 0"),
            (path, {"heads": 4, "mean": (123.7, 116, 104)}, "mean: 123.7 in .*divide by 255"),
            (path, {"heads": 4, "mean": (np.nan,) * 3}, "mean: nan in .*; allowed: 0 to 1"),
            (path, {"heads": 4, "dtype": "float16"}, "dtype: 'float16'; allowed: float32, bfloat1"),
            (path, {"heads": 4, "dtype": None}, "dtype: None; allowed: float32, bfloat16"),
        ]
    cases += [
        (
            encoder_alone,
            {"heads": 4, "decoder_heads": 4},
            "decoder_heads: 4, but .*no network",
        ),
        (encoder_alone, {"heads": 4, "teacher": "a.pth"}, "teacher: 'a.pth', but .*no decoder"),
        (file[0], {"heads": 4, "teacher": "a.pth"}, "teacher: "),
    ]
    for path, given, match in cases:
        with pytest.raises(ConfigError, match=match) as e:
            mimjax.load(path, **given)
        assert "\n" not in str(e.value)
    square = mimjax.load(encoder_alone, heads=4, image_size=12)
    assert square.image_size == (12, 12)
    same_size = mimjax.load(encoder_alone, heads=4, image_size=np.asarray([12, 12]))
    assert same_size.image_size == (12, 12)


def test_features_that_are_not_finite_are_said(encoder_alone):
    model = mimjax.load(encoder_alone, heads=4)
    images = np.zeros((2, 8, 8, 3), np.uint8)
    model.params["encoder"]["norm"]["bias"] *= np.nan
    with pytest.warns(UserWarning, match="outputs of 2 of 2 images are not finite"):
        model.encode(images)


def test_half_precision_is_asked_for(encoder_alone):
    """The tokens that blocks add to stay float32, and so do parameters and what is returned."""
    images = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 3), dtype=np.uint8)
    full = mimjax.load(encoder_alone, heads=4)
    half = mimjax.load(encoder_alone, heads=4, dtype="bfloat16")
    assert (full.dtype, half.dtype) == ("float32", "bfloat16")
    a, b = (m.encode(images, pool="all") for m in (full, half))
    assert b.dtype == np.float32
    off = np.sqrt(np.square(a - b).mean() / np.square(a).mean())
    assert 1e-4 < off < 0.02
    assert {x.dtype for x in jax.tree.leaves(half.params)} == {np.dtype(np.float32)}


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
    good, empty = np.zeros((2, 8, 8, 3), np.uint8), tmp_path / "empty"
    empty.mkdir()
    for match, call in {
        r"images: float32 \[2, 8, 8, 3\]; allowed: uint8": lambda: model.encode(good.astype("f4")),
        r"images: none": lambda: model.encode([]),
        r"number 1 is uint8 \[8, 8\]": lambda: model.encode([good[0], good[0, ..., 0]]),
        r"images: uint8 \[0, 8, 3\]": lambda: model.encode(good[0, :0]),
        r"images: set; allowed: ": lambda: model.encode({"a.jpg"}),
        r"images: int; allowed: ": lambda: model.encode(3),
        r"images: number 0 is list; allowed: ": lambda: model.encode([[1, 2]]),
        r"no image below": lambda: model.encode([empty, good]),
        r"batch_size: 0; allowed: 1 or more": lambda: model.encode(good, batch_size=0),
        r"layer: 'last'; allowed: 'norm'": lambda: model.encode(good, layer="last"),
        r"layer: 1.5; allowed": lambda: model.encode(good, layer=1.5),
        r"layer: True; allowed": lambda: model.encode(good, layer=True),
        r"images: '.*none.jpg' is no folder": lambda: model.encode([tmp_path / "none.jpg"]),
        r"pool: 'max'; allowed: cls, mean, all": lambda: model.encode(good, pool="max"),
        r"layer: 2; allowed: 'norm', -2 to 1": lambda: model.encode(good, layer=2),
        r"no classifier; allowed: files of fine-tuned": lambda: model.classify(good),
        r"the number of heads cannot be told": lambda: mimjax.load(file[0]),
        r"none is no folder": lambda: mimjax.load(tmp_path / "none"),
    }.items():
        with pytest.raises(ConfigError, match=match) as e:
            call()
        assert "\n" not in str(e.value)


ENCODE = """
import sys
import mimjax
assert "load" in dir(mimjax) and "jax" not in sys.modules
import numpy as np
assert mimjax.load(sys.argv[1], heads=4).encode(np.zeros((1, 8, 8, 3), np.uint8)).any()
print(*sys.modules)
"""


def test_what_a_process_that_encodes_imports(encoder_alone):
    """A light package, and for a file no trainer, lock, boards or report, nor their libraries."""
    command = [sys.executable, "-c", ENCODE, str(encoder_alone)]
    out = subprocess.run(command, check=True, cwd=helpers.ROOT, capture_output=True, text=True)
    names = set(out.stdout.split())
    ours = {name for name in names if name.startswith("mimjax.")}
    rooms = {name.split(".")[1] for name in ours}
    assert {"inference", "torch_io"} <= rooms
    assert not rooms & {"train", "evaluators", "run", "programs", "transfer"}
    assert not ours & {f"mimjax.storage.{name}" for name in ("lock", "checkpoints", "outputs")}
    assert not names & {"orbax", "grain", "torch", "matplotlib", "tensorboardX"}


def test_load_is_the_function_itself():
    """Its signature and help are real, for editors too: they read the import for type checkers."""
    assert mimjax.load is loading.load
    assert "\n    from mimjax.inference.loading import load\n" in inspect.getsource(mimjax)
    with pytest.raises(AttributeError, match="'mimjax' has no attribute 'laod'"):
        mimjax.laod  # noqa: B018


@pytest.mark.gate
def test_the_scripts_of_readme_and_page(workdir, photos, tmp_path, monkeypatch, capsys):
    """They are executed as they stand, on a run at the paths that they name."""
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs/bootmae_shifted_digits_0").symlink_to(workdir[0])
    (tmp_path / "runs/mine").symlink_to(workdir[0])
    (tmp_path / "photos").symlink_to(photos)
    monkeypatch.chdir(tmp_path)
    for page in ("README.md", "docs/python.md"):
        text = (helpers.ROOT / page).read_text()
        script = re.search(r"```python\n(.*?)```", text, re.S)[1]
        assert "mimjax.load(" in script
        names = {}
        exec(compile(script, page, "exec"), names)
        assert names["features"].shape == (3, 32)
        assert Image.open("reconstruction.png").size[0] > 100
        pathlib.Path("reconstruction.png").unlink()
    assert capsys.readouterr().out.startswith("(3, 32) (3, 17, 32) ")
    assert jnp.zeros(1).dtype == np.float32  # nothing global was changed


@pytest.mark.gate
def test_fine_tuning_as_documented(workdir, tmp_path, monkeypatch):
    """The block runs as it stands: the loss of a few images falls, and the encoder learns too."""
    text = (helpers.ROOT / "docs/python.md").read_text()
    script = re.findall(r"```python\n(.*?)```", text, re.S)[-1]
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs/mine").symlink_to(workdir[0])
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(compile(script, "python.md", "exec"), names)
    images = np.random.default_rng(0).integers(0, 256, (10, 8, 8, 3), dtype=np.uint8)
    start = params = names["params"]
    state, losses = names["optimizer"].init(params), []
    for _ in range(200):
        params, state, value = names["step"](params, state, images, np.arange(10))
        losses.append(float(value))
    assert losses[-1] < losses[0] / 2
    kernel = lambda tree: tree["encoder"]["block_00"]["attn"]["qkv"]["kernel"]
    assert np.abs(kernel(params) - kernel(start)).max() > 1e-3
    shown = names["model"].encode(images, pool="all")[:, 1:].mean(1)
    x = names["patches"].normalize(images, *names["model"].statistics)
    ours = names["model"].module.apply({"params": start["encoder"]}, x).read("mean")
    np.testing.assert_allclose(ours, shown, atol=1e-5)
