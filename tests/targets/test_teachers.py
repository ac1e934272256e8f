"""Teachers with a CLS token: views, stages of their features, attention by the contract."""

import dataclasses
import functools

import helpers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from looking import seen

from mimjax import values
from mimjax.errors import ConfigError
from mimjax.models.clip import CLIPVision
from mimjax.models.conv_vit import ConvViT
from mimjax.models.vit import ViT
from mimjax.patches import IMAGENET_MEAN, IMAGENET_STD, normalize
from mimjax.targets.clip import CLIP
from mimjax.targets.dino import DINO
from mimjax.targets.encoder import EncoderFeatures
from mimjax.targets.pixels import Pixels
from mimjax.task import Frozen, Reader, View

STUDENT = ViT(width=16, depth=1, heads=2, patch=4, image_size=(16, 24))  # 4x6 patches
SIZES = {"width": 24, "depth": 2, "heads": 3, "patch": 4, "image_size": (16, 16)}
TEACHERS = {
    "dino": DINO(ViT(**SIZES, pos_embed="learned")),
    "dino_pre_norm": DINO(ViT(**SIZES, pos_embed="learned"), feature="pre_norm"),
    "clip": CLIP(CLIPVision(24, 2, 3, 4, (4, 4), 5)),
    "clip_post_norm": CLIP(CLIPVision(24, 2, 3, 4, (4, 4), 5), feature="post_norm"),
    "clip_pre_norm": CLIP(CLIPVision(24, 2, 3, 4, (4, 4), 5), feature="pre_norm"),
    "encoder": EncoderFeatures(ViT(**(SIZES | {"image_size": (16, 24)}))),
    "encoder_layer": EncoderFeatures(ViT(**(SIZES | {"image_size": (16, 24)})), layer=-1),
    "student": EncoderFeatures(),
}
CONV = ConvViT(32, 2, 2, (8, 16), (1, 1), strides=(2, 2, 2), image_size=(16, 24))  # 2x3 patches


def batch():
    images = np.random.default_rng(0).integers(0, 256, (2, 16, 24, 3), dtype=np.uint8)
    return {"image": jnp.asarray(images)}


@functools.cache
def weights(target, student=STUDENT):
    return jax.jit(lambda key: target.init_frozen(key, student))(jax.random.key(0))


@pytest.mark.parametrize("name", TEACHERS)
def test_one_pass_gives_features_and_attention(name):
    target = TEACHERS[name]
    assert target.has_attention
    assert target.views(STUDENT) == {}
    some = np.array([3, 0])

    @jax.jit
    def run(frozen, batch):
        images = target.image(batch, STUDENT)
        hidden, attention = target.encode_with_attention(frozen, images, STUDENT)
        read = target.read(frozen, hidden), target.read(frozen, hidden[:, some])
        looked = target.attention(STUDENT, seen(frozen, batch))
        mean = attention.mean(1)
        return hidden, attention, mean, target.encode(frozen, images, STUDENT), looked, read

    out = run(weights(target), batch())
    hidden, attention, mean, encoded, (where, kept), (read, read_some) = out
    np.testing.assert_allclose(hidden, encoded, atol=1e-5)
    assert hidden.shape[1] == target.num_prefix + STUDENT.num_patches
    assert attention.shape == (2, 2 if name == "student" else 3, STUDENT.num_patches)
    assert attention.dtype == jnp.float32
    assert (np.asarray(attention).sum(-1) < 1).all()  # CLS's own share is left out
    np.testing.assert_array_equal(where, mean)
    np.testing.assert_array_equal(kept, hidden)
    assert read.shape == (*hidden.shape[:2], target.width(STUDENT))
    assert read.dtype == jnp.float32
    # what is read of some tokens is what they have among all
    np.testing.assert_allclose(read_some, np.asarray(read)[:, some], atol=1e-6)


@pytest.mark.parametrize("name", TEACHERS)
def test_values_at_places(name):
    """The hidden vectors of an earlier pass and micro-batches change nothing."""
    target = TEACHERS[name]
    order = np.stack([np.random.default_rng(i).permutation(24) for i in range(2)])
    ids = {"visible": jnp.asarray(order[:, :9]), "masked": jnp.asarray(order[:, 9:])}
    assert target.places(STUDENT) == ("cls", *ids)

    @jax.jit
    def run(frozen, batch):
        hidden = target.encode(frozen, batch["image"], STUDENT)
        several = ({}, {"hidden": hidden}, {"pieces": 2}, {"hidden": hidden, "pieces": 2})
        look = lambda kw: target.values(STUDENT, seen(frozen, batch, ids, **kw), ("cls", *ids))
        return target.read(frozen, hidden), [look(options) for options in several]

    tokens, several = run(weights(target), batch())
    tokens = np.asarray(tokens)
    wanted = {"cls": tokens[:, :1]}
    wanted |= {p: np.stack([t[1:][i] for t, i in zip(tokens, at)]) for p, at in ids.items()}
    for known in several:
        assert known.rows is None
        assert known.values.keys() == wanted.keys()
        for place, value in known.values.items():
            np.testing.assert_allclose(value, wanted[place], atol=1e-5)


