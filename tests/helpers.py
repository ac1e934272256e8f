"""What tests share: small configs, a run as a real subprocess, its results."""

import contextlib
import dataclasses
import importlib
import io
import json
import os
import pathlib
import subprocess
import sys
from unittest import mock

import jax
import numpy as np
import pytest
from absl import flags as absl_flags
from ml_collections import ConfigDict

from mimjax import schema, sharding, stopping
from mimjax.data import configured
from mimjax.programs import cli, parser
from mimjax.run.config_files import import_config
from mimjax.run.open import kept_index, open_run
from mimjax.run.setup import setup
from mimjax.storage.checkpoints import Checkpoints
from mimjax.storage.files import Workdir

ROOT = pathlib.Path(__file__).parent.parent
ALL = {p.stem: import_config(p.stem) for p in sorted((ROOT / "configs").glob("*.py"))}
LABELED = (
    "attentive_probe",
    "fine_tune",
    "linear_probe",
)  # transfer recipes, which begin with a trained model
CONFIGS = {name: config for name, config in ALL.items() if name not in LABELED}
METHODS = tuple(CONFIGS)
# What makes a network small, for the settings that it has.
SMALL = {
    "width": 32,
    "depth": 2,
    "stage_widths": (8, 16),
    "vocab": 16,
    "hidden": 16,
    "codebook_dim": 8,
    "temperature_end": 0.5,
}


def gate(value):
    """A parameter for `make test-gate`, while `make test` is content with others of its kind."""
    return pytest.param(value, marks=pytest.mark.gate)


def gated(values, keep):
    """A test's parameters: those in `keep` for `make test`, the rest for `make test-gate`."""
    values, keep = list(values), list(keep)
    assert all(k in values for k in keep), keep
    return [v if v in keep else gate(v) for v in values]


def shrink(section):
    """Make an encoder's (or tokenizer's) section small, whichever class it has."""
    for key, value in SMALL.items():
        if key in section:
            section[key] = value
    if len(section.get("fuse_layers", ())) > 1:
        section.fuse_layers = (0, 1)


def sections(c):
    """Every section in a section, itself first."""
    yield c
    for value in c.values():
        if isinstance(value, ConfigDict):
            yield from sections(value)


def small(name, **overrides):
    """A method's demo config with a small encoder, unlocked; overrides by dotted name."""
    c = CONFIGS[name].get_config("demo").unlock()
    c.batch_size, c.steps, c.optimizer.schedule.warmup_steps = 16, 8, None
    c.eval.every, c.log_every, c.optimizer.lr = 0, 1, None
    c.eval.probes, c.eval.error, c.eval.pictures, c.eval.health = None, None, None, None
    shrink(c.method.encoder)
    for section in (c.method, c.method.get("decoder", {})):
        for key in ("codebook_dim", "temperature_end"):
            if key in section:
                section[key] = SMALL[key]
    for section in sections(c.method):  # of the targets that read frozen networks
        if "path" in section:
            section.path = "random"
    for key, value in overrides.items():
        node = c
        *parents, last = key.split(".")
        for parent in parents:
            node = node[parent]
        assert last in node, key
        # an instance of a plug stands for its section
        node[last] = schema.section(value) if dataclasses.is_dataclass(value) else value
    return c


def make(c, mesh=None, small_tensors=sharding.SMALL):
    """Task and program of a config, without data or files."""
    mesh = mesh or sharding.make_mesh(devices=jax.devices()[:1])
    made = setup(c, mesh=mesh, images=4 * c.batch_size, small=small_tensors)
    return made.task, made.program


def opened(c, workdir):
    """A config's run in a workdir, opened as `mimjax train` opens it."""
    return open_run(setup(c, kept=kept_index(str(workdir))), str(workdir))


def begun(c, workdir):
    """The run that `opened` gives, closed again before its first update."""
    with opened(c, workdir) as run:
        return run


def frozen(task):
    """Frozen networks with random weights."""
    return jax.jit(task.init_frozen)(jax.random.key(7))


