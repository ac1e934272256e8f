"""The forms of attention give one result; what is recomputed is not kept; what a kernel refuses."""

import functools

import flax.linen as nn
import helpers
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mimjax import sharding
from mimjax.errors import ConfigError
from mimjax.models import attention
from mimjax.models.conv_vit import ConvViT
from mimjax.models.vit import ViT
from mimjax.run.setup import setup

# queries, keys, heads, width of a head, factor of the queries, rows of the bias (0 = no bias)
SHAPES = {
    "cross": (5, 9, 3, 8, 1, 0),
    "large logits": (5, 9, 3, 8, 30, 0),
    "BEiT's bias": (17, 17, 2, 16, 1, 1),
    "a bias for each image": (7, 6, 2, 16, 1, 2),
    "heads of 42": (10, 10, 3, 42, 1, 0),
}


def near(a, b):
    """Two arrays are equal to 1e-5 of the largest number."""
    np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * max(1, np.abs(b).max()))


@pytest.mark.parametrize("name", SHAPES)
def test_all_forms_are_equal_with_their_derivatives(name, monkeypatch):
    """In forward mode (`jax.linearize`), too, and in the order that TPUs have."""
    queries, keys, heads, width, factor, rows = SHAPES[name]
    rng = np.random.default_rng(0)
    shapes = [(2, n, heads, width) for n in (queries, keys, keys)]
    shapes += [(rows, heads, queries, keys)] if rows else []
    args = [rng.normal(size=shape).astype(np.float32) for shape in shapes]
    args[0] *= factor
    weight = rng.normal(size=shapes[0]).astype(np.float32)

    def everything(forms, *args):
        out = {}
        for form in forms:
            f = functools.partial(attention.attend, form=form)
            total = lambda *a, f=f: (f(*a) * weight).sum()
            along = jax.linearize(f, *args)[1](*args)
            out[form] = f(*args), along, jax.grad(total, tuple(range(len(args))))(*args)
        return out

    compute = jax.jit(everything, static_argnums=0)
    found = compute(("auto", *attention.FORMS), *args)
    for form in attention.FORMS:
        jax.tree.map(near, found[form], found["auto"])
    monkeypatch.setattr(attention, "platform", lambda: "tpu")
    assert attention.orders(None) == ("bhkq", -2)
    jax.tree.map(near, compute(("manual",), *args)["manual"], found["auto"])


def test_auto_asks_the_mesh_and_not_this_machine():
    """A plan for TPUs is traced on a CPU."""
    assert attention.platform() == "cpu"
    device = jax.sharding.AbstractDevice(device_kind="TPU v5 lite", num_cores=1, platform="tpu")
    mesh = jax.sharding.AbstractMesh((1,), ("data",), abstract_device=device)
    with jax.sharding.use_abstract_mesh(mesh):
        assert attention.platform() == "tpu"
    for platform in ("cpu", "tpu", "gpu"):
        form, why = attention.usual(platform)
        assert form in attention.FORMS
        assert f"{form} (auto on {platform}: {why})" == attention.described("auto", platform)


# ------------------------------------------------------------------ what the backward pass keeps
SIZES = {"width": 16, "depth": 2, "heads": 2, "image_size": (16, 24)}  # 6 patches, 7 tokens
ENCODERS = {
    "vit": ViT(**SIZES, patch=8, rel_pos="shared", layer_scale=0.1),
    "conv": ConvViT(
        **SIZES, stage_widths=(4, 8), stage_depths=(1, 1), strides=(4, 2, 1), drop_path=0.1
    ),
}


@functools.cache
def gradients(name, remat):
    """Gradients of an encoder, and the shapes of what its backward pass keeps."""
    net = ENCODERS[name].clone(remat=remat)
    images = jnp.asarray(np.random.default_rng(0).normal(size=(3, 16, 24, 3)), jnp.float32)
    params = jax.jit(ENCODERS[name].init)(jax.random.key(0), images)
    rngs = {"drop_path": jax.random.key(5)}
    loss = lambda p: jnp.sin(3 * net.apply(p, images, None, None, True, rngs=rngs).tokens).sum()
    kept = jax.eval_shape(lambda p: jax.vjp(loss, p)[1], params)
    return jax.jit(jax.grad(loss))(params), [x.shape for x in jax.tree.leaves(kept)]


