"""BootMAE against the numbers of its official code."""

import random

import jax
import jax.numpy as jnp
import numpy as np

from golden_checks import common
from mimjax.masking.base import Masking
from mimjax.masking.block import block_mask, block_random_mask, neighbor_weight
from mimjax.methods.bootmae import BootMAE
from mimjax.models.decoders import InjectedDecoder
from mimjax.models.vit import ViT, sincos_table
from mimjax.patches import unpatchify
from mimjax.rng import step_key
from mimjax.run.config_files import import_config
from mimjax.schedules import BEiTCosine
from mimjax.task import Clock
from mimjax.torch_io.read import load
from mimjax.train import optimizers

config = import_config("bootmae")

STYLE = {"pos_embed": "sincos_yx", "bias": "qv", "init_scheme": "bootmae"}


def build(c, clock, masked):
    grid = c["img"] // c["patch"]
    encoder = ViT(c["dim"], c["depth"], c["heads"], c["patch"], (c["img"], c["img"]), **STYLE)
    return BootMAE(
        clock=clock,
        encoder=encoder,
        pixel_decoder=InjectedDecoder(width=c["dec_dim"], depth=c["dec_depth"]),
        feature_decoder=InjectedDecoder(depth=c["dec_depth"]),
        pixel_layer=c["fea_list"][0],
        feature_layer=c["fea_list"][-1],
        masking=Masking("block_random", common.ratio(masked, grid**2)),
        feature_weight=c["lam"],
        weighted_mask=c["weight_mask"],
        ema_start=c["ema0"],
        ema_end=0.99999 if c["ema_dyn"] else 0.9999,
    )


def optimizer(c):
    return common.optimizer(
        config.get_config().optimizer,
        {"min_lr": c["min_lr"], "warmup_epochs": c["warm"]},
        lr=c["lr"],
        weight_decay=c["wd"],
        weight_decay_end=c["wd_end"],
    )


def pretrain(z, meta):
    c = meta["config"]
    task = build(c, Clock(1, c["epochs"]), c["mask_num"])
    params = common.imported(common.arrays(z, "sd"), task)
    shapes = {"encoder": common.shapes(task)["encoder"]}
    # single-step files leave out the average of the final norm, which no target reads
    average = common.arrays(z, "sd") | common.arrays(z, "ema")
    ema = load.from_torch(average, shapes, "bootmae")
    step, key = c["epoch"], step_key(0, "train", 0)
    common.rel("lambda", task.lambda_(step), meta["effective_feature_weight"], 1e-6)
    common.rel("decay", task.ema_decay(step), meta["ema_decay_used"], 1e-6)
    common.check_groups(meta, optimizer(c), common.shapes(task), "bootmae")

    @jax.jit
    def run(params, batch):
        batch = task.prepare(ema, {}, batch, key, step, True)

        def loss_fn(p):
            out = task.loss(p, {}, batch, key, step, True)
            return out.total, out.metrics

        (total, metrics), grads = jax.value_and_grad(loss_fn, has_aux=True)(params)
        return total, metrics, grads, batch, task.predict(params, batch, key, False, True)

    batch = {"image": common.nhwc(z["in/images"]), "mask": z["in/mask"]}
    total, metrics, grads, prepared, pred = run(params, batch)
    common.rel("total", total, z["loss/total"], 1e-5)
    for name in ("pixel", "feature"):
        common.rel(name, metrics[f"loss/{name}"], z[f"loss/{name}"], 1e-5)
    common.check_gradients(z, grads, "bootmae")
    outputs(z, task, params, prepared, pred)


