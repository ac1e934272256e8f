"""What the step of a TPU slice is compiled to: `python -m benchmarks.slice --json=FILE`.

  python -m benchmarks.slice --methods=mae,bootmae [--size=b] [--topology=v5e:16x16]
    [--batch=4096] [--set=method.encoder.remat=full] [--json=FILE]

No TPU is needed: libtpu compiles for chips that are not there (`pip install mimjax[tpu]`), and what
is compiled has no noise. A row holds FLOPs by formula and by XLA, bytes accessed, temporaries,
copies and transposes between products, float32 arrays where the step computes in bfloat16, bytes of
the collectives, seconds of compilation, and the least time of a step that FLOPs and bytes allow:
an estimate, not a measurement. `tests/train/test_compiled.py` keeps such facts of small programs.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from typing import Any, NamedTuple

from benchmarks import methods

ISLAND = 2**20  # bytes on a chip from which a float32 array counts
MOVES = ("copy", "transpose")  # opcodes that only move numbers


class Chip(NamedTuple):
    """A chip by its data sheet (Cloud TPU documentation).

    Attributes:
      flops: bfloat16 FLOP per second.
      bandwidth: bytes per second of its memory.
    """

    flops: float
    bandwidth: float


CHIPS = {
    "v4": Chip(275e12, 1.2e12),
    "v5e": Chip(197e12, 0.819e12),
    "v5p": Chip(459e12, 2.765e12),
    "v6e": Chip(918e12, 1.64e12),
}


def executed(text: str) -> Iterator[tuple[Any, int]]:
    """Yield each instruction that a program runs by itself, and how often; none inside a fusion."""
    from mimjax.train import hlo

    computations, entry = hlo.parse(text)
    waiting = [(entry, 1)]
    while waiting:
        name, times = waiting.pop()
        for i in computations.get(name, []):
            yield i, times
            if i.opcode == "while":
                body = dict(hlo.CALLED.findall(i.attributes))["body"]
                waiting.append((body, times * max(hlo.trip_count(i, computations), 1)))
            elif i.opcode in ("call", "conditional"):
                waiting += [(callee, times) for _, callee in hlo.CALLED.findall(i.attributes)]


def movements(text: str) -> dict[str, Any]:
    """Return copies and transposes, {"copies", "copy_mb", ...}, and float32 arrays.

    A fusion that is named after a move counts as one: it computes nothing else.
    """
    from mimjax.train import hlo

    number = dict.fromkeys(MOVES, 0)
    moved, islands, island_bytes = dict.fromkeys(MOVES, 0.0), 0, 0.0
    for i, times in executed(text):
        made = hlo.shapes(i.type)
        size = times * sum(s.bytes for s in made)
        for kind in MOVES:
            alone = i.opcode in (kind, f"{kind}-start")
            if alone or (i.opcode == "fusion" and i.name.startswith(f"{kind}_fusion")):
                number[kind] += times
                moved[kind] += size
        large = [s for s in made if s.dtype == "f32" and s.bytes >= ISLAND]
        if i.opcode in ("fusion", "convolution", "dot", "custom-call") and large:
            islands += times
            island_bytes += times * sum(s.bytes for s in large)
    return {
        "copies": number["copy"],
        "copy_mb": moved["copy"] / 1e6,
        "transposes": number["transpose"],
        "transpose_mb": moved["transpose"] / 1e6,
        "float32_arrays": islands,
        "float32_mb": island_bytes / 1e6,
    }


def analyze(name: str, args: argparse.Namespace) -> dict[str, Any]:
    """Return a method's row."""
    from mimjax.programs import plan
    from mimjax.train import hlo
    from mimjax.train.flops import step_flops

    c = methods.config(name, args.size, args.batch)
    c.update_from_flattened_dict(args.settings)
    devices, hbm = plan.find_devices(args.topology)
    program = plan.make(c, devices)
    compiled, seconds = plan.compile_program(program, hbm)
    text, memory = compiled.as_text(), plan.memory(compiled, hbm)
    cost: Any = compiled.cost_analysis() or {}
    images = args.batch / program.mesh.size
    chip = CHIPS[args.topology.partition(":")[0]]
    products = step_flops(program.task)
    row = {
        "benchmark": "compiled_slice",
        "method": name,
        "size": args.size,
        "topology": args.topology,
        "batch": args.batch,
        "settings": args.settings,
        "images_per_chip": images,
        "gflop_per_image": products / 1e9,
        "xla_gflop_per_image": cost.get("flops", float("nan")) / images / 1e9,
        "gb_accessed": cost.get("bytes accessed", float("nan")) / 1e9,
        "temporary_gib": memory["temporary"] / 2**30,
        "total_gib": memory["total"] / 2**30,
        "collective_mb": sum(x.bytes for x in hlo.collectives(text)) / 1e6,
        "compile_s": seconds,
        **movements(text),
    }
    row["flops_ms"] = products * images / chip.flops * 1e3
    row["bytes_ms"] = row["gb_accessed"] * 1e9 / chip.bandwidth * 1e3
    return row | plan.tpu_version(devices)


COLUMNS = {
    "GFLOP per image": "gflop_per_image",
    "XLA's": "xla_gflop_per_image",
    "GB accessed": "gb_accessed",
    "temporary GiB": "temporary_gib",
    "copies": "copies",
    "MB": "copy_mb",
    "transposes": "transposes",
    "MB ": "transpose_mb",
    "float32 arrays": "float32_arrays",
    "MB  ": "float32_mb",
    "collectives MB": "collective_mb",
    "FLOPs, ms": "flops_ms",
    "bytes, ms": "bytes_ms",
    "compiled, s": "compile_s",
}


def table(rows: list[dict[str, Any]]) -> str:
    """Return rows as a table in Markdown."""
    from mimjax.evaluators.table import markdown

    cell = lambda x: f"{x:,}" if isinstance(x, int) else f"{x:,.2f}"
    body = [
        [f"{r['method']} {r['size'].upper()}", *(cell(r[k]) for k in COLUMNS.values())]
        for r in rows
    ]
    return "\n".join(markdown(["method", *(k.strip() for k in COLUMNS)], body))


def main() -> None:
    """Compile, print a line for each program, and the table at the end."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--methods", default=",".join(methods.METHODS))
    parser.add_argument("--size", default="b")
    parser.add_argument("--topology", default="v5e:16x16")
    parser.add_argument("--batch", type=int, default=4096, help="images of an update, all chips")
    parser.add_argument("--set", action="append", default=[], help="KEY=VALUE of the config")
    parser.add_argument("--json", default="", help="a file to which one row a method is added")
    args = parser.parse_args()
    kind = args.topology.partition(":")[0]
    if kind not in CHIPS:
        parser.error(f"--topology: {args.topology}; allowed: for example v5e:16x16, v6e:8x8")
    args.settings = methods.settings(args.set)
    rows = []
    for name in args.methods.split(","):
        rows.append(analyze(name, args))
        if args.json:
            with open(args.json, "a") as file:
                file.write(json.dumps(rows[-1]) + "\n")
        print(table(rows[-1:]), flush=True)
    if len(rows) > 1:
        print(table(rows))


if __name__ == "__main__":
    main()
