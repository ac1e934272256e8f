"""SimMIM, a method in a user's file, against the numbers of its official code."""

import dataclasses
import json
import math
import pathlib

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from golden_checks import cae, common
from golden_checks.recording import Arrays
from mimjax import plugs
from mimjax.masking.base import Masking
from mimjax.models.attention import relative_index
from mimjax.models.vit import ViT
from mimjax.patches import unpatchify
from mimjax.run.config_files import import_config
from mimjax.schedules import Schedule
from mimjax.task import Clock
from mimjax.torch_io.read import load

FOLDER = pathlib.Path(__file__).parent.parent / "user"
FILE = FOLDER / "simmim.py"
SimMIM = plugs.find_class(f"{FILE}:SimMIM", "task")
Units = plugs.find_plug(Masking, f"{FILE}:Units", "method.masking")
MultiStep = plugs.find_plug(Schedule, f"{FILE}:MultiStep", "optimizer.schedule")
config = import_config(str(FOLDER / "simmim_config.py"))

KEY = jax.random.key(0)
LAYOUT = "beit"  # whose names the official ones are without "encoder."
COLORS = 3


@dataclasses.dataclass(frozen=True)
class Begun(MultiStep):
    """A run that begins at step `first` with a new scheduler: that step has the rate of step 0."""

    first: int = 0

    def rate(self, step, clock, peak):
        return super().rate(jnp.where(jnp.asarray(step) == self.first, 0, step), clock, peak)


# ------------------------------------------------------------------ the official names
def named(key):
    """The name of a parameter in the layout."""
    return key.replace("decoder.0.", "lm_head.").removeprefix("encoder.")


def by_pixel(x):
    """What the head gives, [(color row column) ...], in the order row, column, color."""
    side = round((len(x) / COLORS) ** 0.5)
    x = x.reshape(COLORS, side, side, -1)
    return x.transpose(1, 2, 0, 3).reshape(COLORS * side * side, -1)


def tensor(key, x):
    """A tensor of the file as the layout has it."""
    if not key.startswith("decoder.0."):
        return x
    return by_pixel(x) if key.endswith("weight") else by_pixel(x)[:, 0]


def official(state):
    """Tensors of the layout as an official file has them: the inverse of `named` and `tensor`."""
    out = {}
    for key, x in state.items():
        if not key.startswith("lm_head."):
            out[f"encoder.{key}"] = x
            continue
        side = round((len(x) / COLORS) ** 0.5)
        x = x.reshape(side, side, COLORS, -1).transpose(2, 0, 1, 3).reshape(len(x), -1)
        weight = key.endswith("weight")
        out[key.replace("lm_head.", "decoder.0.")] = x[..., None, None] if weight else x[:, 0]
    return out


def in_layout(z, meta):
    """The file with its parameters under the layout's names, and without what is no parameter.

    The biases of an encoder without any are zero.
    """
    out = Arrays()
    for name in z.files:
        kind, _, key = name.partition("/")
        if key.endswith("relative_position_index"):
            side = meta["config"]["img"] // meta["config"]["patch"]
            np.testing.assert_array_equal(relative_index((side, side)), z[name])
        elif kind in ("sd", "grad", "final"):
            out[f"{kind}/{named(key)}"] = tensor(key, z[name])
        else:
            out[name] = z[name]
    if not meta["config"]["qkv_bias"]:
        for i in range(meta["config"]["depth"]):
            zeros = np.zeros(meta["config"]["dim"], np.float32)
            out |= {f"sd/blocks.{i}.attn.{x}_bias": zeros for x in "qv"}
    if "meta_grad_norms" in z.files:
        norms = json.loads(str(z["meta_grad_norms"]))
        out["meta_grad_norms"] = json.dumps({named(k): v for k, v in norms.items()})
    groups = [g | {"params": [*map(named, g["params"])]} for g in meta.get("param_groups", [])]
    return Arrays(out), meta | {"param_groups": groups}


# ------------------------------------------------------------------ what a file describes
def build(c, clock):
    per_block = "per_block" if c["use_rpb"] else "none"
    return SimMIM(
        clock=clock,
        encoder=ViT(
            c["dim"],
            c["depth"],
            c["heads"],
            c["patch"],
            (c["img"], c["img"]),
            mlp_ratio=float(c["mlp_ratio"]),
            pos_embed="learned" if c["use_ape"] else "none",
            rel_pos="shared" if c["use_shared_rpb"] else per_block,
            layer_scale=c["init_values"] or None,
            bias="qv",
            init_scheme="beit",
            use_mask_token=True,
        ),
        masking=units(c),
    )


