"""The runs that configs/ablations.md names: the rows, small copies, and what each run is made of.

A run is taken apart into what a row can change: shapes of parameters, frozen networks, batches,
programs (as jaxprs: nothing is compiled), learning rates and other schedules.
"""

import dataclasses
import functools
import hashlib
import math
import random
import re
from typing import NamedTuple
from unittest import mock

import flax.linen as nn
import helpers
import jax
import jax.numpy as jnp
import numpy as np
from jax.interpreters.partial_eval import dce_jaxpr

from mimjax import schema
from mimjax.data.augment import Augment
from mimjax.data.pipeline import Pipeline
from mimjax.data.sources import Synthetic, make_source
from mimjax.models.dvae import DVAEDecoder, DVAEEncoder
from mimjax.task import Clock, TrainState
from mimjax.train import optimizers

TEXT = (helpers.ROOT / "configs" / "ablations.md").read_text()


class Row(NamedTuple):
    """A row of a table.

    Attributes:
      table: "BootMAE, Table 4: decoders": the section's name and the table's.
      name: its first cell.
      command: what stands behind `mimjax train`.
    """

    table: str
    name: str
    command: str


def rows():
    """Every row with a command, in the order of the document."""
    found, section, table = [], "", ""
    for line in TEXT.splitlines():
        if line.startswith("## "):
            section = table = re.split(r" [(/]", line.removeprefix("## "))[0]
        elif line.startswith("### "):
            table = f"{section}, {line.removeprefix('### ')}"
        elif match := re.match(r"\| (.*?) \| `(--config=[^`]+)` \|", line):
            found.append(Row(table, match[1], match[2]))
    return found


class Expected(NamedTuple):
    """What a row is to change.

    Attributes:
      words: those of `differences`.
      base: the command of the run that it varies.
    """

    words: set[str]
    base: str


def expected():
    """{table: {row: Expected}} of ablation_rows.txt, with the bases of `rows`."""
    commands = {(row.table, row.name): row.command for row in rows()}
    found, table, shared = {}, "", ""
    for line in (helpers.ROOT / "tests" / "ablation_rows.txt").read_text().splitlines():
        cells = [cell.strip() for cell in line.removeprefix("## ").split("|")]
        if line.startswith("## "):
            table, shared = cells[0], (*cells, "")[1]
            assert table not in found, table
            found[table] = {}
        elif line and not line.startswith("#"):
            name, words, *own = cells
            assert name not in found[table], name
            base = base_of(commands.get((table, name), ""), name, *(own or [shared]))
            found[table][name] = Expected(set(words.split()), base)
    return found


def base_of(command, name, base):
    """The command that a row varies; ablation_rows.txt says how it is named."""
    if base not in ("", "-size"):
        return f"--config=configs/{base}"
    first, *words = command.split()
    config, _, arguments = first.partition(":")
    kept = ("path", "backbone") if base else ("path", "backbone", "size")
    kept = [a for a in arguments.split(",") if a.partition("=")[0] in kept]
    length = () if "epochs" in name else ("--config.epochs", "--config.optimizer.schedule.warmup")
    same = [word for word in words if word.startswith(tuple(length))]
    return " ".join([f"{config}:{','.join(kept)}".rstrip(":"), *same])


def parse(command):
    """The config of a command, through the flags that the programs use."""
    return helpers.config_of(*command.split())


# ------------------------------------------------------------------ the same run, small
# Small numbers in the order of the published ones: what differs in a table differs here too. Widths
# are multiples of the numbers of heads, and of 4 for sine-cosine positions.
WIDTHS = {96: 12, 128: 24, 192: 36, 256: 48, 384: 60, 512: 72, 768: 84, 1024: 96, 1280: 108}
HEADS = {3: 1, 6: 2, 12: 3, 16: 4}
DEPTHS = {1: 1, 2: 2, 4: 3, 8: 4, 12: 5}  # of decoders and regressors
ENCODERS = {11: 3, 12: 3, 20: 4, 23: 5, 24: 5, 31: 6, 32: 6}
STAGES = {2: 1, 4: 2}
PATCH = 2  # in pixels
VIT = {"width": 12, "depth": 1, "heads": 2, "patch": PATCH}
NARROW = {  # frozen networks, with one token for each of the student's patches as before
    "DallE": {"network": {"n_hid": 4, "n_blk": 1, "vocab": 32}},
    "DVAE": {
        "encoder": DVAEEncoder(hidden=8, vocab=32),
        "decoder": DVAEDecoder(codebook_dim=8),
    },
    "VQGAN": {
        "network": {
            "ch": 32,
            "ch_mult": (1, 1, 1, 1),
            "num_res_blocks": 1,
            "z_channels": 8,
            "embed_dim": 8,
            "n_embed": 32,
        }
    },
    "VQKD": {"network": VIT, "code_dim": 4, "vocab": 32},
    "CLIP": {"network": VIT | {"proj_dim": 8}},
    "DINO": {"network": VIT | {"image_size": (28, 28)}},
    "PCA": {"components": 4},
}


