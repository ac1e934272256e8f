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
from mimjax.patches import HALF
from mimjax.rules import paths
from mimjax.targets.base import Colors
from mimjax.targets.dalle import DallE
from mimjax.targets.dvae import DVAE
from mimjax.targets.vqkd import VQKD
from mimjax.task import Clock, TrainState, View

SMALL_VIT = ViT(8, 1, 2, 4, (8, 12), pos_embed="learned", bias="qv", init_scheme="beit")
SMALL = {
    "dalle": DallE(network=DallEEncoder(4, 1, 7)),
    "dvae": DVAE(encoder=DVAEEncoder(7, 4, 2, 1), decoder=DVAEDecoder(3)),
    "vqkd": VQKD(network=SMALL_VIT, code_dim=3, vocab=7),
}


def test_views_of_the_published_sizes():
    lanczos = {"image_112x112_lanczos": View((112, 112), "lanczos")}  # one view for both
    assert DallE().views(ViT()) == lanczos
    assert DVAE().views(ViT()) == lanczos
    assert VQKD().views(ViT()) == {}  # the student's own 224 pixels
    larger = {"image_128x128_lanczos": View((128, 128), "lanczos")}
    assert DallE().views(ViT(patch=14)) == larger
    with pytest.raises(ConfigError, match=r"method\.code_target\.size: 224x224"):
        DallE(size=(224, 224)).check("method.code_target", ViT())
    DallE(size=(112, 112)).check("method.code_target", ViT())
    assert [t.width(ViT()) for t in (DallE(), DVAE(), VQKD())] == [8192] * 3


@pytest.mark.parametrize("name", SMALL)
def test_codes_of_a_batch(name):
    target, student = SMALL[name], ViT(patch=8, image_size=(16, 24))
    frozen = jax.jit(lambda key: target.init_frozen(key, student))(jax.random.key(0))
    [(name_of_view, view)] = target.views(student).items()
    eight = np.random.default_rng(0).integers(0, 256, (2, *view.size, 3), np.uint8)
    batch = {"image": jnp.zeros((2, 16, 24, 3), jnp.uint8), name_of_view: jnp.asarray(eight)}
    encode = jax.jit(lambda f, x: target.encode(f, x, student))
    hidden = encode(frozen, target.image(batch, student))
    ids = np.asarray(jax.jit(target.read)(frozen, hidden))
    assert ids.shape == (2, 6)
    assert target.kind == "codes"
    assert int(ids.min()) >= 0
    assert int(ids.max()) < target.width(student)
    # floats are taken as normalized: the same codes
    mean, std = getattr(target, "statistics", (target.mean, target.std))
    floats = (eight / 255.0 - np.asarray(mean)) / np.asarray(std)
    again = encode(frozen, np.float32(floats))
    np.testing.assert_allclose(again, hidden, atol=1e-4)
    assert target.decodes == (name == "dvae")


def test_a_dvae_without_decoder_cannot_decode():
    target = dataclasses.replace(SMALL["dvae"], with_decoder=False)
    student = ViT(patch=4, image_size=(8, 8))
    frozen = target.init_frozen(jax.random.key(0), student)
    assert set(frozen) == {"encoder"}
    assert not target.decodes
    colors = Colors(jnp.zeros((1, 8, 8, 3)), HALF, HALF)
    with pytest.raises(ConfigError, match="with_decoder"):
        target.decode(frozen, jnp.zeros((1, 4), jnp.int32), student, colors)


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

    @jax.jit
    def run(params, batch):
        state = TrainState(jnp.zeros((), jnp.int32), params, {}, {}, {})
        prepared, _ = task.prepare(state, {}, batch, jax.random.key(0), False)
        out = task.loss(params, {}, prepared, jax.random.key(0), 0, False)
        ids = target.read(params, target.encode(params, batch["image"], student))
        logits = task.encoder.apply({"params": params["encoder"]}, prepared["image"])
        colors = Colors(prepared["image"], task.mean, task.std)
        pictures = target.decode(params, ids, student, colors)
        return out.predictions["reconstruction"], ids, logits, pictures

    made, ids, logits, pictures = run(params, batch)
    np.testing.assert_array_equal(ids, np.asarray(logits).argmax(-1).reshape(ids.shape))
    picture = lambda x: np.clip(x * np.asarray(task.std) + np.asarray(task.mean), 0, 1)
    np.testing.assert_allclose(pictures, picture(made.values["image"]), atol=1e-5)
    original = np.asarray(batch["image"]) / 255.0
    np.testing.assert_allclose(picture(made.target["image"]), original, atol=1e-5)
