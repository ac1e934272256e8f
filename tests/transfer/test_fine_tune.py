"""Fine-tuning on the trainer: where it begins, what is trained, restarts, devices, errors."""

import dataclasses
import functools
import json
import shutil

import flax.linen as nn
import helpers
import jax
import numpy as np
import optax
import pytest
from PIL import Image
from safetensors.numpy import load_file, save_file

import mimjax
from mimjax import rules, schema
from mimjax.data import make_source
from mimjax.data.sources import Folder
from mimjax.errors import ConfigError
from mimjax.inference import adoption
from mimjax.models.conv_vit import ConvViT
from mimjax.models.vit import ViT, fixed_positions
from mimjax.patches import normalize
from mimjax.run.setup import setup
from mimjax.sharding import make_mesh
from mimjax.storage.checkpoints import Checkpoints
from mimjax.storage.files import Workdir
from mimjax.task import Clock, EncoderNetwork, Features, TrainState, init_state
from mimjax.train.step import train_step
from mimjax.transfer.fine_tune import FineTune, LinearClassifier
from mimjax.transfer.mixing import Mixing

ENCODER = ViT(width=16, depth=2, heads=2, patch=2, image_size=(8, 8))
CLS = LinearClassifier(pool="cls", layer=None, norm=False, init_std=0.1)
SETTINGS = {
    "steps": 4,
    "batch_size": 32,
    "log_every": 1,
    "method.average": 0.5,
    "optimizer.schedule.warmup_steps": 1,
    "optimizer.lr": 1e-3,
}
CONSTANT = ("--config.optimizer.schedule=Constant", "--config.optimizer.schedule.warmup_epochs=0.0")


def words(**settings):
    return [f"--config.{k}={v}" for k, v in settings.items()]


def tune(place, path, *more, devices=1, check=True):
    begin = [f"--model={path}"] if path else []
    flags = ["--config=fine_tune:demo", *begin, *words(**SETTINGS), *more, f"--workdir={place}"]
    return helpers.answer("train", *flags, check=check, devices=devices)


def measured(place):
    """{metric: last value} of a run's evaluations."""
    rows = [json.loads(r) for r in (place / "metrics.jsonl").read_text().splitlines()]
    return {k: v for row in rows for k, v in row.items() if k.startswith("eval/")}


def recipe(path, **settings):
    """The demo's config with a model, unlocked."""
    c = helpers.ALL["fine_tune"].get_config("demo").unlock()
    c.init_from = path and str(path)
    for key, value in (SETTINGS | settings).items():
        *parents, last = key.split(".")
        node = functools.reduce(getattr, parents, c)
        if dataclasses.is_dataclass(value):
            kind, value = schema.naming(type(value)), schema.section(value)
            value.update(kind)
        del node[last]
        node[last] = value
    return c


def flat(tree):
    return dict(zip(rules.paths(tree), map(np.asarray, jax.tree.leaves(tree)), strict=True))


def saved(place):
    """Parameters and their average of the newest checkpoint, by path."""
    c = json.loads((place / "config.json").read_text())
    task = schema.build(FineTune, c["method"], "method")
    params, stats = jax.eval_shape(task.init, jax.random.key(0))
    found = Checkpoints(Workdir(str(place), writer=False), read_only=True)
    like = TrainState(jax.ShapeDtypeStruct((), np.int32), params, stats, params, ())
    state = found.weights(like, max(found.steps()))
    return flat({"params": state.params, "ema": state.ema})


@pytest.fixture(scope="module")
def tuned(model, tmp_path_factory):
    place = tmp_path_factory.mktemp("tuned")
    return place, tune(place, model, *CONSTANT).stdout


