"""CAPI's encoder, read from a file of the released form, against a transcription of its code."""

import jax
import jax.numpy as jnp

from golden_checks import common, pixio

ATOL = 5e-5


def encoder(z, meta):
    """Compare registers and patches of every block and after the norm, which has no parameters."""
    c = meta["config"]
    for tag, size in c["sizes"].items():
        # the frequencies in the file show the heads
        module, params = pixio.opened(common.arrays(z, "sd"), None, tuple(size))
        assert (module.heads, module.classes) == (c["heads"], 0)
        assert module.registers == c["registers"]
        images = jnp.asarray(common.nhwc(z[f"in/images_{tag}"]))
        features = jax.jit(lambda p, x, m=module: m.apply({"params": p}, x))(params, images)
        for i, block in enumerate(features.blocks):
            common.close(f"block{i}", block, z[f"out/{tag}/block{i}"], ATOL)
        common.close("tokens", features.tokens, z[f"out/{tag}/tokens"], ATOL)
