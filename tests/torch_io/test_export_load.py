"""Files that mimjax wrote are read by `mimjax.load` alone: they say what no tensor shows."""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import exports  # isort: skip
import mimjax
from mimjax import patches
from mimjax.data.augment import Augment
from mimjax.data.in_memory import Reader
from mimjax.errors import ConfigError
from mimjax.inference import weights
from mimjax.models.attention import Block
from mimjax.models.layers import LayerNorm
from mimjax.programs import export as program
from mimjax.rules import paths
from mimjax.torch_io.read import load
from mimjax.torch_io.write import files, formats, tensors


def expected(job, images):
    """Features [b d] of the run's own network."""
    encoder, params = job.plain
    if job.decoder:
        encoder, params = job.encoder, job.params["encoder"]
    x = patches.normalize(images, job.task.mean, job.task.std)
    if job.format == "detectron2":
        return alone(encoder, params, x).read("mean", -1)
    return pooled(job, apply(encoder, params, x), {"classifier": {"params": params}})


@functools.partial(jax.jit, static_argnums=0)
def alone(encoder, params, x):
    """Features of the run's network whose patch tokens attend to patch tokens alone."""

    def masked(call, args, kwargs, place):
        if not isinstance(place.module, Block) or place.method_name != "__call__":
            return call(*args, **kwargs)
        *args, bias = args
        assert bias is None
        count = args[0].shape[1]
        return call(*args, jnp.zeros((1, encoder.heads, count, count)).at[..., 0].set(-jnp.inf))

    with nn.intercept_methods(masked):
        return encoder.apply({"params": params}, x)


def pooled(job, features, params):
    """Features [b d] as the file's library pools them."""
    if job.pool == "avg":
        norm = {"params": params["classifier"]["params"]["norm"]}
        return LayerNorm().apply(norm, features.read("mean", -1))
    return features.read("mean", layer_of(job))


def layer_of(job):
    """The layer to ask for: backbones of segmentation and detection have no final norm."""
    return None if formats.FORMATS[job.format].final_norm else -1


def suffixes(name):
    """Each kind of path that a format is written to; "" = a folder."""
    kind = formats.FORMATS[name]
    return (*kind.suffixes[: 1 + (name == "timm")], *[""] * kind.folder)


ABSENT = {  # parameters that a file of the encoder alone, or a backbone of detection, has not
    "mmseg": {"encoder/norm"},
    "detectron2": {"encoder/norm", "encoder/cls_token"},
}
PRETRAINING = {"encoder/mask_token", "encoder/projection", "encoder/stage1_fuse"}
PRETRAINING |= {"encoder/stage2_fuse"}


def fold(params):
    """Parameters whose layer scales are multiplied into the weights before them."""
    encoder = exports.task("cae").encoder.clone(use_mask_token=False)
    folded = tensors.folded(encoder, params["encoder"])[1]
    return params | {"encoder": folded}


def variants():
    """All of them; the first method that has a format, a pooling and a decoder is quick."""
    seen = set()
    for case in exports.variants():
        marks = [pytest.mark.gate] if case[1:] in seen else []
        seen.add(case[1:])
        yield pytest.param(*case, marks=marks)


@pytest.mark.parametrize(("method", "name", "pool", "decoder"), list(variants()))
def test_the_path_alone_is_enough(tmp_path, method, name, pool, decoder):
    """`load` gives the run's features and `init_from` its parameters, from a file or folder."""
    job = exports.export(method, name, pool, decoder)
    task, held = job.task, job.params
    place = (task.encoder.grid, task.encoder.positions) if job.is_encoder else (None, "")
    scales = "block_00" in held.get("encoder", {}) and "gamma_1" in held["encoder"]["block_00"]
    for suffix in suffixes(name):
        path = str(tmp_path / f"out{suffix}")
        job.write(path)
        said = []
        read = weights.read_params(path, held, "init_from", said.append, *place)
        want = fold(held) if name == "detectron2" and scales else held
        blank = lambda x: x is None
        absent = set()
        for where, x in zip(paths(held), jax.tree.leaves(read, is_leaf=blank), strict=True):
            root = "/".join(where.split("/")[: 1 + where.startswith("encoder/")])
            if x is None:
                absent.add(root)
            elif name == "detectron2" and "/gamma_" in where:
                assert (x == 1).all()
            else:
                np.testing.assert_array_equal(x, leaf(want, where), err_msg=where)
        others = set() if decoder or not job.is_encoder else held.keys() - {"encoder"}
        assert absent - PRETRAINING == others | ABSENT.get(name, set())
        assert all(word in said[-1] for word in absent)
        if not job.is_encoder:
            continue
        model = mimjax.load(path)
        assert model.module.heads == task.encoder.heads
        assert model.statistics == (pytest.approx(task.mean), pytest.approx(task.std))
        assert bool(model.task) == decoder
        images = image_of(job)
        kind = (suffix, pool, decoder, layer_of(job), model.num_prefix)
        if kind not in ENCODED:
            ENCODED.add(kind)
            features = model.encode(images, layer=layer_of(job))
        else:  # as by `encode`, with one program for all files of such an encoder
            x = patches.normalize(images, *model.statistics)
            features = pooled(job, apply(model.module, model.params["encoder"], x), model.params)
        same = method, pool, decoder, layer_of(job), model.num_prefix
        if same not in EXPECTED:
            EXPECTED[same] = expected(job, images)
        np.testing.assert_allclose(features, EXPECTED[same], atol=2e-5)


