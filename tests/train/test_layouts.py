"""The same numbers however the work is laid out: devices, sharding, processes, accumulation."""

import contextlib
import functools
import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import time

import helpers
import jax
import numpy as np
import pytest
from PIL import Image

from mimjax import rules, schema, sharding
from mimjax.data.sources import Folder
from mimjax.errors import Exit
from mimjax.methods.parts import Average
from mimjax.schedules import Constant
from mimjax.targets.own import OwnFeatures

SLOW = functools.partial(pytest.param, marks=pytest.mark.slow)


def steps(c, mesh, small_tensors=sharding.SMALL, count=3):
    """Metrics of some steps and the final state."""
    task, program = helpers.make(c, mesh, small_tensors)
    with jax.set_mesh(mesh):
        compiled, state = program.compile(), program.init()
        metrics = []
        # the same weights whatever the layout
        frozen = jax.device_put(helpers.frozen(task), sharding.replicated(mesh))
        for batch in helpers.batches(c, task, count):
            state, m = compiled(state, frozen, sharding.to_global(mesh, batch))
            metrics.append(jax.device_get(m))
    return metrics, jax.device_get(state), program


def assert_close(ours, theirs):
    """Compare to 1e-5, but for key biases (MAE's, those of CAE's key norms).

    Their gradient is zero and Adam steps on its rounding.
    """
    flat = lambda t: dict(zip(rules.paths(t), jax.tree.leaves(t), strict=True))
    ours, theirs = flat(ours), flat(theirs)
    assert ours.keys() == theirs.keys()
    for path, a in ours.items():
        keep = np.ones(a.size, bool)
        if path.endswith("attn/qkv/bias"):
            keep[a.size // 3 : 2 * a.size // 3] = False
        if path.endswith("norm1_k/bias"):
            continue
        a, b = np.ravel(a)[keep], np.ravel(theirs[path])[keep]
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-5, err_msg=path)


@pytest.mark.parametrize("name", ["beit", *map(helpers.gate, ("bootmae", "cae")), SLOW("mae")])
def test_replicated_fsdp_and_one_device_agree(name):
    """BEiT and CAE with a tokenizer, CAE with a lagging encoder as well."""
    agree(name)


@pytest.mark.parametrize("name", helpers.gated(("bootmae", "beit", "mcmae", "dvae"), ["bootmae"]))
def test_micro_batches_agree_on_any_devices(name):
    """Each device sums its own gradients; drop path and other noise are drawn for all at once."""
    agree(name, accum=2)


def agree(name, accum=1):
    """Three steps on one device, replicated and sharded give the same numbers."""
    average = Average(decay=Constant(0.996), takes="old")
    aligned = OwnFeatures("average", masked_share=1.0, noise=True)
    lagging = {"method.align_target": aligned, "method.average": average}
    extra = {"method.encoder.depth": 1, **lagging} if name == "cae" else {}
    if name != "dvae":
        extra["method.encoder.drop_path"] = 0.1
    c = helpers.small(name, **{"optimizer.lr": 1e-3, "accum": accum, **extra})
    c.optimizer.rule.eps = 1e-5  # or else Adam steps on the rounding of the smallest gradients
    one, state_one, _ = steps(c, sharding.make_mesh(devices=jax.devices()[:1]))
    for data, fsdp in [(8, 1), (2, 4)] if name in ("mae", "bootmae") and accum == 1 else [(2, 4)]:
        ours, state, program = steps(c, sharding.make_mesh(data, fsdp), small_tensors=64)
        specs = [x.sharding.spec for x in jax.tree.leaves(program.abstract_state.params)]
        assert any("fsdp" in s for s in specs) == (fsdp > 1)
        for a, b in zip(ours, one, strict=True):
            assert a.keys() == b.keys()
            for k in a:
                assert a[k] == pytest.approx(b[k], rel=1e-5, abs=1e-6), (data, fsdp, k)
        assert_close(state.params, state_one.params)
        assert_close(state.ema, state_one.ema)


def test_ema_and_optimizer_slots_are_laid_out_like_their_parameters():
    _, program = helpers.make(helpers.small("bootmae"), sharding.make_mesh(1, 8), 64)
    s = program.abstract_state
    path = lambda t: t["encoder"]["block_00"]["attn"]["qkv"]["kernel"].sharding.spec
    adam = next(
        x
        for x in jax.tree.leaves(s.opt_state, is_leaf=lambda x: hasattr(x, "mu"))
        if hasattr(x, "mu")
    )
    assert path(s.params) == path(s.ema) == path(adam.mu) == path(adam.nu)
    assert "fsdp" in path(s.params)


@pytest.mark.gate
def test_accumulation_averages_gradients():
    """A batch of 16 in four pieces is the batch of 16, where there is no drop path."""
    c = helpers.small("bootmae", **{"optimizer.lr": 1e-3})
    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    whole, state_whole, _ = steps(c, mesh)
    c.accum = 4
    pieces, state_pieces, _ = steps(c, mesh)
    for a, b in zip(pieces, whole, strict=True):
        for k in a:
            assert a[k] == pytest.approx(b[k], rel=1e-5), k
    assert_close(state_pieces.params, state_whole.params)


