"""MAE against the numbers of its official code."""

import jax
import numpy as np

from golden_checks import common
from mimjax.masking.base import Random
from mimjax.methods.mae import MAE
from mimjax.models.decoders import MAEDecoder
from mimjax.models.vit import ViT, sincos_table
from mimjax.run.config_files import import_config
from mimjax.schedules import MAECosine
from mimjax.targets.pixels import Pixels
from mimjax.task import Clock
from mimjax.torch_io.read import load
from mimjax.train import optimizers

config = import_config("mae")

KEY = jax.random.key(0)


def build(c, clock):
    return MAE(
        clock=clock,
        encoder=ViT(c["dim"], c["depth"], c["heads"], c["patch"], (c["img"], c["img"])),
        decoder=MAEDecoder(c["dec_dim"], c["dec_depth"], c["dec_heads"]),
        masking=Random(c["ratio"]),
        pixel_target=Pixels("patch" if c["norm_pix"] else "none"),
    )


def optimizer(meta):
    c = meta["config"]
    schedule = {"min_lr": c["min_lr"], "warmup_epochs": c["warm"]}
    section = config.get_config().optimizer
    return common.optimizer(meta, section, schedule, lr=c["lr"], weight_decay=c["wd"])


def pretrain(z, meta):
    c = meta["config"]
    task = build(c, Clock(1, c["epochs"]))
    params = common.imported(common.arrays(z, "sd"), task)
    common.check_groups(meta, optimizer(meta), common.shapes(task), "mae")
    mask = common.mask_from_noise(z["in/noise"], z["in/ids_keep"].shape[1])
    np.testing.assert_array_equal(mask, z["in/mask"])

    @jax.jit
    def run(params, batch):
        prepared = common.inputs(task, params, batch, step=c["epoch"])
        shown = common.inputs(task, params, batch, step=c["epoch"], train=False).shown
        loss_fn = lambda p: task.loss(p, {}, prepared, KEY, c["epoch"], True).total
        loss, grads = jax.value_and_grad(loss_fn)(params)
        read = {"params": params["encoder"]}, prepared.image, prepared.ids_v
        decoder = common.network(task, params, prepared, "decoder")
        inside = common.intermediates(task.encoder, params["encoder"], prepared.image)
        encoded = inside["patch_embed"], task.encoder.apply(*read)
        return loss, grads, prepared, shown, encoded, decoder

    batch = {"image": common.nhwc(z["in/images"]), "mask": z["in/mask"]}
    loss, grads, prepared, shown, (embed, f), (pred, inside) = run(params, batch)
    common.rel("loss", loss, z["loss/total"], 1e-5)
    common.check_gradients(z, grads, "mae")

    ids = common.ids_of(prepared)
    common.close("pred", common.by_raster(pred, ids), z["out/pred"], 1e-4)
    target = common.at_patches(shown["pixel_target"] | prepared.targets["pixel"])
    common.close("target", common.by_raster(target, ids), z["out/target"], 1e-4)
    # the official hook sits before the positions are added
    common.close("patch_embed", embed, z["out/patch_embed"], 1e-4)
    table = sincos_table(task.encoder.grid, c["dim"], "xy")
    common.table("pos_embed", table, z["sd/pos_embed"][0, 1:], 1e-6)
    for name, x in [(f"enc_block{i}", b) for i, b in enumerate(f.blocks)] + [("latent", f.tokens)]:
        theirs = z[f"out/{name}"]
        common.close(name, x[:, 0], theirs[:, 0], 1e-4)
        ordered = common.by_raster(theirs[:, 1:], z["in/ids_keep"])
        common.close(name, x[:, 1:], ordered, 1e-4)
    for i in range(c["dec_depth"]):
        x = np.asarray(inside[f"block_{i:02d}"])
        theirs = z[f"out/dec_block{i}"]
        common.close(f"dec_block{i}", x[:, 0], theirs[:, 0], 1e-4)
        common.close(f"dec_block{i}", common.by_raster(x[:, 1:], ids), theirs[:, 1:], 1e-4)
    normed = common.by_raster(inside["norm"], ids)
    common.close("decoder_norm", normed, z["out/decoder_norm"][:, 1:], 1e-4)


def steps(z, meta):
    c = meta["config"]
    task = build(c, Clock(meta["steps"], meta["steps"] * c["epochs"]))
    start, state, _ = common.run_steps(z, meta, task, optimizer(meta), {}, "mae")
    common.check_movement(
        "final",
        load.to_torch(state.params, "mae"),
        common.arrays(z, "final"),
        load.to_torch(start, "mae"),
        common.without_key_bias,
    )


def masking(z, meta):
    for name, case in meta["cases"].items():
        data, grid = common.arrays(z, name), (case["grid"],) * 2
        mask = common.mask_from_noise(data["first16_noise"], case["len_keep"])
        np.testing.assert_array_equal(mask, data["first16_mask"].astype(bool))
        masking = Random(case["mask_ratio"])
        assert masking.num_masked(grid) == grid[0] * grid[1] - case["len_keep"]
        masks = common.sample(masking, grid, meta["n"])
        counts = np.bincount(masks.sum((1, 2)), minlength=len(data["counts"]))
        np.testing.assert_array_equal(counts, data["counts"])
        score = common.z_scores(masks.mean(0), meta["n"], data["freq"].reshape(grid), meta["n"])
        assert np.abs(score).max() <= 4.5
        near = common.neighbour_fraction(masks)
        assert abs(near - data["neighbour_masked"]) < 0.01


def schedules(z, meta):
    clock = Clock(meta["niter_per_epoch"], meta["niter_per_epoch"] * meta["epochs"])
    schedule = MAECosine(meta["warmup_epochs"], min_lr=meta["min_lr"])
    cfg = optimizers.OptimizerConfig(lr=meta["lr"], schedule=schedule)
    lr = np.asarray(optimizers.learning_rate(cfg, clock, 256)(np.arange(clock.total_steps)))
    common.rel("lr", lr, z["lr"], 1e-6)
    common.rel("lr_scaled", lr * meta["lr_scale"], z["lr_scaled"], 1e-6)
    for key, table in common.arrays(z, "pos").items():
        width, side = map(int, key.split("_"))
        ours = sincos_table((side, side), width, "xy")[: len(table) - 1]
        common.table(key, ours, table[1:], 1e-6)
        assert not table[0].any()


def init(z, meta):
    p = meta["params"]
    dim, patch = p["patch_embed.proj.weight"]["shape"][0], p["patch_embed.proj.weight"]["shape"][2]
    side = round((p["pos_embed"]["shape"][1] - 1) ** 0.5)
    last = lambda prefix: max(int(k.split(".")[1]) for k in p if k.startswith(prefix + "."))
    dec_dim = p["mask_token"]["shape"][-1]
    c = {
        "img": side * patch,
        "patch": patch,
        "dim": dim,
        "depth": 1 + last("blocks"),
        "heads": dim // 64,
        "dec_dim": dec_dim,
        "dec_depth": 1 + last("decoder_blocks"),
        "dec_heads": 16,
        "ratio": 0.75,
        "norm_pix": True,
    }
    tables = {
        "pos_embed_slice": sincos_table((side, side), dim, "xy"),
        "decoder_pos_embed_slice": sincos_table((side, side), dec_dim, "xy"),
    }
    common.check_init(z, meta, build(c, Clock(1, 1)), "mae", tables)
