"""MR-MAE against an independent reference written from the paper (no code was released)."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from golden_checks import common
from golden_checks.cae import gradients
from mimjax import patches
from mimjax.losses import unit
from mimjax.masking.base import Random
from mimjax.masking.salient import Salient
from mimjax.methods.mrmae import MRMAE, DirectionMSE
from mimjax.models.clip import CLIPVision
from mimjax.models.conv_vit import ConvViT
from mimjax.models.decoders import MAEDecoder
from mimjax.models.vit import ViT
from mimjax.schedules import MAECosine
from mimjax.targets.clip import CLIP
from mimjax.targets.pixels import Pixels
from mimjax.task import Clock, TrainState
from mimjax.torch_io.read import load
from mimjax.train import optimizers
from mimjax.train.step import train_step

KEY = jax.random.key(0)
BETAS = 0.9, 0.95  # MAE's code, for files that do not hold them


def build(c, clock):
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
    # Where visible patches are drawn, the noise that the file holds is in the attention.
    salient = c["select"] != "random"
    kind = {"l2": {"loss": DirectionMSE()}, "layernorm": {"normalize": "target"}, "none": {}}
    return MRMAE(
        clock,
        encoder,
        Salient(c["mask_ratio"]) if salient else Random(c["mask_ratio"]),
        pixel_target=Pixels("patch" if c["norm_pix_loss"] else "none"),
        mimic_target=CLIP(network, project=False),
        decoder=MAEDecoder(c["dec_dim"], c["dec_depth"], c["dec_heads"]),
        pixel=dataclasses.replace(MRMAE.pixel, weight=c["w_rec"]),
        mimic=dataclasses.replace(MRMAE.mimic, weight=c["w_mimic"], **kind[c["target_norm"]]),
    )


def layout(c):
    return "mcmae" if c["backbone"] == "conv" else "mae"


def given(task):
    """The file holds the teacher's features of the patches alone."""
    return common.given(task, "mimic_target", num_prefix=0)


def batch_of(task, c, images, features, attention, noise):
    batch = {"image": jnp.asarray(common.nhwc(images)), "mimic_target": features}
    if c["select"] == "random":
        visible = task.encoder.num_patches - task.num_masked
        return batch | {"mask": common.mask_from_noise(noise, visible)}
    if c["select"] == "sample":
        # log(attention) and Gumbel noise -log(-log(u)), of which the largest are taken
        attention = attention / -np.log(noise)
    return batch | {"mimic_target/attention": attention}


def pretrain(z, meta):
    c = meta["config"]
    task = build(c, Clock(1, 1))
    params = common.imported(common.arrays(z, "sd"), task)
    features, attention = (
        z[f"{'out' if 'clip' in c else 'in'}/teacher_{k}"] for k in ("features", "cls_attn")
    )
    if "clip" in c:
        teacher(z, task, c)
    task = given(task)

    @jax.jit
    def run(params, batch):
        prepared = common.inputs(task, params, batch)

        def loss(params):
            out = task.loss(params, {}, prepared, KEY, 0, False)
            return out.total, out

        (_, out), grads = jax.value_and_grad(loss, has_aux=True)(params)
        read = {"params": params["encoder"]}, prepared.image, prepared.ids_v
        return out, grads, prepared, task.encoder.apply(*read).tokens

    batch = batch_of(task, c, z["in/images"], features, attention, z["in/noise"])
    out, grads, prepared, tokens = run(params, batch)
    np.testing.assert_array_equal(prepared.ids_v, np.sort(z["out/ids_keep"], axis=1))
    common.rel("total", out.total, z["loss/total"], 1e-5)
    common.rel("pixel", out.metrics["loss/pixel"], z["loss/rec"], 1e-5)
    common.rel("mimic", out.metrics["loss/mimic"], z["loss/mimic"], 1e-5)
    outputs(z, task, prepared, tokens, out.predictions)
    gradients(common.arrays(z, "grad"), grads, layout(c))
    norm = np.sqrt(sum(np.square(np.asarray(g, np.float64)).sum() for g in jax.tree.leaves(grads)))
    common.rel("norm", norm, z["grad_norm"], 1e-4)


def outputs(z, task, prepared, tokens, predictions):
    """Tokens and predictions of visible patches in the file's order, and masked ones by raster."""
    keep, prefix = z["out/ids_keep"], task.encoder.num_prefix
    theirs = z["out/latent"]
    common.close("latent", tokens[:, prefix:], common.by_raster(theirs[:, prefix:], keep), 1e-4)
    common.close("prefix", tokens[:, :prefix], theirs[:, :prefix], 1e-4)
    pred, target = (getattr(predictions["mimic"], k)["visible"] for k in ("values", "target"))
    target = jax.jit(unit)(target) if isinstance(task.mimic.loss, DirectionMSE) else target
    for name, ours in (("mimic_pred", pred), ("mimic_target", target)):
        common.close(name, ours, common.by_raster(z[f"out/{name}"], keep), 1e-4)
    masked = np.take_along_axis(z["out/pred"], np.asarray(prepared.ids_m)[..., None], 1)
    common.close("pred", predictions["pixel"].values["masked"], masked, 1e-4)


def teacher(z, task, c):
    """The teacher on the same crop, re-normalized by CLIP's statistics."""
    target = task.mimic_target
    like = jax.eval_shape(task.init_frozen, KEY)["mimic_target"]
    frozen = load.from_torch(common.arrays(z, "teacher_sd"), like)
    raw = common.nhwc(z["in/images"]) * np.asarray(patches.IMAGENET_STD) + patches.IMAGENET_MEAN
    view = jnp.asarray((raw - target.mean) / target.std, jnp.float32)
    common.close("teacher_input", view, common.nhwc(z["out/teacher_input"]), 1e-4)

    @jax.jit
    def run(frozen, view):
        hidden, attention = target.encode_with_attention(frozen, view, task.encoder)
        return target.read(frozen, hidden[:, 1:]), attention

    features, attention = run(frozen, view)
    common.close("teacher_features", features, z["out/teacher_features"], 1e-4)
    common.close("teacher_cls_attn", attention.mean(1), z["out/teacher_cls_attn"], 1e-5)


def steps(z, meta):
    c, o = meta["config"], meta["optim"]
    clock = Clock(o["steps_per_epoch"], o["steps_per_epoch"] * o["epochs"])
    task = given(build(c, clock))
    cfg = optimizers.OptimizerConfig(
        lr=o["lr"],
        rule=common.adam(meta, BETAS),
        schedule=MAECosine(o["warmup_epochs"], min_lr=o["min_lr"]),
        weight_decay=o["wd"],
        decay=((".*/(bias|scale)", 0.0), (".*", 1.0)),
    )
    sd = common.arrays(z, "sd")
    params = load.from_torch(sd, common.shapes(task), layout(c))
    lr = optimizers.learning_rate(cfg, clock, 256)
    common.rel("lr", lr(np.arange(o["steps"])), z["out/lr_steps"], 1e-6)
    tx = optimizers.make_optimizer(cfg, params, lr, optimizers.weight_decay(cfg, clock))
    state = TrainState(np.int32(0), params, {}, {}, jax.jit(tx.init)(params))
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
    common.check_movement("final", ours, final, sd, common.without_key_bias)
