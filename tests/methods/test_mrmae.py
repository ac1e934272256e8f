"""MR-MAE beyond its golden numbers: which patches are shown, where losses stand, teachers."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
import method_runs as runs
import numpy as np
import pytest

from mimjax.errors import ConfigError
from mimjax.masking.base import Masking
from mimjax.methods.mrmae import MRMAE
from mimjax.models.clip import CLIPVision
from mimjax.models.conv_vit import ConvViT
from mimjax.models.decoders import MAEDecoder
from mimjax.models.vit import ViT
from mimjax.targets.clip import CLIP
from mimjax.targets.dino import DINO
from mimjax.targets.joint import Joint
from mimjax.targets.pixels import Pixels

CONV = ConvViT(
    width=16,
    depth=2,
    heads=2,
    stage_widths=(4, 8),
    stage_depths=(1, 1),
    strides=(2, 2, 1),
    image_size=(16, 16),
    fuse_layers=(0, 1),
)
PLAIN = ViT(width=16, depth=2, heads=2, patch=4, image_size=(16, 16), fuse_layers=(0, 1))


@dataclasses.dataclass(frozen=True)
class Looks(runs.Teacher):
    """A teacher that looks at bright patches, with two heads that agree."""

    has_attention: ClassVar[bool] = True

    def encode_with_attention(self, frozen, batch, encoder):
        bright = jax.nn.softmax(runs.flat(batch, encoder).mean(-1), axis=-1)
        return self.encode(frozen, batch, encoder), jnp.stack([bright, bright], axis=1)


def make(encoder=CONV, **options):
    base = {
        "encoder": encoder,
        "decoder": MAEDecoder(16, 1, 2),
        "masking": Masking("random", 0.75),
        "target": Looks(),
    }
    return MRMAE(**base | options)


def test_the_patches_that_the_teacher_attends_to_are_visible():
    task, raw = make(), runs.raw_batch()
    batch = runs.prepare(task, raw)
    bright = np.asarray(runs.flat(raw, task.encoder).mean(-1))
    for ids, row in zip(batch["ids_v"], bright):
        assert set(np.asarray(ids).tolist()) == set(np.argsort(-row)[:4].tolist())
    both = np.concatenate([batch["ids_v"], batch["ids_m"]], axis=1)
    np.testing.assert_array_equal(np.sort(both, axis=1), np.tile(np.arange(16), (4, 1)))


@pytest.mark.parametrize("encoder", [CONV, PLAIN], ids=["conv", "vit"])
def test_losses_are_those_of_the_paper(encoder):
    """0.5 x squared error of visible tokens' features + 0.5 x that of masked pixels; no CLS."""
    task = make(encoder)
    params, batch = runs.start(task), runs.prepare(task, runs.raw_batch())
    out = runs.loss(task, params, batch)
    pred = jax.jit(lambda p, b: task.predict(p, b, runs.KEY, True))(params, batch)
    assert pred["mimic"].shape == (4, 4, 6)
    assert pred["pixel"].shape == (4, 12, 48)
    assert task.target.seen == [(4, 4, 6)]  # only what the loss reads
    mimic = np.square(pred["mimic"] - batch["features"]).mean()
    pixel = np.square(pred["pixel"] - batch["target"]).mean()
    np.testing.assert_allclose(out.total, 0.5 * mimic + 0.5 * pixel, rtol=1e-5)


def test_rows_of_table_3_leave_out_what_they_do_not_learn():
    names = lambda task: set(jax.eval_shape(task.init, jax.random.key(0))[0])
    assert names(make(mimic_weight=0.0)) == {"encoder", "decoder"}
    assert names(make(pixel_weight=0.0)) == {"encoder", "mimic_head"}
    conflict = make(mimic_at="decoder")
    assert names(conflict) == {"encoder", "decoder"}
    params, batch = runs.start(conflict), runs.prepare(conflict, runs.raw_batch())
    assert params["decoder"]["head"]["kernel"].shape == (16, 48 + 6)
    assert batch["features"].shape == (4, 12, 6)  # of masked patches
    out = runs.loss(conflict, params, batch)
    assert set(out.metrics) == {"loss/pixel", "loss/mimic"}


