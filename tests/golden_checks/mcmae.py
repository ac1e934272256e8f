"""MCMAE (ConvMAE) and FastConvMAE against numbers of the official code."""

import random

import jax
import jax.numpy as jnp
import numpy as np

from golden_checks import common
from mimjax import rules
from mimjax.masking.base import Random
from mimjax.masking.views import Complementary
from mimjax.methods.mcmae import MCMAE
from mimjax.models.conv_vit import CBlock, ConvViT
from mimjax.models.decoders import MAEDecoder
from mimjax.models.positions import resize_absolute
from mimjax.models.vit import sincos_table
from mimjax.patches import patchify
from mimjax.rng import step_key
from mimjax.run.config_files import import_config
from mimjax.targets.pixels import Pixels
from mimjax.task import Clock
from mimjax.torch_io.read import detect, load

config = import_config("mcmae")

KEY = step_key(0, "train", 0)
VIEWS = 4  # of FastConvMAE, at its only ratio


def build(c, clock, masking=Random):
    d1, d2, d3 = c["dims"]
    m1, m2, m3 = (float(r) for r in c["mlp_ratio"])
    encoder = ConvViT(
        width=d3,
        depth=c["depths"][2],
        heads=c["heads"],
        stage_widths=(d1, d2),
        stage_depths=tuple(c["depths"][:2]),
        stage_mlp_ratios=(m1, m2),
        image_size=(c["img_size"],) * 2,
        mlp_ratio=m3,
    )
    return MCMAE(
        clock,
        encoder,
        masking=masking(c["mask_ratio"]),
        pixel_target=Pixels("patch" if c["norm_pix_loss"] else "none"),
        decoder=MAEDecoder(c["dec_dim"], c["dec_depth"], c["dec_heads"]),
    )


def read(sd, like):
    return jax.tree.map(jnp.asarray, load.from_torch(sd, like, "mcmae"))


def global_norm(grads):
    return np.sqrt(sum(np.square(np.asarray(g, np.float64)).sum() for g in jax.tree.leaves(grads)))


def gradients(z, theirs):
    """Compare named gradients to 1e-4 of the tensor's maximum, and the global norm."""
    for key, value in common.arrays(z, "grad").items():
        if key != "in_x":
            common.close(f"grad/{key}", theirs[key], value, 1e-4 * np.abs(value).max())


def check_positions(z, task):
    for key, net in (("pos_embed", task.encoder), ("decoder_pos_embed", task.decoder)):
        table = sincos_table(task.encoder.grid, net.width, "xy")
        common.table(key, table, z[f"sd/{key}"][0], 1e-6)


def run(task, params, prepared):
    """Loss, gradients, features, predictions of all patches in raster order, what is inside."""

    @jax.jit
    def all_of_it(params, prepared):
        loss = lambda p: task.loss(p, {}, prepared, KEY, 0, True).total
        total, grads = jax.value_and_grad(loss)(params)
        read = prepared.image, prepared.ids_v
        f = task.encoder.apply({"params": params["encoder"]}, *read)
        inside = common.intermediates(task.encoder, params["encoder"], *read)
        pred, _ = common.network(task, params, prepared, "decoder")
        return total, grads, f, pred, inside

    total, grads, f, pred, inside = all_of_it(params, prepared)
    return total, grads, f, common.by_raster(pred, common.ids_of(prepared)), inside


def to_cells(maps, grid):
    """NCHW maps as [b n (p q c)], the patches' own positions together."""
    b, c, height, width = maps.shape
    p, q = height // grid[0], width // grid[1]
    x = maps.reshape(b, c, grid[0], p, grid[1], q).transpose(0, 2, 4, 3, 5, 1)
    return x.reshape(b, grid[0] * grid[1], p * q * c)


