"""CLIP's visual tower against transformers and against CAE v2's copy of OpenAI's code."""

import jax
import jax.numpy as jnp
import numpy as np

from golden_checks import common
from mimjax.models.clip import CLIPVision, resize_positions
from mimjax.models.vit import ViT
from mimjax.targets.clip import CLIP
from mimjax.torch_io.read import load


def grid(size, patch):
    """(rows, columns) of a square size or of (height, width)."""
    size = (size, size) if np.isscalar(size) else tuple(size)
    return size[0] // patch, size[1] // patch


def build(meta):
    c = meta["config"]
    patch, stored = c["patch_size"], meta.get("resize_from") or c["img_size"]
    sizes = c["width"], c["layers"], c["heads"], patch, grid(stored, patch), c["proj"]
    return CLIP(CLIPVision(*sizes))


def tower(z, meta, layout):
    """The target, its parameters and what it makes of the file's images."""
    target, patch = build(meta), meta["config"]["patch_size"]
    images = common.nhwc(z["in/pixel_values"])
    encoder = ViT(patch=patch, image_size=images.shape[1:3])
    like = jax.eval_shape(lambda key: target.init_frozen(key, encoder), jax.random.key(0))
    frozen = load.from_torch(common.arrays(z, "sd"), like)  # the layout is detected

    @jax.jit
    def run(frozen, images):
        hidden = target.encode(frozen, images, encoder)
        return hidden, target.read(frozen, hidden)

    hidden, features = map(np.asarray, run(frozen, images))
    assert features.shape[-1] == target.width(encoder)
    common.close("features", features, z["out/token_features"], 2e-5)
    back = load.to_torch(frozen, layout)
    assert back.keys() == common.arrays(z, "sd").keys()
    for key, value in back.items():
        np.testing.assert_array_equal(value, z[f"sd/{key}"], key)
    return frozen, hidden, features


def hf(z, meta):
    _, hidden, features = tower(z, meta, "clip_hf")
    common.close("last_hidden_state", hidden, z["out/last_hidden_state"], 2e-5)
    common.close("image_embeds", features[:, 0], z["out/image_embeds"], 2e-5)


def openai(z, meta):
    frozen, _, _ = tower(z, meta, "clip_openai")
    if "out/resized_positional_embedding" in z.files:
        c = meta["config"]
        sides = [grid(s, c["patch_size"]) for s in (meta["resize_from"], c["img_size"])]
        table = resize_positions(jnp.asarray(frozen["clip"]["pos_embed"]), *sides)
        common.table("positions", table, z["out/resized_positional_embedding"], 1e-6)