@pytest.mark.parametrize("name", TEACHERS)
def test_the_teacher_runs_once(name):
    """Attention costs one row of products more, no second pass."""
    target = TEACHERS[name]
    frozen = jax.eval_shape(lambda key: target.init_frozen(key, STUDENT), jax.random.key(0))

    def flops(method):
        run = lambda f, x: method(f, x, STUDENT)
        return jax.jit(run).lower(frozen, batch()["image"]).cost_analysis()["flops"]

    assert flops(target.encode_with_attention) < 1.05 * flops(target.encode)


def test_features_are_after_or_before_the_final_norm():
    post, pre = TEACHERS["dino"], TEACHERS["dino_pre_norm"]

    @jax.jit
    def run(frozen, images):
        dino = frozen["dino"]
        dino = dino | {"norm": dino["norm"] | {"scale": dino["norm"]["scale"] * 3.0}}
        frozen = {"dino": dino}
        hidden = post.encode(frozen, images, STUDENT)
        x = normalize(images, IMAGENET_MEAN, IMAGENET_STD)
        square = x[:, :, :16]  # on the stored grid the encoder's own network, to the last norm
        features = post.network.apply({"params": dino}, square)
        at = post.encode(frozen, square, STUDENT)
        read = post.read(frozen, at), pre.read(frozen, at), post.read(frozen, hidden).std(-1)
        return features.tokens, features.blocks[-1], read

    tokens, last, (after, before, std) = run(weights(post), batch()["image"])
    np.testing.assert_allclose(after, tokens, atol=1e-5)
    np.testing.assert_allclose(before, last, atol=1e-5)
    np.testing.assert_allclose(std, 3.0, rtol=1e-3)


def test_views_have_a_token_per_patch():
    small = DINO(ViT(width=24, heads=3, patch=8, pos_embed="learned"))
    assert small.views(STUDENT) == {"image_32x48_bicubic": View((32, 48), "bicubic")}
    with pytest.raises(ConfigError, match=r"method\.t\.size: .* the student has 4x6 patches"):
        DINO(size=(224, 224)).check("method.t", STUDENT)
    dataclasses.replace(small, size=(32, 48)).check("method.t", STUDENT)


def test_targets_without_a_cls_token_have_none():
    assert not Pixels.has_attention
    with pytest.raises(NotImplementedError, match="Pixels has no attention"):
        Pixels().attention(STUDENT, seen({}, batch()))


def test_what_is_read_from_a_file():
    dino = DINO(path="dino.pth")
    assert dino.frozen("method.t") == {"": Frozen("method.t.path", "dino.pth", {})}
    encoder = EncoderFeatures(STUDENT, mean=IMAGENET_MEAN, std=IMAGENET_STD, path="runs/mae")
    reader = Reader(STUDENT, IMAGENET_MEAN, IMAGENET_STD)
    wanted = Frozen("method.t.path", "runs/mae", {"encoder": reader})
    assert encoder.frozen("method.t") == {"": wanted}
    unknown = EncoderFeatures().frozen("method.t")[""]
    assert unknown.path is None
    assert unknown.readers == {"encoder": Reader(None, None, None)}  # anything may be read
    assert Pixels().frozen("method.t") == {}


