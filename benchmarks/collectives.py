"""Numbers that devices exchange per update, beside theory: `python -m benchmarks.collectives`.

  python -m benchmarks.collectives [--topology=cpu:8] [--methods=mae,dvae] [--accum=1,2,4]
    [--fsdp=1,8] [--size=b --set=method.encoder.depth=2] [--json=FILE]

Programs are compiled for devices that need not be there, as `mimjax plan` does: by default those of
the demos, whose arrays are divided from 4,096 numbers; of a published size as a run divides them. A
cell is what is reduced over what the parallelism needs (1 = each gradient once per update, at most
1.02); with parameters divided, in brackets, what is gathered over the most that it needs. Behind
these stand the checks of `mimjax plan` that fail.
"""

from __future__ import annotations

import argparse
import json
from typing import Any

from benchmarks import methods


def analyze(
    name: str, topology: str, accum: int, fsdp: int, size: str, settings: dict[str, Any]
) -> dict[str, Any]:
    """Return one program's row."""
    from mimjax import sharding
    from mimjax.programs import plan
    from mimjax.run.sections import load

    c = load(f"{name}:{'demo' if size == 'tiny' else f'size={size}'}").unlock()
    for section in (c.method, *(s for s in c.method.values() if hasattr(s, "keys"))):
        if "path" in section:
            section.path = "random"
    if size == "tiny":
        sharding.SMALL = 2**12  # arrays of a demo are small, and would all stay whole
    devices = len(plan.find_devices(topology)[0])
    images = 4 if size == "tiny" else 16  # per device; 16 is a batch of 4,096 on 256 chips
    c.batch_size, c.accum, c.mesh.fsdp = images * accum * devices, accum, fsdp
    c.update_from_flattened_dict(settings)
    report, _ = plan.analyze(c, topology)
    need, moved = report["theory"], report["exchanged"]
    return {
        "method": name,
        "topology": topology,
        "size": size,
        "settings": settings,
        "fsdp": fsdp,
        "accum": accum,
        "reduced": moved["reduce"] / need["reduce"],
        "gathered": moved["gather"] / need["gather"] if need["gather"] else 0.0,
        "failed": [v["name"] for v in report["verdicts"] if not v["ok"]],
        "seconds": report["compile_seconds"],
    }


def table(rows: list[dict[str, Any]]) -> str:
    """Return rows as a table in Markdown: a line for a method and topology."""
    from mimjax.evaluators.table import markdown

    names = {}
    for r in rows:
        layout = f"fsdp {r['fsdp']}" if r["fsdp"] > 1 else "whole"
        text = f"{r['reduced']:.4f}" + (f" ({r['gathered']:.2f})" if r["fsdp"] > 1 else "")
        text += "".join(f" {name}!" for name in r["failed"])
        names.setdefault((r["method"], r["topology"]), {})[f"{layout}, accum {r['accum']}"] = text
    columns = list(dict.fromkeys(k for cells in names.values() for k in cells))
    body = [[*key, *(cells.get(k, "not run") for k in columns)] for key, cells in names.items()]
    return "\n".join(markdown(["method", "devices", *columns], body))


def main() -> None:
    """Compile, print a line for each program, and the table at the end."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--methods", default=",".join((*methods.METHODS, "dvae")))
    parser.add_argument("--topology", default="cpu:8", help="cpu:64, v5e:16x16 ...")
    parser.add_argument("--accum", default="1,2,4")
    parser.add_argument("--size", choices=("tiny", "b", "l"), default="tiny", help="tiny = demos")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="a setting, repeatable"
    )
    parser.add_argument("--fsdp", default="1,8", help="ways in which parameters are divided")
    parser.add_argument("--json", default="", help="a file to which one row a program is added")
    args = parser.parse_args()
    rows, settings = [], methods.settings(args.set)
    integers = lambda text: [int(x) for x in text.split(",")]
    layouts = [(f, a) for f in integers(args.fsdp) for a in integers(args.accum)]
    for name in args.methods.split(","):
        for fsdp, accum in layouts:
            rows.append(analyze(name, args.topology, accum, fsdp, args.size, settings))
            print(json.dumps(rows[-1]), flush=True)
            if args.json:
                with open(args.json, "a") as file:
                    file.write(json.dumps(rows[-1]) + "\n")
    print(table(rows))


if __name__ == "__main__":
    main()