def units(c):
    return Units(c["mask_ratio"], c["mask_patch"] // c["patch"])


def optimizer(meta):
    c = meta["config"]
    schedule = {"warmup_epochs": c["warmup_epochs"], "start": c["warmup_lr"] / c["lr"]}
    schedule |= {"milestones": tuple(map(float, c["milestones"])), "gamma": c["gamma"]}
    section = config.get_config().optimizer
    changes = {"lr": c["lr"], "weight_decay": c["wd"], "clip_norm": c["clip_grad"] or None}
    return common.optimizer(meta, section, schedule, **changes)


def drawn(masking, grid, n, seed):
    """Masks [n h w] from the official draws: numpy's permutations of all units."""
    state, count = np.random.RandomState(seed), masking.num_units(grid)
    return np.stack([masking.hide(state.permutation(count), grid) for _ in range(n)])


def masks_of(c, shape):
    """The masks [... n] of a file, from its seed."""
    grid = (c["img"] // c["patch"],) * 2
    return drawn(units(c), grid, math.prod(shape[:-1]), c["mask_seed"]).reshape(shape)


# ------------------------------------------------------------------ the checks
def pretrain(z, meta):
    c = meta["config"]
    z, meta = in_layout(z, meta)
    task = build(c, Clock(1, 1))
    assert task.masking.masked_units(task.encoder.grid) == c["mask_count_units"]
    params = load.from_torch(common.arrays(z, "sd"), common.shapes(task), LAYOUT)
    np.testing.assert_array_equal(masks_of(c, z["in/mask"].shape), z["in/mask"])

    @jax.jit
    def run(params, batch):
        prepared, read = common.inputs(task, params, batch), []
        loss = lambda p: task.loss(p, {}, prepared, KEY, 0, True).total
        loss, grads = jax.value_and_grad(loss)(params)

        def entered(call, args, kwargs, context):
            if context.module.name == "block_00" and context.method_name == "__call__":
                read.append(args[0])
            return call(*args, **kwargs)

        args = {"params": params["encoder"]}, prepared.image, None, prepared.mask
        with nn.intercept_methods(entered):
            features = task.encoder.apply(*args)
        pred, _ = common.network(task, params, prepared, "head")
        return loss, grads, prepared, features, pred, read[0]

    batch = {"image": common.nhwc(z["in/images"]), "mask": z["in/mask"]}
    loss, grads, prepared, features, pred, tokens = run(params, batch)
    common.rel("loss", loss, z["loss/total"], 1e-5)
    if not c["qkv_bias"]:
        for i in range(c["depth"]):
            attention = grads["encoder"][f"block_{i:02d}"]["attn"]
            del attention["q_bias"], attention["v_bias"]
    if "meta_grad_norms" in z.files:
        common.check_gradients(z, grads, LAYOUT)
    else:
        cae.gradients(common.arrays(z, "grad"), grads, LAYOUT)

    inside = common.intermediates(
        task.encoder, params["encoder"], prepared.image, None, prepared.mask
    )
    common.close("patch_embed", inside["patch_embed"], z["out/patch_embed"], 1e-4)
    if "out/rel_pos_bias" in z.files:
        common.close("rel_pos_bias", inside["rel_pos"][0], z["out/rel_pos_bias"], 1e-6)
    common.close("tokens_in", tokens, z["out/tokens_in"], 1e-4)
    for i, block in enumerate(features.blocks):
        common.close(f"enc_block{i}", block, z[f"out/enc_block{i}"], 1e-4)
    common.close("enc_norm", features.tokens, z["out/enc_norm"], 1e-4)
    pred = common.by_raster(pred, common.ids_of(prepared))
    head = [by_pixel(x).T for x in z["out/head"]]
    common.close("head", pred, np.stack(head), 1e-4)
    image = unpatchify(pred, task.encoder.grid, c["patch"])
    common.close("rec", image, common.nhwc(z["out/rec"]), 1e-4)


def steps(z, meta):
    c = meta["config"]
    z, meta = in_layout(z, meta)
    clock = Clock(c["steps"], c["steps"] * c["epochs"])
    task, cfg = build(c, clock), optimizer(meta)
    np.testing.assert_array_equal(masks_of(c, z["in/mask"].shape), z["in/mask"])
    common.check_groups(meta, cfg, common.shapes(task), LAYOUT)
    rate = lambda step: cfg.schedule.rate(step, clock, c["lr"])
    # what the scheduler sets after a step is the rate of the next
    ours = [rate(step + 1) for step in range(clock.total_steps)]
    common.rel("lr_table", ours, z["in/lr_table"], 1e-6)
    first = c["epoch"] * clock.steps_per_epoch
    begun = dataclasses.replace(cfg, schedule=Begun(**vars(cfg.schedule), first=first))
    start, state, _ = common.run_steps(z, meta, task, begun, {}, LAYOUT)
    ends = load.to_torch(state.params, LAYOUT), common.arrays(z, "final")
    common.check_movement("final", *ends, load.to_torch(start, LAYOUT))


def masking(z, meta):
    for name, case in meta["cases"].items():
        data, side = common.arrays(z, name), case["img"] // case["patch"]
        kind, grid = units(case), (side, side)
        found = kind.num_units(grid), kind.masked_units(grid), kind.num_masked(grid)
        assert found == (case["units"], case["masked_units"], case["masked_patches"])
        masks = drawn(kind, grid, meta["n"], case["numpy_seed"])
        np.testing.assert_array_equal(masks[: len(data["first32"])], data["first32"] == 1)
        common.close("freq", masks.mean(0), data["freq"], 1e-12)
        near = common.neighbour_fraction(masks)
        common.rel("neighbour_masked", near, data["neighbour_masked"], 1e-6)
        # ours are drawn otherwise: the same numbers within chance, and whole units
        own = common.sample(kind, grid, meta["n"])
        for drawn_ in (masks, own):
            counts = np.bincount(drawn_.sum((1, 2)), minlength=len(data["counts"]))
            np.testing.assert_array_equal(counts, data["counts"])
        score = common.z_scores(own.mean(0), meta["n"], data["freq"], meta["n"])
        assert np.abs(score).max() <= 4.5
        assert abs(common.neighbour_fraction(own) - data["neighbour_masked"]) < 0.01
        corners = own[:, :: kind.unit, :: kind.unit]
        whole = corners.repeat(kind.unit, 1).repeat(kind.unit, 2)
        np.testing.assert_array_equal(own, whole)
