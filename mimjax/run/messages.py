"""What a run says of itself at the start: the block on the screen and the parameter table."""

from __future__ import annotations

import dataclasses

import jax
from clu import parameter_overview

from mimjax import __version__, rules
from mimjax.data.pipeline import Pipeline
from mimjax.schema import Config, build
from mimjax.task import Clock, View
from mimjax.train import optimizers
from mimjax.train.program import Program


def start_block(c: Config, program: Program, data: Pipeline, clock: Clock) -> str:
    """Method, parameters, devices, effective batch, learning rates, length, data."""
    params = program.abstract_state.params
    count = lambda tree: sum(x.size for x in jax.tree.leaves(tree))
    parts = ", ".join(f"{k} {count(v) / 1e6:,.2f} M" for k, v in params.items())
    ema, frozen = count(program.abstract_state.ema), count(program.abstract_frozen)
    mesh, device = program.mesh, jax.devices()[0]
    per_device = c.batch_size // mesh.size // c.accum
    o = c.optimizer
    peak = o.base_lr * c.batch_size / 256 if o.lr is None else o.lr
    rate = f"base {o.base_lr:g} x {c.batch_size} / 256" if o.lr is None else "absolute"
    warmup = (o.warmup_epochs, "epochs") if o.warmup_steps is None else (o.warmup_steps, "steps")
    masks = ""
    if "mask" in program.abstract_batch:
        n = program.abstract_batch["mask"].shape[1]
        masks = f", {n} patches, {program.task.num_masked} masked"
    end = "then constant" if o.schedule == "constant" else f"down to {o.min_lr:g}"
    lines = [
        f"mimjax {__version__}  {c.task}  (jax {jax.__version__}, compute {c.dtype})",
        f"  parameters  {count(params) / 1e6:,.2f} M ({parts})"
        + (f"; EMA {ema / 1e6:,.2f} M" if ema else "")
        + (f"; frozen {frozen / 1e6:,.2f} M" if frozen else ""),
        f"  devices     {mesh.size} x {device.device_kind}, {jax.process_count()} process(es), "
        f"mesh data={mesh.shape['data']} fsdp={mesh.shape['fsdp']}",
        f"  batch       {c.batch_size} = {mesh.size} devices x {per_device} x {c.accum} "
        "accumulated",
        f"  lr          {peak:.3g} ({rate}), warm-up {warmup[0]:g} {warmup[1]}, {end}",
        f"  length      {clock.total_steps} steps = {clock.epochs:,.1f} epochs of "
        f"{clock.steps_per_epoch} steps",
        f"  data        {c.data.source}: {len(data.source):,} images, "
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
    lines += [f"  WARNING     {text}" for text in warnings(c, peak, clock)]
    lines += [f"  NOTE        {note}" for note in program.task.notes]
    return "\n".join(lines)


def warnings(c: Config, peak: float, clock: Clock) -> list[str]:
    """What is allowed in a schedule, but hardly meant.

    Args:
      peak: the rate after the warm-up.
    """
    o, total = c.optimizer, clock.total_steps
    if o.schedule == "constant":
        return []
    if o.min_lr > peak:
        return [
            f"optimizer.min_lr {o.min_lr:g} is above the peak rate {peak:.3g}: "
            "the rate will rise; it is absolute and does not follow a smaller batch"
        ]
    rate = optimizers.learning_rate(
        build(optimizers.OptimizerConfig, o, "optimizer"), clock, c.batch_size
    )
    if total > 1 and rate(total - 1) > rate(total - 2):
        key = "warmup_steps" if o.warmup_steps else "warmup_epochs"
        return [
            f"optimizer.{key} {o[key]:g} is the whole run of {total} steps: the rate never decays; "
            + optimizers.shorter_warmup(key, clock)
        ]
    return []


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
    """Every parameter with its shape and what the rules decided for it, as text."""
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
