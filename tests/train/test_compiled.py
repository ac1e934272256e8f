"""What each method's step is compiled to, against committed facts that no noise touches.

`MIMJAX_UPDATE=1 python -m pytest tests/train/test_compiled.py` writes the facts on purpose.
"""

import json
import math
import os
from collections import Counter

import helpers
import jax
import pytest

from mimjax import sharding
from mimjax.run import setup
from mimjax.run.open import open_run
from mimjax.train import hlo
from mimjax.train.flops import count
from mimjax.train.loop import train
from mimjax.train.program import Program

GOLDEN = helpers.ROOT / "tests" / "golden"
METHODS = ("mae", "bootmae", "beit", "cae", "caev2", "mcmae", "mrmae")
LAYOUT = 2, 4  # groups of devices, and devices of a group: gradients and parameters travel
SMALL = 64  # elements of a tensor that is not divided
COMPILE = "/jax/core/compile/backend_compile_duration"
# What a program of another jaxlib or processor may have more of, beyond SLACK of each: only growth
# is wrong, because it costs memory or time.
GROWING = {"temporary_bytes": 1.1, "copies": 1.1, "transposes": 1.1}
SLACK = {"temporary_bytes": 2**16, "copies": 2, "transposes": 2}
FLOPS = 0.01  # share by which the FLOPs may differ


@pytest.fixture
def names():
    """Names of the programs that are compiled, or read from the cache of compiled ones."""
    found = []

    def listen(event, duration_secs, **about):
        if event == COMPILE:
            found.append(str(about["fun_name"]).removeprefix("jit(").removesuffix(")"))

    jax.monitoring.register_event_duration_secs_listener(listen)
    yield found
    jax.monitoring.unregister_event_duration_listener(listen)


def facts(traced, compiled, state, compilations):
    """The facts of a run's step; `state` is the abstract state, which the step donates."""
    text, memory = compiled.as_text(), compiled.memory_analysis()
    kinds, opcodes = Counter(), hlo.opcodes(text)
    for c in hlo.collectives(text):
        kinds[c.kind] += int(c.bytes)
    share = lambda x: math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize
    donated = sum(map(share, jax.tree.leaves(state)))
    return {
        "aliased": round(memory.alias_size_in_bytes / donated, 4),
        "collective_bytes": dict(sorted(kinds.items())),
        "compilations": compilations,
        "copies": opcodes["copy"],
        "flops": int(count(traced.jaxpr)),
        "temporary_bytes": memory.temp_size_in_bytes,
        "transposes": opcodes["transpose"],
    }


def wrong(before, now):
    """What differs from the committed facts, a line each; only growth where compilers differ."""
    near = abs(now["flops"] - before["flops"]) <= FLOPS * before["flops"]
    exact = [k for k in before if k not in SLACK and not (k == "flops" and near)]
    lines = [f"{k}: {now[k]}, it was {before[k]}" for k in exact if now[k] != before[k]]
    for k, factor in GROWING.items():
        most = int(factor * before[k]) + SLACK[k]
        if now[k] > most:
            lines.append(f"{k}: {now[k]}, it was {before[k]}; allowed: at most {most}")
    return lines


@pytest.mark.parametrize("name", helpers.gated(METHODS, ["mae"]))
def test_a_step_is_compiled_to_what_it_was(name, names, tmp_path, monkeypatch):
    """A whole run of two steps on 2 x 4 devices."""
    made = []
    compile_, mesh = Program.compile, sharding.make_mesh(*LAYOUT)

    def watched(self, traced=None):
        made.append((traced, compile_(self, traced)))
        return made[-1][1]

    monkeypatch.setattr(Program, "compile", watched)
    c = helpers.small(name, steps=2, checkpoint_every=0)
    with open_run(setup.setup(c, mesh=mesh, small=SMALL), str(tmp_path / "run")) as run:
        train(run)
        ((traced, compiled),) = made
        found = Counter(names)
        compilations = {k: found[k] for k in ("train_step", "init_state")}
        now = facts(traced, compiled, run.setup.program.abstract_state, compilations)
    file = GOLDEN / f"compiled_{name}.json"
    if os.environ.get("MIMJAX_UPDATE"):
        file.write_text(json.dumps(now, indent=2) + "\n")
    assert wrong(json.loads(file.read_text()), now) == []


BEFORE = {
    "aliased": 1.0,
    "collective_bytes": {"all-gather": 40, "all-reduce": 100},
    "compilations": {"train_step": 1, "init_state": 1},
    "copies": 20,
    "flops": 1000,
    "temporary_bytes": 2**20,
    "transposes": 30,
}


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({}, ""),
        ({"aliased": 0.99}, "aliased: 0.99, it was 1.0"),
        ({"collective_bytes": {"all-reduce": 100}}, "collective_bytes: {'all-reduce': 100}, it"),
        ({"compilations": {"train_step": 2, "init_state": 1}}, "compilations: {'train_step': 2"),
        ({"flops": 1010}, ""),
        ({"flops": 1011}, "flops: 1011, it was 1000"),
        ({"flops": 980}, "flops: 980, it was 1000"),
        ({"temporary_bytes": 0, "copies": 0, "transposes": 0}, ""),
        ({"temporary_bytes": 2**21}, "temporary_bytes: 2097152, it was 1048576; allowed: at most"),
        ({"copies": 24, "transposes": 35}, ""),
        ({"copies": 25}, "copies: 25, it was 20; allowed: at most 24"),
        ({"transposes": 36}, "transposes: 36, it was 30; allowed: at most 35"),
    ],
)
def test_what_grew_is_named(change, line):
    found = wrong(BEFORE, BEFORE | change)
    assert len(found) == bool(line)
    assert not line or found[0].startswith(line)
