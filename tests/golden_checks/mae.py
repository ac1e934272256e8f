"""MAE against the numbers of its official code."""

import jax
import numpy as np

from golden_checks import common
from mimjax.masking.base import Masking
from mimjax.methods.mae import MAE
from mimjax.models.decoders import MAEDecoder
from mimjax.models.vit import ViT, sincos_table
from mimjax.rng import step_key
from mimjax.run.config_files import import_config
from mimjax.schedules import MAECosine
from mimjax.task import Clock
from mimjax.torch_io.read import load
from mimjax.train import optimizers

config = import_config("mae")


def build(c, clock):
    return MAE(
        clock=clock,
        encoder=ViT(c["dim"], c["depth"], c["heads"], c["patch"], (c["img"], c["img"])),
        decoder=MAEDecoder(c["dec_dim"], c["dec_depth"], c["dec_heads"]),
        masking=Masking("random", c["ratio"]),
        pixel_norm="mae" if c["norm_pix"] else "none",
    )


def optimizer(c):
    schedule = {"min_lr": c["min_lr"], "warmup_epochs": c["warm"]}
    section = config.get_config().optimizer
    return common.optimizer(section, schedule, lr=c["lr"], weight_decay=c["wd"])


def pretrain(z, meta):
    c = meta["config"]
    task = build(c, Clock(1, c["epochs"]))
    params = common.imported(common.arrays(z, "sd"), task)
    common.check_groups(meta, optimizer(c), common.shapes(task), "mae")
    mask = common.mask_from_noise(z["in/noise"], z["in/ids_keep"].shape[1])
    np.testing.assert_array_equal(mask, z["in/mask"])
    key = step_key(0, "train", 0)

    @jax.jit
    def run(params, batch):
        batch = task.prepare({}, {}, batch, key, c["epoch"], True)
        loss_fn = lambda p: task.loss(p, {}, batch, key, c["epoch"], True).total
        loss, grads = jax.value_and_grad(loss_fn)(params)
        return loss, grads, batch, task.predict(params, batch, key, False, all_patches=True)

    loss, grads, batch, pred = run(
        params, {"image": common.nhwc(z["in/images"]), "mask": z["in/mask"]}
    )
    common.rel("loss", loss, z["loss/total"], 1e-5)
    common.check_gradients(z, grads, "mae")

    ids = np.concatenate([batch["ids_v"], batch["ids_m"]], axis=1)
    common.close("pred", common.by_raster(pred, ids), z["out/pred"], 1e-4)
    target = common.by_raster(np.concatenate([batch["visible_target"], batch["target"]], 1), ids)
    common.close("target", target, z["out/target"], 1e-4)
    inside = common.intermediates(task.encoder, params["encoder"], batch["image"])
    embed = inside["patch_embed"]
    table = sincos_table(task.encoder.grid, c["dim"], "xy")
    # the official hook sits before the positions are added
    common.close("patch_embed", embed, z["out/patch_embed"], 1e-4)
    common.close("pos_embed", table, z["sd/pos_embed"][0, 1:], 1e-6)
    f = jax.jit(task.encoder.apply)({"params": params["encoder"]}, batch["image"], batch["ids_v"])
    for name, x in [(f"enc_block{i}", b) for i, b in enumerate(f.blocks)] + [("latent", f.tokens)]:
        theirs = z[f"out/{name}"]
        common.close(name, x[:, 0], theirs[:, 0], 1e-4)
        ordered = common.by_raster(theirs[:, 1:], z["in/ids_keep"])
        common.close(name, x[:, 1:], ordered, 1e-4)
    args = f.tokens, batch["ids_v"], batch["ids_m"], True
    inside = common.intermediates(task.decoder, params["decoder"], *args)
    for i in range(c["dec_depth"]):
        x = np.asarray(inside[f"block_{i:02d}"])
        theirs = z[f"out/dec_block{i}"]
        common.close(f"dec_block{i}", x[:, 0], theirs[:, 0], 1e-4)
        common.close(f"dec_block{i}", common.by_raster(x[:, 1:], ids), theirs[:, 1:], 1e-4)
    normed = common.by_raster(inside["norm"], ids)
    common.close("decoder_norm", normed, z["out/decoder_norm"][:, 1:], 1e-4)


def without_key_bias(key, size):
    """The key bias has a true gradient of zero; Adam turns its rounding noise into steps."""
    keep = np.ones(size, bool)
    if key.endswith("attn.qkv.bias"):
        keep[size // 3 : 2 * size // 3] = False
    return keep


def steps(z, meta):
    c = meta["config"]
    task = build(c, Clock(meta["steps"], meta["steps"] * c["epochs"]))
    start, state, _ = common.run_steps(
        z, meta, task, optimizer(c), task.clock, lambda task, params: {}, "mae"
    )
    common.check_movement(
        "final",
        load.to_torch(state.params, "mae"),
        common.arrays(z, "final"),
        load.to_torch(start, "mae"),
        without_key_bias,
    )


def masking(z, meta):
    for name, case in meta["cases"].items():
        data, grid = common.arrays(z, name), (case["grid"],) * 2
        mask = common.mask_from_noise(data["first16_noise"], case["len_keep"])
        np.testing.assert_array_equal(mask, data["first16_mask"].astype(bool))
        masking = Masking("random", case["mask_ratio"])
        assert masking.num_masked(grid) == grid[0] * grid[1] - case["len_keep"]
        masks = common.sample(masking.sampler(grid), meta["n"]).reshape(-1, *grid)
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
        common.close(key, ours, table[1:], 1e-6)
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
