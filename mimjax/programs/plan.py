"""Compile the real train step for devices that you need not have, and print what it would cost.

  mimjax plan --config=bootmae[:size=l] --topology=v5e:16x16 [--json]
  mimjax plan --workdir=DIR --topology=v5e:16x16

Works for TPU topologies (with `libtpu` installed, on any Linux machine) and for N simulated CPU
devices (`cpu:8`). Prints memory per chip against what the chip has, FLOPs, and every collective
of the optimized program beside what the parallelism needs in theory. Nothing is trained and no
data is read: steps per epoch are those of ImageNet-1k.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import re
import time
from collections import Counter, defaultdict
from typing import Any

import jax
from absl import flags
from ml_collections import ConfigDict

from mimjax import errors
from mimjax.errors import ConfigError
from mimjax.inference import teachers
from mimjax.programs import cli, parser
from mimjax.schema import Config
from mimjax.storage import config_version, outputs
from mimjax.storage.files import Workdir
from mimjax.train import hlo

REQUIRED = ("topology",)
IMAGENET = 1_281_167  # training images
GIB = 2**30
HBM = {"v4": 32, "v5e": 16, "v5p": 95, "v6e": 32}  # GiB per chip, Cloud TPU documentation
TOLERANCE = 1.02  # scalars (losses, norms) travel too
EXAMPLES = "v5e:16x16, v5p:4x4x4, v6e:8x8, v4:4x4x4, cpu:8"
# libtpu asks a TPU host for these. There is none, and without answers it complains on stderr.
NO_HOST = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5litepod-16",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # the lock guards chips; compiling uses none
}


@dataclasses.dataclass(frozen=True)
class Verdict:
    """A requirement, whether it is met, and the figures behind it."""

    name: str
    ok: bool
    text: str


def find_devices(topology: str) -> tuple[list[Any], float | None]:
    """The devices to compile for and the memory of each in bytes (None on CPU).

    Raises:
      ConfigError: no such topology, or libtpu is missing.
    """
    kind, _, shape = topology.partition(":")
    jax.config.update("jax_platforms", "cpu")  # only compile for TPUs, look for none
    if kind == "cpu" and shape.isdigit() and int(shape):
        jax.config.update("jax_num_cpu_devices", int(shape))
        return jax.devices("cpu")[: int(shape)], None
    if kind not in HBM or not re.fullmatch(r"\d+(x\d+)+", shape):
        raise ConfigError(f"topology: {topology!r} is unknown; allowed: for example {EXAMPLES}")
    os.environ.update({k: v for k, v in NO_HOST.items() if k not in os.environ})
    from jax.experimental import topologies

    try:
        import libtpu  # noqa: F401  a clearer error than jax's
    except ImportError:
        raise ConfigError(f"topology: {topology} needs libtpu: pip install 'mimjax[tpu]'") from None
    # A v4 chip has two cores that train as one.
    options = {"chip_config_name": "megacore"} if kind == "v4" else {}
    try:
        slice_ = topologies.get_topology_desc(platform="tpu", topology_name=topology, **options)
    except (jax.errors.JaxRuntimeError, ValueError, NotImplementedError) as error:
        raise ConfigError(
            f"topology: {topology}: {errors.first_line(error)}; allowed: for example {EXAMPLES}"
        ) from None
    return list(slice_.devices), HBM[kind] * GIB


def make(c: Config, devices: list[Any], small: int | None = None):
    """Return the program of `mimjax train` on these devices, and its clock.

    Args:
      small: see `make_program`; None = its default.
    """
    from mimjax import sharding
    from mimjax.run.setup import setup

    if c.dtype == "auto":  # `schema.compute_dtype` would ask this machine
        c.dtype = "float32" if devices[0].platform == "cpu" else "bfloat16"
    mesh = sharding.make_mesh(c.mesh.data, c.mesh.fsdp, devices)
    small = sharding.SMALL if small is None else small
    return setup(c, mesh=mesh, images=IMAGENET, small=small).program


def compile_program(program, hbm: float | None):
    """The compiled step and the seconds it took.

    Raises:
      ConfigError: it needs more memory than the chip has (TPU compilers refuse such programs).
    """
    start = time.perf_counter()
    try:
        compiled = program.compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error) or hbm is None:
            raise
        used = re.search(r"Used ([\d.]+\w) of ([\d.]+\w) hbm", str(error))
        said = f"uses {used[1]} of {used[2]}" if used else errors.first_line(error)
        raise ConfigError(
            f"memory: the step does not fit: {said} per chip; allowed: a smaller batch_size, a "
            "larger accum, mesh.fsdp, or method.encoder.remat=full"
        ) from None
    return compiled, time.perf_counter() - start


def memory(compiled, hbm: float | None) -> dict[str, float]:
    """Bytes per chip; donated inputs and the outputs that reuse them count once."""
    m = compiled.memory_analysis()
    out = {
        "arguments": m.argument_size_in_bytes,
        "outputs": m.output_size_in_bytes,
        "aliased": m.alias_size_in_bytes,
        "temporary": m.temp_size_in_bytes,
        "code": m.generated_code_size_in_bytes,
    }
    out["total"] = sum(out.values()) - 2 * out["aliased"]
    return out | ({"hbm": hbm} if hbm else {})


def table(collectives: list[hlo.Collective]) -> list[dict[str, Any]]:
    """One row per kind of collective, the largest in bytes first."""
    kinds = defaultdict(list)
    for c in collectives:
        kinds[c.kind].append(c)
    rows = []
    for kind, group in kinds.items():
        dtypes: Counter[str] = Counter()
        for c in group:
            for s in c.shapes:
                dtypes[s.dtype] += int(s.bytes * c.times)
        largest = max((s for c in group for s in c.shapes), key=lambda s: s.bytes)
        rows.append(
            {
                "kind": kind,
                "instructions": len(group),
                "executions": sum(c.times for c in group),
                "bytes": sum(c.bytes for c in group),
                "bytes_by_dtype": dict(dtypes),
                "largest": str(largest),
            }
        )
    return sorted(rows, key=lambda r: -r["bytes"])


def theory(program, dtype_bytes: int) -> dict[str, float]:
    """What the parallelism must move per step.

    Data parallelism sums the gradients. Where a parameter is sharded, its gradient is reduced over
    "fsdp" and then, a shard at a time, over "data"; the parameter is gathered at most twice in the
    compute type (forward, backward), EMA and frozen ones once.

    Returns:
      "reduce" in numbers (4 bytes each; 2 where the compiler reduces in bfloat16), "gather" in
      bytes.
    """
    state, mesh = program.abstract_state, program.mesh.shape
    sharded = lambda tree: sum(x.size for x in jax.tree.leaves(tree) if any(x.sharding.spec))
    again = sharded(state.params) / mesh["fsdp"] if mesh["data"] > 1 else 0
    gathered = 2 * sharded(state.params) + sharded((state.ema, program.abstract_frozen))
    return {"reduce": size(state.params) + again, "gather": float(dtype_bytes) * gathered}


def exchanged(collectives: list[hlo.Collective]) -> dict[str, float]:
    """What the program moves per step, in the units of `theory`."""
    sums = [c for c in collectives if c.kind in ("all-reduce", "reduce-scatter")]
    gathers = [c for c in collectives if c.kind == "all-gather"]
    return {
        "reduce": sum(c.times * math.prod(s.dims) for c in sums for s in c.shapes),
        "gather": sum(c.bytes for c in gathers),
    }


def size(tree: Any) -> int:
    """The number of elements of a tree."""
    return sum(x.size for x in jax.tree.leaves(tree))


def activations(
    program, batch_size: int, accum: int, collectives: list[hlo.Collective]
) -> list[str]:
    """Collectives that carry an array with one row per image, which no parallelism here needs.

    A parameter may happen to have as many rows as the batch: its shape, whole or sharded and in
    any order of dimensions, is no activation.
    """
    leaves = jax.tree.leaves((program.abstract_state, program.abstract_frozen))
    known = {tuple(sorted(x.shape)) for x in leaves}
    known |= {tuple(sorted(x.sharding.shard_shape(x.shape))) for x in leaves}
    batches = batch_size, batch_size // accum
    rows = {b // devices for b in batches for devices in (1, program.mesh.size)}
    return [
        f"{c.kind} {s} from {c.source or c.name}"
        for c in collectives
        for s in (*c.operands, *c.results)
        if s.dims and s.dims[0] in rows and tuple(sorted(s.dims)) not in known
    ]


def judge(program, c: Config, collectives: list[hlo.Collective], mem: dict) -> list[Verdict]:
    """What the program must satisfy to scale."""
    moved = lambda *kinds: sum(x.bytes for x in collectives if x.kind in kinds)
    need = theory(program, 2 if c.dtype == "bfloat16" else 4)
    reduced, gathered = exchanged(collectives).values()
    shuffled, permuted = moved("all-to-all", "ragged-all-to-all"), moved("collective-permute")
    many = activations(program, c.batch_size, c.accum, collectives)
    unknown = [x.name for x in collectives if not x.times]
    verdicts = [
        Verdict(
            "gradients",
            reduced <= TOLERANCE * need["reduce"] and (program.mesh.size == 1 or reduced > 0),
            f"{reduced / 1e6:,.3f} M numbers reduced / theory {need['reduce'] / 1e6:,.3f} M "
            f"= {reduced / need['reduce']:.4f} (at most {TOLERANCE}); in bytes "
            f"{moved('all-reduce', 'reduce-scatter') / 1e6:,.2f} MB, in float32 it would be "
            f"{4 * need['reduce'] / 1e6:,.2f} MB",
        ),
        Verdict(
            "parameters",
            gathered <= TOLERANCE * need["gather"],
            f"gathered {gathered / 1e6:,.2f} MB / theory at most {need['gather'] / 1e6:,.2f} MB",
        ),
        Verdict("all-to-all", shuffled == 0, f"{shuffled / 1e6:,.2f} MB (none)"),
        Verdict("collective-permute", permuted == 0, f"{permuted / 1e6:,.2f} MB (none)"),
        Verdict(
            "activations",
            not many,
            "; ".join([f"{len(many)} arrays with a row per image travel (none)", *many[:3]]),
        ),
    ]
    if unknown:
        names = ", ".join(unknown[:3])
        verdicts.append(Verdict("loops", False, f"unknown trip count around {names}: not counted"))
    if "hbm" in mem:
        verdicts.append(
            Verdict(
                "memory",
                mem["total"] <= mem["hbm"],
                f"{'fits' if mem['total'] <= mem['hbm'] else 'does not fit'}: "
                f"{mem['total'] / GIB:.2f} of {mem['hbm'] / GIB:.0f} GiB",
            )
        )
    return verdicts


def analyze(c: Config, topology: str) -> tuple[dict[str, Any], str]:
    """The whole plan as plain data, and the optimized program's text."""
    from mimjax.train.flops import step_flops

    devices, hbm = find_devices(topology)
    program = make(c, devices)
    compiled, seconds = compile_program(program, hbm)
    text = compiled.as_text()
    collectives, mem = hlo.collectives(text), memory(compiled, hbm)
    cost = (compiled.cost_analysis() or {}).get("flops", math.nan)
    mesh, state = program.mesh, program.abstract_state
    report = {
        "task": c.task,
        "topology": topology,
        "device_kind": devices[0].device_kind,
        "devices": mesh.size,
        "mesh": dict(mesh.shape),
        "dtype": c.dtype,
        "parameters": size(state.params),
        "ema": size(state.ema),
        "frozen": size(program.abstract_frozen),
        "batch_size": c.batch_size,
        "accum": c.accum,
        "images_per_chip": c.batch_size / mesh.size,
        "clock": program.task.clock._asdict(),
        "memory": mem,
        "flops": {
            "xla_per_chip": cost,
            "xla_per_image": cost * mesh.size / c.batch_size,
            "products_per_image": step_flops(program.task),
        },
        "compile_seconds": seconds,
        "collectives": table(collectives),
        "theory": theory(program, 2 if c.dtype == "bfloat16" else 4),
        "exchanged": exchanged(collectives),
        "verdicts": [dataclasses.asdict(v) for v in judge(program, c, collectives, mem)],
        "versions": {"jax": jax.__version__, **tpu_version(devices)},
    }
    return report, text


