"""Every command of configs/ablations.md: parsed by the real command line, then two steps small."""

import functools
import re
import sys

import helpers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl import flags
from ml_collections import config_flags

from mimjax import build, cli
from mimjax.data.augment import Augment
from mimjax.data.pipeline import Pipeline
from mimjax.data.sources import make_source
from mimjax.schema import build as from_section
from mimjax.task import Clock
from mimjax.train.state import init_state
from mimjax.train.step import train_step

TEXT = (helpers.ROOT / "configs" / "ablations.md").read_text()
COMMANDS = sorted(set(re.findall(r"`(--config=configs/[^`]+)`", TEXT)))


def parse(command, monkeypatch):
    """The config of a command, through the flags that the programs use."""
    argv = ["main", *command.split()]
    monkeypatch.setattr(sys, "argv", argv)  # where ml_collections looks for overrides
    cli.check_config_flags(argv)
    values = flags.FlagValues()
    config_flags.DEFINE_config_file("config", flag_values=values)
    values(argv)
    return values.config


def shrink(c):
    """The same run with a 14x14 grid of 2-pixel patches and narrow, shallow networks."""
    c.unlock()
    encoder, method = c.method.encoder, c.method
    layers = [method.get(k, 0) for k in ("pixel_layer", "feature_layer")]
    encoder.depth = max(2, *(layer + 1 for layer in layers))
    encoder.width, encoder.heads, encoder.patch, encoder.image_size = 8, 2, 2, (28, 28)
    for name in ("decoder", "pixel_decoder"):
        if name in method:
            method[name].width //= 32  # the ratios of the table's widths stay
            method[name].heads = 2 if method[name].heads else 0
    if "decoder" in method:
        method.decoder.depth = min(method.decoder.depth, 3)
    if "pca_components" in method:
        method.pca_components = 4
    if c.teacher.path:
        c.teacher.path = "random"
    c.batch_size, c.accum, c.steps, c.data.source = 2, 1, 2, "synthetic"
    c.optimizer.warmup_epochs = 0.0
    return c


@functools.cache
def source():
    return make_source("synthetic", "train", length=16, side=32)


def test_the_map_has_every_row():
    assert len(re.findall(r"^\| .*`--config", TEXT, re.MULTILINE)) >= 65
    assert len(COMMANDS) >= 50


@pytest.mark.parametrize("command", COMMANDS, ids=lambda c: c.replace("--config", "").strip("="))
def test_row(command, monkeypatch):
    full = parse(command, monkeypatch)
    build.make_task(full, Clock(1, 800))  # the published size is a valid task
    c = shrink(full)
    clock = Clock(1, 2)
    task = build.make_task(c, clock)
    data = Pipeline(
        source(),
        task.views,
        from_section(Augment, c.data.augment, "data.augment"),
        task.mask_fn,
        c.batch_size,
        0,
    )
    tx, _ = build.make_tx(c, jax.eval_shape(task.init, jax.random.key(0))[0], clock)
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
