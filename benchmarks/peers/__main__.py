"""Every method's train step on one CPU core, mimjax against PyTorch: `python -m benchmarks.peers`.

  python -m benchmarks.peers --methods=mae,bootmae --shape=ti --batch=8 --rounds=10 [--json=FILE]

Needs `pip install mimjax[bench]`. Forward, backward, AdamW and everything frozen or averaged;
float32, erf GELU, the same weights, images and masks; the loss is read back. `benchmarks/duel.py`
is the protocol: one process and one step in turn each, all on the same core. The verdict is against
the fastest variant of PyTorch, by CPU time. A peer whose loss or gradient differs is not timed. A
shape that a method does not have is the next larger one (MCMAE and MR-MAE: s).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import duel
from benchmarks.step import environment

# {method: its implementations}; `runner.METHODS` says which classes they are
PEERS = {
    "mae": ("torch", "transformers"),
    "bootmae": ("torch",),
    "beit": ("torch",),
    "cae": ("torch",),
    "caev2": ("torch",),
    "mcmae": ("cells", "dense"),
    "mrmae": ("cells", "dense"),
}
VARIANTS = ("eager", "sdpa", "fused", "compiled")  # as `runner.VARIANTS` explains
SHAPES = ("ti", "s", "b", "tiny")
FLAGS = ("avx2", "avx512f", "avx512_bf16", "amx_tile", "amx_bf16")


def serve(contender: str, args: argparse.Namespace) -> None:
    """One contender's process; "mimjax" writes the case that the others read."""

    def make():
        if contender == "mimjax":
            from benchmarks.peers import exchange

            return exchange.prepare(args.methods, args.shape, args.batch, args.case)[0]
        from benchmarks.peers import runner

        kind, _, variant = contender.partition("-")
        cls = runner.METHODS[args.methods][kind]
        return runner.prepare(args.case, cls, runner.VARIANTS[variant])

    duel.serve(make, args.core)


def measure(method: str, args: argparse.Namespace) -> dict[str, Any]:
    """Play one method's duel.

    Returns:
      One row: times of every contender, the ratios to the fastest peer by CPU time, environment.
    """
    load, running, skipped = os.getloadavg(), {}, {}
    wanted = [f"{k}-{v}" for k in PEERS[method] for v in args.variants.split(",")]
    if args.peers:
        wanted = [name for name in wanted if name in args.peers.split(",")]
    if shutil.which(os.environ.get("CXX", "g++")) is None:
        skipped = {k: "no C++ compiler, which torch.compile needs" for k in wanted if "comp" in k}
    with tempfile.TemporaryDirectory() as folder:
        common = [f"--methods={method}", f"--shape={args.shape}", f"--batch={args.batch}"]
        common += [f"--core={args.core}", f"--case={Path(folder) / 'case.npz'}"]
        try:
            for name in ["mimjax", *(k for k in wanted if k not in skipped)]:
                arguments = [*common, f"--serve={name}"]
                running[name] = duel.Contender.start(name, arguments, "benchmarks.peers")
            print(f"{method}: {len(running)} contenders are warm", flush=True)
            duel.play(list(running.values()), args.rounds)
        finally:
            for contender in running.values():
                contender.close()
    ours = running["mimjax"]
    peers = {k: c for k, c in running.items() if k != "mimjax"}
    best = min(peers, key=lambda name: float(np.median(peers[name].cpu)))
    return {
        "benchmark": "train_step_cpu",
        "method": method,
        "shape": args.shape,
        "batch": args.batch,
        "rounds": args.rounds,
        "contenders": {name: c.summary() for name, c in running.items()},
        "skipped": skipped,
        "fastest_peer": best,
        "cpu": duel.ratio(ours.cpu, peers[best].cpu),
        "wall": duel.ratio(ours.wall, peers[best].wall),
        "processor": processor(),
        **environment(load),
    }


def processor() -> dict[str, Any]:
    """The name of the processor and which of the vector instructions it has."""
    path, rows = Path("/proc/cpuinfo"), {}
    for line in path.read_text().splitlines() if path.exists() else []:
        name, _, value = line.partition(":")
        rows[name.strip()] = value.strip()
    has = rows.get("flags", "").split()
    return {
        "name": rows.get("model name", platform.processor()),
        "flags": [flag for flag in FLAGS if flag in has],
    }


def describe(row: dict[str, Any]) -> str:
    """The row as a person reads it."""
    lines = [f"{row['method']}, shape {row['shape']}, batch {row['batch']}; seconds of CPU time"]
    for name, c in row["contenders"].items():
        lines.append(f"  {name:24}{c['cpu_median']:9.3f}  (min {c['cpu_min']:.3f})")
    lines += [f"  {name:24} skipped: {why}" for name, why in row["skipped"].items()]
    r, (before, after) = row["cpu"], row["load_average"]
    lines.append(
        f"  mimjax / {row['fastest_peer']}: {r['ratio']:.3f} (95 % {r['low']:.3f} to "
        f"{r['high']:.3f}), wall {row['wall']['ratio']:.3f}; load {before:.1f} to {after:.1f}"
    )
    return "\n".join(lines)


def chosen(text: str, allowed: Any, flag: str, parser: argparse.ArgumentParser) -> list[str]:
    """The names in a comma-separated flag; "all" = all of them."""
    names = list(allowed) if text == "all" else text.split(",")
    if wrong := [name for name in names if name not in allowed]:
        parser.error(f"--{flag}: {', '.join(wrong)}; allowed: all, {', '.join(allowed)}")
    return names


def main() -> None:
    """Parse arguments; play the duels, or serve as one of their processes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--methods", default="all", help="all, or names: mae,cae")
    parser.add_argument("--shape", choices=SHAPES, default="ti")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--variants", default=",".join(VARIANTS), help="how peers run")
    parser.add_argument("--peers", default="", help="contenders by name: torch-fused; all if empty")
    parser.add_argument("--core", type=int, default=max(os.sched_getaffinity(0)))
    parser.add_argument("--json", default="", help="a file to which one row a method is added")
    parser.add_argument("--serve", default="", help=argparse.SUPPRESS)
    parser.add_argument("--case", default="", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        return serve(args.serve, args)
    methods = chosen(args.methods, PEERS, "methods", parser)
    args.variants = ",".join(chosen(args.variants, VARIANTS, "variants", parser))
    every = [f"{k}-{v}" for m in methods for k in PEERS[m] for v in VARIANTS]
    args.peers = ",".join(chosen(args.peers, every, "peers", parser)) if args.peers else ""
    for method in methods:
        row = measure(method, args)
        print(describe(row), flush=True)
        if args.json:
            with open(args.json, "a") as file:
                file.write(json.dumps(row) + "\n")
    return None


if __name__ == "__main__":
    main()