def test_pictures_show_attention_beside_the_reconstruction():
    task = make()
    params, batch = runs.start(task), runs.prepare(task, runs.raw_batch(), train=False)
    preds = {"pred": batch["target"]}
    columns = task.pictures(params, {}, batch, preds)
    assert list(columns) == ["original", "attention", "visible", "reconstruction"]
    # true pixels with true statistics give the image back
    np.testing.assert_allclose(columns["reconstruction"], columns["original"], atol=1e-4)
    gray = np.all(np.asarray(columns["visible"]) == 0.5, axis=-1).mean()
    assert 0.7 < gray < 0.8


def test_two_teachers_are_read_side_by_side():
    clip = CLIPVision(width=8, depth=1, heads=2, patch=4, pos_grid=(4, 4), proj_dim=None)
    dino = ViT(width=12, depth=1, heads=2, patch=4, image_size=(16, 16), pos_embed="learned")
    both = Joint(CLIP(clip, project=False), DINO(dino))
    frozen = jax.jit(lambda k: both.init_frozen(k, PLAIN))(runs.KEY)
    assert set(frozen) == {"clip", "dino"}
    raw = runs.raw_batch(2)
    hidden, attention = both.encode_with_attention(frozen, raw, PLAIN)
    features = both.read(frozen, hidden)
    assert features.shape == (2, 17, 20)
    np.testing.assert_allclose(
        features[..., :8], both.first.read(frozen, both.first.encode(frozen, raw, PLAIN)), atol=1e-5
    )
    np.testing.assert_allclose(
        features[..., 8:],
        both.second.read(frozen, both.second.encode(frozen, raw, PLAIN)),
        atol=1e-5,
    )
    first = both.first.attention(frozen, raw, PLAIN)
    np.testing.assert_allclose(attention, first, atol=1e-6)


def test_half_precision_makes_no_nan():
    """With a teacher whose attention saturates; softmax, norms and losses stay in float32."""
    network = CLIPVision(8, 1, 2, 4, (4, 4), None, dtype=jnp.bfloat16)
    task = make(
        PLAIN.clone(dtype=jnp.bfloat16),
        decoder=MAEDecoder(16, 1, 2, dtype=jnp.bfloat16),
        target=CLIP(network, project=False),
    )
    params = runs.start(task)
    frozen = runs.randomized(jax.jit(task.init_frozen)(runs.KEY), spread=30.0)
    raw = runs.raw_batch()
    raw["image"] = raw["image"].at[0].set(0)  # every patch constant: its variance is 0

    @jax.jit
    def run(p):
        batch = task.prepare({}, frozen, raw, runs.KEY, 0, True)
        loss = lambda p: task.loss(p, {}, batch, runs.KEY, 0, True).total
        return *jax.value_and_grad(loss)(p), batch

    total, grads, batch = run(params)
    assert total.dtype == batch["attention"].dtype == batch["features"].dtype == jnp.float32
    assert np.isfinite(total)
    assert all(x.dtype == jnp.float32 and np.isfinite(x).all() for x in jax.tree.leaves(grads))
    assert float(batch["attention"].max()) >= 0.5  # a head of two looks at one patch alone


def test_wrong_settings_are_named():
    with pytest.raises(ConfigError, match=r"method\.select: 'topk' needs a teacher.*random"):
        make(target=Pixels())
    make(target=runs.Teacher(), select="random")
    with pytest.raises(ConfigError, match=r"method\.select: 'top'"):
        make(select="top")
    with pytest.raises(ConfigError, match=r"fuse_layers: 2; allowed: -2 to 1"):
        make(PLAIN.clone(fuse_layers=(2,)))
    with pytest.raises(ConfigError, match=r"product of .*strides.*multiples of 4"):
        make(CONV.clone(image_size=(18, 16)))
    with pytest.raises(ConfigError, match=r"pixel_weight, method\.mimic_weight"):
        make(pixel_weight=0.0, mimic_weight=0.0)
    with pytest.raises(ConfigError, match=r"method\.target\.size: 20x20"):
        make(target=CLIP(CLIPVision(width=8, heads=2, patch=4, pos_grid=(4, 4)), size=(20, 20)))
