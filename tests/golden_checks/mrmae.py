"""MR-MAE against an independent reference written from the paper (no code was released)."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from golden_checks import common
from golden_checks.cae import gradients
from golden_checks.mae import without_key_bias
from mimjax import patches
from mimjax.masking.base import Masking
from mimjax.masking.salient import select_visible
from mimjax.methods.mrmae import MRMAE
from mimjax.models.clip import CLIPVision
from mimjax.models.conv_vit import ConvViT
from mimjax.models.decoders import MAEDecoder
from mimjax.models.vit import ViT
from mimjax.schedules import MAECosine
from mimjax.targets.clip import CLIP
from mimjax.task import Clock, TrainState
from mimjax.torch_io.read import load
from mimjax.train import optimizers
from mimjax.train.step import train_step

KEY = jax.random.key(0)


def build(c, clock, **kw):
    side, fuse = (c["img_size"],) * 2, tuple(c["fuse_layers"])
    if c["backbone"] == "conv":
        d1, d2, d3 = c["dims"]
        encoder = ConvViT(
            width=d3,
            depth=c["depths"][2],
            heads=c["heads"],
            stage_widths=(d1, d2),
            stage_depths=tuple(c["depths"][:2]),
            stage_mlp_ratios=tuple(float(r) for r in c["mlp_ratio"][:2]),
            mlp_ratio=float(c["mlp_ratio"][2]),
            image_size=side,
            fuse_layers=fuse,
            fuse_stages=c["fuse_conv_stages"],
        )
    else:
        encoder = ViT(c["dim"], c["depth"], c["heads"], image_size=side, fuse_layers=fuse)
    clip = c.get("clip", {"dim": c["teacher_dim"], "depth": 1, "heads": 4})
    network = CLIPVision(
        width=clip["dim"],
        depth=clip["depth"],
        heads=clip["heads"],
        patch=encoder.patch,
        pos_grid=encoder.grid,
        proj_dim=None,
    )
    return MRMAE(
        clock,
        encoder,
        Masking("random", c["mask_ratio"]),
        decoder=MAEDecoder(c["dec_dim"], c["dec_depth"], c["dec_heads"]),
        target=CLIP(network, project=False),
        select=c["select"],
        target_norm=c["target_norm"],
        pixel_weight=c["w_rec"],
        mimic_weight=c["w_mimic"],
        pixel_norm="mae" if c["norm_pix_loss"] else "none",
        **kw,
    )


def layout(c):
    return "mcmae" if c["backbone"] == "conv" else "mae"


def chosen(c, attention, noise, num_visible):
    """The file's visible patches: its own noise stands for our key."""
    if c["select"] == "topk":
        return select_visible(jnp.asarray(attention), num_visible, "topk", KEY)
    score = -noise
    if c["select"] == "sample":
        score = np.log(attention) - np.log(-np.log(noise))
    order = np.argsort(-score, axis=1, kind="stable")
    split = order[:, :num_visible], order[:, num_visible:]
    return tuple(jnp.asarray(np.sort(ids, axis=1)) for ids in split)


def batch_of(task, c, images, features, attention, noise):
    images = jnp.asarray(common.nhwc(images))
    ids_v, ids_m = chosen(c, attention, noise, task.encoder.num_patches - task.num_masked)
    features = jnp.take_along_axis(jnp.asarray(features), ids_v[..., None], axis=1)
    return task.assemble(images, ids_v, ids_m, features)


