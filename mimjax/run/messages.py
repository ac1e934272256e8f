"""The start of a run in words: the block on the screen and the parameter table."""

from __future__ import annotations

import dataclasses

import jax
from clu import parameter_overview

from mimjax import __version__, rules
from mimjax.data.configured import source_config
from mimjax.data.pipeline import Pipeline
from mimjax.schedules import in_words
from mimjax.schema import Config, build, defaults
from mimjax.task import Clock, View
from mimjax.train.optimizers import OptimizerConfig
from mimjax.train.program import Program


def start_block(c: Config, program: Program, data: Pipeline, clock: Clock) -> str:
    """Return lines on method, parameters, devices, batch, optimizer, length and data."""
    params = program.abstract_state.params
    count = lambda tree: sum(x.size for x in jax.tree.leaves(tree))
    parts = ", ".join(f"{k} {count(v) / 1e6:,.2f} M" for k, v in params.items())
    ema, frozen = count(program.abstract_state.ema), count(program.abstract_frozen)
    mesh, device = program.mesh, jax.devices()[0]
    per_device = c.batch_size // mesh.size // c.accum
    o = build(OptimizerConfig, c.optimizer, "optimizer")
    peak = o.peak_lr(c.batch_size)
    rate = f"base {o.base_lr:g} x {c.batch_size} / 256" if o.lr is None else "absolute"
    masks = ""
    if "mask" in program.abstract_batch:
        n = program.abstract_batch["mask"].shape[1]
        masks = f", {n} patches, {getattr(program.task, 'num_masked', 0)} masked"
    lines = [
        f"mimjax {__version__}  {c.task}  (jax {jax.__version__}, compute {c.dtype})",
        f"  parameters  {count(params) / 1e6:,.2f} M ({parts})"
        + (f"; EMA {ema / 1e6:,.2f} M" if ema else "")
        + (f"; frozen {frozen / 1e6:,.2f} M" if frozen else ""),
        f"  devices     {mesh.size} x {device.device_kind}, {jax.process_count()} process(es), "
        f"mesh data={mesh.shape['data']} fsdp={mesh.shape['fsdp']}",
        f"  batch       {c.batch_size} = {mesh.size} devices x {per_device} x {c.accum} "
        "accumulated",
        f"  optimizer   {in_words(o.rule)}",
        f"  lr          {peak:.3g} ({rate}), {o.schedule.words()}",
        f"  length      {clock.total_steps} steps = {clock.epochs:,.1f} epochs of "
        f"{clock.steps_per_epoch} steps",
        f"  data        {data.source.name}{source_words(c)}: {len(data.source):,} images, "
        + ", ".join(f"{k} {_size(v)}" for k, v in data.views.items())
        + f"{masks}; fingerprint {data.fingerprint}",
    ]
    student = data.views["image"].size
    for name, view in data.views.items():
        if view.size != student:
            lines.append(
                f"  {name}  the same crop resized to {view.size[0]}x{view.size[1]}, so that the "
                f"target has one token per patch of the student's {student[0]}x{student[1]}"
            )
    found = o.schedule.warnings(clock, peak, "optimizer.schedule")
    lines += [f"  WARNING     {text}" for text in found]
    lines += [f"  NOTE        {note}" for note in program.task.notes]
    return "\n".join(lines)


def source_words(c: Config) -> str:
    """Return " (size 12)": the settings of the data source that are not the defaults."""
    config = source_config(c)
    default = defaults(type(config))
    changed = {k: v for k, v in defaults(config).items() if v != default[k]}
    return f" ({', '.join(f'{k} {v}' for k, v in changed.items())})" if changed else ""


def _size(view: View) -> str:
    return "x".join(map(str, (*view.size, view.channels) if view.channels != 3 else view.size))


@dataclasses.dataclass(frozen=True)
class Row:
    """A parameter's line in the table; the fields' names are its headings."""

    parameter: str
    shape: str
    decay: str
    lr_scale: str
    sharding: str


def parameter_table(c: Config, program: Program) -> str:
    """Return a table of all parameters: shape, weight decay, rate scale and sharding."""
    params = program.abstract_state.params
    decay = jax.tree.leaves(rules.match(c.optimizer.decay, params, "optimizer.decay"))
    scale = jax.tree.leaves(rules.match(c.optimizer.lr_scale, params, "optimizer.lr_scale"))
    rows = [
        Row(
            parameter=name,
            shape="x".join(map(str, x.shape)),
            decay=f"{d * c.optimizer.weight_decay:g}",
            lr_scale=f"{s:g}",
            sharding=",".join(str(axis) for axis in x.sharding.spec) or "replicated",
        )
        for name, x, d, s in zip(
            rules.paths(params), jax.tree.leaves(params), decay, scale, strict=True
        )
    ]
    total = parameter_overview.count_parameters(params)
    return f"{parameter_overview.make_table(rows)}\nTotal: {total:,}\n"