@pytest.mark.parametrize("remat", ["full", "dots", "attention"])
@pytest.mark.parametrize("name", [*helpers.gated(ENCODERS, ["vit"])])
def test_recomputation_changes_no_number_and_keeps_less(name, remat):
    plain, all_kept = gradients(name, "none")
    again, kept = gradients(name, remat)
    jax.tree.map(near, again, plain)
    tokens = 7 if name == "vit" else 6
    between = lambda shapes: sum(s[-2:] == (tokens, tokens) and len(s) == 4 for s in shapes)
    rows = lambda width: {(3, tokens, width), (3 * tokens, width)}  # linear layers flatten on CPU
    products = lambda shapes: sum(s in rows(48) for s in shapes)  # of queries, keys and values
    hidden = lambda shapes: sum(s in rows(64) for s in shapes)  # of the MLPs
    assert between(all_kept) >= 2
    # the bias of all blocks has that shape, too
    assert between(kept) <= (name == "vit" and remat != "none")
    assert (hidden(kept) > 0) == (remat != "full")
    assert (products(kept) > 0) == (remat == "dots")
    size = lambda shapes: sum(map(np.prod, shapes))
    assert size(kept) < size(all_kept)


# ------------------------------------------------------------------ what cuDNN does not take
def arrays(width, queries, keys, dtype="bfloat16"):
    """Shapes of queries and keys."""
    make = lambda n: jax.ShapeDtypeStruct((2, n, 3, width), jnp.dtype(dtype))
    return make(queries), make(keys)


@pytest.mark.parametrize(
    ("width", "queries", "keys", "bias", "dtype", "words"),
    [
        (64, 197, 197, False, "bfloat16", ""),
        (128, 50, 98, True, "float16", ""),
        (64, 197, 197, True, "bfloat16", "even numbers of tokens alone, not for 197 queries"),
        (64, 50, 99, True, "bfloat16", "not for 50 queries and 99 keys"),
        (42, 50, 50, False, "bfloat16", "not of 42"),
        (136, 50, 50, False, "bfloat16", "not of 136"),
        (64, 50, 50, False, "float32", "not float32"),
    ],
)
def test_what_the_kernel_refuses(width, queries, keys, bias, dtype, words):
    q, k = arrays(width, queries, keys, dtype)
    said = attention.refused(q, k, object() if bias else None)
    assert bool(said) == bool(words)
    assert words in said


@pytest.fixture
def on_a_gpu(monkeypatch):
    """The forms that `attend` asks JAX for, on a machine that is taken for one with a GPU."""
    asked = []

    def kernel(q, k, v, bias, *, scale, implementation):
        asked.append((implementation, scale, None if bias is None else bias.dtype.name))
        return q

    monkeypatch.setattr(attention, "platform", lambda: "gpu")
    monkeypatch.setattr(jax.nn, "dot_product_attention", kernel)
    return asked


def made(name, **settings):
    """A small config's setup, as `mimjax train` begins."""
    c = helpers.small(name, attention="dot_product", dtype="bfloat16", **settings)
    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    return setup(c, mesh=mesh, images=4 * c.batch_size)


def test_a_run_on_a_gpu_is_refused_before_it_begins(on_a_gpu):
    words = "attention: dot_product on gpu, which computes {}; allowed: auto, manual, xla"
    with pytest.raises(ConfigError) as found:  # BEiT's encoder: a bias, and CLS before 16 patches
        made("beit")
    bias = "a position bias for even numbers of tokens alone, not for 17 queries and 17 keys"
    assert str(found.value) == words.format(bias)
    with pytest.raises(ConfigError) as found:
        made("mae", **{"method.decoder.width": 24, "method.decoder.heads": 2})
    heads = "heads of 8, 16, ... 128 numbers alone, not of 12"
    assert str(found.value) == words.format(heads)
    assert set(on_a_gpu) == {("cudnn", 1.0, None)}


def test_a_run_on_a_gpu_asks_for_the_kernel_everywhere(on_a_gpu):
    made("mae", **{"method.decoder.width": 32, "method.decoder.heads": 4})
    assert set(on_a_gpu) == {("cudnn", 1.0, None)}
    assert attention.described("dot_product", "gpu") == "dot_product (chosen), by cuDNN"


# ------------------------------------------------------------------ tokens that nobody reads
class Stack(nn.Module):
    """Two blocks of a decoder."""

    first: int = 0

    @nn.compact
    def __call__(self, x, context=None):
        return attention.run_blocks(x, 2, context, first=self.first, heads=2, mlp_ratio=2.0)


@pytest.mark.parametrize("crossed", [False, True])
def test_the_last_block_leaves_out_tokens_that_nobody_reads(crossed):
    x, context = jax.random.normal(jax.random.key(0), (2, 2, 7, 8))
    args = (x, context) if crossed else (x,)
    params = jax.jit(Stack().init)(jax.random.key(1), *args)
    loss = lambda first, read: lambda p: jnp.sin(Stack(first).apply(p, *args)[:, read:]).sum()
    whole, part = (jax.jit(jax.value_and_grad(loss(*how)))(params) for how in ((0, 3), (3, 0)))
    jax.tree.map(near, part, whole)
    assert Stack(3).apply(params, *args).shape == (2, 4, 8)