def outputs(z, task, params, batch, pred):
    ids = np.concatenate([batch["ids_v"], batch["ids_m"]], axis=1)
    grid, patch = task.encoder.grid, task.encoder.patch
    close = lambda name, ours: common.close(name, ours, z[f"out/{name}"], 1e-4)
    image = lambda x: unpatchify(x, grid, patch).transpose(0, 3, 1, 2)
    close("pixel_pred", image(common.by_raster(pred["pixel"], ids)))
    close("feat_pred", common.by_raster(pred["feature"], ids))
    rows = np.asarray(batch["ids_m"])[..., None]
    features = np.take_along_axis(z["out/feat_target"], rows, 1)
    common.close("feat_target", batch["features"], features, 1e-4)
    weight = np.take_along_axis(z["out/patch_weight"], rows[..., 0], 1)
    common.close("patch_weight", batch["weight_m"], weight, 1e-6)
    target = np.zeros((*ids.shape, batch["target"].shape[-1]), np.float32)
    np.put_along_axis(target, rows, np.asarray(batch["target"]), 1)
    np.put_along_axis(target, np.asarray(batch["ids_v"])[..., None], batch["visible_target"], 1)
    close("pixel_target", image(target))

    inside = common.intermediates(task.encoder, params["encoder"], batch["image"])
    close("patch_embed", inside["patch_embed"])
    f = jax.jit(task.encoder.apply)({"params": params["encoder"]}, batch["image"], batch["ids_v"])
    for i, block in enumerate(f.blocks):
        visible(f"enc_block{i}", block, z)
    visible("enc_norm", f.tokens, z)
    for short, name, layer in (("reg", "pixel", task.pixel_layer), ("pred", "feature", -1)):
        layer = layer if short == "reg" else task.feature_layer
        args = f.tokens, f.blocks[layer], batch["ids_v"], batch["ids_m"], True
        decoder = getattr(task, f"{name}_decoder")
        inside = common.intermediates(decoder, params[f"{name}_decoder"], *args)
        visible(f"{short}_down", inside["down"], z)
        normed = common.by_raster(inside["norm"], ids)
        common.close(f"{short}_norm", normed, z[f"out/{short}_norm"][:, 1:], 1e-4)
        for i in range(decoder.depth):
            mapped = {"": "", "_selfattn": "/attn", "_crossattn": "/cross"}
            for suffix, ours in mapped.items():
                key = f"out/{short}_block{i}{suffix}"
                if key in z.files:
                    x = np.asarray(inside[f"block_{i:02d}{ours}"])
                    common.close(key, x[:, 0], z[key][:, 0], 1e-4)
                    common.close(key, common.by_raster(x[:, 1:], ids), z[key][:, 1:], 1e-4)


def visible(name, ours, z):
    """Encoder tokens: theirs in the file's `ids_keep` order, ours by patch."""
    theirs = z[f"out/{name}"]
    common.close(name, np.asarray(ours)[:, 0], theirs[:, 0], 1e-4)
    theirs = common.by_raster(theirs[:, 1:], z["in/ids_keep"])
    common.close(name, np.asarray(ours)[:, 1:], theirs, 1e-4)


def steps(z, meta):
    c = meta["config"]
    spe = meta["steps"]
    task = build(c, Clock(spe, spe * c["epochs"]), c["mask_num"])
    cfg = optimizer(c)

    def ema(task, params):
        like = {"encoder": common.shapes(task)["encoder"]}
        return load.from_torch(common.arrays(z, "ema"), like, "bootmae")

    common.rel("decay", task.ema_decay(c["epoch"] * spe), meta["ema_decay_used"], 1e-6)
    clock = task.clock
    start, state, losses = common.run_steps(z, meta, task, cfg, clock, ema, "bootmae")
    for name in ("pixel", "feature"):
        ours = [m[f"loss/{name}"] for m in losses]
        common.rel(name, ours, z[f"loss/{name}"], 1e-5)
    before, after = load.to_torch(start, "bootmae"), load.to_torch(state.params, "bootmae")
    common.check_movement("final", after, common.arrays(z, "final"), before)
    after = load.to_torch(state.ema, "bootmae")
    theirs = {k: v for k, v in common.arrays(z, "final_ema").items() if k in after}
    assert len(theirs) == len(after)
    common.check_movement("final_ema", after, theirs, common.arrays(z, "ema"))