def tpu_version(devices: list[Any]) -> dict[str, str]:
    """The compiler's version, where it is a package of its own."""
    if devices[0].platform == "cpu":
        return {}
    from importlib.metadata import version

    return {"libtpu": version("libtpu")}


def describe(r: dict[str, Any]) -> str:
    """The report as a person reads it."""
    mem, flops, clock = r["memory"], r["flops"], r["clock"]
    gib = lambda name: f"{name} {mem[name] / GIB:.2f}"
    lines = [
        f"{r['task']} on {r['topology']} ({r['device_kind']}), compute {r['dtype']}, "
        + ", ".join(f"{k} {v}" for k, v in r["versions"].items()),
        f"  devices     {r['devices']}, mesh " + " ".join(f"{k}={v}" for k, v in r["mesh"].items()),
        f"  parameters  {r['parameters'] / 1e6:,.2f} M trained, EMA {r['ema'] / 1e6:,.2f} M, "
        f"frozen {r['frozen'] / 1e6:,.2f} M",
        f"  batch       {r['batch_size']} = {r['devices']} x {r['images_per_chip']:g} per chip, "
        f"{r['accum']} accumulated",
        f"  length      {clock['total_steps']:,} steps of {clock['steps_per_epoch']} per epoch "
        f"(ImageNet's {IMAGENET:,} images; no data was read)",
        "  memory      per chip in GiB: "
        + ", ".join(gib(k) for k in ("arguments", "temporary", "outputs", "aliased", "code"))
        + f"; total {mem['total'] / GIB:.2f}"
        + (f" of {mem['hbm'] / GIB:.0f}" if "hbm" in mem else ""),
        f"  flops       {flops['xla_per_chip'] / 1e9:,.2f} G per chip, "
        f"{flops['xla_per_image'] / 1e9:,.2f} G per image by XLA (elementwise work too; the body "
        f"of a loop once); {flops['products_per_image'] / 1e9:,.2f} G per image in matrix products",
        f"  compiled    in {r['compile_seconds']:.0f} s",
        "",
        f"{'collective':20} {'number':>6} {'runs':>6} {'MB':>12}  largest array",
    ]
    for row in r["collectives"]:
        types = ", ".join(f"{k} {v / 1e6:,.2f}" for k, v in row["bytes_by_dtype"].items())
        lines.append(
            f"{row['kind']:20} {row['instructions']:6d} {row['executions']:6d} "
            f"{row['bytes'] / 1e6:12,.2f}  {row['largest']} ({types})"
        )
    if not r["collectives"]:
        lines.append("none")
    lines.append("")
    lines += [f"{'ok' if v['ok'] else 'NO':4}{v['name']:20}{v['text']}" for v in r["verdicts"]]
    return "\n".join(lines)


