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
    "remat": ViT(**SIZES, remat="full"),
    "beit_shared": ViT(**SIZES, **BEIT, rel_pos="shared"),
    "beit_per_block": ViT(**SIZES, **BEIT, rel_pos="per_block"),
    "clip": CLIPVision(24, 2, 3, 4, (3, 3), 5),
    "clip_heads_derived": CLIPVision(128, 1, 0, 4, (3, 2), 5),
}
IMAGES = jax.random.normal(jax.random.key(0), (2, 12, 8, 3))


def parameters(network):
    rng, params = np.random.default_rng(1), jax.jit(network.init)(jax.random.key(0), IMAGES)
    noisy = lambda x: np.asarray(x) + 0.1 * rng.normal(size=x.shape)
    return jax.tree.map(lambda x: jnp.asarray(noisy(x), jnp.float32), params["params"])


@pytest.mark.parametrize("name", NETWORKS)
def test_it_weighs_the_values(name):
    """The values weighed by it give what the attention layer returned for CLS."""
    network, method = NETWORKS[name], "encode" if "clip" in name else None
    params = parameters(network)
    run = jax.jit(lambda p, x: with_cls_attention(network, p, x, method))
    out, weights = run(params, IMAGES)
    plain = jax.jit(lambda p, x: network.apply({"params": p}, x, method=method))(params, IMAGES)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), out, plain)
    heads = network.heads or 2  # 128 // 64
    assert weights.shape == (2, heads, 6)
    assert bool((weights > 0).all())
    block = f"block_{network.depth - 1:02d}"
    look = lambda p, x: common.intermediates(network, p, x, method=method)
    seen, attn = jax.tree.map(np.asarray, (jax.jit(look)(params, IMAGES), params[block]["attn"]))
    weights = np.asarray(weights)
    v = np.split(seen[f"{block}/attn/qkv"], 3, axis=-1)[2] + attn.get("v_bias", 0.0)
    v = v.reshape(2, 7, heads, -1)
    full = np.concatenate([1 - weights.sum(-1, keepdims=True), weights], axis=-1)
    mixed = np.einsum("bkt,btkd->bkd", full, v).reshape(2, -1)
    ours = mixed @ attn["proj"]["kernel"] + attn["proj"]["bias"]
    np.testing.assert_allclose(ours, seen[f"{block}/attn"][:, 0], atol=1e-4)


def test_softmax_is_float32():
    """A bfloat16 one would make probabilities near 1/n differ by a percent."""
    q = jax.random.normal(jax.random.key(0), (2, 50, 36)).astype(jnp.bfloat16)
    attend = jax.jit(lambda x: cls_attention(x, 3))
    low, high = (attend(x) for x in (q, q.astype(jnp.float32)))
    assert low.dtype == high.dtype == jnp.float32
    np.testing.assert_allclose(low, high, rtol=2e-2)
    assert len(np.unique(np.asarray(low))) == low.size
    network = CLIPVision(24, 2, 3, 4, (3, 2), 5, dtype=jnp.bfloat16)
    params = parameters(network)
    run = lambda p, x: with_cls_attention(network, p, x, "encode")
    _, weights = jax.eval_shape(run, params, IMAGES)
    assert weights.dtype == jnp.float32


@pytest.mark.parametrize("shift", [0.0, 3.0])
def test_properties(shift):
    """Equal keys share alike; a bias that all pairs have changes nothing."""
    qkv = jnp.ones((1, 5, 12))
    bias = jnp.full((1, 2, 5, 5), shift)
    np.testing.assert_allclose(cls_attention(qkv, 2, rel_bias=bias), 0.2, rtol=1e-6)
