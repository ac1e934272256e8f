"""Pixio's encoder, read from a file of the official names, against the official code's numbers."""

import tempfile

import jax
import jax.numpy as jnp
import numpy as np
from safetensors.numpy import save_file

from golden_checks import common
from mimjax.inference import encoders, published
from mimjax.models.layers import normalize

ATOL = 5e-5


def opened(state, heads, size):
    """The network and parameters that `mimjax.load` makes of a file for images of a size."""
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/pixio.safetensors"
        save_file({k: np.ascontiguousarray(v) for k, v in state.items()}, path)
        file, _ = published.open_file(path, "auto", "path")
    network, params, _, _ = encoders.read(file, published.Choice(heads, image_size=size))
    return network.module, params["encoder"]


def encoder(z, meta):
    """Positions, tokens of every block with and without the norm, and what is read of them."""
    c = meta["config"]
    for tag, size in c["sizes"].items():
        module, params = opened(common.arrays(z, "sd"), c["heads"], tuple(size))
        assert (module.classes, module.registers) == (c["n_cls"], 0)
        common.table("pos_embed", params["pos_embed"], z[f"out/{tag}/pos_embed"], 1e-6)
        images = jnp.asarray(common.nhwc(z[f"in/images_{tag}"]))
        features = jax.jit(lambda p, x, m=module: m.apply({"params": p}, x))(params, images)
        normed = lambda x, n=params["norm"]: normalize(x) * n["scale"] + n["bias"]
        for i, block in enumerate(features.blocks):
            parts = np.split(np.asarray(normed(block)), [c["n_cls"]], axis=1)
            for name, part in zip(("cls", "patch"), parts):
                common.close(name, part, z[f"out/{tag}/block{i}/{name}_tokens_norm"], ATOL)
        last = f"out/{tag}/block{c['depth'] - 1}"
        parts = np.split(np.asarray(features.blocks[-1]), [c["n_cls"]], axis=1)
        for name, part in zip(("cls", "patch"), parts):
            common.close(name, part, z[f"{last}/{name}_tokens"], ATOL)
        common.close("knn", features.read("cls", -1), z[f"out/{tag}/knn"], ATOL)
        patches, cls = features.tokens[:, c["n_cls"] :], features.read("cls")[:, None]
        dense = np.concatenate([patches, np.broadcast_to(cls, patches.shape)], axis=2)
        common.close("dense", dense, z[f"out/{tag}/dense"], ATOL)