def test_what_was_loaded_is_said_and_the_run_needs_its_model_no_more(tuned, model):
    place, said = tuned
    assert f"weights: from {model}: MAE, step 1\n" in said
    assert "weights: loaded: 28 arrays of the encoder\n" in said
    assert "weights: left fresh: head/linear, head/norm\n" in said
    assert "weights: dropped: encoder/norm, decoder\n" in said
    assert "trained from here on: the fixed table of positions, as pos_embed\n" in said
    assert "moving average of encoder, head: begins as a copy" in said
    method = json.loads((place / "config.json").read_text())["method"]
    encoder = method["encoder"]
    assert (encoder["width"], encoder["heads"], encoder["image_size"]) == (16, 2, [8, 8])
    assert (method["mean"], method["classes"]) == ([0.4, 0.4, 0.4], 10)
    table = (place / "parameters.txt").read_text()
    rate = lambda name: next(r for r in table.splitlines() if f"encoder/{name} " in r).split("|")
    assert float(rate("block_01/attn/qkv/kernel")[4]) == 0.65
    assert rate("pos_embed")[3].strip() == "0"
    assert float(rate("pos_embed")[4]) == pytest.approx(0.65**3, rel=1e-4)


def test_accuracy_is_that_of_every_test_image_of_the_weights_and_of_their_average(tuned):
    place, _ = tuned
    source = make_source("digits", "test")
    images = [np.asarray(source.image(i)) for i in range(len(source))]
    labels = np.asarray([source.label(i) for i in range(len(source))])
    found = measured(place)
    for name, ema in (("accuracy", False), ("accuracy_ema", True)):
        model = mimjax.load(place, ema=ema)
        order = np.argsort(-model.classify(images), axis=1, kind="stable")
        for n in (1, 5):
            right = 100 * (order[:, :n] == labels[:, None]).any(1).mean()
            assert found[f"eval/{name}/top{n}"] == pytest.approx(right)
    assert model.class_names == tuple("0123456789")
    model.classify(images[:1], top=3)
    vectors = model.encode(images[:3])  # what the head reads
    linear = model.params["classifier"]["params"]["linear"]
    ours = vectors @ linear["kernel"] + linear["bias"]
    np.testing.assert_allclose(model.classify(images[:3]), ours, atol=1e-5)
    with pytest.raises(ConfigError, match="no norm for tokens"):
        model.encode(images[:1], "cls")
    with pytest.raises(ConfigError, match="which predicts no patches"):
        model.reconstruct(images[:1])


def test_a_run_becomes_a_classifier_of_transformers(tuned, tmp_path):
    place, _ = tuned
    images = [np.asarray(make_source("digits", "test").image(i)) for i in range(4)]
    for ema in (False, True):
        output, weights = tmp_path / f"hf_{ema}", "ema" if ema else "online"
        words = f"--model={place}", "--format=hf", f"--output={output}", f"--weights={weights}"
        said = helpers.answer("export", *words, check=True).stdout
        assert f"FineTune, step 4, {weights} weights".lower() in said.lower()
        assert "note: classifies 10 classes: 0, 1, 2, ..." in said
        run, file = mimjax.load(place, ema=ema), mimjax.load(output)
        assert file.class_names == run.class_names
        np.testing.assert_allclose(file.classify(images), run.classify(images), atol=1e-5)
        np.testing.assert_allclose(file.encode(images), run.encode(images), atol=1e-5)
    own = tmp_path / "own.safetensors"
    words = f"--model={place}", "--format=safetensors", f"--output={own}", "--weights=online"
    helpers.answer("export", *words, check=True)
    run, file = mimjax.load(place, ema=False), mimjax.load(own)
    assert file.class_names == run.class_names
    np.testing.assert_array_equal(file.classify(images), run.classify(images))
    again, trained = begun(tmp_path / "again", own), flat(run.params["encoder"])
    for key, x in again.items():
        np.testing.assert_array_equal(x, trained[key], err_msg=key)
    said = helpers.answer("export", f"--model={place}", "--format=mmseg", "--output=a.pth")
    assert said.returncode == 2
    assert "--format: mmseg has no place for a classifier that reads a norm of" in said.stderr


