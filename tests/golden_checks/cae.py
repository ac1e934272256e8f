"""CAE, CAE v2 and BEiT against numbers of the official code."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from golden_checks import common
from mimjax import rules
from mimjax.losses import unit
from mimjax.masking.base import Masking
from mimjax.methods.beit import BEiT
from mimjax.methods.cae import CAE
from mimjax.methods.caev2 import CAEv2
from mimjax.models.dalle import DallEEncoder
from mimjax.models.regressor import LatentDecoder, Regressor
from mimjax.models.vit import ViT, sincos_table
from mimjax.patches import gather
from mimjax.rng import step_key
from mimjax.schedules import BEiTCosine
from mimjax.targets.clip import CLIP
from mimjax.targets.dalle import DallE
from mimjax.task import Clock, TrainState
from mimjax.torch_io.read import detect, load
from mimjax.train import optimizers
from mimjax.train.step import train_step

KEY = jax.random.key(0)
SPARED = (".*/(bias|scale|q_bias|v_bias|gamma_.*)", 0.0)
NORM1_K = "norm1_k.bias"  # zero true gradient


def encoder(c, **kw):
    return ViT(
        width=c["embed_dim"],
        depth=c["depth"],
        heads=c["num_heads"],
        patch=c["patch_size"],
        image_size=(c["img_size"],) * 2,
        mlp_ratio=c.get("mlp_ratio", 4.0),
        bias="qv",
        layer_scale=c["init_values"] or None,
        **kw,
    )


def target(c):
    """A tokenizer of the file's vocabulary; its ids are given, it is never applied."""
    vocab = c.get("vocab", c.get("decoder_num_classes"))
    return DallE(network=DallEEncoder(vocab=vocab))


