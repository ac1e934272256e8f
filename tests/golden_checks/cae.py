"""CAE and CAE v2 against numbers of the official code, and the block-wise masks of all."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from golden_checks import common
from mimjax import rules
from mimjax.losses import unit
from mimjax.masking.block import Block, BlockAtMost
from mimjax.methods.cae import CAE
from mimjax.methods.caev2 import CAEv2
from mimjax.methods.parts import Average
from mimjax.models.clip import CLIPVision
from mimjax.models.dalle import DallEEncoder
from mimjax.models.regressor import LatentDecoder, Regressor, SharedHead
from mimjax.models.vit import ViT, sincos_table
from mimjax.rng import step_key
from mimjax.schedules import BEiTCosine, Constant
from mimjax.targets.clip import CLIP
from mimjax.targets.dalle import DallE
from mimjax.task import PLACES, Clock, TrainState
from mimjax.torch_io.read import detect, load
from mimjax.train import optimizers
from mimjax.train.step import train_step

KEY = jax.random.key(0)
SPARED = (".*/(bias|scale|q_bias|v_bias|gamma_.*)", 0.0)
NORM1_K = "norm1_k.bias"  # zero true gradient
# The official code's settings that not every file holds.
OFFICIAL = {"mlp_ratio": 4.0, "align_loss_weight": 2.0, "latent_alignment_loss_weight": 1.0}
BETAS = 0.9, 0.999


def encoder(c, **kw):
    return ViT(
        width=c["embed_dim"],
        depth=c["depth"],
        heads=c["num_heads"],
        patch=c["patch_size"],
        image_size=(c["img_size"],) * 2,
        mlp_ratio=(OFFICIAL | c)["mlp_ratio"],
        bias="qv",
        layer_scale=c["init_values"] or None,
        **kw,
    )


def target(c):
    """A tokenizer of the file's vocabulary; its ids are given, it is never applied."""
    vocab = c.get("vocab", c.get("decoder_num_classes"))
    return DallE(network=DallEEncoder(vocab=vocab))


