"""Layers with gradients of their own against the derived ones, and half precision."""

import functools

import helpers
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mimjax import losses
from mimjax.models import attention, layers
from mimjax.models.vit import ViT
from mimjax.patches import patchify, unpatchify


def both(ours, theirs, *args):
    """Values and derivatives of two functions, the second in float64.

    Gradients are those of a random projection; forward mode goes along the arguments themselves.
    """
    args = random(9, *jax.eval_shape(theirs, *args).shape), *args
    f = compiled(ours, len(args) - 1)(*args)
    with jax.enable_x64(True):
        g = compiled(theirs, len(args) - 1)(*(np.asarray(x, np.float64) for x in args))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-5), f, g)


@functools.cache
def compiled(f, count):
    """Value of a function, its change along its arguments and gradients of its projection."""
    total = lambda weight, *a: (f(*a).astype(weight.dtype) * weight).sum()
    grads = jax.grad(total, tuple(range(1, count + 1)))
    along = lambda *a: jax.linearize(f, *a)[1](*a)
    return jax.jit(lambda weight, *a: (f(*a), along(*a), grads(weight, *a)))


def random(seed, *shape):
    """Normal numbers made by numpy: in jax every shape would be a program of its own."""
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def test_normalize_is_a_layer_norm():
    def plain(x):
        mean = x.mean(-1, keepdims=True)
        return (x - mean) / jnp.sqrt(x.var(-1, keepdims=True) + losses.LN_EPS)

    both(layers.normalize, plain, 3 * random(0, 4, 7, 16) + 5)


def test_gelu_is_the_erf_form():
    plain = lambda x: jax.nn.gelu(x, approximate=False)
    both(layers.gelu, plain, jnp.linspace(-6.0, 6.0, 301))


NUMBERS = (((2,), (0,)), ((), ()))


@pytest.mark.parametrize(("width", "out"), [(6, 24), (24, 6)])
def test_a_product_of_tokens_is_that_of_a_linear_layer(width, out):
    ours = lambda x, kernel: layers.matrix_product(x, kernel, NUMBERS)
    both(ours, lambda x, kernel: x @ kernel, random(1, 4, 5, width), random(2, width, out))


@pytest.mark.parametrize(("width", "out"), [(6, 24), (24, 6)])
def test_on_cpu_a_kernel_s_gradient_is_a_product_of_matrices_as_they_lie(width, out):
    loss = lambda x, kernel: jnp.sin(layers.matrix_product(x, kernel, NUMBERS)).sum()
    x, kernel = random(1, 4, 5, width), random(2, width, out)
    jaxpr = jax.make_jaxpr(jax.grad(loss, 1))(x, kernel)
    _, product = [eqn for eqn in jaxpr.eqns if eqn.primitive.name == "dot_general"]
    text = jax.jit(jax.grad(loss, 1)).lower(x, kernel).compile().as_text()
    lhs, rhs = (v.aval.shape for v in product.invars)
    assert {lhs, rhs} == {(6, 20), (20, 24)}  # over 20 rows
    numbers = "lhs_contracting_dims={1}, rhs_contracting_dims={0}"
    assert text.count(numbers) == text.count(" dot(") == 2


def test_no_product_is_made_for_an_input_that_is_not_differentiated():
    loss = lambda kernel, x: layers.matrix_product(x, kernel, NUMBERS).sum()
    kernel, x = random(2, 6, 24), random(1, 4, 5, 6)
    text = jax.jit(jax.grad(loss)).lower(kernel, x).compile().as_text()
    assert text.count(" dot(") == 1


def test_attend_is_softmax_attention():
    def plain(q, k, v):
        logits = jnp.einsum("bqhd,bkhd->bhqk", q, k) * q.shape[-1] ** -0.5
        return jnp.einsum("bhqk,bkhd->bqhd", jax.nn.softmax(logits), v)

    q, k, v = random(1, 2, 5, 3, 8), random(2, 2, 9, 3, 8), random(3, 2, 9, 3, 8)
    both(attention.attend, plain, q, k, v)
    both(attention.attend, plain, 30 * q, k, v)  # large logits do not overflow


