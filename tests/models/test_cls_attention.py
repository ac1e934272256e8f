"""CLS's attention: it is what the last block really weighs its values with."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden_checks import common

from mimjax.models.attention_maps import cls_attention, with_cls_attention
from mimjax.models.clip import CLIPVision
from mimjax.models.vit import ViT

SIZES = {"width": 24, "depth": 2, "heads": 3, "patch": 4, "image_size": (12, 8)}
BEIT = {"bias": "qv", "init_scheme": "beit", "layer_scale": 0.1}
NETWORKS = {
    "mae": ViT(**SIZES),
    "one_block": ViT(**(SIZES | {"depth": 1}), pos_embed="learned"),
    "remat": ViT(**SIZES, remat=True),
    "beit_shared": ViT(**SIZES, **BEIT, rel_pos="shared"),
    "beit_per_block": ViT(**SIZES, **BEIT, rel_pos="per_block"),
    "clip": CLIPVision(24, 2, 3, 4, (3, 3), 5),
    "clip_heads_derived": CLIPVision(128, 1, 0, 4, (3, 2), 5),
}
IMAGES = jax.random.normal(jax.random.key(0), (2, 12, 8, 3))


def parameters(network):
    leaves, tree = jax.tree.flatten(network.init(jax.random.key(0), IMAGES)["params"])
    keys = jax.random.split(jax.random.key(1), len(leaves))
    return jax.tree.unflatten(
        tree, [x + 0.1 * jax.random.normal(k, x.shape) for x, k in zip(leaves, keys)]
    )


@pytest.mark.parametrize("name", NETWORKS)
def test_it_weighs_the_values(name):
    """The values weighed by it give what the attention layer returned for CLS."""
    network, method = NETWORKS[name], "encode" if "clip" in name else None
    params = parameters(network)
    run = jax.jit(lambda p, x: with_cls_attention(network, p, x, method))
    out, weights = run(params, IMAGES)
    plain = network.apply({"params": params}, IMAGES, method=method)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), out, plain)
    heads = network.heads or 2  # 128 // 64
    assert weights.shape == (2, heads, 6)
    assert bool((weights > 0).all())
    block = f"block_{network.depth - 1:02d}"
    seen = common.intermediates(network, params, IMAGES, method=method)
    attn = params[block]["attn"]
    v = jnp.split(seen[f"{block}/attn/qkv"], 3, axis=-1)[2] + attn.get("v_bias", 0.0)
    v = v.reshape(2, 7, heads, -1)
    full = jnp.concatenate([1 - weights.sum(-1, keepdims=True), weights], axis=-1)
    mixed = jnp.einsum("bkt,btkd->bkd", full, v).reshape(2, -1)
    ours = mixed @ attn["proj"]["kernel"] + attn["proj"]["bias"]
    np.testing.assert_allclose(ours, seen[f"{block}/attn"][:, 0], atol=1e-4)


def test_softmax_is_float32():
    """In bfloat16 too: probabilities near 1/n would differ by a percent otherwise."""
    q = jax.random.normal(jax.random.key(0), (2, 50, 36)).astype(jnp.bfloat16)
    low, high = (cls_attention(x, 3) for x in (q, q.astype(jnp.float32)))
    assert low.dtype == high.dtype == jnp.float32
    np.testing.assert_allclose(low, high, rtol=2e-2)
    assert len(np.unique(np.asarray(low))) == low.size
    network = CLIPVision(24, 2, 3, 4, (3, 2), 5, dtype=jnp.bfloat16)
    params = parameters(network)
    _, weights = with_cls_attention(network, params, IMAGES, "encode")
    assert weights.dtype == jnp.float32


@pytest.mark.parametrize("shift", [0.0, 3.0])
def test_properties(shift):
    """Equal keys share alike; a bias that all pairs have changes nothing."""
    qkv = jnp.ones((1, 5, 12))
    bias = jnp.full((1, 2, 5, 5), shift)
    np.testing.assert_allclose(cls_attention(qkv, 2, rel_bias=bias), 0.2, rtol=1e-6)