def masking(z, meta):
    n = meta["n"]
    for name, case in meta["cases"].items():
        data = common.arrays(z, name)
        grid = (case["grid"],) * 2
        sizes = [
            case[k]
            for k in ("num_masking_patches", "min_num_patches", "max_num_patches", "min_aspect")
        ]
        rng = random.Random(case["python_random_seed"])
        masks = np.stack([block_mask(rng, grid, *sizes).reshape(grid) for _ in range(n)])
        np.testing.assert_array_equal(masks[:64], data["gen_first64"].astype(bool))
        common.close("gen_freq", masks.mean(0), data["gen_freq"], 1e-12)  # the same 2,000 masks
        counts = np.bincount(masks.sum((1, 2)), minlength=len(data["gen_counts"]))
        np.testing.assert_array_equal(counts, data["gen_counts"])
        near = common.neighbour_fraction(masks)
        assert abs(near - data["gen_neighbour_masked"]) < 0.01, (near, data["gen_neighbour_masked"])

        final = np.stack(
            [
                block_random_mask(rng, m.reshape(-1), case["mask_num"], 3).reshape(grid)
                for m in masks
            ]
        )
        counts = np.bincount(final.sum((1, 2)), minlength=len(data["final_counts"]))
        np.testing.assert_array_equal(counts, data["final_counts"])
        score = common.z_scores(final.mean(0), n, data["final_freq"], n)
        assert np.abs(score).max() <= 4.5, np.abs(score).max()
        near = common.neighbour_fraction(final)
        assert abs(near - data["final_neighbour_masked"]) < 0.01
        overlap = np.bincount((final & masks).sum((1, 2)), minlength=len(data["overlap_counts"]))
        assert set(np.flatnonzero(overlap)) == set(np.flatnonzero(data["overlap_counts"]))
        first = jnp.asarray(data["final_first8"].astype(bool).reshape(8, -1))
        weight = np.asarray(neighbor_weight(first, grid)).reshape(8, *grid)
        common.close("weight", weight, data["weight_first8"], 1e-6)
        weight = neighbor_weight(jnp.asarray(final.reshape(n, -1)), grid)
        weight = np.asarray(weight).reshape(n, *grid)
        mean = weight[final].mean()
        assert abs(mean / data["weight_mean_on_masked"] - 1) < 0.01


def schedules(z, meta):
    clock = Clock(meta["niter_per_epoch"], meta["niter_per_epoch"] * meta["epochs"])
    step = np.arange(clock.total_steps)

    def lr(epochs, steps=0):
        schedule = BEiTCosine(epochs, steps or None, meta["min_lr"])
        cfg = optimizers.OptimizerConfig(lr=meta["lr"], schedule=schedule)
        return optimizers.learning_rate(cfg, clock, 256)(step)

    common.rel("lr", lr(meta["warmup_epochs"]), z["lr"], 1e-6)
    common.rel("lr_no_warmup", lr(0), z["lr_no_warmup"], 1e-6)
    common.rel("lr_warmup_steps", lr(0, meta["warmup_steps_case"]), z["lr_warmup_steps"], 1e-6)
    start, end = meta["wd"]
    cfg = optimizers.OptimizerConfig(weight_decay=start, weight_decay_end=end)
    common.rel("wd", optimizers.weight_decay(cfg, clock)(step), z["wd"], 1e-6)
    epoch = np.arange(len(z["ema_dynamic"]))
    task = BootMAE(Clock(1, len(z["feature_weight"])), ema_end=0.99999)
    common.rel("ema_dynamic", task.ema_decay(epoch), z["ema_dynamic"], 1e-6)
    static = BootMAE(Clock(1, 801), ema_end=0.9999)
    common.rel("ema_static", static.ema_decay(epoch), z["ema_static"], 1e-6)
    common.rel("feature_weight", task.lambda_(epoch), z["feature_weight"], 1e-6)


def init(z, meta):
    p = meta["params"]
    dim, patch = p["patch_embed.proj.weight"]["shape"][0], p["patch_embed.proj.weight"]["shape"][2]
    side = round((p["pos_embed"]["shape"][1] - 1) ** 0.5)
    depth = 1 + max(int(k.split(".")[1]) for k in p if k.startswith("blocks."))
    dec_dim = p["mask_token"]["shape"][-1]
    heads = dim // 64  # ViT's head width at every published size
    c = {
        "img": side * patch,
        "patch": patch,
        "dim": dim,
        "depth": depth,
        "heads": heads,
        "dec_dim": dec_dim,
        "dec_depth": 1 + max(int(k.split(".")[1]) for k in p if k.startswith("decode_blocks.")),
        "fea_list": [0, depth - 1],
        "lam": 1.0,
        "weight_mask": True,
        "ema0": 0.999,
        "ema_dyn": True,
    }
    task = build(c, Clock(1, 1), side**2 * 3 // 4)
    tables = {
        "pos_embed_slice": sincos_table((side, side), dim, "yx"),
        "de_pos_embed_slice": sincos_table((side, side), dec_dim, "yx"),
    }
    common.check_init(z, meta, task, "bootmae", tables)
