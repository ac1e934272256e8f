"""3x3 convolutions in Winograd's form against the direct one."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mimjax.models.convolution import LEAST, convolution, winograd
from mimjax.models.dalle import ResPath
from mimjax.train.flops import count

WIDTH = 2 * LEAST


def numbers(*shape):
    """Normal numbers."""
    return jnp.asarray(np.random.default_rng(0).normal(size=shape), jnp.float32)


@pytest.mark.parametrize(("height", "width"), [(6, 8), (7, 5), (1, 2)])
def test_winograd_is_a_convolution_with_gradients(height, width):
    x, kernel = numbers(2, height, width, 5), numbers(3, 3, 5, 3)
    weight = numbers(2, height, width, 3)
    direct = lambda x, k: nn.Conv(3, (3, 3), padding=1, use_bias=False).apply(
        {"params": {"kernel": k}}, x
    )
    both = lambda f: jax.jit(
        lambda x, k: (f(x, k), jax.grad(lambda *a: (f(*a) * weight).sum(), (0, 1))(x, k))
    )
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=2e-5)
    jax.tree.map(close, both(winograd)(x, kernel), both(direct)(x, kernel))


def forms(dtype, width=WIDTH, **how):
    """Names of the platforms for which a 3x3 convolution has a form of its own."""
    layer = nn.Conv(width, (3, 3), dtype=dtype, conv_general_dilated=convolution, **how)
    x = jnp.zeros((1, 8, 8, width), dtype)
    params = jax.eval_shape(layer.init, jax.random.key(0), x)
    equations = jax.make_jaxpr(layer.apply)(params, x).eqns
    found = [e.params["branches_platforms"] for e in equations if e.primitive.name == "cond"]
    return found[0] if found else None


def test_large_convolutions_in_float32_that_keep_the_size_have_winograds_form_on_cpus_alone():
    assert forms(jnp.float32, padding=1) == (("cpu",), None)
    assert forms(jnp.float32, padding=1, strides=2) is None
    assert forms(jnp.float32, padding=((0, 1), (0, 1))) is None
    assert forms(jnp.float32, padding=1, kernel_dilation=2) is None
    assert forms(jnp.float32, padding=1, input_dilation=2) is None
    assert forms(jnp.float32, padding=1, feature_group_count=2) is None
    assert forms(jnp.float32, padding=1, width=LEAST // 2) is None
    assert forms(jnp.bfloat16, padding=1) is None


def test_the_compiled_program_holds_one_form():
    x, kernel = numbers(1, 4, 4, LEAST), numbers(3, 3, LEAST, LEAST)
    numbering = ("NHWC", "HWIO", "NHWC")
    run = lambda x, k: convolution(x, k, (1, 1), ((1, 1), (1, 1)), dimension_numbers=numbering)
    text = jax.jit(run).lower(x, kernel).compile().as_text()
    assert "conditional(" not in text
    assert "convolution(" not in text


def test_a_tokenizers_block_is_counted_as_it_is_defined():
    block = ResPath(4 * LEAST, 0.1)
    x = numbers(1, 8, 8, 4 * LEAST)
    params = block.init(jax.random.key(0), x)
    per_pixel = 9 * 4 * LEAST * LEAST + 2 * 9 * LEAST**2 + LEAST * 4 * LEAST
    assert count(jax.make_jaxpr(block.apply)(params, x)) == 2 * 64 * per_pixel
    dense = jax.jit(block.apply)(params, x)
    want = jax.jit(lambda p, x: plain(p["params"], x))(params, x)
    np.testing.assert_allclose(dense, want, rtol=1e-5, atol=1e-5)


def plain(params, x):
    """The block from its definition."""
    y = x
    for i in (1, 2, 3):
        layer = nn.Conv(LEAST, (3, 3), padding=1)
        y = layer.apply({"params": params[f"conv_{i}"]}, nn.relu(y))
    y = nn.relu(y) @ params["conv_4"]["kernel"] + params["conv_4"]["bias"]
    return x + 0.1 * y
