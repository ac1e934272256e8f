"""Attention probabilities are those that the blocks themselves use."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mimjax.models import attention_maps
from mimjax.models.vit import ViT

GRID = 3, 2  # not square


def encoder(**settings):
    """Three blocks whose attention is far from uniform, and its parameters and images."""
    vit = ViT(16, 3, 2, 4, (4 * GRID[0], 4 * GRID[1]), **settings)
    images = jax.random.normal(jax.random.key(0), (2, *vit.image_size, 3))
    params = jax.jit(vit.init)(jax.random.key(1), images)["params"]
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(2), len(leaves))
    noise = [x + 0.5 * jax.random.normal(k, x.shape) for x, k in zip(leaves, keys, strict=True)]
    return vit, jax.tree.unflatten(tree, noise), images


@pytest.mark.parametrize(
    ("bias", "rel_pos", "remat"),
    [
        ("full", "none", "none"),
        ("qv", "shared", "none"),
        pytest.param("qv", "per_block", "full", marks=pytest.mark.gate),
    ],
)
def test_probabilities_give_the_blocks_own_output(bias, rel_pos, remat):
    vit, params, images = encoder(bias=bias, rel_pos=rel_pos, remat=remat, layer_scale=0.1)
    layers = [0, -1]
    probabilities = attention_maps.attention_maps(vit, params, images, layers)
    assert probabilities.shape == (2, 2, 2, 7, 7)
    assert probabilities.dtype == jnp.float32
    np.testing.assert_allclose(probabilities.sum(-1), 1, atol=1e-6)
    assert float(probabilities.std()) > 0.05
    inside = lambda module, _: module.name in ("norm1", "attn")
    _, state = vit.apply(
        {"params": params}, images, capture_intermediates=inside, mutable="intermediates"
    )
    for layer, weights in zip(layers, probabilities, strict=True):
        name = f"block_{layer % vit.depth:02d}"
        attn, seen = params[name]["attn"], state["intermediates"][name]
        v = attention_maps.projections(attn, attention_maps.output(seen["norm1"]), vit.heads)[2]
        mixed = jnp.einsum("bhqk,bhkd->bqhd", weights, v).reshape(2, 7, 16)
        out = mixed @ attn["proj"]["kernel"] + attn["proj"]["bias"]
        np.testing.assert_allclose(out, attention_maps.output(seen["attn"]), atol=1e-5, rtol=1e-5)


def test_half_precision_encoders_are_read_in_float32():
    vit, params, images = encoder()
    half = attention_maps.attention_maps(vit.clone(dtype=jnp.bfloat16), params, images, [1])
    np.testing.assert_array_equal(half, attention_maps.attention_maps(vit, params, images, [1]))


def test_encoders_without_attention_have_no_blocks():
    assert attention_maps.num_blocks(encoder()[1]) == 3
    dense = nn.Dense(3).init(jax.random.key(0), jnp.zeros((1, 2)))["params"]
    assert attention_maps.num_blocks({"block_00": dense, "norm": {}}) == 0
