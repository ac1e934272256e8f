"""A train step on an accelerator, mimjax against PyTorch: `python -m benchmarks.gpu --output=DIR`.

  python -m benchmarks.gpu --output=DIR [--methods=mae,bootmae --shape=b --batch=256 --steps=20]

Every contender is a process of its own, one after the other, so that each has the device to
itself: mimjax, and PyTorch eager and compiled (bfloat16 autocast, SDPA, fused AdamW). All begin
with the same weights, images and masks, and a loss that differs ends a contender. Times are medians
of steps that were waited for one by one; MFU counts products (`benchmarks/flops.py`) and divides by
the speed of a large bfloat16 product measured in the same run. Rows are added to gpu.jsonl; a trace
of mimjax's first method lies in trace/. JAX_PLATFORMS=cpu and --shape=tiny try the program itself.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.peers.__main__ import PEERS
from benchmarks.step import environment

GOALS = {"mae": 0.60, "bootmae": 0.62}  # of the measured peak, one H200, ViT-B, batch 256
OVER = {"eager": 2.0, "compiled": 1.15}  # how many times as fast as PyTorch
LARGE = {"cpu": 512}  # side of the product that measures the peak; 8192 elsewhere
TOLERANCE = 2e-2  # of the loss: bfloat16 products in another order
WARMUP = 3


def peak() -> float:
    """Return FLOP per second of a large bfloat16 product of random numbers, the best of ten."""
    import jax
    import jax.numpy as jnp

    n = LARGE.get(jax.default_backend(), 8192)
    a, b = (jax.random.normal(jax.random.key(i), (n, n), jnp.bfloat16) for i in range(2))
    product = jax.jit(jnp.matmul)
    times = timed(lambda: product(a, b).block_until_ready(), 10)
    return 2 * n**3 / min(times)


def timed(step: Callable[[], Any], number: int) -> list[float]:
    """Return the seconds of steps that are waited for, after some that do not count."""
    for _ in range(WARMUP):
        step()
    times = []
    for _ in range(number):
        begin = time.perf_counter()
        step()
        times.append(time.perf_counter() - begin)
    return times


def ours(method: str, args: argparse.Namespace) -> dict[str, Any]:
    """Time mimjax, write the case of the others, and a trace where one is asked for."""
    import jax

    from benchmarks.peers import exchange

    begin = time.perf_counter()
    step, known = exchange.prepare(method, args.shape, args.batch, args.case, "bfloat16")
    started = time.perf_counter() - begin
    times = timed(step, args.steps)
    if args.trace:
        with jax.profiler.trace(args.trace):
            for _ in range(3):
                step()
    memory = jax.devices()[0].memory_stats() or {}
    return {
        "times": times,
        "first_step_s": started,
        "memory_gib": memory.get("peak_bytes_in_use", 0) / 2**30 or None,
        "device": jax.devices()[0].device_kind,
        "gflop": known["gflop"],
        "peak_tflops": peak() / 1e12,
    }


def theirs(method: str, variant: str, args: argparse.Namespace) -> dict[str, Any]:
    """Time a variant of PyTorch's peer."""
    import torch

    from benchmarks.peers import runner

    device = "cuda" if torch.cuda.is_available() else "cpu"
    cls = runner.METHODS[method][PEERS[method][0]]
    how = runner.Variant(fused=True, compiled=variant == "compiled", low=True, device=device)
    begin = time.perf_counter()
    step = runner.prepare(args.case, cls, how, TOLERANCE)
    step()
    started, times = time.perf_counter() - begin, timed(step, args.steps)
    memory = torch.cuda.max_memory_allocated() / 2**30 if device == "cuda" else None
    return {"times": times, "first_step_s": started, "memory_gib": memory, "device": device}