def shrink(c):
    """The same run with 2-pixel patches on the same grid, and narrow, shallow networks."""
    c.unlock()
    method, before = c.method, c.method.encoder.depth
    shrink_encoder(method.encoder)
    for name, part in method.items():
        if name.endswith("_target"):
            shrink_target(part)
        elif name in ("decoder", "pixel_decoder", "feature_decoder", "regressor") and part:
            for key, small in (("width", WIDTHS), ("depth", DEPTHS), ("heads", HEADS)):
                if part.get(key):
                    part[key] = small[part[key]]
            if part.get("inject"):
                part.inject = block(part.inject, before, method.encoder.depth)
    c.batch_size, c.accum, c.epochs, c.steps = 2, 1, 1.0, 2
    c.data.source = schema.section(Synthetic)
    c.optimizer.schedule.warmup_epochs = 0.0
    return c


def block(index, before, after):
    """The index of a block in an encoder of another depth; negative ones count from the end."""
    return index if index < 0 else index * after // before


def shrink_encoder(encoder):
    conv, before = "strides" in encoder, encoder.depth
    patch = math.prod(encoder.strides) if conv else encoder.patch
    encoder.image_size = tuple(PATCH * side // patch for side in encoder.image_size)
    encoder.width, encoder.heads = WIDTHS[encoder.width], HEADS[encoder.heads]
    encoder.depth = ENCODERS[before]
    fused = {block(index, before, encoder.depth) for index in encoder.fuse_layers}
    encoder.fuse_layers = tuple(sorted(fused))
    if conv:
        encoder.strides = (1, PATCH, 1)
        encoder.stage_widths = tuple(WIDTHS[width] for width in encoder.stage_widths)
        encoder.stage_depths = tuple(STAGES[depth] for depth in encoder.stage_depths)
    else:
        encoder.patch = PATCH
        encoder.project = encoder.project and WIDTHS[encoder.project]


def shrink_target(target):
    for part in ("first", "second"):  # of two at once
        if part in target:
            shrink_target(target[part])
    for name, value in NARROW.get(target.type.rsplit(":", 1)[1], {}).items():
        if isinstance(value, dict):
            assert set(value) <= set(target[name]), (name, value)
            target[name].update(value)
        else:
            target[name] = schema.section(value) if dataclasses.is_dataclass(value) else value
    if target.get("path"):
        target.path = "random"


# ------------------------------------------------------------------ what a run is made of
@functools.cache
def source():
    return make_source("synthetic", "train", length=16, side=32)


def data(c, task):
    """The pipeline of a small run."""
    augment = schema.build(Augment, c.data.augment, "data.augment")
    return Pipeline(source(), task.views, augment, task.sample, c.batch_size, 0)


def shapes(tree):
    return str(jax.tree.map(lambda x: (x.shape, x.dtype.name), tree))


def text(closed):
    """A jaxpr without dead code, unused arguments and what differs between two tracings."""
    jaxpr = dce_jaxpr(closed.jaxpr, [True] * len(closed.jaxpr.outvars))[0]
    constants = [
        (x.shape, hashlib.sha256(np.asarray(x).tobytes()).hexdigest())
        for x in [*closed.consts, *inner_constants(jaxpr)]
    ]
    return re.sub(r"0x[0-9a-f]+", "", str(jaxpr)) + str(constants)


def inner_constants(jaxpr):
    """Constants of the jaxprs in a jaxpr, which its text does not show."""
    for equation in jaxpr.eqns:
        for value in jax.tree.leaves(list(equation.params.values()), is_leaf=is_jaxpr):
            if is_jaxpr(value):
                yield from getattr(value, "consts", ())
                yield from inner_constants(getattr(value, "jaxpr", value))


def is_jaxpr(value):
    return hasattr(value, "eqns")


class Shared:
    """A method of networks that traces equal calls of equal networks once, for all rows."""

    def __init__(self, name):
        self.original = getattr(nn.Module, name)
        self.known = {}

    def method(self):
        return lambda module, *args, **kwargs: self.call(module, args, kwargs)

    def call(self, module, args, kwargs):
        leaves, tree = jax.tree.flatten((args, kwargs))
        arrays, rest = apart(leaves)
        kinds = tuple(str(jax.typeof(x)) for x in arrays)
        # 1 and True, or 1 and 1.0, are equal, and may be traced otherwise: their text is not
        key = module, str(module), tree, str(rest), kinds
        if key not in self.known:
            found = []

            @jax.jit
            def run(arrays):
                args, kwargs = jax.tree.unflatten(tree, together(arrays, rest))
                leaves, out = jax.tree.flatten(self.original(module, *args, **kwargs))
                arrays, others = apart(leaves)
                found[:] = [others, out]
                return arrays

            self.known[key] = run, found
        run, found = self.known[key]
        arrays = run(arrays)
        return jax.tree.unflatten(found[1], together(arrays, found[0]))


ARRAY = object()


def apart(leaves):
    """The arrays among leaves, and the leaves with ARRAY in place of each."""
    is_array = [isinstance(x, jax.Array | np.ndarray) for x in leaves]
    rest = [ARRAY if yes else x for x, yes in zip(leaves, is_array)]
    return [x for x, yes in zip(leaves, is_array) if yes], rest


def together(arrays, rest):
    arrays = iter(arrays)
    return [next(arrays) if x is ARRAY else x for x in rest]


SHARED = {name: Shared(name) for name in ("apply", "init_with_output")}


_PROGRAMS = {}  # rows that differ in length or rates alone are one program


def program(c):
    """Parameters, frozen networks and the jaxprs of a small run, by name."""
    key = c.task + c.method.to_json(sort_keys=True)
    if key not in _PROGRAMS:
        methods = {name: shared.method() for name, shared in SHARED.items()}
        with mock.patch.multiple(nn.Module, **methods):
            _PROGRAMS[key] = traced(schema.make_task(c, Clock(1, 2)))
    return _PROGRAMS[key]


def traced(task):
    key, step = jax.random.key(0), jnp.int32(0)
    start, (params, model_state) = jax.make_jaxpr(task.init, return_shape=True)(key)
    frozen = jax.eval_shape(task.init_frozen, key)
    ema = jax.eval_shape(task.init_ema, params)
    state = TrainState(step, params, model_state, ema, {})
    host = task.sample(random.Random(0), 0).items()
    batch = {k: jax.ShapeDtypeStruct((2, *x.shape), x.dtype) for k, x in host}
    for name, view in task.views.items():
        batch[name] = jax.ShapeDtypeStruct((2, *view.size, view.channels), jnp.uint8)

    prepare = jax.make_jaxpr(lambda *args: task.prepare(*args, True), return_shape=True)
    targets, (prepared, _) = prepare(state, frozen, batch, key)
    loss = jax.make_jaxpr(lambda *args: task.loss(*args, True)[:3])
    average = jax.make_jaxpr(task.update_ema)
    read = {name: params[name] for name in ema}
    return {
        "parameters": {name: shapes(tree) for name, tree in params.items()},
        "start": text(start),
        "frozen": shapes(frozen),
        "targets": text(targets),
        "loss": text(loss(params, model_state, prepared, key, step)),
        "average": text(average(ema, read, read, step)),
    }


def batches(c):
    """A digest of images and masks of a small run."""
    small = dataclasses.replace(data(c, schema.make_task(c, Clock(1, 2))), batch_size=8)
    digest = hashlib.sha256()
    for name, array in sorted(small.batch(0).items()):
        digest.update(name.encode() + str(array.shape).encode() + array.tobytes())
    return digest.hexdigest()


def schedules(c):
    """Rates, weights of terms and decays of the average over a whole run, and its length."""
    clock = Clock(100, round(100 * c.epochs))
    steps = np.linspace(0, clock.total_steps - 1, 41).astype(np.int32)  # all at once
    task = schema.make_task(c, clock)
    cfg = schema.build(optimizers.OptimizerConfig, c.optimizer, "optimizer")
    rate = optimizers.learning_rate(cfg, clock, c.batch_size)
    weights = {k: t.weight * np.asarray(t.schedule(steps, clock)) for k, t in task.terms.items()}
    average = task.average if task.reads_average else None
    return {
        "rates": f"{clock.total_steps} {c.batch_size} {np.asarray(rate(steps))}",
        "weights": str(weights),
        "decays": str(average and np.asarray(average.decay(steps, clock))),
    }


def optimizer(c):
    """The jaxpr of an update, learning rate and decay aside."""
    cfg = schema.build(optimizers.OptimizerConfig, c.optimizer, "optimizer")
    cfg = dataclasses.replace(cfg, decay=((".*", 1.0),))
    params = {"kernel": jnp.zeros((2, 2))}
    constant = lambda step: jnp.float32(1.0)
    tx = optimizers.make_optimizer(cfg, params, constant, constant)
    return text(jax.make_jaxpr(tx.update)(params, tx.init(params), params))


@functools.cache
def quick_parts(command):
    """What is known of a run without tracing its program, by name."""
    c = parse(command)
    parts = schedules(c) | {"optimizer": optimizer(c)}
    return parts | {"batch": batches(shrink(c))}


def made_of(command):
    """Everything that a row can change, by name."""
    return quick_parts(command) | program(shrink(parse(command)))


def differences(new, old):
    """What differs in a run from another, in words.

    "encoder" = the shapes of a network's parameters; "+head" and "-head" = a network that only the
    first or only the second has. Other words are those of `made_of`; "start", the first values of
    the parameters, only where nothing else of the program differs (their jaxpr holds a mask).
    """
    a, b = new.get("parameters", {}), old.get("parameters", {})
    words = {f"+{name}" for name in a.keys() - b.keys()}
    words |= {f"-{name}" for name in b.keys() - a.keys()}
    words |= {name for name in a.keys() & b.keys() if a[name] != b[name]}
    others = {name for name in new.keys() - {"parameters", "start"} if new[name] != old[name]}
    if not words and not others & {"loss", "batch"} and new.get("start") != old.get("start"):
        others.add("start")
    return words | others
