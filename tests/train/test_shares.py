"""Sums over images that stay apart by device: their totals are exact for every kind of loss."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from mimjax import sharding
from mimjax.models.layers import matrix_product
from mimjax.train import hlo, shares

ROWS = 16


@jax.custom_vjp
def doubled(x):
    return 2 * x


doubled.defvjp(lambda x: (2 * x, None), lambda _, g: (2 * g,))


def params():
    make = lambda i, *shape: jax.random.normal(jax.random.key(i), shape)
    return {
        "kernel": make(0, 3, 3, 2, 4),
        "fused": make(1, 4, 12),
        "bias": make(2, 12),
        "q_bias": make(3, 4),
        "table": make(4, 7, 4),
        "scale": make(5, 4),
        "heads": make(6, 3, 4, 5),
        "distances": make(8, 41),
        "unread": make(7, 2),
        # widths that the number of rows divides, too
        "layers": [make(9, 4, 32), make(10, 32, 32), make(11, 32, 16), make(12, 16, 4)],
    }


def batch():
    key = functools.partial(jax.random.fold_in, jax.random.key(1))
    return {
        "image": jax.random.normal(key(0), (ROWS, 4, 4, 2)),
        "ids": jax.random.randint(key(1), (ROWS, 5), 0, 7),
        "weight": jax.random.uniform(key(2), (ROWS,)),
    }


def network(p, b, key):
    """Everything that makes a gradient here: products, convolutions, tables, fused projections."""
    x = lax.conv_general_dilated(
        b["image"], p["kernel"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    x = x.reshape(ROWS, 16, 4) * p["scale"]
    x = jnp.concatenate([x, p["table"][b["ids"]]], axis=1)
    bias = jnp.concatenate([p["q_bias"], jnp.zeros(4), p["bias"][8:]])

    @jax.checkpoint
    def block(x, fused):
        q, k, v = jnp.split(doubled(x) @ fused + bias, 3, -1)
        near = p["distances"][np.abs(np.subtract.outer(np.arange(21), np.arange(21)))]
        weights = jax.nn.softmax(jnp.einsum("bqd,bkd->bqk", q, k) + near)
        return jnp.einsum("bqk,bkd->bqd", weights, v)

    x = x + jax.jit(block)(x, p["fused"])
    x = x * jax.random.bernoulli(key, 0.8, (ROWS, 1, 1))
    y = x
    for kernel in p["layers"]:
        y = 0.1 * matrix_product(y, kernel, (((2,), (0,)), ((), ())))
    x = x + y
    return jax.vmap(lambda w: x.mean(1) @ w)(p["heads"]).sum(0)


def apart(out, b):
    """A loss of each image by itself."""
    return jnp.square(out).mean(), {"a": out.mean()}, {}


def coupled(out, b):
    """Statistics of the batch, weights that are divided by their sum, pairs of images."""
    mean = out.mean(0)
    out = (out - mean) * lax.rsqrt(jnp.square(out - mean).mean(0) + 1e-3)
    share = b["weight"] / jnp.where(b["weight"].sum() > 0, b["weight"].sum(), 1)
    pairs = jax.nn.logsumexp(out @ out.T, axis=-1)
    sorted_ = jnp.sort(out[:, 0])[: ROWS // 2].sum()
    return (share * pairs).sum() + jnp.abs(sorted_), {"a": jnp.max(out)}, {"mean": mean}


def micro(loss, p, b, key):
    def fn(p):
        total, metrics, state = loss(network(p, b, key), b)
        return total, (metrics, state)

    return jax.value_and_grad(fn, has_aux=True)(p)


@pytest.mark.parametrize("loss", [apart, coupled])
def test_totals_are_those_of_the_whole_batch(loss):
    fn, key, mesh = functools.partial(micro, loss), jax.random.key(2), sharding.make_mesh(4, 2)
    kinds = {}

    def evaluated(p, b):
        made = shares.evaluate(fn, (p, b, key), images=1)
        leaves, _ = jax.tree.flatten_with_path(
            made[1], is_leaf=lambda x: isinstance(x, shares.Shares)
        )
        kinds.update({jax.tree_util.keystr(path): type(g) for path, g in leaves})
        sums = shares.add(shares.zeros(p), made[1])
        return shares.total(made), shares.total(sums)

    expected = jax.jit(fn)(params(), batch(), key)
    with jax.set_mesh(mesh):
        b = jax.device_put(batch(), sharding.batch_sharding(mesh))
        compiled: Any = jax.jit(evaluated).lower(params(), b).compile()
        ours, sums = compiled(params(), b)
    near = functools.partial(np.testing.assert_allclose, rtol=2e-5, atol=2e-5)
    jax.tree.map(near, ours, expected)
    jax.tree.map(near, sums, expected[1])
    assert {k for k, kind in kinds.items() if kind is not shares.Shares} == {"['unread']"}
    if loss is apart:  # nothing but the sums themselves travels
        assert {c.kind for c in hlo.collectives(compiled.as_text())} == {"all-reduce"}


def test_rows_that_devices_do_not_divide_are_computed_as_ever():
    x = jnp.ones((3, 2))
    with jax.set_mesh(sharding.make_mesh(8)):
        out = jax.jit(lambda x: shares.evaluate(lambda x: x.sum(0), (x,), images=0))(x)
    assert not isinstance(out, shares.Shares)