def batches(c, task, steps):
    """The first batches of the config's training data."""
    data = configured.make_data(c, task, "train")
    return [data.batch(s) for s in range(steps)]


def module_of(name):
    """The module of a program, "export"; "mimjax.main" is "train"."""
    name = "train" if name == "mimjax.main" else name
    return importlib.import_module(f"mimjax.programs.{name}")


def command(name, *args):
    words = [name] if name == "mimjax.main" else ["mimjax", name]
    return [sys.executable, "-m", *words, *args]


def environment(devices=1):
    return os.environ | {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(devices)}


def run(*args, devices=1, check=True, timeout=300):
    """A program of mimjax as a real process."""
    out = subprocess.run(
        command(*args),
        cwd=ROOT,
        env=environment(devices),
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    if check:
        assert out.returncode == 0, out.stdout + out.stderr
    return out


def program(name, *words, parse_only=False):
    """A program in this process, with its own flags alone; its errors are raised.

    Returns:
      The names of its flags.
    """
    module = module_of(name)
    with cli.defined(module) as names:
        rest = cli.read(module, [name, *words])[1:]
        assert not rest, "left over"
        if not parse_only:
            cli.start(module, rest)
    return names


def answer(name, *words, check=False, devices=None):
    """A program in this process and in the repository, as `run` answers: code, stdout, stderr.

    Args:
      devices: how many a run trains on; None = all.
    """
    module, out, err, code = module_of(name), io.StringIO(), io.StringIO(), 0
    mesh = sharding.make_mesh(devices=jax.devices()[:devices])
    few = mock.patch.object(sharding, "make_mesh", return_value=mesh)
    with (
        few if devices else contextlib.nullcontext(),
        contextlib.chdir(ROOT),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        mock.patch.object(stopping, "SIGNALS", stopping.Signals()),
    ):
        try:
            with cli.defined(module):
                rest = cli.parse(module, [name, *words])[1:]
                cli.guard(lambda: cli.start(module, rest))
        except SystemExit as end:
            code = end.code
    if check:
        assert code == 0, out.getvalue() + err.getvalue()
    return subprocess.CompletedProcess([name, *words], code, out.getvalue(), err.getvalue())


def config_of(*words):
    """The config of a command line, by the parser that the programs use."""
    found = absl_flags.FlagValues()
    parser.define(found)
    parser.read(["program", *words], found)
    return found.config


def start(*args, devices=1):
    """The same in the background."""
    return subprocess.Popen(
        command(*args),
        cwd=ROOT,
        env=environment(devices),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.STDOUT,
    )


def losses(workdir):
    """{step: {loss terms, norms}} of metrics.jsonl; each step stands there once."""
    out = {}
    for line in (pathlib.Path(workdir) / "metrics.jsonl").read_text().splitlines():
        row = json.loads(line)
        if "loss/total" in row:
            assert row["step"] not in out, row["step"]
            keep = ("loss", "lr", "weight", "ema", "grad", "param")
            out[row["step"]] = {k: v for k, v in row.items() if k.startswith(keep)}
    return out


def final_params(workdir, c):
    """The newest checkpoint's parameters as numpy arrays by path."""
    _, program = make(c)
    params = Checkpoints(Workdir(str(workdir), writer=False), read_only=True).params(
        program.abstract_state.params
    )
    return jax.tree.map(np.asarray, params)


def flags(c):
    """A config's difference from its demo as command-line overrides."""
    from mimjax.storage.settings import flatten

    name = c.task.rsplit(":", 1)[0].rsplit(".", 1)[1]
    base = flatten(CONFIGS[name].get_config("demo").to_dict())
    new = flatten(c.to_dict())
    changed = {k: v for k, v in new.items() if base.get(k, ...) != v}
    # another class of a plug is given by the plug's own name
    words = [f"--config.{k.removesuffix('.type')}={v}" for k, v in changed.items()]
    return [f"--config=configs/{name}.py:demo", *words]