def pretrain(z, meta):
    c = meta["config"]
    task = build(c, Clock(1, 1))
    params = common.imported(common.arrays(z, "sd"), task)
    features, attention = (
        z[f"{'out' if 'clip' in c else 'in'}/teacher_{k}"] for k in ("features", "cls_attn")
    )
    batch = batch_of(task, c, z["in/images"], features, attention, z["in/noise"])
    np.testing.assert_array_equal(batch["ids_v"], np.sort(z["out/ids_keep"], axis=1))
    if "clip" in c:
        teacher(z, task, c)

    @jax.jit
    def run(params, batch):
        def loss(params):
            out = task.loss(params, {}, batch, KEY, 0, False)
            return out.total, out.metrics

        (total, metrics), grads = jax.value_and_grad(loss, has_aux=True)(params)
        encoder = {"params": params["encoder"]}
        f = task.encoder.apply(encoder, batch["image"], batch["ids_v"])
        return total, metrics, grads, f.tokens, task.predict(params, batch, KEY, False)

    total, metrics, grads, tokens, pred = run(params, batch)
    common.rel("total", total, z["loss/total"], 1e-5)
    common.rel("pixel", metrics["loss/pixel"], z["loss/rec"], 1e-5)
    common.rel("mimic", metrics["loss/mimic"], z["loss/mimic"], 1e-5)
    order = np.argsort(z["out/ids_keep"], axis=1)[..., None]
    theirs = z["out/latent"]
    common.close(
        "latent",
        tokens[:, task.encoder.num_prefix :],
        np.take_along_axis(theirs[:, task.encoder.num_prefix :], order, 1),
        1e-4,
    )
    common.close(
        "prefix", tokens[:, : task.encoder.num_prefix], theirs[:, : task.encoder.num_prefix], 1e-4
    )
    for name, ours in (("mimic_pred", pred["mimic"]), ("mimic_target", batch["features"])):
        common.close(name, ours, np.take_along_axis(z[f"out/{name}"], order, 1), 1e-4)
    masked = np.take_along_axis(z["out/pred"], np.asarray(batch["ids_m"])[..., None], 1)
    common.close("pred", pred["pixel"], masked, 1e-4)
    gradients(common.arrays(z, "grad"), grads, layout(c))
    norm = np.sqrt(sum(np.square(np.asarray(g, np.float64)).sum() for g in jax.tree.leaves(grads)))
    common.rel("norm", norm, z["grad_norm"], 1e-4)


def teacher(z, task, c):
    """The teacher on the same crop, re-normalized by CLIP's statistics."""
    sd = common.arrays(z, "teacher_sd")
    frozen = load.from_torch(sd, jax.eval_shape(task.init_frozen, KEY))
    raw = common.nhwc(z["in/images"]) * np.asarray(patches.IMAGENET_STD) + patches.IMAGENET_MEAN
    view = jnp.asarray((raw - task.target.mean) / task.target.std, jnp.float32)
    common.close("teacher_input", view, common.nhwc(z["out/teacher_input"]), 1e-4)
    run = jax.jit(lambda b: task.target.encode_with_attention(frozen, b, task.encoder))
    hidden, attention = run({"image": view})
    features = task.target.read(frozen, hidden[:, 1:])
    common.close("teacher_features", features, z["out/teacher_features"], 1e-4)
    common.close("teacher_cls_attn", attention.mean(1), z["out/teacher_cls_attn"], 1e-5)


class Given(MRMAE):
    """MR-MAE whose teacher's features and choice come with the batch."""

    def prepare(self, ema, frozen, batch, key, step, train):
        return batch


def steps(z, meta):
    c, o = meta["config"], meta["optim"]
    clock = Clock(o["steps_per_epoch"], o["steps_per_epoch"] * o["epochs"])
    task = build(c, clock)
    task = Given(**vars(task))
    cfg = optimizers.OptimizerConfig(
        lr=o["lr"],
        rule=optimizers.AdamW(0.9, 0.95),
        schedule=MAECosine(o["warmup_epochs"], min_lr=o["min_lr"]),
        weight_decay=o["wd"],
        decay=((".*/(bias|scale)", 0.0), (".*", 1.0)),
    )
    sd = common.arrays(z, "sd")
    params = load.from_torch(sd, common.shapes(task), layout(c))
    lr = optimizers.learning_rate(cfg, clock, 256)
    common.rel("lr", [lr(i) for i in range(o["steps"])], z["out/lr_steps"], 1e-6)
    tx = optimizers.make_optimizer(cfg, params, lr, optimizers.weight_decay(cfg, clock))
    state = TrainState(np.int32(0), params, {}, {}, tx.init(params))
    step = jax.jit(functools.partial(train_step, task=task, tx=tx, seed=0))
    rows, norms = [], []
    for arrays in zip(
        *(z[f"in/{k}"] for k in ("images", "teacher_features", "teacher_cls_attn", "noise"))
    ):
        state, m = step(state, {}, batch_of(task, c, *arrays))
        rows.append([float(m[f"loss/{k}"]) for k in ("total", "pixel", "mimic")])
        norms.append(float(m["grad_norm"]))
    common.rel("losses", rows, z["loss/steps"], 1e-5)
    common.rel("grad_norm", norms, z["out/grad_norm_steps"], 1e-4)
    final = {k: v for k, v in common.arrays(z, "out/final").items() if not k.endswith("pos_embed")}
    ours = load.to_torch(state.params, layout(c))
    assert final
    common.check_movement("final", ours, final, sd, without_key_bias)
