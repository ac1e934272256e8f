"""Targets that read codes: views, sizes, the workdir of `configs/dvae.py` as a tokenizer."""

import dataclasses

import helpers
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mimjax import schema
from mimjax.errors import ConfigError
from mimjax.models.dalle import DallEEncoder
from mimjax.models.dvae import DVAEDecoder, DVAEEncoder
from mimjax.models.vit import ViT
from mimjax.rules import paths
from mimjax.targets.dalle import DallE
from mimjax.targets.dvae import DVAE
from mimjax.targets.vqkd import VQKD
from mimjax.task import Clock, View

SMALL_VIT = ViT(8, 1, 2, 4, (8, 12), pos_embed="learned", bias="qv", init_scheme="beit")
SMALL = {
    "dalle": DallE(network=DallEEncoder(4, 1, 7)),
    "dvae": DVAE(encoder=DVAEEncoder(7, 4, 2, 1), decoder=DVAEDecoder(3)),
    "vqkd": VQKD(network=SMALL_VIT, code_dim=3, vocab=7),
}


def test_views_of_the_published_sizes():
    assert DallE().views(ViT()) == {"target_image": View((112, 112), "lanczos")}
    assert DVAE().views(ViT()) == {"target_image": View((112, 112), "lanczos")}
    assert VQKD().views(ViT()) == {}  # the student's own 224 pixels
    assert DallE().views(ViT(patch=14)) == {"target_image": View((128, 128), "lanczos")}
    with pytest.raises(ConfigError, match=r"method\.target\.size: 224x224"):
        DallE(size=(224, 224)).views(ViT())
    assert [t.out_dim(ViT()) for t in (DallE(), DVAE(), VQKD())] == [8192] * 3


@pytest.mark.parametrize("name", SMALL)
def test_codes_of_a_batch(name):
    target, student = SMALL[name], ViT(patch=8, image_size=(16, 24))
    frozen = target.init_frozen(jax.random.key(0), student)
    size = target.views(student)["target_image"].size
    eight = np.random.default_rng(0).integers(0, 256, (2, *size, 3), np.uint8)
    batch = {"image": jnp.zeros((2, 16, 24, 3), jnp.uint8), "target_image": jnp.asarray(eight)}
    hidden = target.encode(frozen, batch, student)
    ids = target.read(frozen, hidden)
    assert ids.shape == (2, 6)
    assert target.discrete
    assert int(ids.min()) >= 0
    assert int(ids.max()) < target.out_dim(student)
    # floats are taken as normalized: the same codes
    floats = (eight / 255.0 - np.asarray(target.mean)) / np.asarray(target.std)
    again = target.encode(frozen, batch | {"target_image": jnp.float32(floats)}, student)
    np.testing.assert_allclose(again, hidden, atol=1e-4)
    assert target.decodes == (name == "dvae")


def test_a_dvae_without_decoder_cannot_decode():
    target = dataclasses.replace(SMALL["dvae"], with_decoder=False)
    student = ViT(patch=4, image_size=(8, 8))
    frozen = target.init_frozen(jax.random.key(0), student)
    assert set(frozen) == {"encoder"}
    assert not target.decodes
    with pytest.raises(ConfigError, match="with_decoder"):
        target.decode(frozen, jnp.zeros((1, 4), jnp.int32), student)


def test_the_target_reads_what_the_method_trains():
    """Names and shapes are the same, so a workdir is read by name; so are codes and pictures."""
    c = helpers.small("dvae")
    task = schema.make_task(c, Clock(1, 1))
    params = jax.jit(task.init)(jax.random.key(0))[0]
    target = DVAE(encoder=task.encoder, decoder=task.decoder)
    student = ViT(patch=2, image_size=(8, 8))
    like = jax.eval_shape(lambda k: target.init_frozen(k, student), jax.random.key(0))
    assert paths(like) == paths(params)
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(lambda x: x.shape, like)
    batch = jax.tree.map(jnp.asarray, helpers.batches(c, task, 1)[0])
    prepared = task.prepare({}, {}, batch, jax.random.key(0), 0, False)
    out = task.loss(params, {}, prepared, jax.random.key(0), 0, False)
    ids = target.read(params, target.encode(params, batch, student))
    np.testing.assert_array_equal(ids, out.preds["codes"])
    pictures = task.pictures(params, {}, prepared, out.preds)
    np.testing.assert_allclose(
        target.decode(params, ids, student), pictures["reconstruction"], atol=1e-5
    )
    np.testing.assert_allclose(pictures["original"], batch["image"] / 255.0, atol=1e-5)
