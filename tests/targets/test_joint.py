"""Two targets side by side: their vectors, views, weights and attention."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from looking import seen

from mimjax.errors import ConfigError
from mimjax.models.clip import CLIPVision
from mimjax.models.vit import ViT
from mimjax.targets.clip import CLIP
from mimjax.targets.dalle import DallE
from mimjax.targets.dino import DINO
from mimjax.targets.encoder import EncoderFeatures
from mimjax.targets.joint import Joint
from mimjax.targets.own import OwnFeatures
from mimjax.targets.pixels import PCA, Pixels
from mimjax.task import Frozen, Known, View

STUDENT = ViT(width=16, depth=1, heads=2, patch=4, image_size=(16, 24))  # 4x6 patches
SIZES = {"width": 24, "depth": 1, "heads": 3, "image_size": (16, 16), "pos_embed": "learned"}
SMALL_CLIP = CLIP(CLIPVision(12, 1, 2, 4, (4, 4), 5), project=False)
JOINTS = {
    "clip, dino": Joint(SMALL_CLIP, DINO(ViT(**SIZES, patch=8))),  # with a view of its own
    "clip, clip": Joint(SMALL_CLIP, dataclasses.replace(SMALL_CLIP, project=True)),
    "pixels, clip": Joint(Pixels(), SMALL_CLIP),
    "pixels, pixels": Joint(Pixels("none"), Pixels()),
    "three": Joint(Pixels(), Joint(PCA(components=3), SMALL_CLIP)),
}
PLACES = {"pixels, clip", "pixels, pixels", "three"}  # without a class token


def images(target):
    """Every view that the target reads, beside the student's image."""
    views = {"image": View((16, 24))} | target.views(STUDENT)
    rng = np.random.default_rng(0)
    draw = lambda v: jnp.asarray(rng.integers(0, 256, (2, *v.size, 3), np.uint8))
    return {name: draw(view) for name, view in views.items()}


def values(target, at, frozen, batch, hidden=None, pieces=1):
    """Values of a target at the places, as one program: the networks have many small operations."""
    return looking(target, at, pieces)(frozen, batch, hidden)


@functools.cache
def looking(target, at, pieces):
    return jax.jit(lambda f, b, h: target.values(STUDENT, seen(f, b, ids(), pieces, h), at))


@functools.cache
def weights(target):
    return jax.jit(lambda key: target.init_frozen(key, STUDENT))(jax.random.key(0))


def ids():
    order = np.stack([np.random.default_rng(i).permutation(24) for i in range(2)])
    return {"visible": jnp.asarray(order[:, :9]), "masked": jnp.asarray(order[:, 9:])}


@pytest.mark.parametrize(
    ("name", "pieces"), [*((name, 1) for name in JOINTS), ("clip, dino", 2), ("pixels, clip", 2)]
)
def test_vectors_stand_side_by_side(name, pieces):
    target = JOINTS[name]
    target.check("method.t", STUDENT)
    frozen, batch = weights(target), images(target)
    at = target.places(STUDENT)
    assert at == ("cls", "visible", "masked")[name in PLACES :]
    known = values(target, at, frozen, batch, pieces=pieces)
    assert known.rows is None
    assert known.values.keys() == set(at)
    trees = {name: frozen.get(name, {}) for name in target.parts}
    alone = [values(part, at, trees[k], batch).values for k, part in target.parts.items()]
    for place, value in known.values.items():
        assert value.dtype == jnp.float32
        assert value.shape == (2, {"cls": 1, "visible": 9, "masked": 15}[place], value.shape[2])
        assert value.shape[2] == target.width(STUDENT)
        np.testing.assert_allclose(
            value, np.concatenate([x[place] for x in alone], axis=-1), atol=1e-5
        )


@pytest.mark.parametrize("name", [name for name in JOINTS if name != "pixels, pixels"])
def test_one_pass_gives_attention_and_vectors(name):
    """The attention is that of the first part that has one; what that pass computed is read."""
    target = JOINTS[name]
    frozen, batch = weights(target), images(target)
    attend = lambda t: jax.jit(lambda f, b: t.attention(STUDENT, seen(f, b)))
    attention, hidden = attend(target)(frozen, batch)
    part, tree = target, frozen
    while isinstance(part, Joint):
        key = "first" if part.first.has_attention else "second"
        part, tree = getattr(part, key), tree[key]
    assert isinstance(part, CLIP)
    alone, vectors = attend(part)(tree, batch)
    np.testing.assert_array_equal(attention, alone)
    assert attention.shape == (2, 24)
    [kept] = jax.tree.leaves(hidden)
    np.testing.assert_array_equal(kept, vectors)
    at = target.places(STUDENT)
    first = values(target, at, frozen, batch).values
    second = values(target, at, frozen, batch, hidden).values
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), first, second)
    other = jax.tree.map(np.square, jax.device_get(hidden))
    moved = values(target, at, frozen, batch, other).values
    assert np.abs(moved["masked"] - first["masked"]).max() > 1e-3