@pytest.mark.gate
def test_a_run_in_parts_is_the_run_and_so_is_one_on_eight_devices(tuned, model, tmp_path):
    """The second part begins without the model; branches are dropped in all of them."""
    place, _ = tuned
    tune(tmp_path / "parts", model, *CONSTANT, "--config.steps=2")
    said = tune(tmp_path / "parts", None, *CONSTANT).stdout
    assert "weights: continued from step 2 of this workdir" in said
    tune(tmp_path / "eight", model, *CONSTANT, devices=8)
    straight, parts, eight = (saved(p) for p in (place, tmp_path / "parts", tmp_path / "eight"))
    assert straight.keys() == parts.keys() == eight.keys()
    for key, x in straight.items():
        np.testing.assert_array_equal(parts[key], x, err_msg=key)
        np.testing.assert_allclose(eight[key], x, rtol=0, atol=1e-5, err_msg=key)
    assert helpers.losses(place) == helpers.losses(tmp_path / "parts")
    for name, value in measured(place).items():
        assert abs(measured(tmp_path / "eight")[name] - value) < 0.3  # an image of 359


def test_what_may_change_in_a_run_that_has_begun(tuned, model, tmp_path, capsys):
    """What changes no parameter is said; labels that mean other classes are refused."""
    place = shutil.copytree(tuned[0], tmp_path / "copy")
    new = {"drop_path": 0.3, "layer_decay": 0.5, "smoothing": 0.1, "mixing": Mixing(group=16)}
    run = helpers.begun(recipe(model, **{f"method.{k}": v for k, v in new.items()}), place)
    said = capsys.readouterr().out
    assert "weights: continued from step 4" in said
    for name, before in (("drop_path", 0.1), ("layer_decay", 0.65), ("smoothing", 0.0)):
        line = f"changed since the last start: method.{name}: {before} -> {new[name]}"
        assert line in said
    task = run.setup.task
    assert (task.network.drop_path, task.mixing, task.smoothing) == (0.3, new["mixing"], 0.1)
    content = json.loads((place / "classes.json").read_text())
    content["names"][3] = "three"
    (place / "classes.json").write_text(json.dumps(content))
    with pytest.raises(ConfigError, match=r"^data: a class of another name: class 3 is '3', it wa"):
        helpers.begun(recipe(model), place)


# ------------------------------------------------------------------ where a run begins
def begun(place, path, **settings):
    """The encoder's arrays with which a run begins, by path."""
    return flat(helpers.begun(recipe(path, **settings), place).state.params["encoder"])


def test_a_file_begins_like_the_run(model, tmp_path):
    """The file has the encoder alone in another library's layout, and no heads in its metadata."""
    file, bare = tmp_path / "encoder.safetensors", tmp_path / "bare.safetensors"
    said = (f"--model={model}", "--format=timm", f"--output={file}")
    helpers.answer("export", *said, check=True)
    save_file(load_file(file), bare)
    run = begun(tmp_path / "a", model)
    fixed = {"method.train_positions": False}
    assert begun(tmp_path / "c", model, **fixed).keys() == run.keys() - {"pos_embed"}
    for path, settings in ((file, {}), (bare, {"method.heads": 2})):
        theirs = begun(tmp_path / path.stem, path, **settings)
        assert theirs.keys() == run.keys()
        for key, x in run.items():
            np.testing.assert_allclose(theirs[key], x, atol=1e-6, err_msg=key)
    # the statistics that nothing says are those of MAE's code, and are said
    c = json.loads((tmp_path / "bare" / "config.json").read_text())
    assert c["method"]["mean"] != [0.4, 0.4, 0.4]
    with pytest.raises(ConfigError, match=r"^init_from: .* heads"):
        setup(recipe(bare))
    np.testing.assert_allclose(
        run["pos_embed"][0, 1:], fixed_positions((4, 4), 16, "xy"), atol=1e-6
    )
    assert not run["pos_embed"][0, 0].any()


