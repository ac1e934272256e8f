"""Every command of configs/ablations.md: parsed by the real command line, traced or run small."""

import functools
import re

import helpers
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mimjax import schema
from mimjax.data.augment import Augment
from mimjax.data.pipeline import Pipeline
from mimjax.data.sources import Synthetic, make_source
from mimjax.methods.masked import MaskedTask
from mimjax.run import setup
from mimjax.schema import build as from_section
from mimjax.task import Clock, init_state
from mimjax.train.step import train_step

TEXT = (helpers.ROOT / "configs" / "ablations.md").read_text()
COMMANDS = sorted(set(re.findall(r"`(--config=configs/[^`]+)`", TEXT)))


def parse(command, monkeypatch):
    """The config of a command, through the flags that the programs use."""
    monkeypatch.chdir(helpers.ROOT)
    return helpers.config_of(*command.split())


def shrink(c):
    """The same run with a 14x14 grid of 2-pixel patches and narrow, shallow networks."""
    c.unlock()
    encoder, method, width = c.method.encoder, c.method, c.method.encoder.width
    layers = [method.get(k, 0) for k in ("pixel_layer", "feature_layer")]
    encoder.depth = max(2, *(layer + 1 for layer in layers))
    encoder.width, encoder.heads, encoder.image_size = 8, 2, (28, 28)
    if "strides" in encoder:
        encoder.strides, encoder.stage_widths, encoder.stage_depths = (1, 2, 1), (4, 8), (1, 1)
    else:
        encoder.patch = 2
    encoder.fuse_layers = (0, 1) if len(encoder.fuse_layers) > 1 else (-1,)
    for name in ("decoder", "pixel_decoder"):
        if name in method:
            if "width" in method[name]:
                method[name].width //= 32  # the ratios of the table's widths stay
            method[name].heads = 2 if method[name].heads else None
    if "decoder" in method:
        method.decoder.depth = min(method.decoder.depth, 3)
    if "regressor" in method:  # of CAE and CAE v2; a width of its own stays one
        net = method.regressor
        net.width = net.width and (8 if net.width == width else 4)
        net.depth, net.heads = min(net.depth, 3), 2
    if not isinstance(method.get("target", ""), str):
        shrink_target(method.target)
    if "pca_components" in method:
        method.pca_components = 4
    if c.teacher.path:
        c.teacher.path = "random"
    c.batch_size, c.accum, c.epochs, c.steps = 2, 1, 1.0, 2
    c.data.source = schema.section(Synthetic)
    c.optimizer.schedule.warmup_epochs = 0.0
    return c


NARROW = {  # frozen networks with the same step per token, or the student's patch
    "DallE": {"network": {"n_hid": 4, "n_blk": 1, "vocab": 32}},
    "DVAE": {"encoder": {"hidden": 8, "vocab": 32}, "decoder": {"codebook_dim": 8}},
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
    "VQKD": {
        "network": {"width": 8, "depth": 1, "heads": 2, "patch": 2},
        "code_dim": 4,
        "vocab": 32,
    },
    "CLIP": {"network": {"width": 8, "depth": 1, "heads": 2, "patch": 2, "proj_dim": 8}},
    "DINO": {
        "network": {"width": 8, "depth": 1, "heads": 2, "patch": 2, "image_size": (28, 28)},
    },
    "Joint": {},
    "Pixels": {},
}


def shrink_target(target):
    """Its frozen network narrow, with one token for each of the student's patches as before."""
    for teacher in ("first", "second"):  # of two at once
        if teacher in target:
            shrink_target(target[teacher])
    for name, value in NARROW[target.type.rsplit(":", 1)[1]].items():
        if isinstance(value, dict):
            assert set(value) <= set(target[name]), (name, value)
            target[name].update(value)
        else:
            target[name] = value


@pytest.fixture(autouse=True)
def initialize_in_pairs(monkeypatch):
    """Networks are made with a batch's shapes, so that nothing is compiled for another one."""
    one = MaskedTask.example
    pair = lambda task: tuple(jnp.repeat(x, 2, axis=0) for x in one(task))
    monkeypatch.setattr(MaskedTask, "example", pair)


