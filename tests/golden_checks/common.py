"""What the golden checks of several methods share."""

import dataclasses
import functools
import random
import tempfile

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict
from safetensors.numpy import save_file

from mimjax import rules, schema
from mimjax.inference import published
from mimjax.rng import step_key
from mimjax.storage import settings
from mimjax.targets.base import Target
from mimjax.task import Known, TrainState, take
from mimjax.torch_io.read import detect, load
from mimjax.train import optimizers
from mimjax.train.step import train_step

PATCHES = ("visible", "masked")


def arrays(z, prefix):
    """The file's arrays under `prefix/`, by the rest of their names."""
    return {k.removeprefix(prefix + "/"): z[k] for k in z.files if k.startswith(prefix + "/")}


def mask_from_noise(noise, num_visible):
    """MAE's mask: the `num_visible` smallest entries of float[... n] stay visible."""
    mask = np.ones(noise.shape, bool)
    keep = np.argsort(noise, axis=-1, kind="stable")[..., :num_visible]
    np.put_along_axis(mask, keep, False, axis=-1)
    return mask


def shapes(task):
    return jax.eval_shape(task.init, jax.random.key(0))[0]


def settings_of(task):
    """Every setting of a task by dotted name; of a layer scale only whether there is one.

    Networks have the sizes that the encoder gives them.
    """
    sized = {name: task.network(name) for name in task.networks}
    task = dataclasses.replace(task, **sized)
    flat = settings.flatten(schema.section(task).to_dict())
    return {k: bool(v) if k.endswith("layer_scale") else v for k, v in flat.items()}


def imported(sd, task):
    """Parameters of `task` from a real file of the tensors `sd`, by the importer.

    It gets a config with other sizes and must find those of `task` in the file; only heads, which
    no tensor shows, are told.
    """
    c = ConfigDict({"task": schema.class_path(type(task)), "dtype": "float32"})
    c.method = schema.section(task)
    m, told = c.method, None
    if type(task.encoder) is not type(schema.defaults(type(task))["encoder"]):
        m.encoder.type = schema.class_path(type(task.encoder))
    wrong = {"width": 8, "depth": 9, "heads": 1, "mlp_ratio": 9.0, "image_size": (8, 8)}
    if "strides" in m.encoder:
        wrong |= {"strides": (2, 2, 1), "stage_depths": (9, 9), "stage_mlp_ratios": (9.0, 9.0)}
        wrong |= {"stage_widths": (4, 4)}
    else:
        wrong |= {"patch": 2, "pos_embed": "sincos_xy", "rel_pos": "none", "bias": "full"}
    m.encoder.update(wrong)
    for name in task.networks:
        if "depth" in m[name]:
            m[name].update({"depth": 9} | ({"width": 4} if "width" in m[name] else {}))
            if m[name].get("mlp_ratio"):  # MAE's is the encoder's
                m[name].mlp_ratio = 9.0
            if getattr(task, name).heads is not None:  # else the encoder's
                told = getattr(task, name).heads
    for name, target in task.targets.items():
        if hasattr(getattr(target, "network", None), "vocab"):
            m[name].network.vocab = 3
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/published.safetensors"
        save_file({k: np.ascontiguousarray(v) for k, v in sd.items()}, path)
        held, _ = published.open_file(path, "auto", "--weights")
    choice = published.Choice(task.encoder.heads, told)
    found = published.fit(c, held, None, choice)
    assert settings_of(found.task) == settings_of(task)
    assert not found.absent
    return jax.device_put(found.params)


# ------------------------------------------------------------------ the parts of a step
@dataclasses.dataclass(frozen=True)
class Given(Target):
    """Values that a file holds: the batch brings them, of all tokens, under the target's name.

    Where the class token looks comes as the name and "/attention".
    """

    kind: str = "vectors"
    size: int = 1
    num_prefix: int = 0
    has_attention: bool = False

    def width(self, encoder):
        return self.size

    def attention(self, encoder, seen):
        return jnp.asarray(seen.batch[f"{seen.name}/attention"]), None

    def values(self, encoder, seen, at):
        return Known(take(jnp.asarray(seen.batch[seen.name]), self.num_prefix, seen.ids, at))


def given(task, name, **options):
    """`task` with a target `name` of the same kind and width whose values come with the batch."""
    target = getattr(task, name)
    new = Given(target.kind, target.width(task.encoder), target.num_prefix, target.has_attention)
    return dataclasses.replace(task, **{name: dataclasses.replace(new, **options)})


def state_of(params, ema=None, step=0):
    """A run's state as targets read it."""
    return TrainState(jnp.int32(step), params, {}, ema or {}, ())


def inputs(task, params, batch, ema=None, step=0, train=True):
    """What the loss reads, made by the task itself from a batch of normalized images."""
    key = step_key(0, "train", 0)
    return task.prepare(state_of(params, ema, step), {}, batch, key, train)[0]