def test_drop_path_keeps_the_expectation_and_is_off_in_evaluation():
    block = attention.Block(heads=2, drop_path=0.5)
    x = random(4, 512, 3, 8)

    @jax.jit
    def run(x):
        params = block.init(jax.random.key(0), x)
        y = block.apply(params, x, None, True, rngs={"drop_path": jax.random.key(1)})
        return params, block.apply(params, x), block.apply(params, x, None, False), y

    params, still, off, y = run(x)
    np.testing.assert_array_equal(still, off)
    untouched = np.all(np.asarray(y == x), axis=(1, 2)).mean()
    assert 0.15 < untouched < 0.35  # both branches dropped: one in four
    kept = block.apply(
        params,
        jnp.ones((4000, 1, 1)),
        "gamma",
        True,
        method=attention.Block.residual,
        rngs={"drop_path": jax.random.key(2)},
    )
    assert set(np.unique(kept)) == {0.0, 2.0}
    assert abs(float(kept.mean()) - 1) < 0.1


@pytest.mark.parametrize("rows", [1, 2])
def test_attend_adds_a_bias_of_the_batch_or_of_each_image(rows):
    def plain(q, k, v, bias):
        logits = jnp.einsum("bqhd,bkhd->bhqk", q, k) * q.shape[-1] ** -0.5 + bias
        return jnp.einsum("bhqk,bkhd->bqhd", jax.nn.softmax(logits), v)

    q, k, v = random(1, 2, 5, 3, 8), random(2, 2, 9, 3, 8), random(3, 2, 9, 3, 8)
    both(attention.attend, plain, q, k, v, random(4, rows, 3, 5, 9))


def test_relative_bias_of_some_patches_is_that_of_all_gathered():
    module = attention.RelativeBias(2, (2, 3))
    table = {"params": {"table": random(5, attention.table_rows((2, 3)), 2)}}
    full, ids = module.apply(table), jnp.asarray([[0, 4], [5, 1]])
    some = module.apply(table, ids)
    for row, picked in zip(some, ids):
        index = np.concatenate([[0], np.asarray(picked) + 1])
        np.testing.assert_array_equal(row, full[0][:, index][:, :, index])
    # one number per displacement: neighbors to the right share theirs in every row of the grid
    assert full[0, 0, 1, 2] == full[0, 0, 2, 3] == full[0, 0, 4, 5] != full[0, 0, 2, 1]


def test_patchify_and_back_on_a_grid_that_is_not_square():
    images = random(5, 2, 12, 8, 3)
    patches = patchify(images, 4)
    assert patches.shape == (2, 6, 48)
    np.testing.assert_array_equal(unpatchify(np.asarray(patches), (3, 2), 4), images)


def test_visible_tokens_do_not_depend_on_the_order_of_ids():
    vit = ViT(16, 2, 2, 4, (8, 12))
    images = random(6, 1, 8, 12, 3)
    params = jax.jit(vit.init)(jax.random.key(0), images)
    encode = jax.jit(lambda p, x, ids: vit.apply(p, x, ids).tokens)
    a, b = (encode(params, images, np.array([ids])) for ids in ([0, 3, 5], [5, 0, 3]))
    np.testing.assert_allclose(np.asarray(a)[:, [0, 3, 1, 2]], b, atol=1e-5)


@pytest.mark.parametrize("name", ["mae", helpers.gate("bootmae")])
def test_half_precision_computes_in_bfloat16_and_keeps_float32(name):
    """Losses near the float32 ones; parameters, gradients, EMA and moments stay float32."""
    batch, results = None, {}
    for dtype in ("float32", "bfloat16"):
        c = helpers.small(name, dtype=dtype, **{"optimizer.lr": 1e-3})
        task, program = helpers.make(c)
        batch = batch or helpers.batches(c, task, 1)[0]
        with jax.set_mesh(program.mesh):
            state, metrics = program.compile()(program.init(), {}, jax.tree.map(jnp.asarray, batch))
        results[dtype] = jax.device_get(metrics)
        floats = [x.dtype for x in jax.tree.leaves(state) if jnp.issubdtype(x.dtype, jnp.floating)]
        assert set(floats) == {jnp.dtype("float32")}
        block = attention.Block(heads=2, dtype=jnp.dtype(dtype))
        x = jax.ShapeDtypeStruct((1, 3, 8), dtype)
        assert jax.eval_shape(block.init_with_output, jax.random.key(0), x)[0].dtype == dtype
    for key, value in results["float32"].items():
        assert results["bfloat16"][key] == pytest.approx(value, rel=0.05), key
    assert results["bfloat16"]["loss/total"] != results["float32"]["loss/total"]
