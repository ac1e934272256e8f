"""CLIP's tower and DINO's backbone as MR-MAE's teachers: features at every stage, attention."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from golden_checks import common
from golden_checks.clip import grid
from mimjax.models.clip import CLIPVision
from mimjax.models.positions import resize_absolute
from mimjax.models.vit import ViT
from mimjax.patches import IMAGENET_MEAN, IMAGENET_STD
from mimjax.targets.clip import CLIP, CLIP_MEAN, CLIP_STD
from mimjax.targets.dino import DINO, EXTRA
from mimjax.torch_io.read import detect, load

ATOL = 5e-5
# Of `clip_hf_bare`, the transformers library's names in memory; the hub's files have a prefix.
LAYOUTS = {
    "teacher.clip_hf": ("clip_hf_bare", "clip_hf"),
    "teacher.clip_openai": ("clip_openai",),
    "teacher.dino": ("dino",),
    "teacher.dino_interp": ("dino",),
}
UNREAD = {"visual.proj", "visual_projection.weight"}  # where features are not projected


def entering(run):
    """What every block is given, [depth b t d], while `run` encodes, and what it returns."""
    seen = {}

    def watch(call, args, kw, context):
        path = context.module.path
        if len(path) == 1 and path[0].startswith("block_") and context.method_name == "__call__":
            seen[path[0]] = args[0]
        return call(*args, **kw)

    with nn.intercept_methods(watch):
        out = run()
    return [seen[name] for name in sorted(seen)], out


def shapes(target):
    return jax.eval_shape(lambda key: target.init_frozen(key, ViT()), jax.random.key(0))


def check(z, meta, target):
    """Everything that the files of all kinds hold; returns the parameters and hidden tokens."""
    state, c = common.arrays(z, "sd"), meta["config"]
    like = shapes(target)
    layout = detect.detect(state, roots=like)
    assert layout in LAYOUTS[meta["kind"]]
    frozen = load.from_torch(state, like)
    images = jnp.asarray(common.nhwc(z["in/images"]))
    encoder = ViT(patch=c["patch"], image_size=images.shape[1:3])

    @jax.jit
    def run(frozen, images):
        hidden, heads = target.encode_with_attention(frozen, images, encoder)
        inside = entering(lambda: target.encode(frozen, images, encoder))
        return hidden, heads, target.read(frozen, hidden), inside

    hidden, heads, normed, (layers, alone) = run(frozen, images)
    common.close("last_hidden_state", hidden, z["out/last_hidden_state"], ATOL)
    common.close("patch_prenorm", hidden[:, 1:], z["out/patch_prenorm"], ATOL)
    common.close("cls_attn_heads", heads, z["out/cls_attn_heads"], 1e-5)
    common.close("cls_attn", np.asarray(heads).mean(1), z["out/cls_attn"], 1e-5)
    common.close("hidden_states", np.stack([*layers, alone]), z["out/hidden_states"], ATOL)
    assert target.num_prefix == 1
    assert normed.shape[-1] == target.width(encoder)
    common.close("cls_postnorm", normed[:, 0], z["out/cls_postnorm"], ATOL)
    common.close("patch_postnorm", normed[:, 1:], z["out/patch_postnorm"], ATOL)
    common.rel("probe", np.square(normed)[:, 1:].mean(), z["loss/probe"], 1e-5)
    back = load.to_torch(frozen, layout)
    for key, value in back.items():
        np.testing.assert_array_equal(value, z[f"sd/{key}"], key)
    assert state.keys() - back.keys() <= UNREAD
    return frozen, hidden


def build_clip(c):
    side = grid(c["img_size"], c["patch"])
    sizes = c["dim"], c["depth"], c["heads"], c["patch"], side, c["proj"], c["mlp"] / c["dim"]
    return CLIP(CLIPVision(*sizes), feature="post_norm")


def clip(z, meta):
    """Both layouts; the file's images are ImageNet's normalization turned into CLIP's."""
    target = build_clip(meta["config"])
    by_channel = lambda values: np.asarray(values).reshape(1, 3, 1, 1)
    pixels = z["in/images_imagenet"] * by_channel(IMAGENET_STD) + by_channel(IMAGENET_MEAN)
    images = (pixels - by_channel(CLIP_MEAN)) / by_channel(CLIP_STD)
    common.close("images", images, z["in/images"], 1e-5)
    _, hidden = check(z, meta, target)
    if "out/patch_proj" in z.files:
        target = CLIP(target.network, feature="proj")
        frozen = load.from_torch(common.arrays(z, "sd"), shapes(target))
        features = jax.jit(target.read)(frozen, hidden)
        common.close("patch_proj", features[:, 1:], z["out/patch_proj"], ATOL)
        common.close("image_embed", features[:, 0], z["out/image_embed"], ATOL)


def build_dino(c):
    network = ViT(
        width=c["dim"],
        depth=c["depth"],
        heads=c["heads"],
        patch=c["patch"],
        mlp_ratio=float(c["mlp_ratio"]),
        image_size=tuple(c["patch"] * side for side in grid(c["img_size"], c["patch"])),
        pos_embed="learned",
    )
    return DINO(network)


def dino(z, meta):
    """Compare at the stored grid and, with `run_size`, at another."""
    c, target = meta["config"], build_dino(meta["config"])
    network = target.network
    frozen, _ = check(z, meta, target)
    if "out/pos_embed_interpolated" in z.files:
        run = z["in/images"].shape[2] // c["patch"], z["in/images"].shape[3] // c["patch"]
        assert run == grid(c["run_size"], c["patch"])
        for table in (frozen["dino"]["pos_embed"], jnp.asarray(frozen["dino"]["pos_embed"])):
            new = resize_absolute(table, network.grid, run, EXTRA)
            common.table("pos_embed_interpolated", new, z["out/pos_embed_interpolated"], 5e-6)