def test_pixels_have_no_attention():
    target = JOINTS["pixels, pixels"]
    assert not target.has_attention
    with pytest.raises(NotImplementedError, match="Joint has no attention of a class token"):
        target.attention(STUDENT, seen({}, images(target)))


def test_views_and_weights_are_those_of_both():
    wider = {"image_32x48_bicubic": View((32, 48), "bicubic")}
    assert JOINTS["clip, dino"].views(STUDENT) == wider
    assert Joint(DINO(ViT(**SIZES, patch=8)), SMALL_CLIP).views(STUDENT) == wider
    assert Joint(*[DINO(ViT(**SIZES, patch=8))] * 2).views(STUDENT) == wider
    assert JOINTS["clip, clip"].views(STUDENT) == {}
    both = Joint(CLIP(path="a.pth"), EncoderFeatures(STUDENT, path="runs/b"))
    parts = both.frozen("method.t")
    assert parts["first"] == Frozen("method.t.first.path", "a.pth", {})
    assert parts["second"][:2] == ("method.t.second.path", "runs/b")
    assert parts["second"].readers.keys() == {"encoder"}
    assert JOINTS["pixels, clip"].frozen("method.t") == {
        "second": Frozen("method.t.second.path", None, {})
    }
    assert weights(JOINTS["pixels, clip"]).keys() == {"second"}
    assert weights(JOINTS["pixels, pixels"]) == {}
    twins = jax.device_get(weights(Joint(SMALL_CLIP, SMALL_CLIP)))
    first, second = (twins[name]["clip"]["patch_embed"]["kernel"] for name in ("first", "second"))
    assert np.abs(first - second).min() > 0
    three = JOINTS["three"]
    assert three.frozen("method.t").keys() == {"second.first", "second.second"}
    trees = weights(three)
    assert trees["second"].keys() == {"first", "second"}
    many = jnp.asarray(np.random.default_rng(0).normal(size=(20, 16, 24, 3)), jnp.float32)
    fitted = three.fit(trees, STUDENT, lambda n: many)
    assert np.abs(fitted["second"]["first"]["pca"]["basis"]).max() > 0
    jax.tree.map(
        np.testing.assert_array_equal, fitted["second"]["second"], trees["second"]["second"]
    )


def test_a_story_names_both():
    story = JOINTS["pixels, clip"].story
    assert "pixels" in story
    assert "CLIP" in story


@dataclasses.dataclass(frozen=True)
class Centered(Pixels):
    def init_state(self, encoder) -> Any:
        return {"center": jnp.zeros(3)}


@dataclasses.dataclass(frozen=True)
class Coarse(Pixels):
    def grid(self, encoder) -> tuple[int, int]:
        return 2, 3


@pytest.mark.parametrize(
    ("target", "text"),
    [
        (Joint(DallE(), SMALL_CLIP), r"first\.type: DallE; allowed: a target of vectors"),
        (Joint(SMALL_CLIP, OwnFeatures()), r"second\.type: OwnFeatures; allowed: .* no weights"),
        (Joint(SMALL_CLIP, Centered()), r"second\.type: Centered; allowed: .* no state"),
        (Joint(SMALL_CLIP, Coarse()), r"second: a grid of \(2, 3\); allowed: \(4, 6\)"),
        (
            Joint(SMALL_CLIP, EncoderFeatures(mean=(0.5,), std=(0.5,))),
            r"second: it reads 1 channels; allowed: 3, as method\.t\.first",
        ),
        (Joint(DINO(size=(8, 8)), SMALL_CLIP), r"first\.size: 8x8"),
        (Joint(Pixels(), CLIP(size=(8, 8))), r"second\.size: 8x8"),
    ],
)
def test_parts_that_do_not_fit(target, text):
    with pytest.raises(ConfigError, match=rf"^method\.t\.{text}") as error:
        target.check("method.t", STUDENT)
    assert "\n" not in str(error.value)


@dataclasses.dataclass(frozen=True)
class Some(Pixels):
    def values(self, encoder, seen, at) -> Known:
        known = super().values(encoder, seen, at)
        rows = {"masked": jnp.zeros((2, 1), jnp.int32)}
        return Known({"masked": known.values["masked"][:, :1]}, rows)


def test_a_part_that_knows_some_patches_is_refused():
    target = Joint(Some(), Some())
    with pytest.raises(ValueError, match="some patches"):
        target.values(STUDENT, seen({}, images(target), ids()), ("masked",))