def test_positions_are_resized_to_other_images(model, tmp_path):
    learned = begun(tmp_path / "a", model, **{"method.size": (12, 8)})["pos_embed"]
    wanted = fixed_positions((6, 4), 16, "xy", (4, 4))
    np.testing.assert_allclose(learned[0, 1:], wanted, atol=1e-6)
    fixed = setup(recipe(model, **{"method.size": (12, 8), "method.train_positions": False}))
    assert fixed.task.encoder.pos_grid == (4, 4)
    assert fixed.pipeline.views["image"].size == (12, 8)
    assert "positions resized from 4x4 to 6x4 patches" in (tmp_path / "a" / "train.log").read_text()


def test_a_bias_that_all_blocks_share_becomes_one_of_each(tmp_path):
    """BEiT's; where pretraining had none, as CAE's, each begins at zero."""
    table = np.arange(52 * 2, dtype=np.float32).reshape(52, 2)
    c = helpers.small("beit", **{"method.encoder.rel_pos": "shared", "steps": 1})
    c.method.encoder.width, c.method.encoder.heads = 16, 2
    task, _ = helpers.make(c)
    params = jax.jit(task.init)(jax.random.key(0))[0]["encoder"]
    assert params["rel_pos"]["table"].shape == table.shape
    shared = flat(params | {"rel_pos": {"table": table}})
    new = FineTune(encoder=task.encoder, rel_pos="per_block", classes=3).encoder
    for name in ("rel_pos_00/table", "rel_pos_01/table"):
        source, value = adoption.origin(name, table.shape, shared, task.encoder, new)
        assert source == "rel_pos/table"
        np.testing.assert_array_equal(value, table)
    assert adoption.origin("rel_pos_00/table", table.shape, {}, task.encoder, new)[1] is None
    assert {"rel_pos_00", "rel_pos_01"} < FineTune.shapes_of(new).keys()
    assert "rel_pos" not in FineTune.shapes_of(new)


def test_without_a_model_the_recipe_s_network_is_random(tmp_path):
    c = helpers.ALL["fine_tune"].get_config("method=cae,scratch,demo,data=shifted_digits").unlock()
    made = setup(c)
    assert (made.task.encoder.width, made.task.encoder.rel_pos) == (96, "per_block")
    assert made.task.views["image"].channels == 1
    with pytest.raises(ConfigError, match=r"^init_from: none, .* allowed: --model=PATH of a "):
        setup(recipe(None))


# ------------------------------------------------------------------ the step
def task(**settings):
    known = {"encoder": ENCODER, "classes": 10, "drop_path": 0.0, "head": CLS}
    return FineTune(Clock(4, 8), **known | settings)


@functools.cache
def images(side=8):
    source = make_source("digits", "test")
    stack = [Image.fromarray(np.asarray(source.image(i))).resize((side, side)) for i in range(8)]
    labels = np.asarray([source.label(i) for i in range(8)], np.int32)
    arrays = np.stack([np.asarray(x.convert("RGB")) for x in stack])
    return {"image": arrays, "label": labels}


def stepped(made, accum=1, tx=None):
    """State before and after one step, and its metrics."""
    tx = tx or optax.sgd(1.0)
    state = jax.jit(functools.partial(init_state, task=made, tx=tx))(jax.random.key(0))
    step = jax.jit(functools.partial(train_step, task=made, tx=tx, accum=accum))
    return state, *step(state, {}, images(made.encoder.image_size[0]))


def test_micro_batches_change_nothing():
    made = task(average=0.9)
    first, one, metrics = stepped(made)
    _, four, split = stepped(made, accum=4)
    near = functools.partial(np.testing.assert_allclose, rtol=0, atol=1e-5)
    jax.tree.map(near, (four.params, four.ema, split), (one.params, one.ema, metrics))
    assert {"loss/class", "train/top1"} <= metrics.keys()
    mean = jax.tree.map(lambda a, b: 0.9 * a + 0.1 * b, first.params, one.params)
    jax.tree.map(functools.partial(np.testing.assert_allclose, atol=1e-6), one.ema, mean)