EXPECTED = {}  # the runs' features, by all that they depend on
ENCODED = set()  # kinds of files of which one was encoded by `encode` itself


@functools.partial(jax.jit, static_argnums=0)
def apply(module, params, x):
    return module.apply({"params": params}, x)


def leaf(tree, path):
    for name in path.split("/"):
        tree = tree[name]
    return tree


def image_of(job):
    shape = (2, *job.encoder.image_size, job.channels)
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def test_another_versions_file_is_refused_in_one_line(tmp_path):
    job = exports.export("mae", "safetensors")
    encoder = job.metadata["encoder"].replace('"width"', '"breadth"')
    path = str(tmp_path / "a.safetensors")
    metadata = job.metadata | {"encoder": encoder}
    files.write_tensors(path, job.tensors, "", metadata)
    with pytest.raises(ConfigError, match="breadth; it was made by another version"):
        mimjax.load(path)


def test_a_backbone_of_detection_has_no_class_token(tmp_path):
    """The report says so; a file that says nothing of its encoder is refused."""
    job = exports.export("mae", "detectron2")
    path, foreign = str(tmp_path / "a.pth"), str(tmp_path / "b.pth")
    job.write(path)
    model = mimjax.load(path)
    assert model.num_prefix == 0
    assert "patch tokens attend to patch tokens alone" in model.report[1]
    with pytest.raises(ConfigError, match="pool: 'cls', and this encoder has no CLS token"):
        model.encode(image_of(job), pool="cls", layer=-1)
    with pytest.raises(ConfigError, match="the file has no norm for tokens"):
        model.encode(image_of(job))
    files.write_tensors(foreign, job.tensors, "model", {})
    with pytest.raises(ConfigError, match=r"no class token.*; allowed: "):
        mimjax.load(foreign)


@pytest.mark.parametrize("method", ["mae", "cae", "mcmae"])
def test_a_run_at_another_resolution_than_its_positions(tmp_path, method):
    """The file of each format has interpolated fixed positions, which `init_from` knows."""
    made = exports.task(method)
    made = dataclasses.replace(made, encoder=made.encoder.clone(pos_grid=(2, 2)))
    own = exports.export(method, "safetensors", made=made)
    for name, pool, decoder in [v[1:] for v in exports.variants() if v[0] == method]:
        job = exports.export(method, name, pool, decoder, made=made)
        path = str(tmp_path / f"{name}_{pool}_{decoder}{suffixes(name)[-1]}")
        job.write(path)
        model = mimjax.load(path)
        if method == "mae":  # one program of each encoder
            x = patches.normalize(image_of(job), *model.statistics)
            found = pooled(job, apply(model.module, model.params["encoder"], x), model.params)
            np.testing.assert_allclose(found, expected(job, image_of(job)), atol=2e-5)
        place = load.place_of(made.encoder)
        weights.read_params(path, own.params, "init_from", lambda line: None, *place)
        if decoder and name != "safetensors":
            place = load.place_of(exports.task(method).encoder)
            with pytest.raises(ConfigError, match="is not the fixed sine-cosine table"):
                weights.read_params(path, own.params, "init_from", lambda line: None, *place)


def test_a_rectangle_is_cropped_from_photos(tmp_path):
    """The run crops too; transformers' processor of the folder squeezes, which is said."""
    job = dataclasses.replace(exports.export("mae", "hf", image_size=(12, 8)), eval_crop=0.8)
    (note,) = [line for line in program.notes(job) if "squeezes images to 12x8" in line]
    assert "crop images to that shape before it, or export at a square --image_size" in note
    path = str(tmp_path / "hf")
    job.write(path)
    photo = np.random.default_rng(1).integers(0, 256, (40, 64, 3), dtype=np.uint8)
    view = job.task.views["image"]._replace(size=(12, 8))
    images = Reader(Augment(eval_crop=0.8))([photo], {"image": view})["image"]
    np.testing.assert_allclose(mimjax.load(path).encode(photo), expected(job, images), atol=2e-5)
    whole = Reader(Augment(eval_crop=1.0))([photo], {"image": view})["image"]
    assert np.abs(expected(job, images) - expected(job, whole)).max() > 1e-2
