"""Teachers with a CLS token: views, stages of their features, attention by the contract."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mimjax.errors import ConfigError
from mimjax.models.clip import CLIPVision
from mimjax.models.vit import ViT
from mimjax.patches import IMAGENET_MEAN, IMAGENET_STD, normalize
from mimjax.targets.clip import CLIP
from mimjax.targets.dino import DINO
from mimjax.targets.encoder import EncoderFeatures
from mimjax.targets.pixels import Pixels
from mimjax.task import View

STUDENT = ViT(width=16, depth=1, heads=2, patch=4, image_size=(16, 24))  # 4x6 patches
SIZES = {"width": 24, "depth": 2, "heads": 3, "patch": 4, "image_size": (16, 16)}
TEACHERS = {
    "dino": DINO(ViT(**SIZES, pos_embed="learned")),
    "dino_pre_norm": DINO(ViT(**SIZES, pos_embed="learned"), feature="pre_norm"),
    "clip": CLIP(CLIPVision(24, 2, 3, 4, (4, 4), 5)),
    "clip_post_norm": CLIP(CLIPVision(24, 2, 3, 4, (4, 4), 5), feature="post_norm"),
    "clip_pre_norm": CLIP(CLIPVision(24, 2, 3, 4, (4, 4), 5), feature="pre_norm"),
    "encoder": EncoderFeatures(ViT(**(SIZES | {"image_size": (16, 24)}))),
}


def batch():
    images = np.random.default_rng(0).integers(0, 256, (2, 16, 24, 3), dtype=np.uint8)
    return {"image": jnp.asarray(images)}


@pytest.mark.parametrize("name", TEACHERS)
def test_one_pass_gives_features_and_attention(name):
    target = TEACHERS[name]
    frozen = target.init_frozen(jax.random.key(0), STUDENT)
    assert target.has_attention
    assert target.views(STUDENT) == {}
    hidden, attention = target.encode_with_attention(frozen, batch(), STUDENT)
    np.testing.assert_allclose(hidden, target.encode(frozen, batch(), STUDENT), atol=1e-5)
    assert hidden.shape[1] == target.num_prefix + STUDENT.num_patches
    assert attention.shape == (2, 3, STUDENT.num_patches)
    assert attention.dtype == jnp.float32
    assert bool((attention.sum(-1) < 1).all())  # CLS's own share is left out
    np.testing.assert_array_equal(target.attention(frozen, batch(), STUDENT), attention)
    read = target.read(frozen, hidden)
    assert read.shape == (*hidden.shape[:2], target.out_dim(STUDENT))
    assert read.dtype == jnp.float32
    some = jnp.asarray([3, 0])  # what is read of some tokens is what they have among all
    np.testing.assert_allclose(target.read(frozen, hidden[:, some]), read[:, some], atol=1e-6)


@pytest.mark.parametrize("name", TEACHERS)
def test_the_teacher_runs_once(name):
    """Attention costs one row of products more, no second pass."""
    target = TEACHERS[name]
    frozen = jax.eval_shape(lambda key: target.init_frozen(key, STUDENT), jax.random.key(0))

    def flops(method):
        run = lambda f, b: method(f, b, STUDENT)
        return jax.jit(run).lower(frozen, batch()).cost_analysis()["flops"]

    assert flops(target.encode_with_attention) < 1.05 * flops(target.encode)


def test_features_are_after_or_before_the_final_norm():
    post, pre = TEACHERS["dino"], TEACHERS["dino_pre_norm"]
    frozen = post.init_frozen(jax.random.key(0), STUDENT)
    frozen["dino"]["norm"]["scale"] *= 3.0
    hidden = post.encode(frozen, batch(), STUDENT)
    x = normalize(batch()["image"], IMAGENET_MEAN, IMAGENET_STD)
    square = x[:, :, :16]  # on the stored grid the encoder's own network, to the last norm
    features = post.network.apply({"params": frozen["dino"]}, square)
    at = post.encode(frozen, {"image": square}, STUDENT)
    np.testing.assert_allclose(post.read(frozen, at), features.tokens, atol=1e-5)
    np.testing.assert_allclose(pre.read(frozen, at), features.blocks[-1], atol=1e-5)
    np.testing.assert_allclose(post.read(frozen, hidden).std(-1), 3.0, rtol=1e-3)


def test_views_have_a_token_per_patch():
    small = DINO(ViT(width=24, heads=3, patch=8, pos_embed="learned"))
    assert small.views(STUDENT) == {"target_image": View((32, 48), "bicubic")}
    with pytest.raises(ConfigError, match="the student has 4x6 patches"):
        DINO(size=(224, 224)).views(STUDENT)


def test_targets_without_a_cls_token_have_none():
    assert not Pixels.has_attention
    with pytest.raises(NotImplementedError, match="Pixels has no attention"):
        Pixels().attention({}, batch(), STUDENT)
