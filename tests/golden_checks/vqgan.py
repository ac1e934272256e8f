"""VQGAN against taming-transformers: hidden vectors, logits, codes and pictures."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from golden_checks import common
from mimjax.models.vit import ViT
from mimjax.models.vqgan import VQGANModel
from mimjax.patches import HALF
from mimjax.targets.base import Colors
from mimjax.targets.vqgan import VQGAN
from mimjax.torch_io.read import load

FIELDS = (
    *("ch", "ch_mult", "num_res_blocks", "attn_resolutions", "resolution"),
    *("z_channels", "embed_dim", "n_embed"),
)


def close(name, ours, theirs):
    """Compare to 1e-5 of the largest value (no tighter than 2e-5): random weights make any size."""
    common.close(name, ours, theirs, 1e-5 * max(2.0, np.abs(theirs).max()))


def tokens(x):
    """[b d h w] to [b h*w d]."""
    return x.reshape(*x.shape[:2], -1).transpose(0, 2, 1)


def build(c, kind):
    sizes = {k: tuple(v) if isinstance(v, list) else v for k, v in c.items()}
    return VQGAN(VQGANModel(**{k: sizes[k] for k in FIELDS}, kind=kind))


def tokenizer(z, meta):
    state = common.arrays(z, "sd")
    target = build(meta["config"], "gumbel" if "quantize.proj.weight" in state else "vq")
    like = jax.eval_shape(lambda key: target.init_frozen(key, ViT()), jax.random.key(0))
    frozen = load.from_torch(state, like)
    back = load.to_torch(frozen, "vqgan")
    assert back.keys() == state.keys()
    for key, value in back.items():
        np.testing.assert_array_equal(value, state[key], key)
    for suffix in ("", "_rect"):
        if f"in/images{suffix}" in z.files:
            check(z, target, frozen, suffix)


def check(z, target, frozen, suffix):
    net, params = target.network, {"params": frozen["vqgan"]}
    images, theirs = common.nhwc(z[f"in/images{suffix}"]), lambda name: z[f"out/{name}{suffix}"]
    encoder = ViT(patch=net.step, image_size=images.shape[1:3])  # one patch per code
    features = jax.jit(lambda p, x: net.apply(p, x, method=lambda m, x: m.encoder(x)))
    close("z", features(params, images), common.nhwc(theirs("z")))
    hidden = jax.jit(functools.partial(target.encode, encoder=encoder))(frozen, images)
    ids = target.read(frozen, hidden)
    np.testing.assert_array_equal(ids, theirs("ids").reshape(len(ids), -1))
    if f"out/logits{suffix}" in z.files:
        logits = net.apply(params, hidden, method="scores")
        close("logits", logits, tokens(theirs("logits")))
    if f"out/pre_quant{suffix}" in z.files:
        close("pre_quant", hidden, tokens(theirs("pre_quant")))
        codes = frozen["vqgan"]["embed" if net.kind == "gumbel" else "embedding"]
        np.testing.assert_array_equal(codes[ids], tokens(theirs("z_q")))
    decoded = common.nhwc(theirs("decoded"))
    colors = Colors(jnp.asarray(images), HALF, HALF)  # which pictures of codes do not read
    raw, pictures = jax.jit(
        lambda ids: (
            net.apply(params, ids, encoder.grid, method="decode"),
            target.decode(frozen, ids, encoder, colors),
        )
    )(ids)
    close("decoded", raw, decoded)
    close("pictures", pictures, np.clip((decoded + 1) / 2, 0, 1))
