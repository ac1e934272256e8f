"""Every method's train step at one shape: `python -m benchmarks.step --methods=all`.

Step time on this machine's first device, FLOPs per image and parameters, side by side in one run.
Methods take turns, so that noise meets all of them; the ratio to MAE is what to compare. Frozen
networks have random weights: time does not depend on them. Published configurations at the shape's
size; decoders, regressors and tokenizers are the methods' own.
"""

from __future__ import annotations

import ast
import time
from typing import Any

import numpy as np

from benchmarks.peers.exchange import make_batch
from mimjax.run.sections import load

METHODS = ("mae", "bootmae", "beit", "cae", "caev2", "mcmae", "mrmae")
SMALLEST = {"mcmae": "s", "mrmae": "s"}  # sizes that a method does not have


def config(name: str, shape: str, batch: int) -> Any:
    """Return the published config of a size; "tiny" = the demo's, to try the program itself."""
    size = SMALLEST.get(name, shape) if shape == "ti" else shape
    c = load(f"{name}:demo" if shape == "tiny" else f"{name}:size={size}").unlock()
    c.batch_size = batch
    return c


def settings(flags: list[str]) -> dict[str, Any]:
    """Return the settings of flags KEY=VALUE; a value is a number, None, True, or text."""

    def value(text: str) -> Any:
        try:
            return ast.literal_eval(text)
        except (SyntaxError, ValueError):
            return text

    return {key: value(text) for key, _, text in (flag.partition("=") for flag in flags)}


def prepare(name: str, shape: str, batch: int) -> tuple[Any, dict[str, Any]]:
    """Return a function that makes one step and waits for it, and what is known without timing."""
    import jax
    import jax.numpy as jnp

    from mimjax import sharding
    from mimjax.run.setup import setup
    from mimjax.train import flops

    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    run = setup(config(name, shape, batch), mesh=mesh, images=1000 * batch).program
    task, abstract = run.task, run.abstract_state.params
    begin = time.perf_counter()
    compiled, state = run.compile(), run.init()
    seconds = time.perf_counter() - begin
    frozen = jax.jit(task.init_frozen)(jax.random.key(1))
    data = jax.tree.map(jnp.asarray, make_batch(task, batch))

    def step():
        nonlocal state
        state, metrics = compiled(state, frozen, data)
        return float(metrics["loss/total"])

    count = lambda tree: sum(x.size for x in jax.tree.leaves(tree)) / 1e6
    known = {
        "method": name,
        "parameters_m": count(abstract),
        "frozen_m": count(frozen),
        "gflops_per_image": flops.step_flops(task) / 1e9,
        "compile_s": seconds,
    }
    return step, known


def measure(names: list[str], shape: str, batch: int, rounds: int) -> list[dict[str, Any]]:
    """Return one row per method: medians of `rounds` steps that were made in turns."""
    steps, rows = [], []
    for name in names:
        step, known = prepare(name, shape, batch)
        step()  # the first run fills caches
        steps.append(step)
        rows.append(known)
    times = np.zeros((rounds, len(names)))
    for r in range(rounds):
        for i, step in enumerate(steps):
            begin = time.perf_counter()
            loss = step()
            times[r, i] = time.perf_counter() - begin
            assert np.isfinite(loss), names[i]
    for i, row in enumerate(rows):
        row["step_s"] = float(np.median(times[:, i]))
        row["ratio_to_first"] = float(np.median(times[:, i] / times[:, 0]))
    return rows


def describe(rows: list[dict[str, Any]], shape: str, batch: int) -> str:
    """Return the rows as a table."""
    import jax

    first = rows[0]["method"]
    lines = [
        f"train step, shape {shape}, batch {batch}, {jax.devices()[0].device_kind}",
        f"{'method':10}{'step, s':>10}{'/ ' + first:>10}{'GFLOP/img':>11}{'params, M':>11}"
        f"{'frozen, M':>11}{'compile, s':>12}",
    ]
    for r in rows:
        lines.append(
            f"{r['method']:10}{r['step_s']:10.3f}{r['ratio_to_first']:10.2f}"
            f"{r['gflops_per_image']:11.2f}{r['parameters_m']:11.2f}{r['frozen_m']:11.2f}"
            f"{r['compile_s']:12.1f}"
        )
    return "\n".join(lines)