def test_images_are_erased_and_mixed_and_labels_smoothed_in_training_alone():
    made = task(mixing=Mixing(mixup=0.8, cutmix=0.0), smoothing=0.2, erase=0.5)
    run = lambda train: jax.jit(lambda b: made.prepare(None, {}, b, jax.random.key(0), train)[0])
    plain, mixed = run(False)(images()), run(True)(images())
    labels = images()["label"]
    np.testing.assert_array_equal(plain.target, np.eye(10)[labels])
    image = jax.jit(lambda x: normalize(x, *made.statistics))(images()["image"])
    np.testing.assert_allclose(plain.image, image, atol=1e-6)
    smooth = 0.8 * np.eye(10)[labels] + 0.02
    rest = mixed.target - smooth[::-1]
    keep = (rest * (smooth - smooth[::-1])).sum() / ((smooth - smooth[::-1]) ** 2).sum()
    np.testing.assert_allclose(mixed.target, keep * smooth + (1 - keep) * smooth[::-1], atol=1e-5)
    assert 0.01 < keep < 0.99
    differs = np.abs(mixed.image - (keep * image + (1 - keep) * image[::-1])).max(-1) > 1e-4
    assert 0 < differs.mean() < 0.6  # boxes of noise
    loss = jax.jit(made.loss, static_argnums=5)(*init(made), mixed, jax.random.key(1), 0, True)
    np.testing.assert_allclose(loss.total, np.log(10), rtol=0.3)


def init(made):
    return jax.jit(made.init)(jax.random.key(0))


def test_every_parameter_learns_or_with_unfrozen_the_last_blocks_alone():
    for k in (None, 1, 0):
        made = task(unfrozen=k, rel_pos="per_block")
        first, second, _ = stepped(made)
        first, second = flat(first.params), flat(second.params)
        moved = {key for key in first if np.any(first[key] != second[key])}
        blocks = ("block_00", "block_01", "rel_pos_00", "rel_pos_01")
        frozen = {None: (), 1: blocks[::2], 0: blocks}[k]
        still = (*frozen, *(("cls_token", "pos_embed", "patch_embed") if k is not None else ()))
        wanted = {p for p in first if not p.startswith(tuple(f"encoder/{s}" for s in still))}
        assert moved == wanted
        scale = flat(made.lr_scale(first and jax.eval_shape(made.init, jax.random.key(0))[0]))
        assert {p for p, x in scale.items() if x} == wanted


def test_the_loss_falls_and_rows_without_a_label_do_not_count():
    made = task(
        encoder=ConvViT(16, 1, 2, (4, 8), (1, 1), (2.0, 2.0), (2, 2, 1), (8, 8)),
        head=LinearClassifier(init_std=0.1),
    )
    tx = optax.adam(3e-3)
    state = jax.jit(functools.partial(init_state, task=made, tx=tx))(jax.random.key(0))
    assert not {"norm", "stage1_fuse"} & state.params["encoder"].keys()
    step = jax.jit(functools.partial(train_step, task=made, tx=tx))
    batch = images()
    _, first = step(state, {}, batch)
    padded = {k: np.concatenate([v, v[:4]]) for k, v in batch.items()}
    padded["label"][8:] = -1
    _, same = jax.jit(functools.partial(train_step, task=made, tx=tx))(state, {}, padded)
    np.testing.assert_allclose(same["loss/class"], first["loss/class"], rtol=1e-6)
    for _ in range(40):
        state, metrics = step(state, {}, batch)
    assert metrics["loss/class"] < 0.5 * first["loss/class"]
    assert metrics["train/top1"] > 60


