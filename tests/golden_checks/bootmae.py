"""BootMAE against the numbers of its official code."""

import dataclasses
import random

import jax
import jax.numpy as jnp
import numpy as np

from golden_checks import common
from mimjax.losses import standardize
from mimjax.masking.base import neighbor_weight
from mimjax.masking.block import BlockRandom, block_mask, hide, shuffled
from mimjax.methods.bootmae import BootMAE, Momentum
from mimjax.methods.parts import Average
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

TERMS = ("pixel", "feature")
ROLL = BlockRandom().roll_max
STYLE = {"pos_embed": "sincos_yx", "bias": "qv", "init_scheme": "bootmae"}


def build(c, clock, masked):
    """The task of a file's settings; `masked` is the number of masked patches."""
    grid = c["img"] // c["patch"]
    return BootMAE(
        clock=clock,
        encoder=ViT(c["dim"], c["depth"], c["heads"], c["patch"], (c["img"], c["img"]), **STYLE),
        masking=BlockRandom(
            common.ratio(masked, grid**2), weights="neighbors" if c["weight_mask"] else "none"
        ),
        pixel_decoder=InjectedDecoder(
            width=c["dec_dim"], depth=c["dec_depth"], inject=c["fea_list"][0], head="pixel"
        ),
        feature_decoder=InjectedDecoder(depth=c["dec_depth"], inject=c["fea_list"][-1]),
        feature=dataclasses.replace(BootMAE.feature, weight=c["lam"]),
        average=Average(decay=Momentum(c["ema0"], end=0.99999 if c["ema_dyn"] else 0.9999)),
    )