def parts(c):
    """What CAE and CAE v2 share; as in the files, no branch is dropped."""
    n, width = (c["img_size"] // c["patch_size"]) ** 2, c["decoder_embed_dim"]
    project = None if width == c["embed_dim"] else width
    regressor = Regressor(c["regressor_depth"], final_norm=c["model_type"] != "caev2", **blocks(c))
    return {
        "encoder": encoder(c, pos_embed="sincos_yx", init_scheme="cae", project=project),
        "masking": Block(common.ratio(c["num_mask"], n)),
        "regressor": regressor,
    }


def blocks(c):
    """Settings of the blocks behind the encoder."""
    return {
        "heads": c["decoder_num_heads"],
        "mlp_ratio": (OFFICIAL | c)["mlp_ratio"],
        "layer_scale": c["decoder_layer_scale_init_value"] or None,
        "drop_path": 0.0,
    }


def build(c, clock, **changes):
    """CAE."""
    return CAE(
        clock=clock,
        **parts(c),
        code_target=target(c),
        decoder=LatentDecoder(c["decoder_depth"], **blocks(c)),
        align=dataclasses.replace(CAE.align, weight=(OFFICIAL | c)["align_loss_weight"]),
        **changes,
    )


def build_v2(c, clock, paper):
    """CAE v2, with the loss and the head of its code or its paper."""
    weight = (OFFICIAL | c)["latent_alignment_loss_weight"]
    clip = CLIP(network=CLIPVision(proj_dim=c["num_out_dim"]))
    task = CAEv2(
        clock=clock,
        **parts(c),
        teacher_target=clip,
        head=SharedHead("fc_ln" if paper else "ln_fc"),
        token=dataclasses.replace(CAEv2.token, weight=weight),
    )
    return apart(task, weight) if paper else task


def either(c):
    """The method of a file's `model_type`."""
    return build_v2(c, Clock(1, 1), False) if c["model_type"] == "caev2" else build(c, Clock(1, 1))


def apart(task, weight):
    """CAE v2 with a mean over visible and one over masked tokens."""
    terms = {"token": "visible", "masked": "masked"}
    changed = {
        name: dataclasses.replace(getattr(task, name), at=at, weight=weight)
        for name, at in terms.items()
    }
    return dataclasses.replace(task, **changed)


def batch_of(images, mask, **values):
    image = jnp.asarray(common.nhwc(images))
    return {"image": image, "mask": jnp.asarray(mask)} | values


def codes_of(z, *at):
    return jnp.asarray(z["in/token_targets"][at], jnp.int32)


def gradients(theirs, grads, layout):
    """Compare gradients to 1e-4 of the tensor's maximum, and the global norm if it is stored."""
    ours = load.to_torch(grads, layout)
    norm = np.sqrt(sum(np.square(v.astype(np.float64)).sum() for v in ours.values()))
    for key, value in theirs.items():
        if key == "__global_norm__":
            common.rel(key, norm, value, 1e-4)
        else:
            common.close(f"grad/{key}", ours[key], value, 1e-4 * np.abs(value).max())


def pretrain(z, meta):
    task = build(meta["config"], Clock(1, 1))
    params = common.imported(common.arrays(z, "sd"), task)
    task = common.given(task, "code_target")
    batch = batch_of(z["in/images"], z["in/mask"], code_target=codes_of(z))

    @jax.jit
    def run(params, batch):
        prepared = common.inputs(task, params, batch)

        def loss(params):
            out = task.loss(params, {}, prepared, KEY, 0, False)
            return out.total, out

        (_, out), grads = jax.value_and_grad(loss, has_aux=True)(params)
        both = [before_projection(task, params, prepared, x) for x in ("ids_v", "ids_m")]
        return out, grads, both, prepared.targets["align"]["masked"]

    out, grads, (tokens, other), aligned = run(params, batch)
    common.rel("total", out.total, z["loss/total"], 1e-5)
    common.rel("main", out.metrics["loss/code"], z["loss/main"], 1e-5)
    common.rel("align", out.metrics["loss/align"], z["loss/align_unweighted"], 1e-5)
    pred = {name: out.predictions[name].values["masked"] for name in ("code", "align")}
    common.close("logits", pred["code"], z["out/logits"], 1e-4)
    common.close("latent_visible", tokens, z["out/latent_visible_with_cls"], 1e-4)
    common.close("align_encoder", other, z["out/align_encoder_with_cls"], 1e-4)
    common.close("latent_predict", pred["align"], z["out/latent_predict"], 1e-4)
    common.close("latent_target", aligned, z["out/latent_target"], 1e-4)
    gradients(common.arrays(z, "grad"), grads, "cae")


def before_projection(task, params, prepared, ids):
    """The encoder's tokens of some patches after its norm."""
    alone = task.encoder.clone(project=None)
    ids = getattr(prepared, ids)
    return alone.apply({"params": params["encoder"]}, prepared.image, ids).tokens


def skip_norm1_k(key, size):
    return np.full(size, not key.endswith(NORM1_K))


def trained(task, cfg, clock, z, params, offset):
    """The file's steps through the real train step."""
    lr = optimizers.learning_rate(cfg, clock, 256)
    decay = optimizers.weight_decay(cfg, clock)
    tx = optimizers.make_optimizer(
        cfg, params, lambda t: lr(t + offset), lambda t: decay(t + offset)
    )
    state = TrainState(
        np.int32(offset), params, {}, task.init_ema(params), jax.jit(tx.init)(params)
    )
    step = jax.jit(functools.partial(train_step, task=task, tx=tx, seed=0))
    rows = []
    for i in range(len(z["in/images"])):
        batch = batch_of(z["in/images"][i], z["in/mask"][i], code_target=codes_of(z, i))
        state, metrics = step(state, {}, batch)
        rows.append(metrics)
    return state, rows, lr


def check_losses(z, c, rows):
    """The losses of all steps; the files hold the aligning one with its weight."""
    for ours, theirs in (("code", "main"), ("align", "align"), ("total", "total")):
        scale = (OFFICIAL | c)["align_loss_weight"] if ours == "align" else 1.0
        values = [scale * float(m[f"loss/{ours}"]) for m in rows]
        common.rel(ours, values, z[f"loss/{theirs}"], 1e-5)


def optimizer(meta, schedule):
    c = meta["config"]
    return optimizers.OptimizerConfig(
        lr=c["lr"],
        rule=common.adam(meta, BETAS),
        schedule=schedule,
        weight_decay=c["weight_decay"],
        clip_norm=c["clip_grad"] or None,
        decay=(SPARED, (".*", 1.0)),
    )


def steps(z, meta):
    c = meta["config"]
    clock = Clock(c["iters_per_epoch"], c["iters_per_epoch"] * c["epochs"])
    task = common.given(build(c, clock), "code_target")
    cfg = optimizer(meta, BEiTCosine(c["warmup_epochs"], min_lr=c["min_lr"]))
    sd = common.arrays(z, "sd")
    params = load.from_torch(sd, common.shapes(task), "cae")
    state, rows, lr = trained(task, cfg, clock, z, params, c["start_it"])
    common.rel("schedule", lr(np.arange(clock.total_steps)), meta["lr_schedule"], 1e-6)
    check_losses(z, c, rows)
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
    align = dataclasses.replace(CAE.align_target, of="average")
    average = Average(decay=Constant(c["base_momentum"]), takes="old")
    full = build(c, clock, align_target=align, average=average)
    task = common.given(full, "code_target")
    cfg = optimizer(meta, BEiTCosine(0.0, min_lr=c["lr"]))
    sd = common.arrays(z, "sd")
    params = common.imported(sd, full)
    first = batch_of(z["in/images"][0], z["in/mask"][0], code_target=codes_of(z, 0))

    @jax.jit
    def before(params, first):
        prepared = common.inputs(task, params, first, task.init_ema(params))
        predictions = task.loss(params, {}, prepared, KEY, 0, False).predictions
        return prepared, predictions["code"].values, predictions["align"].values

    prepared, logits, latents = before(params, first)
    aligned = prepared.targets["align"]["masked"]
    common.close("latent_predict", latents["masked"], z["out/latent_predict_step0"], 1e-4)
    common.close("latent_target", aligned, z["out/latent_target_step0"], 1e-4)
    common.close("logits", logits["masked"], z["out/logits_step0"], 1e-4)
    state, rows, _ = trained(task, cfg, clock, z, params, 0)
    check_losses(z, c, rows)
    final = common.arrays(z, "final")
    teacher = {k: v for k, v in final.items() if k.startswith("teacher.") and "pos_embed" not in k}
    student = {k: v for k, v in final.items() if k not in teacher and "pos_embed" not in k}
    ours = load.to_torch(state.params, "cae_older")
    common.check_movement("final", ours, student, sd, skip_norm1_k)
    ema = load.to_torch({"encoder": state.ema["encoder"]}, "cae_older")
    rename = lambda tree: {k.replace("encoder.", "teacher.", 1): v for k, v in tree.items()}
    common.check_movement("teacher", rename(ema), teacher, rename(sd))


def masking(z, meta):
    kind = BlockAtMost if meta["kind"] == "beit.masking" else Block
    grid, n = tuple(meta["grid"]), int(np.prod(meta["grid"]))
    scale = n / 196  # the options are counts on the official grid
    blocks = kind(
        common.ratio(meta["num_masking_patches"], n),
        min_block=round(meta["min_num_patches"] / scale),
        max_block=round((meta["max_num_patches"] or 0) / scale) or None,
        min_aspect=meta["min_aspect"],
    )
    masks = common.sample(blocks, grid, meta["samples"], meta["python_random_seed"])
    # the same draws in the same order: not statistics alone, every mask is the official one
    np.testing.assert_array_equal(masks[: len(z["stat/examples"])], z["stat/examples"] == 1)
    np.testing.assert_array_equal(masks.sum((1, 2)), z["stat/counts"])
    common.close("freq", masks.mean(0), z["stat/freq"], 1e-12)


def init(z, meta):
    c = meta["config"]
    n = (c["img_size"] // c["patch_size"]) ** 2
    task = build(c | {"num_mask": n // 2}, Clock(1, 1))
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
        common.table(key, ours, table[1:], 1e-6)


def caev2(z, meta):
    c, paper = meta["config"], meta["kind"] == "caev2.pretrain_paper"
    task = build_v2(c, Clock(1, 1), paper)
    names_ = {"head.fc.": "decoder.head.", "head.ln.": "decoder.norm."}

    def official(key):
        for a, b in names_.items() if paper else ():
            key = key.replace(a, b) if key.startswith(a) else key
        return key

    sd = {official(k): v for k, v in common.arrays(z, "sd").items()}
    params = common.imported(sd, task)
    task = common.given(task, "teacher_target")
    task_paper = apart(task, 1.0)
    batch = batch_of(z["in/images"], z["in/mask"], teacher_target=z["in/clip_features"])

    @jax.jit
    def run(params, batch):
        prepared = common.inputs(task, params, batch)

        def loss(params):
            out = task.loss(params, {}, prepared, KEY, 0, False)
            return out.total, out.predictions

        (total, pred), grads = jax.value_and_grad(loss, has_aux=True)(params)
        other = common.inputs(task_paper, params, batch)
        second = task_paper.loss(params, {}, other, KEY, 0, False)
        return total, pred, grads, before_projection(task, params, prepared, "ids_v"), second

    total, pred, grads, tokens, second = run(params, batch)
    common.rel("total", total, z["loss/total"], 1e-5)
    common.rel("visible", second.metrics["loss/token"], z["loss/visible"], 1e-5)
    common.rel("masked", second.metrics["loss/masked"], z["loss/masked"], 1e-5)
    out = pred["token"].values
    if paper:
        common.close("visible_out", out["visible"], z["out/visible_out"], 1e-4)
        common.close("masked_out", pred["masked"].values["masked"], z["out/masked_out"], 1e-4)
    else:
        every = jnp.concatenate([out[place] for place in PLACES], axis=1)
        common.close("latents_out", jax.jit(unit)(every), z["out/latents_out"], 1e-4)
        common.rel("paper", second.total, z["loss/paper_total"], 1e-5)
    common.close("visible", tokens, z["out/latent_visible_with_cls"], 1e-4)
    gradients({official(k): v for k, v in common.arrays(z, "grad").items()}, grads, "cae")