@contextlib.contextmanager
def launched(c, workdir):
    """launch/local.sh with two processes on a port that is free."""
    with socket.socket() as s:
        s.bind(("localhost", 0))
        port = s.getsockname()[1]
    env = {"NUM": "2", "PORT": str(port), "PYTHON": sys.executable}
    with subprocess.Popen(
        ["bash", "launch/local.sh", *helpers.flags(c), f"--workdir={workdir}"],
        cwd=helpers.ROOT,
        env=helpers.environment() | env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.terminate()  # with all that it started


def launch_two(c, workdir):
    """(exit code, stdout, stderr)"""
    with launched(c, workdir) as process:
        out, err = process.communicate(timeout=280)
    return process.returncode, out, err


@pytest.mark.gate
def test_two_processes_equal_one(tmp_path):
    """launch/local.sh: two real processes, each with half of every batch, write the run of one."""
    c = helpers.small("bootmae", log_every=1, steps=6, checkpoint_every=3)
    c.data.threads = 2
    helpers.run("mimjax.main", *helpers.flags(c), f"--workdir={tmp_path / 'one'}", devices=2)
    workdir = tmp_path / "two"
    code, out, err = launch_two(c, workdir)
    assert code == 0, out + err
    assert "2 process(es), mesh data=2" in out
    one, two = helpers.losses(tmp_path / "one"), helpers.losses(workdir)
    assert one.keys() == two.keys()
    for step, row in one.items():
        for name, value in row.items():
            assert two[step][name] == pytest.approx(value, rel=1e-5, abs=1e-7), (step, name)
    a, b = (helpers.final_params(w, c) for w in (tmp_path / "one", workdir))
    assert_close(a, b)


@pytest.mark.gate
def test_one_of_two_processes_that_fails_ends_the_run(tmp_path):
    """The run ends in seconds with the line of the one that failed; the other waits for minutes."""
    (tmp_path / "images").mkdir()
    for i in range(64):
        file = tmp_path / f"images/{i:02}.png"
        file.write_bytes(b"no image")
        if i % 16:  # each process draws 2 of these 4 on average, of which one is allowed
            pixels = np.random.default_rng(i).integers(256, size=(16, 16, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(file)
    c = helpers.small("mae", steps=100, log_every=10)
    c.data.source, c.data.path = schema.section(Folder), str(tmp_path / "images")
    begin = time.monotonic()
    code, _, err = launch_two(c, tmp_path / "run")
    assert time.monotonic() - begin < 120  # jax would wait 300 s at exit
    assert code == Exit.ERROR, err
    assert "error: data.max_bad_fraction: " in err
    # the other one says why it ends, if it has not found as many bad files itself
    lines = err.splitlines()
    pattern = r"error: (process \d ended with exit code 1: )?data\.max_bad_fraction: "
    assert sum(re.match(pattern, line) is not None for line in lines) == 2, err
    assert all(line.startswith(("error: ", "launch/local.sh: ")) for line in lines), err
    assert "launch/local.sh: process " in err


def second_of(process):
    """The pid of process 1 of a launch."""
    children = pathlib.Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text()
    named = lambda pid: b"--process_id=1" in pathlib.Path(f"/proc/{pid}/cmdline").read_bytes()
    return next(int(pid) for pid in children.split() if named(pid))


@pytest.mark.gate
def test_sigterm_to_one_of_two_processes_stops_both_with_a_checkpoint(tmp_path):
    c = helpers.small("mae", steps=1_000_000, log_every=10)
    log = tmp_path / "run" / "metrics.jsonl"
    with launched(c, tmp_path / "run") as process:
        deadline = time.monotonic() + 240
        while not log.exists() or not log.read_text():
            assert time.monotonic() < deadline
            assert process.poll() is None
            time.sleep(0.05)
        os.kill(second_of(process), signal.SIGTERM)
        out, err = process.communicate(timeout=120)
    assert process.returncode == Exit.STOPPED, out + err
    stopped = re.search(r"stopped at step (\d+): the same command continues", out)
    assert stopped
    assert (tmp_path / "run" / "checkpoints" / stopped[1]).is_dir()


def two_processes(c, workdir, *flags):
    """Both processes, without a launcher; `flags` are each one's own."""
    with socket.socket() as s:
        s.bind(("localhost", 0))
        port = s.getsockname()[1]
    common = [*helpers.flags(c), f"--workdir={workdir}", f"--coordinator=localhost:{port}"]
    processes = [
        subprocess.Popen(
            helpers.command("mimjax.main", *common, "--num_processes=2", f"--process_id={i}", *own),
            cwd=helpers.ROOT,
            env=helpers.environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for i, own in enumerate(flags)
    ]
    return processes


@pytest.mark.gate
def test_processes_with_other_settings_are_refused(tmp_path):
    """Each process says which settings differ and whose; nothing is written."""
    flags = (), ("--config.optimizer.lr=0.5", "--config.seed=3")
    processes = two_processes(helpers.small("mae"), tmp_path / "run", *flags)
    for process in processes:
        err = process.communicate(timeout=200)[1]
        assert process.returncode == Exit.REFUSED, err
        (line,) = err.splitlines()
        assert line.startswith("error: the processes of this run differ in optimizer.lr: None (pro")
        assert "(process 0), 0.5 (process 1); seed: 0 (process 0), 3 (process 1); allowed: " in line
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_a_process_that_is_killed_ends_the_other_in_one_line(tmp_path, victim):
    """Process 0 holds jax's service: without it compiled code aborts, which is answered too."""
    c = helpers.small("mae", steps=1_000_000, log_every=10)
    log = tmp_path / "run" / "metrics.jsonl"
    processes = two_processes(c, tmp_path / "run", (), ())
    while not log.exists() or not log.read_text():
        assert all(p.poll() is None for p in processes)
        time.sleep(0.05)
    processes[victim].kill()
    begin = time.monotonic()
    _, err = processes[1 - victim].communicate(timeout=100)
    assert processes[1 - victim].returncode == Exit.NO_ANSWER, err
    assert time.monotonic() - begin < 40
    (line,) = err.splitlines()
    assert line.startswith(f"error: process {victim}")
    processes[victim].communicate()