def optimizer(meta):
    c = meta["config"]
    return common.optimizer(
        meta,
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
    common.rel("decay", task.average.decay(step, task.clock), meta["ema_decay_used"], 1e-6)
    common.check_groups(meta, optimizer(meta), common.shapes(task), "bootmae")

    @jax.jit
    def run(params, ema, batch):
        prepared = common.inputs(task, params, batch, ema, step)
        shown = common.inputs(task, params, batch, ema, step, train=False).shown

        def loss_fn(p):
            out = task.loss(p, {}, prepared, key, step, True)
            return out.total, out.metrics

        (total, metrics), grads = jax.value_and_grad(loss_fn, has_aux=True)(params)
        decoders = {k: common.network(task, params, prepared, f"{k}_decoder") for k in TERMS}
        inside = common.intermediates(task.encoder, params["encoder"], prepared.image)
        read = {"params": params["encoder"]}, prepared.image, prepared.ids_v
        encoded = inside["patch_embed"], task.encoder.apply(*read)
        return total, metrics, grads, prepared, shown, decoders, encoded

    batch = {"image": common.nhwc(z["in/images"]), "mask": z["in/mask"]}
    total, metrics, grads, prepared, shown, decoders, encoded = run(params, ema, batch)
    common.rel("total", total, z["loss/total"], 1e-5)
    for name in TERMS:
        common.rel(name, metrics[f"loss/{name}"], z[f"loss/{name}"], 1e-5)
    common.rel("lambda", metrics["weight/feature"], meta["effective_feature_weight"], 1e-6)
    common.check_gradients(z, grads, "bootmae")
    targets(z, task, prepared, shown)
    encoder(z, *encoded)
    ids = common.ids_of(prepared)
    pred = {name: common.by_raster(found[0], ids) for name, found in decoders.items()}
    common.close("pixel_pred", image(task, pred["pixel"]), z["out/pixel_pred"], 1e-4)
    common.close("feat_pred", pred["feature"], z["out/feat_pred"], 1e-4)
    for short, name in (("reg", "pixel"), ("pred", "feature")):
        decoder(z, ids, short, c["dec_depth"], decoders[name][1])


def targets(z, task, prepared, shown):
    """What is learned and how patches are weighed."""
    rows = np.asarray(prepared.ids_m)[..., None]
    features = np.take_along_axis(z["out/feat_target"], rows, 1)
    ours = shown["feature_target"]["masked"]
    common.close("feat_target", ours, features, 1e-4)
    normed = jax.jit(standardize)(features)  # as the loss compares it
    common.close("feat_target", prepared.targets["feature"]["masked"], normed, 1e-4)
    weight = jnp.ones(rows.shape[:2]) if prepared.weight is None else prepared.weight
    theirs = np.take_along_axis(z["out/patch_weight"], rows[..., 0], 1)
    common.close("patch_weight", weight, theirs, 1e-6)
    target = common.at_patches(shown["pixel_target"] | prepared.targets["pixel"])
    target = common.by_raster(target, common.ids_of(prepared))
    common.close("pixel_target", image(task, target), z["out/pixel_target"], 1e-4)


def image(task, x):
    """Patches [b n d] as images of torch."""
    return unpatchify(x, task.encoder.grid, task.encoder.patch).transpose(0, 3, 1, 2)


def encoder(z, embed, f):
    """All embedded patches, and the tokens of the visible ones, block by block."""
    common.close("patch_embed", embed, z["out/patch_embed"], 1e-4)
    for i, block in enumerate(f.blocks):
        visible(f"enc_block{i}", block, z)
    visible("enc_norm", f.tokens, z)


def visible(name, ours, z):
    """Encoder tokens: theirs in the file's `ids_keep` order, ours by patch."""
    theirs = z[f"out/{name}"]
    common.close(name, np.asarray(ours)[:, 0], theirs[:, 0], 1e-4)
    theirs = common.by_raster(theirs[:, 1:], z["in/ids_keep"])
    common.close(name, np.asarray(ours)[:, 1:], theirs, 1e-4)


def decoder(z, ids, short, depth, inside):
    """The tokens of a decoder, layer by layer."""
    visible(f"{short}_down", inside["down"], z)
    normed = common.by_raster(inside["norm"], ids)
    common.close(f"{short}_norm", normed, z[f"out/{short}_norm"][:, 1:], 1e-4)
    for i in range(depth):
        mapped = {"": "", "_selfattn": "/attn", "_crossattn": "/cross"}
        for suffix, ours in mapped.items():
            key = f"out/{short}_block{i}{suffix}"
            if key in z.files:
                x = np.asarray(inside[f"block_{i:02d}{ours}"])
                common.close(key, x[:, 0], z[key][:, 0], 1e-4)
                common.close(key, common.by_raster(x[:, 1:], ids), z[key][:, 1:], 1e-4)


def steps(z, meta):
    c = meta["config"]
    spe = meta["steps"]
    task = build(c, Clock(spe, spe * c["epochs"]), c["mask_num"])
    like = {"encoder": common.shapes(task)["encoder"]}
    ema = load.from_torch(common.arrays(z, "ema"), like, "bootmae")
    decay = task.average.decay(c["epoch"] * spe, task.clock)
    common.rel("decay", decay, meta["ema_decay_used"], 1e-6)
    cfg = optimizer(meta)
    start, state, losses = common.run_steps(z, meta, task, cfg, ema, "bootmae")
    for name in TERMS:
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

        shuffles = (shuffled(rng, m.reshape(-1)) for m in masks)
        final = [hide(order, rng.randint(0, ROLL), case["mask_num"]) for order in shuffles]
        final = np.stack(final).reshape(n, *grid)
        counts = np.bincount(final.sum((1, 2)), minlength=len(data["final_counts"]))
        np.testing.assert_array_equal(counts, data["final_counts"])
        score = common.z_scores(final.mean(0), n, data["final_freq"], n)
        assert np.abs(score).max() <= 4.5, np.abs(score).max()
        near = common.neighbour_fraction(final)
        assert abs(near - data["final_neighbour_masked"]) < 0.01
        overlap = np.bincount((final & masks).sum((1, 2)), minlength=len(data["overlap_counts"]))
        assert set(np.flatnonzero(overlap)) == set(np.flatnonzero(data["overlap_counts"]))
        first = jnp.asarray(data["final_first8"].astype(bool).reshape(8, -1))
        weights = jax.jit(neighbor_weight, static_argnums=1)
        weight = np.asarray(weights(first, grid)).reshape(8, *grid)
        common.close("weight", weight, data["weight_first8"], 1e-6)
        weight = weights(final.reshape(n, -1), grid)
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
    clock = Clock(1, len(z["feature_weight"]))
    common.rel("ema_dynamic", Momentum(end=0.99999)(epoch, clock), z["ema_dynamic"], 1e-6)
    common.rel("ema_static", Momentum(end=0.9999)(epoch, clock), z["ema_static"], 1e-6)
    ours = BootMAE.feature.schedule(epoch, clock)
    common.rel("feature_weight", ours, z["feature_weight"], 1e-6)


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