@pytest.mark.parametrize(
    ("target", "text"),
    [
        (DINO(ViT(**SIZES)), r"network\.pos_embed: 'sincos_xy'; DINO's are learned"),
        (DINO(ViT(width=24, heads=5, pos_embed="learned")), r"network\.heads: 5"),
        (DINO(mean=(0.5,)), r"mean, method\.t\.std: \(0\.5,\)"),
        (CLIP(CLIPVision(24, 2, 5, 4, (4, 4), 5)), r"network\.heads: 5"),
        (CLIP(std=(0.5,)), r"mean, method\.t\.std"),
        (EncoderFeatures(ViT(**SIZES), layer=2), r"layer: 2; allowed: -2 to 1"),
        (EncoderFeatures(layer=-2), r"layer: -2; allowed: -1 to 0"),
        (EncoderFeatures(ViT(width=24, heads=5)), r"network\.heads: 5"),
        (EncoderFeatures(mean=(0.5,), std=(0.5, 0.5)), r"mean, method\.t\.std: \(0\.5,\)"),
    ],
)
def test_settings_that_do_not_go_together(target, text):
    values.check(target, "method.t")  # each alone is possible
    with pytest.raises(ConfigError, match=rf"^method\.t\.{text}") as error:
        target.check("method.t", STUDENT)
    assert "\n" not in str(error.value)


def test_an_encoder_s_layers():
    """The last block's output is what the final norm reads."""
    target = EncoderFeatures(ViT(**(SIZES | {"image_size": (16, 24)})))

    @jax.jit
    def run(frozen, images):
        x = normalize(images, IMAGENET_MEAN, IMAGENET_STD)
        features = target.network.apply({"params": frozen["encoder"]}, x)
        layers = [dataclasses.replace(target, layer=layer) for layer in (None, -1, 0)]
        ours = [other.encode(frozen, images, STUDENT) for other in layers]
        return ours, [features.tokens, features.blocks[1], features.blocks[0]]

    for ours, tokens in zip(*run(weights(target), batch()["image"]), strict=True):
        np.testing.assert_allclose(ours, tokens, atol=1e-5)


def test_an_encoder_that_nobody_described_is_the_student_s():
    """It lacks what only training needs; its tokens are as wide as before a projection."""
    student = STUDENT.clone(use_mask_token=True, project=12, drop_path=0.5, channels=1)
    target = EncoderFeatures()
    assert student.out_width == 12
    assert target.width(student) == 16
    assert target.channels(student) == 1
    frozen, images = weights(target, student), jnp.zeros((1, 16, 24, 1))
    plain = jax.jit(STUDENT.clone(channels=1).init)(jax.random.key(0), images)["params"]
    jax.tree.map(np.testing.assert_array_equal, frozen["encoder"], plain)
    half = student.clone(dtype=jnp.bfloat16)
    assert target.teacher(half).dtype == jnp.bfloat16
    encode = lambda f, x: target.encode(f, x, half)
    assert jax.eval_shape(encode, frozen, images).dtype == jnp.bfloat16


@pytest.mark.parametrize("target", [EncoderFeatures(CONV), helpers.gate(EncoderFeatures())])
def test_an_encoder_without_a_class_token(target):
    student = CONV if target.network is None else ViT(patch=8, image_size=(16, 24))
    frozen = weights(target, student)
    target.check("method.t", student)
    assert target.width(student) == 32
    assert target.places(student) == ("visible", "masked")
    ids = {"visible": np.array([[5, 0], [1, 2]]), "masked": np.array([[3], [3]])}

    @jax.jit
    def run(frozen, batch, ids):
        known = target.values(student, seen(frozen, batch, ids), ("visible",))
        return known.values["visible"], target.encode(frozen, batch["image"], student)

    known, tokens = run(frozen, batch(), ids)
    tokens = np.asarray(tokens)
    assert tokens.shape == (2, 6, 32)
    wanted = np.stack([t[i] for t, i in zip(tokens, ids["visible"])])
    np.testing.assert_allclose(known, wanted, atol=1e-5)
    assert target.has_attention == (target.network is None)  # where only the student tells
    with pytest.raises(NotImplementedError, match="has no attention of a class token"):
        target.encode_with_attention(frozen, batch()["image"], student)


def test_the_channels_of_an_encoder_are_those_of_its_statistics():
    gray = EncoderFeatures(ViT(**(SIZES | {"patch": 8})), mean=(0.5,), std=(0.25,))
    student = STUDENT.clone(channels=1)
    gray.check("method.t", student)
    assert gray.channels(STUDENT) == 1
    assert gray.views(student) == {"image_32x48_bicubic": View((32, 48), "bicubic", 1)}
    frozen = weights(gray, student)
    images = np.random.default_rng(0).integers(0, 256, (2, 32, 48, 1), np.uint8)
    encode = jax.jit(lambda f, x: gray.encode(f, x, student))
    tokens = encode(frozen, images)
    assert tokens.shape == (2, 25, 24)
    floats = np.float32((images / 255.0 - 0.5) / 0.25)
    np.testing.assert_allclose(encode(frozen, floats), tokens, atol=1e-5)