@functools.cache
def source():
    return make_source("synthetic", "train", length=16, side=32)


DONE = set()  # what has run: rows that differ in length or size alone are one small run


def test_the_map_has_every_row():
    assert len(re.findall(r"^\| .*`--config", TEXT, re.MULTILINE)) >= 167
    assert len(COMMANDS) >= 140


def varied(command):
    """(config, argument or field of the method) that a row changes; its path and length aside."""
    first, *words = command.split()
    config, _, args = first.partition(":")
    names = {a.partition("=")[0] for a in args.split(",") if a} - {"path", "size"}
    names |= {m[1] for w in words if (m := re.match(r"--config\.(method\.\w+)", w))}
    return {(config, name) for name in names or {""}}


def representatives():
    """Rows that together change everything that any row changes, those with most changes first."""
    seen, chosen = set(), []
    for command in sorted(COMMANDS, key=lambda c: (-len(varied(c)), c)):
        if not varied(command) <= seen:
            chosen.append(command)
            seen |= varied(command)
    return chosen


def test_every_command_is_a_valid_run(monkeypatch):
    """At its published size."""
    for command in COMMANDS:
        schema.make_task(parse(command, monkeypatch), Clock(1, 800))


def test_masks_are_those_of_each_paper(monkeypatch):
    """BootMAE caps blocks at 60 patches, BEiT's generator not; CAE's random masks round down."""
    masking = lambda command: schema.make_task(parse(command, monkeypatch), Clock(1, 800)).masking
    blocks = [c for c in COMMANDS if "configs/mae.py" in c and "kind=block" in c]
    caps = {("size=l" in c, masking(c).max_block) for c in blocks}  # ViT-L: MAE's own ablations
    assert caps == {(True, None), (False, 60)}
    random = [c for c in COMMANDS if "configs/caev2.py" in c and "kind=random" in c]
    assert {masking(c).num_masked((14, 14)) for c in random} == {29, 49, 98}


def short(command):
    return command.replace("--config", "").strip("=")


@pytest.mark.parametrize("command", representatives(), ids=short)
def test_row_is_traced(command, monkeypatch):
    """Two steps of every row take a quarter of an hour: they are below, for `make test-all`."""
    task, tx, data = make(shrink(parse(command, monkeypatch)))
    frozen = jax.eval_shape(task.init_frozen, jax.random.key(1))
    state = jax.eval_shape(lambda: init_state(jax.random.key(0), task=task, tx=tx))
    step = functools.partial(train_step, task=task, tx=tx)
    after, metrics = jax.eval_shape(step, state, frozen, jax.tree.map(jnp.asarray, data.batch(0)))
    assert jax.tree.map(jnp.shape, after) == jax.tree.map(jnp.shape, state)
    assert metrics["loss/total"].shape == ()


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS, ids=short)
def test_row(command, monkeypatch):
    c = shrink(parse(command, monkeypatch))
    key = c.to_json(sort_keys=True)
    if key not in DONE:
        two_steps(c)
        DONE.add(key)


def make(c):
    """(task, optimizer, data) of a run of two steps."""
    clock = Clock(1, 2)
    task = schema.make_task(c, clock)
    data = Pipeline(
        source(),
        task.views,
        from_section(Augment, c.data.augment, "data.augment"),
        task.mask_fn,
        c.batch_size,
        0,
    )
    tx, _ = setup.make_tx(c, jax.eval_shape(task.init, jax.random.key(0))[0], clock)
    return task, tx, data


def two_steps(c):
    """Two updates of a small config, with frozen networks of random weights."""
    task, tx, data = make(c)
    # Not jitted: rows share the compiled primitives of one another, which is far quicker.
    frozen = task.fit_frozen(
        task.init_frozen(jax.random.key(1)),
        lambda n: np.concatenate([data.batch(s)["image"] for s in range(-(-n // 2))])[:n],
    )
    state = init_state(jax.random.key(0), task=task, tx=tx)
    for step in range(2):
        batch = jax.tree.map(jnp.asarray, data.batch(step))
        state, metrics = train_step(state, frozen, batch, task=task, tx=tx)
        assert all(np.isfinite(float(v)) for v in metrics.values()), metrics
    assert int(state.step) == 2
