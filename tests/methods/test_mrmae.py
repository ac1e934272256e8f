"""MR-MAE beyond its golden numbers: which patches are shown, where losses stand, teachers."""

import jax
import jax.numpy as jnp
import method_runs as runs
import numpy as np
import pytest

from mimjax.errors import ConfigError
from mimjax.losses import Cosine, unit
from mimjax.masking.base import Random
from mimjax.methods.mrmae import MRMAE, DirectionMSE
from mimjax.methods.parts import Term
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
PIXEL, MIMIC = Term("pixel_target", "decoder"), Term("mimic_target", "mimic_head", at="visible")


def weighed(pixel, mimic):
    """The two terms with these weights."""
    return {
        "pixel": Term("pixel_target", "decoder", weight=pixel),
        "mimic": Term("mimic_target", "mimic_head", at="visible", weight=mimic),
    }


def make(encoder=CONV, **options):
    base = {"encoder": encoder, "decoder": MAEDecoder(16, 1, 2), "mimic_target": runs.Looks()}
    return MRMAE(**base | options)


def test_the_patches_that_the_teacher_attends_to_are_visible():
    task, raw = make(), runs.raw_batch()
    batch = runs.prepare(task, raw)
    bright = np.asarray(jax.jit(lambda x: runs.flat(x, task.encoder).mean(-1))(raw["image"]))
    for ids, row in zip(np.asarray(batch.ids_v), bright):
        assert set(ids.tolist()) == set(np.argsort(-row)[:4].tolist())
    both = np.concatenate([batch.ids_v, batch.ids_m], axis=1)
    np.testing.assert_array_equal(np.sort(both, axis=1), np.tile(np.arange(16), (4, 1)))


@pytest.mark.parametrize("encoder", [CONV, PLAIN], ids=["conv", "vit"])
def test_losses_are_those_of_the_paper(encoder):
    """0.5 x squared error of visible tokens' features + 0.5 x that of masked pixels; no CLS."""
    task = make(encoder)
    params = runs.start(task)
    batch = runs.prepare(task, runs.raw_batch(), params)
    out = runs.loss(task, params, batch)
    pred = runs.predict(task, params, batch)[1]
    assert pred["mimic_head"]["visible"].shape == (4, 4, 6)
    assert pred["decoder"]["masked"].shape == (4, 12, 48)
    assert task.mimic_target.seen == [(4, 4, 6)]  # only what the loss reads
    squared = lambda ours, theirs: np.square(np.subtract(ours, theirs)).mean()
    mimic = squared(pred["mimic_head"]["visible"], batch.targets["mimic"]["visible"])
    pixel = squared(pred["decoder"]["masked"], batch.targets["pixel"]["masked"])
    np.testing.assert_allclose(out.total, 0.5 * mimic + 0.5 * pixel, rtol=1e-5)


def test_rows_of_table_3_leave_out_what_they_do_not_learn():
    names = lambda task: set(jax.eval_shape(task.init, jax.random.key(0))[0])
    assert names(make(**weighed(0.5, 0.0))) == {"encoder", "decoder"}
    assert names(make(**weighed(0.0, 0.5))) == {"encoder", "mimic_head"}
    both = make(pixel_target=Joint(Pixels("patch"), runs.Looks()), **weighed(1.0, 0.0))
    assert names(both) == {"encoder", "decoder"}
    params = runs.start(both)
    batch = runs.prepare(both, runs.raw_batch(), params)
    assert params["decoder"]["head"]["kernel"].shape == (16, 48 + 6)
    assert batch.targets["pixel"]["masked"].shape == (4, 12, 48 + 6)
    out = runs.loss(both, params, batch)
    assert {k for k in out.metrics if k.startswith("loss/")} == {"loss/pixel"}


def test_forms_of_a_norm_of_the_target():
    """MILAN's l2 is the cosine: |unit(a) - unit(b)|^2 = 2 - 2 cos."""
    rng = np.random.default_rng(0)
    a, b = (jnp.asarray(x) for x in rng.normal(size=(2, 3, 4, 5)).astype(np.float32))
    squared = jnp.square(unit(a) - unit(b)).sum(-1)
    np.testing.assert_allclose(2 * Cosine()(a, b), squared, rtol=1e-4)
    np.testing.assert_allclose(DirectionMSE()(a, b), jnp.square(a - unit(b)).mean(-1), rtol=1e-5)