def network(task, params, prepared, name):
    """What a network predicts at all patches, visible ones first, and what is inside of it."""
    encoded, _ = task.predict(params, prepared, jax.random.key(0), False)
    module = task.network(name)
    args = module.inputs(encoded, PATCHES)
    out = module.apply({"params": params[name]}, *args)
    inside = intermediates(module, params[name], *args)
    if "cls" in module.places(task.encoder, ("cls", *PATCHES)):
        # the last block computes the tokens that are read: the official outputs hold all
        whole = intermediates(module, params[name], *module.inputs(encoded, ("cls", *PATCHES)))
        inside |= {k: v for k, v in whole.items() if k.startswith("block_")}
    return at_patches(out), inside


def at_patches(values):
    """Values by place as those of all patches, visible ones first."""
    return jnp.concatenate([values[place] for place in PATCHES], axis=1)


def ids_of(prepared):
    """Ids of the patches in the order of `at_patches`."""
    return np.concatenate([prepared.ids_v, prepared.ids_m], axis=1)


def nhwc(images):
    return np.ascontiguousarray(images.transpose(0, 2, 3, 1))


def ratio(masked, n):
    """A mask ratio that gives exactly `masked` of `n` whatever the rounding of the division."""
    return (masked - 0.5) / n


def close(name, ours, theirs, atol):
    np.testing.assert_allclose(np.asarray(ours), theirs, rtol=0, atol=atol, err_msg=name)


def rel(name, ours, theirs, rtol):
    np.testing.assert_allclose(np.asarray(ours, np.float64), theirs, rtol=rtol, err_msg=name)


def table(name, ours, theirs, rtol):
    """Positions, to so much of the largest number of the table."""
    close(name, ours, theirs, rtol * np.abs(theirs).max())


def by_raster(tokens, ids):
    """Patch tokens [b k d] given in the order `ids` [b k], sorted by patch."""
    return np.take_along_axis(np.asarray(tokens), np.argsort(ids, axis=1)[..., None], axis=1)


def intermediates(module, params, *args, **kw):
    """Outputs of submodules, as {"block_00/attn": array}; those of several calls side by side."""

    @jax.jit
    def run(params):
        _, state = module.apply(
            {"params": params}, *args, capture_intermediates=True, mutable=["intermediates"], **kw
        )
        return state["intermediates"]

    out = {}
    for path, x in jax.tree_util.tree_leaves_with_path(run(params)):
        name, _, call = rules.path_name(path).rpartition("/__call__/")
        if call.isdigit():
            out[name] = jnp.concatenate([out[name], x], axis=1) if name in out else x
    return out


def check_gradients(z, grads, layout):
    """Compare named gradients to 1e-4 of the tensor's maximum, and every stored norm."""
    import json

    theirs = load.to_torch(grads, layout)
    for key, value in arrays(z, "grad").items():
        close(f"grad/{key}", theirs[key], value, 1e-4 * np.abs(value).max())
    norms = json.loads(str(z["meta_grad_norms"]))
    top = max(norms.values())
    for key, norm in norms.items():
        # a norm is compared relative to itself, with a floor for gradients that are all rounding
        assert key in theirs, key
        rel(f"norm {key}", np.linalg.norm(theirs[key]) + 1e-7 * top, norm + 1e-7 * top, 1e-4)
    assert set(norms) == set(theirs)


def check_groups(meta, cfg, params, layout):
    """Weight-decay groups as exact sets of parameter names."""
    factors = rules.match(cfg.decay, params)
    rows = detect.rows_for(layout, rules.paths(params))
    ours = {True: set(), False: set()}
    for row, factor in zip(rows, jax.tree.leaves(factors), strict=True):
        ours[factor > 0] |= set(row.keys)
    for group in meta["param_groups"]:
        assert ours[group["weight_decay"] > 0] == set(group["params"])


def optimizer(meta, section, schedule, **changes):
    """A config's optimizer with the file's settings; `schedule` holds those of its schedule.

    What the file does not hold is the config's, which is the official code's.
    """
    cfg = schema.build(optimizers.OptimizerConfig, section, "optimizer")
    schedule = dataclasses.replace(cfg.schedule, **schedule)
    rule = adam(meta, (cfg.rule.b1, cfg.rule.b2), cfg.rule.eps)
    return dataclasses.replace(cfg, rule=rule, schedule=schedule, **changes)


def adam(meta, betas, eps=1e-8):
    """A file's AdamW; what it does not hold is the official code's, `betas` and `eps`."""
    held = {"betas": betas, "eps": eps} | meta.get("adam", {})
    return optimizers.AdamW(*held["betas"], held["eps"])


