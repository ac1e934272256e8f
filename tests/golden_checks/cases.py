"""Tiny cases of the kinds whose official files are too large for the repository.

Each gives what a file holds before anything is computed: `meta`, weights and inputs under the
official names, and the shapes of what the check compares. Numbers are multiples of powers of two,
which compress; `RandomState` gives the same ones in every version of numpy.
"""

import functools
import math

import jax
import numpy as np

from golden_checks import (
    cae,
    clip,
    common,
    fine_tune,
    mae,
    mcmae,
    mrmae,
    probes,
    simmim,
    teachers,
    tokenizers,
    vqgan,
)
from mimjax import patches
from mimjax.masking.views import Complementary
from mimjax.models.attention import relative_index
from mimjax.models.conv_vit import CBlock
from mimjax.models.published_vit import PublishedViT
from mimjax.models.vit import ViT, sincos_table
from mimjax.task import Clock
from mimjax.torch_io.read import load

B = 2  # images
MOST = 150  # numbers of a kernel that are not zero
CONV = {
    "backbone": "conv",
    "batch": B,
    "img_size": 32,
    "depths": [1, 1, 1],
    "dims": [4, 4, 8],
    "heads": 2,
    "mlp_ratio": [2, 3, 4],
    "dec_dim": 4,
    "dec_depth": 1,
    "dec_heads": 2,
    "mask_ratio": 0.5,
    "norm_pix_loss": True,
}
MIMIC = {"fuse_layers": [0, 1], "fuse_conv_stages": True, "w_rec": 0.5, "w_mimic": 2.0}
STEPS = {"lr": 0.01, "min_lr": 0.001, "warmup_epochs": 2, "epochs": 5, "wd": 0.05}
STEPS |= {"steps": 3, "steps_per_epoch": 1}
LATENT = {
    "embed_dim": 8,
    "depth": 1,
    "num_heads": 2,
    "patch_size": 4,
    "img_size": 16,
    "num_mask": 8,
    "init_values": 0.1,
    "decoder_embed_dim": 8,
    "regressor_depth": 1,
    "decoder_num_heads": 4,
    "decoder_layer_scale_init_value": 0.1,
    "vocab": 16,
}
PIXELS = {
    "dim": 8,
    "depth": 2,
    "heads": 2,
    "patch": 4,
    "img": 16,
    "mlp_ratio": 3,
    "qkv_bias": True,
    "init_values": 0.1,
    "use_ape": False,
    "use_rpb": False,
    "use_shared_rpb": True,
    "mask_patch": 8,
    "mask_ratio": 0.6,
    "mask_count_units": 3,
    "mask_seed": 3,
}


# ------------------------------------------------------------------ numbers
def draw(seed, *shape):
    """Multiples of 1/8 from -1 to 1."""
    return np.random.RandomState(seed).randint(-8, 9, shape).astype(np.float32) / 8


def noise(seed, *shape):
    """A different number in (0, 1) for each patch (the last axis)."""
    rng = np.random.RandomState(seed)
    rows = [rng.permutation(shape[-1]) for _ in range(math.prod(shape[:-1]))]
    return ((np.asarray(rows, np.float32) + 0.5) / shape[-1]).reshape(shape)


def weights(like, seed):
    """Parameters of these shapes: no bias is zero, no scale one, activations about as large.

    Of a large kernel only about MOST numbers are not zero, which keeps files small. What the first
    norms read is small, so that their eps matters.
    """
    rng = np.random.RandomState(seed)

    def leaf(path, x):
        numbers = rng.randint(-8, 9, x.shape).astype(np.float32) / 8
        if path[-1].key == "scale":
            return numbers / 4 + 1
        first = {"patch_embed", "patch_embed1", "pos_embed", "cls_token", "conv_in"}
        numbers = numbers / 8 if first & {k.key for k in path} else numbers
        if len(x.shape) < 2:
            return numbers / 2
        share = min(1.0, MOST / numbers.size)
        kept = rng.randint(0, 1000, x.shape) < 1000 * share
        numbers = np.where(kept, numbers, np.float32(0))
        fan_in = max(1.0, share * math.prod(x.shape[:-1]))
        return numbers * np.float32(2 ** round(math.log2(1.6 / fan_in**0.5)))

    return jax.tree_util.tree_map_with_path(leaf, like)


def named(prefix, state):
    return {f"{prefix}/{k}": v for k, v in state.items()}


def grads(state):
    return {f"grad/{k}": v.shape for k, v in state.items()}


def table(side, width, order, cls=False):
    rows = sincos_table((side, side), width, order)
    return np.concatenate([np.zeros_like(rows[:1]), rows] if cls else [rows])[None]


def spared(state):
    """Parameters without weight decay: vectors and biases, as every one of these codes has it."""
    return [k for k, v in state.items() if v.ndim < 2 or k.endswith(".bias")]