def stage_maps(z, task, inside, keep):
    """What each stage gives for the visible patches, against the official maps."""
    depths = task.encoder.stage_depths
    stages = {f"stage{k + 1}": f"stage{k + 1}_block_{d - 1:02d}" for k, d in enumerate(depths)}
    convs = {f"stage{k}_output_decode": f"stage{k}_fuse" for k in (1, 2)}
    embeds = {f"patch_embed{k}": f"patch_embed{k}" for k in (1, 2, 3, 4)}
    for name, ours in (stages | convs | embeds).items():
        theirs = z[f"out/{name}"]
        cells = to_cells(theirs, task.encoder.grid) if theirs.ndim == 4 else theirs
        # FastConvMAE: views one after another
        cells = np.tile(cells, (len(keep) // len(cells), 1, 1))
        seen = np.take_along_axis(cells, np.sort(keep, axis=1)[..., None], axis=1)
        common.close(name, inside[ours].reshape(seen.shape), seen, 1e-4)


def pretrain(z, meta):
    c = meta["config"]
    task = build(c, Clock(1, 1))
    params = common.imported(common.arrays(z, "sd"), task)
    check_positions(z, task)
    keep = z["out/ids_keep"]
    mask = common.mask_from_noise(z["in/noise"], keep.shape[1])
    np.testing.assert_array_equal(mask, z["out/mask"] == 1)
    batch = {"image": jnp.asarray(common.nhwc(z["in/images"])), "mask": jnp.asarray(mask)}
    prepared = jax.jit(lambda p, b: common.inputs(task, p, b))(params, batch)
    np.testing.assert_array_equal(prepared.ids_v, np.sort(keep, axis=1))
    total, grads, f, pred, inside = run(task, params, prepared)
    common.rel("loss", total, z["loss/total"], 1e-5)
    common.rel("grad_norm", global_norm(grads), z["grad_norm"], 1e-4)
    gradients(z, load.to_torch(grads, "mcmae"))
    common.close("latent", f.tokens, common.by_raster(z["out/latent"], keep), 1e-4)
    before = common.by_raster(z["out/stage3_prefusion"], keep)
    common.close("prefusion", f.blocks[-1], before, 1e-4)
    common.close("pred", pred, z["out/pred"], 1e-4)
    # the file keeps the patches as they are before their normalization
    common.close("target", patchify(prepared.image, task.encoder.patch), z["out/target"], 1e-4)
    stage_maps(z, task, inside, keep)


def fast(z, meta):
    c = meta["config"]
    task = build(c, Clock(1, 1), Complementary)
    params = common.imported(common.arrays(z, "sd"), task)
    check_positions(z, task)
    order = np.argsort(z["in/noise"], axis=1, kind="stable")
    # set-major, as the official batch of stage 3
    keep = np.concatenate(np.split(order, VIEWS, axis=1))
    np.testing.assert_array_equal(keep[: len(order)], z["out/ids_keep"])
    mask = np.ones((len(keep), order.shape[1]), bool)
    np.put_along_axis(mask, keep, False, axis=1)
    np.testing.assert_array_equal(mask, z["out/mask"] == 1)
    rows = len(order)
    views = mask.reshape(VIEWS, rows, -1).swapaxes(0, 1)  # image by image, as the task has them
    batch = {"image": jnp.asarray(common.nhwc(z["in/images"])), "mask": jnp.asarray(views)}
    by_set = np.arange(VIEWS * rows).reshape(rows, VIEWS).T.reshape(-1)

    @jax.jit
    def inputs(params, batch, own):
        """Inputs in the file's order, of the task's own views, as evaluation reads them."""
        mine = jax.tree.map(lambda x: x[by_set], common.inputs(task, params, batch))
        first = common.inputs(task, params, batch, train=False)
        return mine, common.inputs(task, params, own).ids_v, first.ids_v

    rng = random.Random(0)
    views = np.stack([task.sample(rng, 0)["mask"] for _ in range(rows)])
    own = batch | {"mask": jnp.asarray(views)}
    prepared, filled, first = inputs(params, batch, own)
    np.testing.assert_array_equal(prepared.ids_v, np.sort(keep, axis=1))
    total, grads, f, pred, inside = run(task, params, prepared)
    common.rel("loss", total, z["loss/total"], 1e-5)
    common.rel("grad_norm", global_norm(grads), z["grad_norm"], 1e-4)
    gradients(z, load.to_torch(grads, "mcmae"))
    common.close("latent", f.tokens, common.by_raster(z["out/latent"], keep), 1e-4)
    before = common.by_raster(z["out/stage3_prefusion"], keep)
    common.close("prefusion", f.blocks[-1], before, 1e-4)
    common.close("pred", pred, z["out/pred"], 1e-4)
    stage_maps(z, task, inside, keep)
    # the task's own views fill the image together; evaluation reads the first of them alone
    filled = np.sort(np.asarray(filled).reshape(rows, -1), axis=1)
    np.testing.assert_array_equal(filled, np.broadcast_to(np.arange(order.shape[1]), order.shape))
    np.testing.assert_array_equal(first, np.sort(keep[:rows], axis=1))


def cblock(z, meta):
    c = meta["config"]
    side = c["up"]
    grid = (c["size"] // side,) * 2
    block = CBlock(mlp_ratio=float(c["mlp_ratio"]), place=(*grid, side))
    name = "stage1_block_00"
    to_ours = lambda x: to_cells(x, grid).reshape(len(x), -1, x.shape[1])
    x = jnp.asarray(to_ours(z["in/x"]))
    visible = jnp.asarray(to_ours(z["in/visible"])[..., 0] > 0.5)
    like = jax.eval_shape(block.init, jax.random.key(0), x)["params"]
    sd = {f"blocks1.0.{k}": v for k, v in common.arrays(z, "sd").items()}
    params = read(sd, {"encoder": {name: like}})["encoder"][name]
    unmasked = jax.jit(block.apply)({"params": params}, x)
    common.close("unmasked", unmasked, to_ours(z["out/unmasked"]), 1e-4)

    def loss(params, x):
        out = block.apply({"params": params}, x, None, visible)
        return jnp.square(out).mean(), out

    run = jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))
    (total, masked), (grads, dx) = run(params, x)
    common.close("masked", masked, to_ours(z["out/masked"]), 1e-4)
    common.rel("loss", total, z["loss/total"], 1e-5)
    common.rel("grad_norm", global_norm(grads), z["grad_norm"], 1e-4)
    theirs = to_ours(z["grad/in_x"])
    common.close("grad/in_x", dx, theirs, 1e-4 * np.abs(theirs).max())
    ours = load.to_torch({"encoder": {name: grads}}, "mcmae")
    gradients(z, {k.removeprefix("blocks1.0."): v for k, v in ours.items()})


def steps(z, meta):
    c, o = meta["config"], meta["optim"]
    clock = Clock(o["steps_per_epoch"], o["steps_per_epoch"] * o["epochs"])
    task = build(c, clock)
    schedule = {"min_lr": o["min_lr"], "warmup_epochs": float(o["warmup_epochs"])}
    section = config.get_config().optimizer
    cfg = common.optimizer(meta, section, schedule, lr=o["lr"], weight_decay=o["wd"])
    check_decay(meta, cfg, common.shapes(task))
    keep = int(z["in/noise"].shape[-1] * (1 - c["mask_ratio"]))
    data = {
        **{f"sd/{k}": v for k, v in common.arrays(z, "sd").items()},
        "in/lr": z["out/lr_steps"],
        "in/images": z["in/images"],
        "in/mask": common.mask_from_noise(z["in/noise"], keep),
        "out/grad_norm": z["out/grad_norm_steps"],
        "loss/total": z["loss/steps"],
    }
    start, state, _ = common.run_steps(
        Arrays(data), {"config": {"epoch": 0}}, task, cfg, {}, "mcmae"
    )
    common.check_movement(
        "final",
        load.to_torch(state.params, "mcmae"),
        common.arrays(z, "out/final"),
        load.to_torch(start, "mcmae"),
        common.without_key_bias,
    )


class Arrays(dict):
    """Arrays by name with the interface of an opened .npz."""

    @property
    def files(self):
        return list(self)


def check_decay(meta, cfg, params):
    """Check that exactly the listed parameters are spared the decay."""
    factors = jax.tree.leaves(rules.match(cfg.decay, params))
    rows = detect.rows_for("mcmae", rules.paths(params))
    spared = {k for row, factor in zip(rows, factors, strict=True) if not factor for k in row.keys}
    assert spared == set(meta["no_decay"])


def posinterp(z, meta):
    for i, sides in enumerate(meta["config"]["pairs"]):
        grids = [(side, side) for side in sides]
        ours = resize_absolute(z[f"in/pos_{i}"], *grids, num_prefix=0)
        common.table(f"pos_{i}", ours, z[f"out/pos_{i}"], 1e-5)
