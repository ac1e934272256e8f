"""One MAE train step on one CPU core, mimjax against PyTorch: `python -m benchmarks.step`.

  python -m benchmarks.step --shape=ti --rounds=15 [--peer=transformers] [--json]
  python -m benchmarks.step --methods=all [--shape=ti --batch=8]    every method, no peer

Needs `pip install mimjax[bench]`. Forward, backward, AdamW with a decay mask, random masks
included, loss read back; float32, erf GELU, SDPA attention. The peers are the MAE of the public
package `transformers`, eager and compiled, with the plain and the fused AdamW; the verdict is
against the fastest. Peers get their images as normalized floats, mimjax as uint8.
`benchmarks/duel.py` is the protocol.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import subprocess
import time
from importlib.metadata import PackageNotFoundError, version
from typing import Any, NamedTuple

import numpy as np

from benchmarks import duel, methods

PACKAGES = ("jax", "jaxlib", "flax", "optax", "torch", "transformers", "numpy")
GOAL = 0.85  # of the fastest peer's time, at shape ti


class Shape(NamedTuple):
    """Sizes of a model and its batch."""

    width: int
    depth: int
    heads: int
    decoder: tuple[int, int, int]  # width, depth, heads
    batch: int = 16
    image: int = 224
    patch: int = 16


SHAPES = {
    "ti": Shape(192, 12, 3, (256, 4, 8)),
    "s": Shape(384, 12, 6, (512, 8, 16)),
    "b": Shape(768, 12, 12, (512, 8, 16)),
    "tiny": Shape(32, 2, 2, (32, 1, 2), batch=4, image=32, patch=8),  # tests the program itself
}


def mimjax_step(shape: Shape, **_):
    """The package's own program on one CPU device."""
    os.environ["JAX_PLATFORMS"] = "cpu"
    import jax

    from mimjax import sharding
    from mimjax.run.sections import load
    from mimjax.run.setup import setup

    c = load("mae")
    c.batch_size, c.dtype = shape.batch, "float32"
    c.method.encoder.update(
        width=shape.width,
        depth=shape.depth,
        heads=shape.heads,
        patch=shape.patch,
        image_size=(shape.image, shape.image),
    )
    c.method.decoder.width, c.method.decoder.depth, c.method.decoder.heads = shape.decoder
    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    run = setup(c, mesh=mesh, images=1000 * shape.batch).program
    task = run.task
    compiled, state = run.compile(), run.init()
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (shape.batch, shape.image, shape.image, 3), np.uint8)
    rows = np.zeros(shape.batch, np.int32)
    source = random.Random(0)

    def step() -> float:
        nonlocal state
        mask = np.stack([task.sample(source, 0)["mask"] for _ in range(shape.batch)])
        batch = {"image": images, "mask": mask, "label": rows, "index": rows}
        state, metrics = compiled(state, {}, sharding.to_global(mesh, batch))
        return float(metrics["loss/total"])

    return step


def transformers_step(shape: Shape, *, fused: bool = False, compiled: bool = False):
    """`ViTMAEForPreTraining` of the package transformers, which draws its masks itself."""
    import torch
    from transformers import ViTMAEConfig, ViTMAEForPreTraining

    torch.manual_seed(0)
    torch.set_num_threads(1)
    width, depth, heads = shape.decoder
    config = ViTMAEConfig(
        hidden_size=shape.width,
        num_hidden_layers=shape.depth,
        num_attention_heads=shape.heads,
        intermediate_size=4 * shape.width,
        hidden_act="gelu",
        layer_norm_eps=1e-6,
        image_size=shape.image,
        patch_size=shape.patch,
        decoder_hidden_size=width,
        decoder_num_hidden_layers=depth,
        decoder_num_attention_heads=heads,
        decoder_intermediate_size=4 * width,
        mask_ratio=0.75,
        norm_pix_loss=True,
        attn_implementation="sdpa",  # pyright: ignore[reportCallIssue]  # of every model
    )
    model = ViTMAEForPreTraining(config).train()
    trained = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": 0.05},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=1e-6, betas=(0.9, 0.95), fused=fused)
    forward = torch.compile(model) if compiled else model
    images = torch.randn(shape.batch, 3, shape.image, shape.image)

    def step() -> float:
        optimizer.zero_grad(set_to_none=True)
        loss = forward(pixel_values=images).loss
        loss.backward()
        optimizer.step()
        return loss.item()

    return step