def run_one(name: str, method: str, args: argparse.Namespace, case: str) -> dict[str, Any]:
    """Run a contender in a process of its own; one that fails is a row with its last line."""
    words = [sys.executable, "-m", "benchmarks.gpu", f"--methods={method}", f"--shape={args.shape}"]
    words += [f"--batch={args.batch}", f"--steps={args.steps}", f"--output={args.output}"]
    words += [f"--serve={name}", f"--case={case}"]
    if name == "mimjax" and method == args.methods.split(",")[0]:
        words += [f"--trace={Path(args.output) / 'trace'}"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    lines = done.stdout.splitlines()
    if done.returncode or not lines:
        said = (done.stderr.strip().splitlines() or ["no output"])[-1]
        return {"error": f"exit code {done.returncode}: {said}"}
    return json.loads(lines[-1])


def measure(method: str, args: argparse.Namespace) -> dict[str, Any]:
    """Return one method's row: every contender's times, MFU, and how many times as fast we are."""
    load = os.getloadavg()
    with tempfile.TemporaryDirectory() as folder:
        case = str(Path(folder) / "case.npz")
        names = ["mimjax", *args.against.split(",")]
        found = {name: run_one(name, method, args, case) for name in names}
    medians = {k: float(np.median(x["times"])) for k, x in found.items() if "times" in x}
    row = {
        "benchmark": "train_step_gpu",
        "method": method,
        "shape": args.shape,
        "batch": args.batch,
        "dtype": "bfloat16",
        "contenders": found,
        "seconds": medians,
        **environment(load),
    }
    if "mimjax" in medians:
        mine = found["mimjax"]
        speed = mine["gflop"] * 1e9 * args.batch / medians["mimjax"]
        row["mfu"] = speed / (mine["peak_tflops"] * 1e12)
        row["faster"] = {k: medians[k] / medians["mimjax"] for k in OVER if k in medians}
    return row


def describe(row: dict[str, Any]) -> str:
    """Return the row as a person reads it, with what was wished for."""
    lines = [f"{row['method']}, shape {row['shape']}, batch {row['batch']}, bfloat16"]
    for name, x in row["contenders"].items():
        if "error" in x:
            lines.append(f"  {name:10} {x['error']}")
            continue
        t = np.array(x["times"]) * 1e3
        memory = f", {x['memory_gib']:.1f} GiB" if x["memory_gib"] else ""
        lines.append(
            f"  {name:10} {np.median(t):9.1f} ms (10 % {np.quantile(t, 0.1):.1f}, 90 % "
            f"{np.quantile(t, 0.9):.1f}), {row['batch'] / np.median(t) * 1e3:,.0f} images/s, first "
            f"step after {x['first_step_s']:.0f} s{memory} on {x['device']}"
        )
    if "mfu" in row:
        goal = GOALS.get(row["method"])
        wished = f" (wished for: {goal:.0%})" if goal else ""
        mine = row["contenders"]["mimjax"]
        lines.append(f"  {row['mfu']:.1%} of {mine['peak_tflops']:.1f} measured TFLOP/s{wished}")
        lines += [
            f"  {x:.2f} times as fast as {name} PyTorch (wished for: {OVER[name]:g})"
            for name, x in row["faster"].items()
        ]
    return "\n".join(lines)


def main() -> None:
    """Measure, or serve as one of the processes."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--output", required=True, help="a folder")
    parser.add_argument("--methods", default="mae,bootmae")
    parser.add_argument("--shape", default="b", choices=("ti", "s", "b", "tiny"))
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--against", default=",".join(OVER), help="variants of PyTorch")
    parser.add_argument("--steps", type=int, default=20)
    for name in ("serve", "case", "trace"):
        parser.add_argument(f"--{name}", default="", help=argparse.SUPPRESS)
    args = parser.parse_args()
    methods = args.methods.split(",")
    if wrong := set(methods) - set(PEERS):
        parser.error(f"--methods: {', '.join(wrong)}; allowed: {', '.join(PEERS)}")
    if wrong := set(args.against.split(",")) - set(OVER):
        parser.error(f"--against: {', '.join(wrong)}; allowed: {', '.join(OVER)}")
    if args.serve:
        mine = args.serve == "mimjax"
        row = ours(methods[0], args) if mine else theirs(methods[0], args.serve, args)
        print(json.dumps(row))
        return
    os.makedirs(args.output, exist_ok=True)
    failed = False
    for method in methods:
        row = measure(method, args)
        failed |= any("error" in x for x in row["contenders"].values())
        print(describe(row), flush=True)
        with open(Path(args.output) / "gpu.jsonl", "a") as file:
            file.write(json.dumps(row) + "\n")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
