"""Time from the command to the first step, with and without programs kept on disk.

  python -m benchmarks.startup [--methods=mae,bootmae] [--batch=2] [--json=FILE]

ViT-B at the published settings on this machine's CPU. Each method is started twice with one folder
of compiled programs: the first start finds it empty. Seconds are wall and CPU time, because other
work on the machine shows in the former. How long the program of a pod takes to compile is said by
`mimjax plan --topology=v5e:16x16`.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from typing import Any

PHASES = ("import", "settings", "trace", "lower", "compile", "init", "step", "total")
WISHED = {"cold": 60.0, "warm": 20.0}  # seconds to the end of the first step, on quiet cores


def serve(method: str, batch: int, folder: str) -> dict[str, tuple[float, float]]:
    """Return the (wall, CPU) seconds of each phase of this process, begun when it was started."""
    out: dict[str, tuple[float, float]] = {}
    begin = last = time.perf_counter(), 0.0

    def phase(name: str) -> None:
        nonlocal last
        now = time.perf_counter(), time.process_time()
        out[name] = now[0] - last[0], now[1] - last[1]
        last = now

    import jax

    import mimjax.main  # noqa: F401
    from benchmarks import methods
    from benchmarks.peers.exchange import make_batch
    from mimjax import sharding
    from mimjax.run.setup import setup
    from mimjax.storage import compile_cache

    phase("import")
    compile_cache.enable(folder, print)
    run = setup(methods.config(method, "b", batch), images=1000 * batch).program
    phase("settings")
    with jax.set_mesh(run.mesh):
        traced = run.trace()
        phase("trace")
        lowered = traced.lower()
        phase("lower")
        compiled = lowered.compile()
        phase("compile")
        state, frozen = run.init(), jax.jit(run.task.init_frozen)(jax.random.key(1))
        jax.block_until_ready((state, frozen))
        phase("init")
        data = sharding.to_global(run.mesh, make_batch(run.task, batch))
        _, metrics = compiled(state, frozen, data)
        float(metrics["loss/total"])
    phase("step")
    out["total"] = time.perf_counter() - begin[0], time.process_time()
    return out


def measure(method: str, batch: int) -> dict[str, Any]:
    """Return the seconds of a cold and a warm start."""
    row: dict[str, Any] = {"benchmark": "startup", "method": method, "batch": batch}
    env = {k: v for k, v in os.environ.items() if k != "JAX_COMPILATION_CACHE_DIR"}
    with tempfile.TemporaryDirectory() as folder:
        words = [sys.executable, "-m", "benchmarks.startup", f"--methods={method}"]
        words += [f"--batch={batch}", f"--serve={folder}"]
        for name in WISHED:
            text = subprocess.run(words, env=env, stdout=subprocess.PIPE, text=True, check=True)
            row[name] = json.loads(text.stdout.splitlines()[-1])
    return row | {"cores": os.cpu_count(), "load_average": os.getloadavg()[0]}


def describe(row: dict[str, Any]) -> str:
    """Return the row as a person reads it."""
    lines = [f"{row['method']}, ViT-B, batch {row['batch']}: seconds of wall (and CPU) time"]
    lines.append("      " + "".join(f"{name:>15}" for name in PHASES))
    for name, wish in WISHED.items():
        cells = "".join(f"{f'{w:.1f} ({c:.1f})':>15}" for w, c in (row[name][k] for k in PHASES))
        lines.append(f"{name:6}{cells}   (wished for: {wish:g})")
    return "\n".join([*lines, f"{row['cores']} cores, load {row['load_average']:.1f}"])


def main() -> None:
    """Measure, or serve as one start."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--methods", default="mae")
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--json", default="", help="a file to which one row a method is added")
    parser.add_argument("--serve", default="", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        print(json.dumps(serve(args.methods, args.batch, args.serve)))
        return
    for method in args.methods.split(","):
        row = measure(method, args.batch)
        print(describe(row), flush=True)
        if args.json:
            with open(args.json, "a") as file:
                file.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
