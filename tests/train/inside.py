"""Runs inside the test's own process: no start of Python and JAX, and every program made once.

Not for what a kill leaves behind; `test_restart.py` has real processes.
"""

import dataclasses
import json

import helpers
import jax
import numpy as np

from mimjax import sharding
from mimjax.data.sources import make_source
from mimjax.methods.mae import MAE
from mimjax.run import open as opening
from mimjax.run import setup
from mimjax.storage.settings import config_json
from mimjax.train.loop import train
from mimjax.train.program import Program

PROGRAMS, TRACED, COMPILED = {}, {}, {}
TINY = {"method.encoder.depth": 1, "method.decoder.depth": 1}
MAKE, TRACE = setup.make_length, Program.trace
# Settings that decide where a run starts and what it writes, but not its program.
AROUND = ("restart", "resume", "init_from", "checkpoint_every", "keep_checkpoints", "keep_every")
AROUND += ("log_every", "on_nonfinite", "on_nonfinite_retries")


def make_once(c, mesh, clock, small=sharding.SMALL):
    """Stand in for `setup.make_length`: a program is made once for the same settings and length."""
    told = json.loads(config_json(c))
    key = json.dumps({k: v for k, v in told.items() if k not in AROUND}), mesh, clock, small
    if key not in PROGRAMS:
        PROGRAMS[key] = MAKE(c, mesh, clock, small)
    return PROGRAMS[key]


def trace_once(self):
    """Stand in for `Program.trace`; the program is kept too, so that no other gets its id."""
    if id(self) not in TRACED:
        TRACED[id(self)] = self, TRACE(self)
    return TRACED[id(self)][1]


def compile_once(self, traced=None):
    """Stand in for `Program.compile`: the same program text is compiled once."""
    traced = traced or self.trace()
    if id(traced) not in COMPILED:
        lowered = traced.lower()
        text = lowered.as_text()
        if text not in COMPILED:
            COMPILED[text] = traced, lowered.compile()
        COMPILED[id(traced)] = traced, COMPILED[text][1]
    return COMPILED[id(traced)][1]


def quick(monkeypatch):
    """One device, and no second making, tracing and compilation of the same program."""
    one = sharding.make_mesh(devices=jax.devices()[:1])
    monkeypatch.setattr(sharding, "make_mesh", lambda *_, **__: one)
    for module in (setup, opening):
        monkeypatch.setattr(module, "make_length", make_once)
    monkeypatch.setattr(Program, "trace", trace_once)
    monkeypatch.setattr(Program, "compile", compile_once)


def go(c, workdir, change=lambda run: None):
    """A whole run; gives the Run and the final state. Saves are finished, also after an error."""
    with helpers.opened(c, workdir) as run:
        change(run)
        return run, jax.device_get(train(run))


def assert_same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


@dataclasses.dataclass(frozen=True)
class Unguarded(MAE):
    """A target that divides by the spread of an image without a floor, as no method here does."""

    def prepare(self, state, frozen, batch, *args):
        out, fresh = super().prepare(state, frozen, batch, *args)
        spread = batch["image"].astype(np.float32).std(axis=(1, 2, 3))
        targets = jax.tree.map(lambda x: x / spread[:, None, None], out.targets)
        return out.replace(targets=targets), fresh


class Blank:
    """Digits in which one image is black."""

    def __init__(self, index):
        self.digits, self.index = make_source("digits", "train"), index

    def __getattr__(self, name):
        return getattr(self.digits, name)

    def __len__(self):
        return len(self.digits)

    def image(self, index):
        image = self.digits.image(index)
        return image.point(lambda _: 0) if index == self.index else image