class Unnumbered(EncoderNetwork):
    """A user's encoder: patches through one layer."""

    image_size: tuple[int, int] = (8, 8)
    patch: int = 2
    width: int = 16
    depth: int = 1
    heads: int = 1
    channels: int = 3
    num_prefix = 0
    positions = ""
    fuses = use_mask_token = False

    @property
    def out_width(self):
        return self.width

    def check(self, key):
        """Everything fits."""

    def plain(self):
        return self

    @nn.compact
    def __call__(self, images, ids=None, mask=None, train=False):
        x = images.reshape(len(images), self.num_patches, -1)
        x = nn.Dense(self.width, name="layer")(x)
        return Features(x, (x,), 0)


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"method.classes": 9}, "method.classes: 9, but the data have 10; allowed: that, or None"),
        ({"method.unfrozen": 3}, "method.unfrozen: 3, and the encoder has 2 blocks; allowed: at m"),
        ({"method.size": (9, 8)}, "method.size: 9; allowed: multiples of the patch, 2"),
        ({"method.head.layer": 0}, "method.head.layer: 0; allowed: -1 (the last block), or None"),
        ({"method.heads": 4}, "method.heads: 4 with init_from="),
        (
            {"method.mixing": Mixing(), "batch_size": 33},
            "batch_size: 33 with method.mixing; allowed",
        ),
        ({"init_from": "nothing/here"}, "init_from: nothing/here"),
    ],
)
def test_wrong_settings_are_one_line(settings, line, model):
    with pytest.raises(ConfigError) as error:
        setup(recipe(model, **settings), mesh=make_mesh(devices=jax.devices()[:1]))
    assert str(error.value).startswith(line)
    assert "\n" not in str(error.value)


def test_a_layer_decay_needs_numbered_blocks():
    other = {"encoder": Unnumbered(), "head": LinearClassifier(init_std=0.1), "drop_path": 0.0}
    task(**other, layer_decay=None)
    for name, value in (("layer_decay", 0.5), ("unfrozen", 1)):
        with pytest.raises(
            ConfigError, match=rf"^method.{name}: {value}, but Unnumbered has no num"
        ):
            task(**other | {"layer_decay": None, name: value})
    with pytest.raises(ConfigError, match=r"^method.drop_path: 0.1, but Unnumbered has no such"):
        task(**other | {"layer_decay": None, "drop_path": 0.1})


def test_an_encoder_of_another_size_is_refused_by_the_names_of_its_tensors(model, tmp_path):
    deeper = ENCODER.clone(depth=3)
    with pytest.raises(ConfigError) as error:
        helpers.begun(recipe(model, **{"method.encoder": deeper}), tmp_path / "new")
    text = str(error.value)
    assert "12 tensors differ: block_02/attn/proj/bias (none, here [16]), " in text
    assert "allowed: a model of the same sizes, or method.encoder=None" in text
    assert not (tmp_path / "new" / "config.json").exists()
    heads = ENCODER.clone(heads=4)
    with pytest.raises(ConfigError, match=r"has heads 2, and method\.encoder 4; allowed: the same"):
        helpers.begun(recipe(model, **{"method.encoder": heads}), tmp_path / "new")


def test_a_class_folder_without_images_is_refused(model, tmp_path):
    for split in ("train", "val"):
        for name in "ab":
            (tmp_path / split / name).mkdir(parents=True)
            for i in range(8):
                Image.new("RGB", (8, 8), (30 * i, 0, 0)).save(tmp_path / split / name / f"{i}.png")
        (tmp_path / split / "empty").mkdir()
    c = recipe(model, **{"data.source": Folder(), "batch_size": 8})
    c.data.path = str(tmp_path)
    with pytest.raises(
        ConfigError, match=r"^data.path: class folders without an image: 'empty'; allow"
    ):
        setup(c)


def test_every_method_and_size_has_a_recipe():
    config = helpers.ALL["fine_tune"]
    groups = {"mae": 32, "bootmae": 256, "beit": 128, "cae": 128}
    for method in ("mae", "bootmae", "beit", "cae", "caev2", "mcmae", "mrmae"):
        for size in ("ti", "s", "b", "l", "h"):
            c = config.get_config(f"method={method},size={size}")
            schema.make_task(c, Clock(10, 900))
            assert c.epochs in (50, 100, 200)
        assert method in config.__doc__
        mixed = config.get_config(f"method={method}").method.mixing.group
        assert mixed == groups.get(method)
        for more in ("", ",scratch"):
            schema.make_task(config.get_config(f"method={method},demo{more}"), Clock(10, 600))