# ------------------------------------------------------------------ MCMAE and MR-MAE
def conv_state(task, c, seed):
    """Trained parameters under the official names, and the fixed tables."""
    cls = c.get("backbone") == "vit"
    layout = "mae" if cls else "mcmae"
    state = load.to_torch(weights(common.shapes(task), seed), layout)
    tables = {"pos_embed": task.encoder.width, "decoder_pos_embed": c["dec_dim"]}
    side = task.encoder.grid[0]
    return state, {k: table(side, w, "xy", cls) for k, w in tables.items()}


def stage_shapes(c, b, views, k):
    d1, d2, d3 = c["dims"]
    n = (c["img_size"] // 16) ** 2
    side = lambda stride: (c["img_size"] // stride,) * 2
    return {
        **{f"out/{name}": (b, d1, *side(4)) for name in ("patch_embed1", "stage1")},
        **{f"out/{name}": (b, d2, *side(8)) for name in ("patch_embed2", "stage2")},
        **{f"out/stage{i}_output_decode": (b, d3, *side(16)) for i in (1, 2)},
        "out/patch_embed3": (b, d3, *side(16)),
        "out/patch_embed4": (b, n, d3),
        **{f"out/{name}": (b * views, k, d3) for name in ("stage3_prefusion", "latent")},
        "out/pred": (b * views, n, 768),
        "loss/total": (),
        "grad_norm": (),
    }


def mcmae_pretrain(seed=1):
    c = CONV
    state, tables = conv_state(mcmae.build(c, Clock(1, 1)), c, seed)
    order = np.argsort(noise(seed, B, 4), axis=1)
    mask = np.ones((B, 4), np.float32)
    np.put_along_axis(mask, order[:, :2], 0, axis=1)
    given = {"in/images": draw(seed, B, 3, 32, 32), "in/noise": noise(seed, B, 4)}
    given |= {"out/ids_keep": order[:, :2], "out/mask": mask}
    wanted = stage_shapes(c, B, 1, 2) | {"out/target": (B, 4, 768)}
    return {"config": c}, given | named("sd", state | tables), wanted | grads(state)


def mcmae_fast(seed=2):
    c = CONV | {"mask_ratio": 0.75, "batch": 1}
    state, tables = conv_state(mcmae.build(c, Clock(1, 1), Complementary), c, seed)
    order = np.argsort(noise(seed, 1, 4), axis=1)
    mask = np.ones((4, 4), np.float32)
    np.put_along_axis(mask, order.reshape(4, 1), 0, axis=1)
    given = {"in/images": draw(seed, 1, 3, 32, 32), "in/noise": noise(seed, 1, 4)}
    given |= {"out/ids_keep": order[:, :1], "out/mask": mask}
    wanted = stage_shapes(c, 1, 4, 1)
    return {"config": c}, given | named("sd", state | tables), wanted | grads(state)


def mcmae_cblock(seed=3):
    c = {"batch": B, "dim": 8, "mlp_ratio": 3, "size": 8, "up": 2}
    name, shape = "stage1_block_00", (B, 8, 8, 8)
    block = CBlock(mlp_ratio=3.0, place=(4, 4, 2))
    like = jax.eval_shape(block.init, jax.random.key(0), np.zeros((B, 64, 8), np.float32))
    state = load.to_torch(weights({"encoder": {name: like["params"]}}, seed), "mcmae")
    state = {k.removeprefix("blocks1.0."): v for k, v in state.items()}
    seen = np.random.RandomState(seed).randint(0, 2, (B, 1, 4, 4))
    given = {"in/x": draw(seed, *shape), "in/visible": seen.repeat(2, 2).repeat(2, 3) * 1.0}
    wanted = {"out/masked": shape, "out/unmasked": shape, "loss/total": (), "grad_norm": ()}
    wanted |= {"grad/in_x": shape} | grads(state)
    return {"config": c}, given | named("sd", state), wanted


def mcmae_posinterp(seed=4):
    pairs = [[7, 12], [7, 4], [2, 3]]
    given = {f"in/pos_{i}": draw(seed + i, 1, a * a, 4) for i, (a, _) in enumerate(pairs)}
    wanted = {f"out/pos_{i}": (1, b * b, 4) for i, (_, b) in enumerate(pairs)}
    return {"config": {"dim": 4, "pairs": pairs}}, given, wanted


def trajectory(state):
    n = STEPS["steps"]
    wanted = {"out/lr_steps": (n,), "out/grad_norm_steps": (n,)}
    return wanted | {f"out/final/{k}": v.shape for k, v in state.items()}


def mcmae_steps(seed=5):
    c, n = CONV, STEPS["steps"]
    state, tables = conv_state(mcmae.build(c, Clock(1, 1)), c, seed)
    given = {"in/images": draw(seed, n, B, 3, 32, 32), "in/noise": noise(seed, n, B, 4)}
    meta = {"config": c, "optim": STEPS, "no_decay": spared(state)}
    wanted = trajectory(state) | {"loss/steps": (n,)}
    return meta, given | named("sd", state | tables), wanted


def mimic_inputs(c, seed, *lead):
    attention = noise(seed + 1, *lead, 4) / 4
    features = draw(seed + 2, *lead, 4, c["teacher_dim"])
    given = {"in/images": draw(seed, *lead, 3, 32, 32), "in/noise": noise(seed, *lead, 4)}
    return given | {"in/teacher_features": features, "in/teacher_cls_attn": attention}


def mimic_shapes(c, prefix, width):
    out = {"latent": (B, prefix + 2, width), "pred": (B, 4, 768)}
    out |= dict.fromkeys(("mimic_pred", "mimic_target"), (B, 2, c["teacher_dim"]))
    losses = {f"loss/{k}": () for k in ("total", "rec", "mimic")} | {"grad_norm": ()}
    return {f"out/{k}": v for k, v in out.items()} | losses


def mrmae_pretrain(seed=6):
    """The plain encoder; the convolutional one is `mrmae_pretrain_clip`'s."""
    c = {k: v for k, v in CONV.items() if k not in ("depths", "dims", "mlp_ratio")} | MIMIC
    c |= {"backbone": "vit", "dim": 8, "depth": 2, "fuse_conv_stages": False, "dec_heads": 1}
    c |= {"select": "sample", "target_norm": "l2", "teacher_dim": 8}
    state, tables = conv_state(mrmae.build(c, Clock(1, 1)), c, seed)
    given = mimic_inputs(c, seed, B)
    score = np.log(given["in/teacher_cls_attn"]) - np.log(-np.log(given["in/noise"]))
    given["out/ids_keep"] = np.argsort(-score, axis=1)[:, :2]
    wanted = mimic_shapes(c, 1, 8) | grads(state)
    return {"config": c}, given | named("sd", state | tables), wanted


def mrmae_pretrain_clip(seed=7):
    c = CONV | MIMIC | {"select": "topk", "target_norm": "layernorm", "teacher_dim": 8}
    c |= {"clip": {"dim": 8, "depth": 1, "heads": 2}, "fuse_layers": [0]}
    task = mrmae.build(c, Clock(1, 1))
    state, tables = conv_state(task, c, seed)
    like = jax.eval_shape(task.init_frozen, jax.random.key(0))["mimic_target"]
    frozen = weights(like, seed + 1)
    images, target = draw(seed, B, 3, 32, 32), task.mimic_target
    raw = common.nhwc(images) * np.asarray(patches.IMAGENET_STD) + patches.IMAGENET_MEAN
    view = ((raw - target.mean) / target.std).astype(np.float32)
    encode = jax.jit(lambda x: target.encode_with_attention(frozen, x, task.encoder))
    hidden, heads = encode(view)
    attention = np.asarray(heads.mean(1))
    given = {
        "in/images": images,
        "in/noise": noise(seed, B, 4),
        "out/teacher_input": view.transpose(0, 3, 1, 2),
        "out/teacher_features": np.asarray(target.read(frozen, hidden[:, 1:])),
        "out/teacher_cls_attn": attention,
        "out/ids_keep": np.argsort(-attention, axis=1, kind="stable")[:, :2],
    }
    given |= named("sd", state | tables) | named("teacher_sd", load.to_torch(frozen, "clip_openai"))
    return {"config": c}, given, mimic_shapes(c, 0, 8) | grads(state)


def mrmae_steps(seed=8):
    c = CONV | MIMIC | {"select": "topk", "target_norm": "none", "teacher_dim": 8}
    c |= {"fuse_layers": [0]}
    state, tables = conv_state(mrmae.build(c, Clock(1, 1)), c, seed)
    given = mimic_inputs(c, seed, STEPS["steps"], B) | named("sd", state | tables)
    wanted = trajectory(state) | {"loss/steps": (STEPS["steps"], 3)}
    return {"config": c, "optim": STEPS}, given, wanted


# ------------------------------------------------------------------ CAE and CAE v2
def masks(seed, *lead):
    return noise(seed, *lead, 16) < 0.5


def latent_state(task, c, seed):
    state = load.to_torch(weights(common.shapes(task), seed), "cae")
    tables = {"encoder.pos_embed": c["embed_dim"], "rd_pos_embed": c["decoder_embed_dim"]}
    return state, {k: table(4, width, "yx", True) for k, width in tables.items()}


def cae_steps(seed=9):
    c = LATENT | {"model_type": "cae", "decoder_depth": 1, "align_loss_weight": 2.0}
    c |= {"lr": 0.01, "min_lr": 1e-4, "warmup_epochs": 1, "epochs": 3, "iters_per_epoch": 4}
    c |= {"weight_decay": 0.05, "clip_grad": 3.0, "start_it": 2, "batch": B}
    state, tables = latent_state(cae.build(c, Clock(1, 1)), c, seed)
    n = 3
    codes = np.random.RandomState(seed).randint(0, c["vocab"], (n, B, 16))
    given = {"in/images": draw(seed, n, B, 3, 16, 16), "in/mask": masks(seed, n, B)}
    given |= {"in/token_targets": codes} | named("sd", state | tables)
    groups = {"no_decay": spared(state), "decay": [k for k in state if k not in spared(state)]}
    wanted = {f"loss/{k}": (n,) for k in ("main", "align", "total")}
    wanted |= {"opt/grad_norm": (n,), "meta/lr_schedule": (12,)}
    wanted |= {f"final/{k}": v.shape for k, v in state.items()}
    return {"config": c, "param_groups": groups}, given, wanted


def caev2_paper(seed=10):
    c = LATENT | {"model_type": "caev2", "decoder_depth": 0, "num_out_dim": 12}
    task = cae.build_v2(c, Clock(1, 1), paper=True)
    state, tables = latent_state(task, c, seed)
    ours = {"decoder.head.": "head.fc.", "decoder.norm.": "head.ln."}
    for a, b in ours.items():
        state = {k.replace(a, b) if k.startswith(a) else k: v for k, v in state.items()}
    given = {"in/images": draw(seed, B, 3, 16, 16), "in/mask": masks(seed, B)}
    given |= {"in/clip_features": draw(seed, B, 17, 12)} | named("sd", state | tables)
    wanted = {f"loss/{k}": () for k in ("visible", "masked", "total")}
    wanted |= dict.fromkeys(("out/visible_out", "out/masked_out"), (B, 8, 12))
    return {"config": c}, given, wanted | {"out/latent_visible_with_cls": (B, 9, 8)} | grads(state)


# ------------------------------------------------------------------ Pixio
def pixio_encoder(seed=23):
    c = {"img": 12, "patch": 4, "dim": 8, "depth": 2, "heads": 2, "n_cls": 2}
    c |= {"sizes": {"native": [12, 12], "large": [16, 8]}}
    module = PublishedViT(8, 2, 2, 4, 32, image_size=(12, 12), classes=2)
    like = jax.eval_shape(module.init, jax.random.key(0), np.zeros((1, 12, 12, 3), np.float32))
    state = load.to_torch(weights({"encoder": like["params"]}, seed), "mae")
    given, wanted = named("sd", state), {}
    for tag, (h, w) in c["sizes"].items():
        n = h // 4 * (w // 4)
        given[f"in/images_{tag}"] = draw(seed, B, 3, h, w)
        tokens = {"cls_tokens": (B, 2, 8), "patch_tokens": (B, n, 8)}
        blocks = {f"block{i}/{k}_norm": v for i in range(2) for k, v in tokens.items()}
        blocks |= {f"block1/{k}": v for k, v in tokens.items()}
        blocks |= {"pos_embed": (1, 2 + n, 8), "knn": (B, 8), "dense": (B, n, 16)}
        wanted |= {f"out/{tag}/{k}": v for k, v in blocks.items()}
    return {"config": c}, given, wanted


# ------------------------------------------------------------------ SimMIM
def simmim_state(c, seed):
    """Parameters under the official names, and the file's table of relative positions."""
    task = simmim.build(c, Clock(1, 1))
    state = simmim.official(load.to_torch(weights(common.shapes(task), seed), "beit"))
    index = relative_index(task.encoder.grid)
    return state, {"encoder.rel_pos_bias.relative_position_index": index}


def simmim_pretrain(seed=21):
    c = PIXELS
    state, index = simmim_state(c, seed)
    given = {"in/images": draw(seed, B, 3, 16, 16), "in/mask": simmim.masks_of(c, (B, 16))}
    wanted = {f"out/{name}": (B, 17, 8) for name in ("tokens_in", "enc_norm")}
    wanted |= {f"out/enc_block{i}": (B, 17, 8) for i in range(c["depth"])}
    wanted |= {"out/patch_embed": (B, 16, 8), "out/rel_pos_bias": (2, 17, 17)}
    wanted |= {"out/head": (B, 48, 4, 4), "out/rec": (B, 3, 16, 16), "loss/total": ()}
    return {"config": c}, given | named("sd", state | index), wanted | grads(state)


def simmim_steps(seed=22):
    """The rate rises, stays and falls in so many steps; clipping is active."""
    n = 8
    c = PIXELS | {"steps": n, "lr": 0.01, "warmup_lr": 0.001, "wd": 0.05, "clip_grad": 0.25}
    c |= {"epochs": 3, "warmup_epochs": 0.25, "epoch": 0, "gamma": 0.1, "milestones": [0.5]}
    state, index = simmim_state(c, seed)
    given = {"in/images": draw(seed, n, B, 3, 16, 16), "in/mask": simmim.masks_of(c, (n, B, 16))}
    free = sorted({*spared(state), "encoder.cls_token"})
    rest = sorted(state.keys() - set(free))
    groups = [{"weight_decay": c["wd"], "params": rest}, {"weight_decay": 0.0, "params": free}]
    wanted = {"in/lr": (n,), "in/lr_table": (n * c["epochs"],), "out/grad_norm": (n,)}
    wanted |= {"loss/total": (n,)} | {f"final/{k}": v.shape for k, v in state.items()}
    meta = {"config": c, "param_groups": groups}
    return meta, given | named("sd", state | index), wanted


# ------------------------------------------------------------------ teachers and tokenizers
def frozen_state(target, layout, seed, student=None):
    like = jax.eval_shape(lambda k: target.init_frozen(k, student or ViT()), jax.random.key(0))
    return load.to_torch(weights(like, seed), layout)


def clip_hf(seed=11):
    c = {"batch": B, "heads": 2, "img_size": 12, "layers": 2, "patch_size": 4, "proj": 12}
    meta = {"config": c | {"width": 16}}
    state = frozen_state(clip.build(meta), "clip_hf", seed)
    wanted = {"out/last_hidden_state": (B, 10, 16), "out/token_features": (B, 10, 12)}
    given = {"in/pixel_values": draw(seed, B, 3, 12, 12)} | named("sd", state)
    return meta, given, wanted | {"out/image_embeds": (B, 12)}


def teacher_shapes(b, n, width, heads, depth):
    out = {"last_hidden_state": (b, 1 + n, width), "hidden_states": (depth + 1, b, 1 + n, width)}
    out |= {"patch_prenorm": (b, n, width), "patch_postnorm": (b, n, width)}
    out |= {"cls_postnorm": (b, width), "cls_attn_heads": (b, heads, n), "cls_attn": (b, n)}
    return {f"out/{k}": v for k, v in out.items()} | {"loss/probe": ()}


def teacher_clip(layout, seed):
    c = {"batch": B, "depth": 2, "dim": 16, "heads": 2, "img_size": 12, "mlp": 48, "patch": 4}
    target = teachers.build_clip(c | {"proj": 12})
    projected = layout == "clip_openai"
    target = type(target)(target.network, feature="proj" if projected else "post_norm")
    state = frozen_state(target, layout, seed)
    images = draw(seed, B, 3, 12, 12)
    by_channel = lambda values: np.asarray(values).reshape(1, 3, 1, 1)
    raw = images * by_channel(teachers.IMAGENET_STD) + by_channel(teachers.IMAGENET_MEAN)
    clips = (raw - by_channel(teachers.CLIP_MEAN)) / by_channel(teachers.CLIP_STD)
    given = {"in/images_imagenet": images, "in/images": clips.astype(np.float32)}
    wanted = teacher_shapes(B, 9, 16, 2, 2)
    if projected:
        wanted |= {"out/patch_proj": (B, 9, 12), "out/image_embed": (B, 12)}
    return {"config": c | {"proj": 12}}, given | named("sd", state), wanted


def dino(run, seed):
    c = {"batch": B, "depth": 2, "dim": 16, "heads": 2, "img_size": 12, "mlp_ratio": 3, "patch": 4}
    c |= {} if run == 12 else {"run_size": run}
    n = (run // 4) ** 2
    state = frozen_state(teachers.build_dino(c), "dino", seed)
    wanted = teacher_shapes(B, n, 16, 2, 2)
    if run != 12:
        wanted["out/pos_embed_interpolated"] = (1, 1 + n, 16)
    return {"config": c}, {"in/images": draw(seed, B, 3, run, run)} | named("sd", state), wanted


def dalle(layout, seed):
    c = {"batch": B, "img_size": [16, 24], "n_blk_per_group": 2, "n_hid": 4, "vocab": 12}
    state = frozen_state(tokenizers.build_dalle(c), layout, seed)
    raw = (draw(seed, B, 3, 16, 24) + 1) / 2
    given = {"in/images": (0.8 * raw + 0.1).astype(np.float32)} | named("sd", state)
    wanted = {"out/logits": (B, 12, 2, 3), "out/token_ids": (B, 6)}
    if layout == "dalle":
        return {"config": c}, given | {"in/images_raw": raw}, wanted | {"out/unmap": raw.shape}
    return {"config": c}, given, wanted | {"out/probs": (B, 12, 2, 3)}


def vqgan_(seed=19):
    """Widths of 32: norms have 32 groups whatever the width."""
    c = {"ch": 32, "ch_mult": [1, 1], "num_res_blocks": 1, "attn_resolutions": [4], "resolution": 8}
    c |= {"z_channels": 4, "embed_dim": 4, "n_embed": 12}
    state = frozen_state(vqgan.build(c, "gumbel"), "vqgan", seed)
    given = {"in/images": draw(seed, B, 3, 4, 8)} | named("sd", state)
    wanted = {f"out/{k}": (B, 4, 2, 4) for k in ("z", "pre_quant", "z_q")}
    wanted |= {"out/logits": (B, 12, 2, 4), "out/ids": (B, 2, 4), "out/decoded": (B, 3, 4, 8)}
    return {"config": c}, given, wanted


def vqkd(seed=20):
    c = {"batch": B, "embed_dim": 16, "depth": 2, "num_heads": 2, "patch_size": 4, "img_size": 12}
    c |= {"code_dim": 6, "n_code": 12}
    target = tokenizers.build_vqkd(c)
    state = frozen_state(target, "vqkd", seed, target.network)
    given = {"in/images_raw": (draw(seed, B, 3, 12, 12) + 1) / 2} | named("sd", state)
    wanted = {"out/encoder_patch_tokens": (B, 9, 16), "out/to_quantizer": (B, 9, 6)}
    return {"config": c}, given, wanted | {"out/token_ids": (B, 9)}


# ------------------------------------------------------------------ probes
def head_state(names, classes, width, seed):
    """A linear layer under its official names, and an untouched BatchNorm's numbers."""
    state = {
        f"{names[0]}.weight": draw(seed, classes, width),
        f"{names[0]}.bias": draw(seed, classes),
    }
    counted = {
        "running_mean": np.zeros(width, np.float32),
        "running_var": np.ones(width, np.float32),
    }
    return state | {f"{names[1]}.{k}": v for k, v in counted.items() if names[1]}


def finals(state, counted=True):
    """What is left of a head's state after the steps."""
    return {f"final/{k}": v.shape for k, v in state.items() if counted or "running" not in k}


def labels_of(seed, classes, *shape):
    return np.random.RandomState(seed).randint(0, classes, shape).astype(np.int32)


def mae_linear_probe(seed=21):
    """The class token, whose probe the official file does not have; the encoder keeps its norm."""
    c = {"img": 16, "patch": 8, "dim": 8, "depth": 1, "heads": 2, "num_classes": 3}
    c |= {"global_pool": False, "lars": {"lr": 0.5, "momentum": 0.8, "trust_coefficient": 0.01}}
    built = c | {"dec_dim": 8, "dec_depth": 1, "dec_heads": 1, "ratio": 0.5, "norm_pix": True}
    shapes = {"encoder": common.shapes(mae.build(built, Clock(1, 1)))["encoder"]}
    state = load.to_torch(weights(shapes, seed), "mae") | {"pos_embed": table(2, 8, "xy", True)}
    head = head_state(("head", ""), 3, 8, seed)
    steps, b = 3, 4
    given = {
        "in/images": draw(seed, steps, b, 3, 16, 16),
        "in/labels": labels_of(seed, 3, steps, b),
    }
    wanted = {"loss/steps": (steps,), "out/logits": (steps, b, 3), "out/eval_logits_after": (b, 3)}
    wanted |= finals(head_state(("head.1", "head.0"), 3, 8, seed))
    return {"config": c}, given | named("sd", state | head), wanted


def cae_probe(state, head, zero, seed):
    """What both of CAE's probes share: an encoder, one batch, three steps."""
    c = {"batch": 4, "depth": 1, "embed_dim": 8, "img_size": 16, "lr": 0.4, "mlp_ratio": 4.0}
    c |= {"num_classes": 3, "num_heads": 2, "patch_size": 8}
    encoder = cae.encoder(c | {"init_values": 0.1}, pos_embed="sincos_yx", init_scheme="cae")
    like = jax.eval_shape(encoder.init, jax.random.key(0), np.zeros((1, 16, 16, 3), np.float32))
    trunk = load.to_torch(weights({"encoder": like["params"]}, seed), "cae")
    trunk = {k.removeprefix("encoder."): v for k, v in trunk.items()}
    trunk["pos_embed"] = table(2, 8, "yx", True)
    given = {"in/images": draw(seed, 4, 3, 16, 16), "in/labels": labels_of(seed, 3, 4)}
    given |= named("sd", trunk | state | head)
    wanted = {"loss/steps": (3,), "out/logits_train_mode": (4, 3), "out/logits_eval_after": (4, 3)}
    learned = {k: v for k, v in (state | head).items() if "running" not in k}
    wanted |= grads({k: v for k, v in learned.items() if k not in zero}) | finals(state | head)
    return {"config": c, "analytically_zero_grad": zero}, given, wanted


def cae_linear_probe(seed=22):
    meta, given, wanted = cae_probe({}, head_state(("head.1", "head.0"), 3, 8, seed), [], seed)
    return meta, given, wanted | {"out/cls_feature": (4, 8)}


def cae_attentive_probe(seed=23):
    block = "attentive_blocks.0"
    state = {"query_token": draw(seed, 1, 1, 8) / 4}
    for i, name in enumerate(("norm_q", "norm_k", "norm_v")):
        state[f"{block}.{name}.weight"] = draw(seed + i, 8) / 4 + 1
        state[f"{block}.{name}.bias"] = draw(seed + i, 8) / 4
    for i, name in enumerate(("q", "k", "v", "proj")):
        state[f"{block}.cross_attn.{name}.weight"] = draw(seed + i, 8, 8) / 2
    for name in ("q_bias", "v_bias", "proj.bias"):
        state[f"{block}.cross_attn.{name}"] = draw(seed, 8) / 4
    attention = f"{block}.cross_attn"
    zero = [f"{block}.norm_k.bias", f"{block}.norm_v.bias"]
    zero += [f"{attention}.v_bias", f"{attention}.proj.bias"]
    return cae_probe(state, head_state(("head", "fc_norm"), 3, 8, seed), zero, seed)


def ep_head(seed=24):
    c = {"dim": 8, "queries": 2, "d_out": 2, "tokens": 5, "batch": 4, "classes": 3, "steps": 3}
    c |= {"variant": "ep", "lr": 0.8, "warm": 1, "epochs": 3, "epoch": 1}
    state = {"0.cls_token": draw(seed, 1, 2, 8), "0.v.weight": draw(seed, 4, 8)}
    head = head_state(("2", "1"), 3, 4, seed)
    given = {"in/tokens": draw(seed, 3, 4, 5, 8), "in/tokens_eval": draw(seed + 1, 4, 5, 8)}
    given |= {"in/labels": labels_of(seed, 3, 3, 4)} | named("sd", state | head)
    given["in/lr"] = np.asarray(probes.rates(c, 3))
    wanted = {"out/attention": (4, 2, 5), "out/value": (4, 5, 4), "out/logits": (3, 4, 3)}
    wanted |= {f"out/{k}": (4, 4) for k in ("pooled", "normalized")}
    wanted |= {f"out/logits_{k}": (4, 3) for k in ("eval", "train", "eval_after")}
    learned = {k: v for k, v in (state | head).items() if "running" not in k}
    wanted |= {"loss/total": (), "loss/steps": (3,)} | grads(learned) | finals(state | head)
    return {"config": c}, given, wanted


def capi_probe(seed=25):
    c = {"dim": 64, "grid": 2, "classes": 3, "batch": 4, "world": 8, "n_iters": 4, "warmup": 2}
    c |= {"learning_rates": [0.05], "weight_decays": [0.05]}
    c["representations"] = ["cls", "avg_patch", "patch"]
    c["order"] = [[s, 0.05, 0.05] for s in ("cls", "avg_patch", "cls_avg_patch", "patch")]
    widths = 64, 64, 128, 64
    state = {f"{i}.linear.weight": draw(seed + i, 3, w) / 8 for i, w in enumerate(widths)}
    state |= {f"{i}.linear.bias": draw(seed + i, 3) for i in range(4)}
    state |= {"3.query_token": draw(seed, 64), "3.kv.bias": draw(seed, 128)}
    state["3.kv.weight"] = draw(seed, 128, 64) / 8
    given = {"in/cls": draw(seed, 4, 4, 64), "in/featmap": draw(seed, 4, 4, 2, 2, 64)}
    given |= {"in/cls_eval": draw(seed + 1, 4, 64), "in/featmap_eval": draw(seed + 1, 4, 2, 2, 64)}
    given |= {"in/labels": labels_of(seed, 3, 4, 4)} | named("sd", state)
    wanted = {"out/schedule": (4,), "loss/each": (4,), "loss/total": (4,)}
    wanted |= {f"out/logits_{k}": (4, 4, 3) for k in ("eval", "eval_after")}
    return {"config": c}, given, wanted | grads(state) | finals(state)


# ------------------------------------------------------------------ fine-tuning
def tuned(encoder, side, layout, classes, norm, seed):
    """Names and numbers of a fine-tuned model; it has `norm` in place of the final one."""
    like = jax.eval_shape(encoder.init, jax.random.key(0), np.zeros((1, side, side, 3), np.float32))
    state = load.to_torch(weights({"encoder": like["params"]}, seed), layout)
    state = {k.removeprefix("encoder."): v for k, v in state.items()}
    state = {f"{norm}.{k[5:]}" if k.startswith("norm.") else k: v for k, v in state.items()}
    return state | head_state(("head", ""), classes, encoder.width, seed)


def mae_finetune(seed=31):
    c = {"img": 16, "patch": 8, "dim": 8, "depth": 2, "heads": 2, "num_classes": 3, "wd": 0.05}
    c |= {"global_pool": True, "layer_decay": 0.5, "adam_betas": [0.9, 0.999], "lr": 0.01}
    c |= {"min_lr": 1e-3, "warmup_epochs": 1, "epochs": 5, "epoch_fraction_per_step": [0.5, 1.3, 2]}
    encoder = ViT(8, 2, 2, 8, (16, 16), pos_embed="learned")
    state = tuned(encoder, 16, "mae", 3, "fc_norm", seed)
    rule = fine_tune.official_groups(state, 2, 0.5, 0.05)
    groups = [{"lr_scale": s, "weight_decay": d, "params": [k]} for k, (s, d) in rule.items()]
    given = {"in/images": draw(seed, 4, 3, 16, 16), "in/labels": labels_of(seed, 3, 4)}
    wanted = {"out/logits": (4, 3), "loss/total": (), "loss/steps": (3,)}
    wanted |= grads(state) | finals(state)
    return {"config": c, "groups": groups}, given | named("sd", state), wanted


def cae_finetune(seed=32):
    c = {"batch": 4, "depth": 2, "embed_dim": 8, "img_size": 16, "mlp_ratio": 4.0}
    c |= {"num_classes": 3, "num_heads": 2, "patch_size": 8, "use_rel_pos_bias": True}
    fixed = {"pos_embed": "sincos_yx", "init_scheme": "cae", "rel_pos": "per_block"}
    encoder = cae.encoder(c | {"init_values": 0.1}, **fixed)
    state = tuned(encoder, 16, "cae", 3, "fc_norm", seed)
    given = {"in/images": draw(seed, 4, 3, 16, 16), "in/labels": labels_of(seed, 3, 4)}
    given |= named("sd", state | {"pos_embed": table(2, 8, "yx", True)})
    return {"config": c}, given, {"out/logits": (4, 3), "loss/total": ()} | grads(state)


def mcmae_finetune(seed=33):
    c = {"batch": B, "depths": [2, 1, 2], "dims": [4, 4, 8], "heads": 2, "img_size": 32}
    c |= {"drop_path": 0.2, "global_pool": True, "layer_decay": 0.5, "mlp_ratio": [2, 3, 4]}
    c |= {"num_classes": 3, "weight_decay": 0.05}
    built = c | {"mask_ratio": 0.5, "norm_pix_loss": True, "dec_dim": 4, "dec_depth": 1}
    encoder = mcmae.build(built | {"dec_heads": 1}, Clock(1, 1)).encoder.plain()
    state = tuned(encoder.clone(pos_embed="learned"), 32, "mcmae", 3, "fc_norm", seed)
    groups = fine_tune.official_groups(state, 2, 0.5, 0.05)
    ids = {k: 3 - round(-math.log2(scale)) for k, (scale, _) in groups.items()}
    rates = np.linspace(0, 0.2, 5).tolist()
    meta = {"config": c, "lr_scale_and_wd": groups, "layer_id": ids, "drop_path_per_block": rates}
    targets = np.abs(draw(seed, B, 3)) + 0.125
    given = {"in/images": draw(seed, B, 3, 32, 32), "in/targets": targets}
    wanted = {"out/logits": (B, 3), "loss/total": (), "grad_norm": ()} | grads(state)
    return meta, given | named("sd", state), wanted


CASES = {
    "mae.finetune": mae_finetune,
    "cae.finetune": cae_finetune,
    "mcmae.finetune": mcmae_finetune,
    "mae.linear_probe": mae_linear_probe,
    "cae.linear_probe": cae_linear_probe,
    "cae.attentive_probe": cae_attentive_probe,
    "ep.head": ep_head,
    "capi.probe": capi_probe,
    "cae.steps": cae_steps,
    "caev2.pretrain_paper": caev2_paper,
    "mcmae.pretrain": mcmae_pretrain,
    "mcmae.fast": mcmae_fast,
    "mcmae.cblock": mcmae_cblock,
    "mcmae.steps": mcmae_steps,
    "mcmae.posinterp": mcmae_posinterp,
    "mrmae.pretrain": mrmae_pretrain,
    "mrmae.pretrain_clip": mrmae_pretrain_clip,
    "mrmae.steps": mrmae_steps,
    "pixio.encoder": pixio_encoder,
    "simmim.pretrain": simmim_pretrain,
    "simmim.steps": simmim_steps,
    "clip.hf": clip_hf,
    "teacher.clip_hf": functools.partial(teacher_clip, "clip_hf_bare", 12),
    "teacher.clip_openai": functools.partial(teacher_clip, "clip_openai", 13),
    "teacher.dino": functools.partial(dino, 12, 14),
    "teacher.dino_interp": functools.partial(dino, 20, 15),
    "tokenizer.vqgan": vqgan_,
    "tokenizer.dalle": functools.partial(dalle, "dalle", 17),
    "tokenizer.flava": functools.partial(dalle, "flava", 18),
    "tokenizer.vqkd": vqkd,
}