def run_steps(z, meta, task, cfg, ema, layout):
    """The file's optimizer steps through the real train step; returns the final state, losses."""
    clock = task.clock
    first = meta["config"]["epoch"] * clock.steps_per_epoch
    start = load.from_torch(arrays(z, "sd"), shapes(task), layout)
    lr = optimizers.learning_rate(cfg, clock, 256)
    decay = optimizers.weight_decay(cfg, clock)
    # the file begins in the middle of the schedule with fresh Adam moments
    tx = optimizers.make_optimizer(
        cfg, start, lambda count: lr(count + first), lambda count: decay(count + first)
    )
    steps = len(z["in/lr"])
    count = first + np.arange(steps)
    rel("lr", lr(count), z["in/lr"], 1e-6)
    if "in/wd" in z.files:
        rel("wd", decay(count), z["in/wd"], 1e-6)
    state = TrainState(np.int32(first), start, {}, ema, jax.jit(tx.init)(start))
    step = jax.jit(functools.partial(train_step, task=task, tx=tx, seed=0))
    losses = []
    for i in range(steps):
        batch = {"image": nhwc(z["in/images"][i]), "mask": z["in/mask"][i]}
        state, metrics = step(state, {}, batch)
        losses.append(metrics)
        rel("grad_norm", metrics["grad_norm"], z["out/grad_norm"][i], 1e-4)
    rel("total", [m["loss/total"] for m in losses], z["loss/total"], 1e-5)
    return start, state, losses


def without_key_bias(key, size):
    """The key bias has a true gradient of zero; Adam turns its rounding noise into steps."""
    keep = np.ones(size, bool)
    if key.endswith("attn.qkv.bias"):
        keep[size // 3 : 2 * size // 3] = False
    return keep


def check_movement(name, ours, theirs, start, skip=None):
    """Allow after the steps an RMS error of 0.2 % of the RMS movement, and 1e-4 of each number."""
    for key, value in theirs.items():
        a, b, s = (np.asarray(t, np.float64) for t in (ours[key], value, start[key]))
        a, b, s = a.reshape(-1), b.reshape(-1), s.reshape(-1)
        if skip is not None:
            keep = skip(key, len(a))
            a, b, s = a[keep], b[keep], s[keep]
            if not len(a):
                continue
        rms = lambda x: float(np.sqrt(np.mean(x**2)))
        assert np.abs(a - b).max() <= 1e-4, (name, key, np.abs(a - b).max())
        assert rms(a - b) <= 2e-3 * rms(b - s) + 1e-9, (name, key, rms(a - b), rms(b - s))


def z_scores(freq_a, n_a, freq_b, n_b):
    """Two-sample z per position of two masking frequencies."""
    p = (freq_a * n_a + freq_b * n_b) / (n_a + n_b)
    var = np.maximum(p * (1 - p), 1e-12) * (1 / n_a + 1 / n_b)
    return (freq_a - freq_b) / np.sqrt(var)


def neighbour_fraction(masks):
    """The mean share of masked patches among the 4-neighbours of masked ones."""
    m = np.pad(masks.astype(float), ((0, 0), (1, 1), (1, 1)))
    inside = np.pad(np.ones_like(masks, float), ((0, 0), (1, 1), (1, 1)))
    shifts = [(0, 1), (0, -1), (1, 1), (1, -1)]
    total = sum(np.roll(m, s, axis=1 + a) for a, s in shifts)[:, 1:-1, 1:-1]
    count = sum(np.roll(inside, s, axis=1 + a) for a, s in shifts)[:, 1:-1, 1:-1]
    return total[masks].sum() / count[masks].sum()


def sample(masking, grid, n, seed=0):
    """Masks [n h w] in the order in which a generator of this seed gives them."""
    rng = random.Random(seed)
    masks = np.stack([masking.sample(rng, grid, 0)["mask"] for _ in range(n)])
    return masks.reshape(n, *grid)


def check_init(z, meta, task, layout, tables):
    """Initial statistics per parameter, at the file's sizes."""
    # many numbers: to draw them would take longer than to compile this a little better
    init = jax.jit(task.init, compiler_options={"xla_backend_optimization_level": 1})
    params = init(step_key(5, "init", 0))[0]
    ours = load.to_torch(params, layout)
    expected = {k: v for k, v in meta["params"].items() if v["grad"]}
    assert set(ours) == set(expected)
    for key, want in expected.items():
        x = ours[key].astype(np.float64)
        assert list(x.shape) == want["shape"], key
        if want["std"] == 0.0:
            assert (x.std(), x.mean()) == (0.0, want["mean"]), key
            continue
        big = x.size >= 10_000
        # 4.5 standard errors of a sample standard deviation, for both samples
        loose = 4.5 * np.sqrt(2) / np.sqrt(2 * max(x.size - 1, 1))
        assert abs(x.std() / want["std"] - 1) <= (0.02 if big else loose), (key, x.std(), want)
        assert abs(x.mean() - want["mean"]) <= 9 * want["std"] / np.sqrt(x.size), key
        if big:  # tells a uniform distribution from a normal one
            assert abs(np.abs(x).max() / want["absmax"] - 1) <= 0.05, (key, want)
    for key, ours in tables.items():  # a few rows of the table, CLS's zeros first
        ours = np.concatenate([np.zeros_like(ours[:1]), ours])
        rows = [int(np.abs(ours - row).max(1).argmin()) for row in z[key]]
        assert rows == sorted(set(rows)), (key, rows)
        table(key, ours[rows], z[key], 1e-6)