def build(c, clock, masked=None, **kw):
    n = (c["img_size"] // c["patch_size"]) ** 2
    regressor = Regressor(
        width=c["decoder_embed_dim"],
        depth=c["regressor_depth"],
        heads=c["decoder_num_heads"],
        layer_scale=c["decoder_layer_scale_init_value"] or None,
    )
    masked = c["num_mask"] if masked is None else masked
    common_args = {
        "clock": clock,
        "encoder": encoder(c, pos_embed="sincos_yx", init_scheme="cae"),
        "masking": Masking("block", common.ratio(masked, n), max_block=None),
        "regressor": regressor,
    }
    if c["model_type"] == "caev2":
        clip = CLIP()
        clip = CLIP(network=clip.network.clone(proj_dim=c["num_out_dim"]))
        return CAEv2(**common_args, target=clip, **kw)
    decoder = LatentDecoder(
        depth=c["decoder_depth"],
        heads=c["decoder_num_heads"],
        layer_scale=c["decoder_layer_scale_init_value"] or None,
    )
    align = c.get("align_loss_weight", 2.0)
    return CAE(**common_args, target=target(c), decoder=decoder, align_weight=align, **kw)


def batch_of(task, images, mask, codes=None):
    image = jnp.asarray(common.nhwc(images))
    out = task.masked_batch({"image": image, "mask": jnp.asarray(mask)})
    if codes is not None:
        out["target"] = jnp.take_along_axis(jnp.asarray(codes, jnp.int32), out["ids_m"], axis=1)
    return out


def gradients(theirs, grads, layout):
    """Named gradients to 1e-4 of the tensor's maximum, and the global norm where it is stored."""
    ours = load.to_torch(grads, layout)
    norm = np.sqrt(sum(np.square(v.astype(np.float64)).sum() for v in ours.values()))
    for key, value in theirs.items():
        if key == "__global_norm__":
            common.rel(key, norm, value, 1e-4)
        else:
            common.close(f"grad/{key}", ours[key], value, 1e-4 * np.abs(value).max())


def pretrain(z, meta):
    c = meta["config"]
    task = build(c, Clock(1, 1))
    params = common.imported(common.arrays(z, "sd"), task)
    batch = batch_of(task, z["in/images"], z["in/mask"], z["in/token_targets"])

    @jax.jit
    def run(params, batch):
        def loss(params):
            out = task.loss(params, {}, batch, KEY, 0, False)
            return out.total, (out.metrics, out.preds)

        (total, aux), grads = jax.value_and_grad(loss, has_aux=True)(params)
        tokens = task.encode(params, batch, batch["ids_v"], KEY, False)
        other = task.encode(params, batch, batch["ids_m"], KEY, False)
        latents = task.latents(params, batch, KEY, False)
        aligned = task.align_latents(params, batch, KEY, False)
        return total, aux, grads, tokens, other, latents, aligned

    total, (metrics, preds), grads, tokens, other, latents, aligned = run(params, batch)
    common.rel("total", total, z["loss/total"], 1e-5)
    common.rel("main", metrics["loss/codes"], z["loss/main"], 1e-5)
    common.rel("align", metrics["loss/align"], z["loss/align_unweighted"], 1e-5)
    common.close("logits", preds["pred"], z["out/logits"], 1e-4)
    common.close("latent_visible", tokens, z["out/latent_visible_with_cls"], 1e-4)
    common.close("align_encoder", other, z["out/align_encoder_with_cls"], 1e-4)
    common.close("latent_predict", latents, z["out/latent_predict"], 1e-4)
    common.close("latent_target", aligned, z["out/latent_target"], 1e-4)
    gradients(common.arrays(z, "grad"), grads, "cae")


def skip_norm1_k(key, size):
    return np.full(size, not key.endswith(NORM1_K))


def trained(task, cfg, clock, z, params, offset, layout):
    """The file's steps through the real train step."""
    lr = optimizers.learning_rate(cfg, clock, 256)
    decay = optimizers.weight_decay(cfg, clock)
    tx = optimizers.make_optimizer(
        cfg, params, lambda t: lr(t + offset), lambda t: decay(t + offset)
    )
    state = TrainState(np.int32(offset), params, {}, task.init_ema(params), tx.init(params))
    step = jax.jit(functools.partial(train_step, task=task, tx=tx, seed=0))
    rows = []
    for images, mask, codes in zip(z["in/images"], z["in/mask"], z["in/token_targets"]):
        batch = {"image": common.nhwc(images), "mask": mask, "codes": codes.astype(np.int32)}
        state, metrics = step(state, {}, batch)
        rows.append(metrics)
    return state, rows, lr


class Given(CAE):
    """CAE whose tokens come with the batch, and without stochastic depth."""

    def target_batch(self, frozen, batch, key, train):
        out = self.masked_batch(batch)
        out["target"] = jnp.take_along_axis(batch["codes"], out["ids_m"], axis=1)
        return out


def given(c, clock, **kw):
    task = build(c, clock, **kw)
    values = dict(vars(task))
    values["encoder"] = task.encoder.clone(drop_path=0.0)
    values["regressor"] = task.regressor.clone(drop_path=0.0)
    values["decoder"] = task.decoder.clone(drop_path=0.0)
    return Given(**values)


def steps(z, meta):
    c = meta["config"]
    clock = Clock(c["iters_per_epoch"], c["iters_per_epoch"] * c["epochs"])
    task = given(c, clock)
    cfg = optimizers.OptimizerConfig(
        lr=c["lr"],
        rule=optimizers.AdamW(b2=0.999),
        schedule=BEiTCosine(c["warmup_epochs"], min_lr=c["min_lr"]),
        weight_decay=c["weight_decay"],
        clip_norm=c["clip_grad"] or None,
        decay=(SPARED, (".*", 1.0)),
    )
    sd = common.arrays(z, "sd")
    params = load.from_torch(sd, common.shapes(task), "cae")
    state, rows, lr = trained(task, cfg, clock, z, params, c["start_it"], "cae")
    common.rel("schedule", [lr(i) for i in range(clock.total_steps)], meta["lr_schedule"], 1e-6)
    for ours, theirs in (("codes", "main"), ("align", "align"), ("total", "total")):
        scale = c["align_loss_weight"] if ours == "align" else 1.0
        values = [scale * float(m[f"loss/{ours}"]) for m in rows]
        common.rel(ours, values, z[f"loss/{theirs}"], 1e-5)
    common.rel("grad_norm", [m["grad_norm"] for m in rows], z["opt/grad_norm"], 1e-4)
    final = {k: v for k, v in common.arrays(z, "final").items() if not k.endswith("pos_embed")}
    common.check_movement("final", load.to_torch(state.params, "cae"), final, sd, skip_norm1_k)
    factors = rules.match(cfg.decay, params)
    found = {"decay": set(), "no_decay": set()}
    for row, factor in zip(
        detect.rows_for("cae", rules.paths(params)), jax.tree.leaves(factors), strict=True
    ):
        found["decay" if factor else "no_decay"] |= set(row.keys)
    assert found == {k: set(v) for k, v in meta["param_groups"].items()}


def steps_ema(z, meta):
    c = meta["config"] | {"model_type": "cae"}
    clock = Clock(5, 5)
    momentum = c["base_momentum"]
    align = (
        {"align_target": "ema", "ema_decay": momentum} if momentum else {"align_target": "stale"}
    )
    task = given(c, clock, **align)
    cfg = optimizers.OptimizerConfig(
        lr=c["lr"],
        rule=optimizers.AdamW(b2=0.999),
        schedule=BEiTCosine(0.0, min_lr=c["lr"]),
        weight_decay=c["weight_decay"],
        clip_norm=c["clip_grad"] or None,
        decay=(SPARED, (".*", 1.0)),
    )
    sd = common.arrays(z, "sd")
    params = common.imported(sd, build(c, clock, **align))
    first = batch_of(task, z["in/images"][0], z["in/mask"][0])

    @jax.jit
    def before(params, first):
        latents = task.latents(params, first, KEY, False)
        aligned = task.align_latents(params, first, KEY, False)
        return latents, aligned, task.decode(params, latents, first["ids_m"], KEY, False)

    latents, aligned, logits = before(params, first)
    common.close("latent_predict", latents, z["out/latent_predict_step0"], 1e-4)
    common.close("latent_target", aligned, z["out/latent_target_step0"], 1e-4)
    common.close("logits", logits, z["out/logits_step0"], 1e-4)
    state, rows, _ = trained(task, cfg, clock, z, params, 0, "cae_older")
    for ours, theirs in (("codes", "main"), ("align", "align"), ("total", "total")):
        scale = c["align_loss_weight"] if ours == "align" else 1.0
        common.rel(
            ours, [scale * float(m[f"loss/{ours}"]) for m in rows], z[f"loss/{theirs}"], 1e-5
        )
    final = common.arrays(z, "final")
    teacher = {k: v for k, v in final.items() if k.startswith("teacher.") and "pos_embed" not in k}
    student = {k: v for k, v in final.items() if k not in teacher and "pos_embed" not in k}
    ours = load.to_torch(state.params, "cae_older")
    common.check_movement("final", ours, student, sd, skip_norm1_k)
    ema = load.to_torch({"encoder": state.ema["encoder"]}, "cae_older")
    rename = lambda tree: {k.replace("encoder.", "teacher.", 1): v for k, v in tree.items()}
    common.check_movement("teacher", rename(ema), teacher, rename(sd))


def masking(z, meta):
    kind = "block_at_most" if meta["kind"] == "beit.masking" else "block"
    grid, n = tuple(meta["grid"]), int(np.prod(meta["grid"]))
    scale = n / 196  # the options are counts on the official grid
    sampler = Masking(
        kind,
        common.ratio(meta["num_masking_patches"], n),
        min_block=round(meta["min_num_patches"] / scale),
        max_block=round((meta["max_num_patches"] or 0) / scale) or None,
        min_aspect=meta["min_aspect"],
    ).sampler(grid)
    masks = common.sample(sampler, meta["samples"], meta["python_random_seed"]).reshape(-1, *grid)
    # the same draws in the same order: not statistics alone, every mask is the official one
    np.testing.assert_array_equal(masks[: len(z["stat/examples"])], z["stat/examples"] == 1)
    np.testing.assert_array_equal(masks.sum((1, 2)), z["stat/counts"])
    common.close("freq", masks.mean(0), z["stat/freq"], 1e-12)


def init(z, meta):
    c = meta["config"]
    n = (c["img_size"] // c["patch_size"]) ** 2
    task = build(c, Clock(1, 1), masked=n // 2)
    params = jax.jit(task.init)(step_key(3, "init", 0))[0]
    ours = load.to_torch(params, "cae")
    stats = meta["stats_mean_std_absmax"]
    expected = {k for k in stats if not k.endswith("pos_embed") and "alignment_encoder" not in k}
    assert set(ours) == expected
    for key in expected:
        x, (mean, std, top) = ours[key].astype(np.float64), stats[key]
        assert list(x.shape) == list(meta["shapes"][key]), key
        if std < 1e-6:
            np.testing.assert_allclose([x.std(), x.mean()], [0.0, mean], atol=1e-6, err_msg=key)
            continue
        big = x.size >= 10_000
        loose = 4.5 * np.sqrt(2) / np.sqrt(2 * max(x.size - 1, 1))
        assert abs(x.std() / std - 1) <= (0.02 if big else loose), (key, x.std(), std)
        assert abs(x.mean() - mean) <= 9 * std / np.sqrt(x.size), key
        if big:
            assert abs(np.abs(x).max() / top - 1) <= 0.05, key
    for key, width in (("encoder.pos_embed", c["embed_dim"]), ("rd_pos_embed", None)):
        table = z[f"posembed/{key}"][0]
        ours = sincos_table(task.encoder.grid, width or c["decoder_embed_dim"], "yx")
        assert not table[0].any()
        common.close(key, ours, table[1:], 1e-6)


def caev2(z, meta):
    c = meta["config"]
    paper = meta["kind"] == "caev2.pretrain_paper"
    options = {"head_order": "fc_ln", "loss_form": "paper"} if paper else {}
    task = build(c, Clock(1, 1), **options)
    task_paper = build(c, Clock(1, 1), **(options | {"loss_form": "paper"}))
    names_ = {"head.fc.": "decoder.head.", "head.ln.": "decoder.norm."}

    def official(key):
        for a, b in names_.items() if paper else ():
            key = key.replace(a, b) if key.startswith(a) else key
        return key

    sd = {official(k): v for k, v in common.arrays(z, "sd").items()}
    params = common.imported(sd, task)
    batch = batch_of(task, z["in/images"], z["in/mask"])
    features = jnp.asarray(z["in/clip_features"])
    order = jnp.concatenate([batch["ids_v"], batch["ids_m"]], axis=1) + 1
    target_ = gather(features, order)
    with_cls = jnp.concatenate([features[:, :1], target_], axis=1)

    @jax.jit
    def run(params, batch):
        def loss(params):
            out = task.loss(params, {}, batch, KEY, 0, False)
            return out.total

        total, grads = jax.value_and_grad(loss)(params)
        f = task.encoder.apply({"params": params["encoder"]}, batch["image"], batch["ids_v"])
        second = task_paper.loss(params, {}, batch | {"target": target_}, KEY, 0, False)
        return total, grads, task.outputs(params, batch, KEY, False), f.tokens, second

    target = target_ if paper else with_cls
    total, grads, out, tokens, second = run(params, batch | {"target": target})
    common.rel("total", total, z["loss/total"], 1e-5)
    common.rel("visible", second.metrics["loss/visible"], z["loss/visible"], 1e-5)
    common.rel("masked", second.metrics["loss/masked"], z["loss/masked"], 1e-5)
    seen = 1 + batch["ids_v"].shape[1]
    if paper:
        common.close("visible_out", out[:, 1:seen], z["out/visible_out"], 1e-4)
        common.close("masked_out", out[:, seen:], z["out/masked_out"], 1e-4)
    else:
        common.close("latents_out", unit(out), z["out/latents_out"], 1e-4)
        common.rel("paper", second.total, z["loss/paper_total"], 1e-5)
    common.close("visible", tokens, z["out/latent_visible_with_cls"], 1e-4)
    gradients({official(k): v for k, v in common.arrays(z, "grad").items()}, grads, "cae")


def build_beit(c):
    n = (c["img_size"] // c["patch_size"]) ** 2
    rel_pos = "shared" if c["use_shared_rel_pos_bias"] else "none"
    return BEiT(
        encoder=encoder(
            c,
            pos_embed="learned" if c["use_abs_pos_emb"] else "none",
            rel_pos="per_block" if c["use_rel_pos_bias"] else rel_pos,
            init_scheme="beit",
            use_mask_token=True,
        ),
        masking=Masking("block_at_most", common.ratio(max(c["num_mask"]), n), max_block=None),
        target=target(c),
    )


def beit(z, meta):
    task = build_beit(meta["config"])
    params = common.imported(common.arrays(z, "sd"), task)
    batch = batch_of(task, z["in/images"], z["in/mask"], z["in/token_targets"])
    real = jnp.take_along_axis(batch["mask"], batch["ids_m"], axis=1).astype(jnp.float32)
    batch["weight_m"] = real / real.mean()

    @jax.jit
    def run(params, batch):
        def loss(params):
            out = task.loss(params, {}, batch, KEY, 0, False)
            return out.total, out.preds["pred"]

        (total, pred), grads = jax.value_and_grad(loss, has_aux=True)(params)
        image, mask = batch["image"], batch["mask"]
        f = task.encoder.apply({"params": params["encoder"]}, image, None, mask)
        every = task.head.apply({"params": params["head"]}, f.tokens[:, 1:])
        return total, pred, grads, f.tokens, every

    total, pred, grads, tokens, every = run(params, batch)
    common.rel("total", total, z["loss/total"], 1e-5)
    common.close("features", tokens, z["out/features"], 1e-4)
    common.close("logits_all", every, z["out/logits_all"], 1e-4)
    kept = np.asarray(pred)[np.asarray(real) > 0]  # (batch, patch) order, padding left out
    common.close("logits_masked", kept, z["out/logits_masked"], 1e-4)
    gradients(common.arrays(z, "grad"), grads, "beit")