CONTENDERS: dict[str, tuple[Any, dict[str, bool]]] = {
    "mimjax": (mimjax_step, {}),
    "transformers": (transformers_step, {}),
    "transformers-fused": (transformers_step, {"fused": True}),
    "transformers-compiled": (transformers_step, {"compiled": True}),
    "transformers-compiled-fused": (transformers_step, {"compiled": True, "fused": True}),
}


def environment(load: tuple[float, ...]) -> dict[str, Any]:
    """Return what a reader needs to judge the numbers: versions, machine, load, commit."""
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = None
    git = ["git", "rev-parse", "--short", "HEAD"]
    commit = subprocess.run(git, capture_output=True, text=True, check=False).stdout.strip()
    return {
        "versions": versions,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "load_average": [load[0], os.getloadavg()[0]],
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
        "commit": commit,
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def measure(shape: str, peers: list[str], rounds: int, core: int) -> dict[str, Any]:
    """Run the duel.

    Returns:
      One row: times of every contender, the ratio to the fastest peer by CPU time, the verdict
      (None while the interval spans the goal), the environment.
    """
    load, names, running = os.getloadavg(), ["mimjax", *peers], {}
    try:
        for name in names:
            arguments = [f"--shape={shape}", f"--core={core}", f"--serve={name}"]
            running[name] = duel.Contender.start(name, arguments)
        duel.play(list(running.values()), rounds)
    finally:
        for contender in running.values():
            contender.close()
    best = min(peers, key=lambda name: float(np.median(running[name].cpu)))
    ours, theirs = running["mimjax"], running[best]
    cpu, wall = duel.ratio(ours.cpu, theirs.cpu), duel.ratio(ours.wall, theirs.wall)
    decided = cpu["high"] <= GOAL or cpu["low"] > GOAL
    return {
        "benchmark": "mae_train_step_cpu",
        "shape": shape,
        "sizes": SHAPES[shape]._asdict(),
        "rounds": rounds,
        "contenders": {name: c.summary() for name, c in running.items()},
        "fastest_peer": best,
        "cpu": cpu,
        "wall": wall,
        "goal": GOAL,
        "met": (cpu["high"] <= GOAL) if decided else None,
        **environment(load),
    }


def describe(row: dict[str, Any]) -> str:
    """Return the row as lines for people."""
    lines = [f"MAE train step, shape {row['shape']}, one core, {row['rounds']} rounds; seconds"]
    lines.append(f"{'':30}{'CPU median':>12}{'min':>8}{'wall median':>13}{'min':>8}")
    for name, c in row["contenders"].items():
        lines.append(
            f"{name:30}{c['cpu_median']:12.3f}{c['cpu_min']:8.3f}"
            f"{c['wall_median']:13.3f}{c['wall_min']:8.3f}"
        )
    for clock in ("cpu", "wall"):
        r = row[clock]
        lines.append(
            f"{clock} time, mimjax / {row['fastest_peer']}: {r['ratio']:.3f} "
            f"(95 % {r['low']:.3f} to {r['high']:.3f})"
        )
    verdict = {True: "met", False: "missed", None: "undecided: the interval spans it"}[row["met"]]
    before, after = row["load_average"]
    lines.append(f"goal {row['goal']} of CPU time: {verdict}; load {before:.1f} to {after:.1f}")
    return "\n".join(lines)


def main() -> None:
    """Parse arguments; run the duel, or serve as one of its processes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", choices=SHAPES, default="ti")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument(
        "--peer",
        choices=["all", *list(CONTENDERS)[1:]],
        default="all",
        help="one peer, or all of them to find the fastest",
    )
    parser.add_argument("--core", type=int, default=max(os.sched_getaffinity(0)))
    parser.add_argument("--methods", default="", help="all, or names: mae,cae (no peer)")
    parser.add_argument("--batch", type=int, default=8, help="of --methods")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--serve", choices=CONTENDERS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        make, options = CONTENDERS[args.serve]
        return duel.serve(lambda: make(SHAPES[args.shape], **options), args.core)
    if args.methods:
        names: list[str] = (
            list(methods.METHODS) if args.methods == "all" else args.methods.split(",")
        )
        rows = methods.measure(names, args.shape, args.batch, args.rounds)
        print(json.dumps(rows) if args.json else methods.describe(rows, args.shape, args.batch))
        return None
    peers = list(CONTENDERS)[1:] if args.peer == "all" else [args.peer]
    row = measure(args.shape, peers, args.rounds, args.core)
    print(json.dumps(row) if args.json else describe(row))


if __name__ == "__main__":
    main()