def wanted(c: Config | None, workdir: str | None) -> Config:
    """Return the settings that --config or --workdir names.

    Raises:
      ConfigError: both or none is given, or the workdir is no run's.
    """
    if (c is None) == (workdir is None):
        raise ConfigError("--config, --workdir: both or none given; allowed: one of them")
    if c is not None:
        return teachers.fill(c)
    run = Workdir(workdir or "", writer=False)
    place = run.file("config.json")
    if not place.exists():
        raise ConfigError(f"--workdir: no config.json in {workdir}; allowed: a run's workdir")
    return ConfigDict(config_version.upgrade(run.read_json("config.json"), str(place)))


def define_flags() -> None:
    """Define all flags of the program."""
    parser.define()
    flags.DEFINE_string("workdir", None, "Folder of a run, whose settings are taken.")
    flags.DEFINE_string("topology", None, f"What to compile for, for example {EXAMPLES}.")
    flags.DEFINE_bool("json", False, "Print the report as JSON.")
    flags.DEFINE_string("hlo", None, "File for the text of the optimized program.")
    cli.define_base_flags()


def main() -> None:
    """Compile and print; write the program's text where asked."""
    f = flags.FLAGS
    if f.hlo:
        outputs.check_bytes(f.hlo, "--hlo")
    report, text = analyze(wanted(f.config, f.workdir), f.topology)
    if f.hlo:
        outputs.write_bytes(f.hlo, text.encode(), "--hlo")
    print(json.dumps(report, indent=2) if f.json else describe(report), flush=True)