def test_two_teachers_are_read_side_by_side():
    clip = CLIPVision(width=8, depth=1, heads=2, patch=4, pos_grid=(4, 4), proj_dim=None)
    dino = ViT(width=12, depth=1, heads=2, patch=4, image_size=(16, 16), pos_embed="learned")
    both = Joint(CLIP(clip, project=False), DINO(dino))
    task = make(PLAIN, mimic_target=both)
    params, raw = runs.start(task), runs.raw_batch(2)
    frozen = jax.jit(task.init_frozen)(runs.KEY)
    assert {k: set(v) for k, v in frozen["mimic_target"].items()} == {
        "first": {"clip"},
        "second": {"dino"},
    }
    batch = runs.prepare(task, raw, params, frozen=frozen)
    features = np.asarray(batch.targets["mimic"]["visible"])
    assert features.shape == (2, 4, 20)
    rows = np.asarray(batch.ids_v)[..., None] + 1
    for part, name, where in (
        (both.first, "first", slice(0, 8)),
        (both.second, "second", slice(8, 20)),
    ):
        tree = frozen["mimic_target"][name]
        read = jax.jit(lambda t, x, part=part: part.read(t, part.encode(t, x, PLAIN)))
        true = np.asarray(read(tree, raw["image"]))
        true = np.take_along_axis(true, rows, axis=1)
        np.testing.assert_allclose(features[..., where], true, atol=1e-5)
    tree = frozen["mimic_target"]["first"]
    look = jax.jit(lambda t, x: both.first.encode_with_attention(t, x, PLAIN)[1].mean(1))
    first = look(tree, raw["image"])
    np.testing.assert_allclose(batch.attention, first, atol=1e-6)


def test_half_precision_makes_no_nan():
    """The teacher's attention saturates here; softmax, norms and losses stay in float32."""
    network = CLIPVision(8, 1, 2, 4, (4, 4), None, dtype=jnp.bfloat16)
    task = make(
        PLAIN.clone(dtype=jnp.bfloat16),
        decoder=MAEDecoder(16, 1, 2, dtype=jnp.bfloat16),
        mimic_target=CLIP(network, project=False),
    )
    params = runs.start(task)
    frozen = runs.randomized(jax.jit(task.init_frozen)(runs.KEY), spread=30.0)
    raw = runs.raw_batch()
    raw["image"] = np.array(raw["image"])
    raw["image"][0] = 0  # every patch constant: its variance is 0
    batch = runs.prepare(task, raw, params, frozen=frozen)
    loss = lambda p: task.loss(p, {}, batch, runs.KEY, 0, True).total
    total, grads = jax.jit(jax.value_and_grad(loss))(params)
    features = batch.targets["mimic"]["visible"]
    assert total.dtype == batch.attention.dtype == features.dtype == jnp.float32
    assert np.isfinite(total)
    assert all(x.dtype == jnp.float32 and np.isfinite(x).all() for x in jax.tree.leaves(grads))
    assert float(batch.attention.max()) >= 0.5  # a head of two looks at one patch alone


def test_wrong_settings_are_named():
    with pytest.raises(ConfigError, match=r"method\.masking\.reads: 'mimic_target'; allowed: an"):
        make(mimic_target=runs.Teacher())
    make(mimic_target=runs.Teacher(), masking=Random())
    with pytest.raises(ConfigError, match=r"fuse_layers: 2; allowed: -2 to 1"):
        make(PLAIN.clone(fuse_layers=(2,)))
    with pytest.raises(ConfigError, match=r"product of .*strides.*multiples of 4"):
        make(CONV.clone(image_size=(18, 16)))
    with pytest.raises(ConfigError, match=r"method\.terms: all weights 0"):
        make(**weighed(0.0, 0.0))
    with pytest.raises(ConfigError, match=r"method\.mimic_target\.size: 20x20"):
        make(
            mimic_target=CLIP(CLIPVision(width=8, heads=2, patch=4, pos_grid=(4, 4)), size=(20, 20))
        )
