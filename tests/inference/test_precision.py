"""float32 with full products unless bfloat16 is asked for, on every device."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from evaluators.evaluator_runs import bench, started

from mimjax.inference import precision
from mimjax.models.clip import CLIPVision
from mimjax.models.conv_vit import ConvViT
from mimjax.models.published_vit import PublishedViT
from mimjax.models.vit import ViT

SIZES = {"width": 16, "depth": 2, "heads": 2}
ENCODERS = {
    "vit": ViT(**SIZES, patch=4, image_size=(16, 16)),
    "conv": ConvViT(
        **SIZES, stage_widths=(4, 8), stage_depths=(1, 1), strides=(2, 2, 1), image_size=(16, 16)
    ),
    "published": PublishedViT(**SIZES, patch=4, image_size=(16, 16), hidden=32, registers=2),
    "clip": CLIPVision(**SIZES, patch=4, pos_grid=(4, 4), proj_dim=8),
}


@pytest.mark.parametrize("name", ENCODERS)
def test_bfloat16_has_a_float32_residual_stream(name):
    method = "features" if name == "clip" else None
    image = jnp.zeros((1, 16, 16, 3))
    made = {}
    for dtype in precision.DTYPES:
        module = precision.computing(ENCODERS[name], dtype)
        run = lambda m=module: m.init_with_output(jax.random.key(0), image, method=method)
        text = str(jax.make_jaxpr(run)())
        features, params = jax.eval_shape(run)
        made[dtype] = features, jax.tree.map(lambda x: x.dtype, params)
        assert ("bf16" in text) == (dtype == "bfloat16")
        assert {x.dtype for x in features.blocks} == {jnp.dtype(jnp.float32)}
    assert made["float32"][1] == made["bfloat16"][1]
    # in training it is the compute type, as before
    half = ENCODERS[name].clone(dtype=jnp.bfloat16)
    shapes = jax.eval_shape(lambda: half.init_with_output(jax.random.key(0), image, method=method))
    assert {x.dtype for x in shapes[0].blocks} == {jnp.dtype(jnp.bfloat16)}


def test_products_are_full_whatever_the_default_is():
    """What accelerators round by default; the tests' own default is full precision."""
    x = jnp.ones((2, 2))
    task, mesh, _ = started()
    with jax.default_matmul_precision("bfloat16"):
        plain = str(jax.make_jaxpr(jnp.dot)(x, x))
        ours = str(jax.make_jaxpr(precision.precise(jnp.dot))(x, x))
        evaluators = str(jax.make_jaxpr(bench(task, mesh).jit(jnp.dot))(x, x))
    assert "HIGHEST" not in plain
    assert "HIGHEST" in ours
    assert "HIGHEST" in evaluators


def test_evaluators_compute_in_float32_whatever_the_run_does():
    task, mesh, state = started()
    half = precision.computing(task, "bfloat16")
    images = np.zeros((2, 8, 8, 3), np.float32)
    for given, dtype in (({}, jnp.float32), ({"dtype": "bfloat16"}, jnp.bfloat16)):
        encoder = bench(half, mesh, **given).task.encoder
        made = jax.eval_shape(encoder.apply, {"params": state.params["encoder"]}, images)
        assert made.tokens.dtype == dtype
