"""The texts of a run: the block and the parameter table at its start, the lines at its end.

They have the same form for every method, whose own words are `task.notes` and `task.story`. Records
made while a run trains (metrics.jsonl, the progress line) stand in `train.metrics`; report.html in
`run.report`. This module returns text and prints nothing.
"""

from __future__ import annotations

import dataclasses
import os
import shlex
import shutil
import sys
from typing import TYPE_CHECKING

import jax
from clu import parameter_overview

from mimjax import __version__, rules
from mimjax.data.configured import source_config
from mimjax.evaluators.pictures import PictureWriter
from mimjax.models import attention
from mimjax.models.attention_maps import num_blocks
from mimjax.run import mistakes, report
from mimjax.schedules import in_words
from mimjax.schema import Config, build, defaults
from mimjax.storage import confusions
from mimjax.task import Pretraining, Task, View
from mimjax.train.optimizers import OptimizerConfig, factors
from mimjax.train.program import Program

if TYPE_CHECKING:
    from mimjax.storage.files import Workdir
    from mimjax.train.run import Run, Setup

FOLDER = "YOUR_FOLDER"  # stands for a folder of images in the commands at the end


# ------------------------------------------------------------------ the start


def start_block(setup: Setup) -> str:
    """Return the block at the start of a run: sizes, devices, batch, rate, length, data and terms.

    Returns:
      Lines, with those of warnings and of settings that are guesses last.
    """
    c, program, data, clock = setup.config, setup.program, setup.data, setup.clock
    params = program.abstract_state.params
    count = lambda tree: sum(x.size for x in jax.tree.leaves(tree))
    parts = ", ".join(f"{k} {count(v) / 1e6:,.2f} M" for k, v in params.items())
    ema, frozen = count(program.abstract_state.ema), count(program.abstract_frozen)
    mesh, device = program.mesh, jax.devices()[0]
    per_device = c.batch_size // mesh.size // c.accum
    o = build(OptimizerConfig, c.optimizer, "optimizer")
    peak = o.peak_lr(c.batch_size)
    rate = f"base {o.base_lr:g} x {c.batch_size} / 256" if o.lr is None else "absolute"
    masks, task = "", program.task
    if task.num_masked and isinstance(task, Pretraining):
        masks = f", {task.encoder.num_patches} patches, {task.num_masked} masked"
    lines = [
        f"mimjax {__version__}  {c.task}  (jax {jax.__version__}, compute {c.dtype})",
        f"  parameters  {count(params) / 1e6:,.2f} M ({parts})"
        + (f"; EMA {ema / 1e6:,.2f} M" if ema else "")
        + (f"; frozen {frozen / 1e6:,.2f} M" if frozen else ""),
        f"  devices     {mesh.size} x {device.device_kind}, {jax.process_count()} process(es), "
        f"mesh data={mesh.shape['data']} fsdp={mesh.shape['fsdp']}",
        f"  batch       {c.batch_size} = {mesh.size} devices x {per_device} x {c.accum} "
        "accumulated",
        f"  attention   {attention.described(c.attention, mesh.devices.flat[0].platform)}",
        f"  optimizer   {in_words(o.rule)}",
        f"  lr          {peak:.3g} ({rate}), {o.schedule.words()}",
        f"  length      {clock.total_steps} steps = {clock.epochs:,.1f} epochs of "
        f"{clock.steps_per_epoch} steps",
        f"  data        {data.source.name}{source_words(c)}: {len(data.source):,} images, "
        + (f"each {data.repeats} times in a batch, " if data.repeats > 1 else "")
        + ", ".join(f"{k} {_size(v)}" for k, v in data.views.items())
        + f"{masks}; fingerprint {data.fingerprint}",
    ]
    student = data.views["image"]
    for name, view in data.views.items():
        if view.crop == student.crop and view.size != student.size:
            lines.append(
                f"  {name}  the same crop resized to {view.size[0]}x{view.size[1]}, so that the "
                f"target has one token per patch of the student's {student.size[0]}x"
                f"{student.size[1]}"
            )
    lines += composition(task)
    found = o.schedule.warnings(clock, peak, "optimizer.schedule")
    lines += [f"  WARNING     {text}" for text in found]
    lines += [f"  NOTE        {note}" for note in task.notes]
    return "\n".join(lines)


def composition(task: Task) -> list[str]:
    """Return what is learned as the lines of a table with aligned columns; [] = nothing to tell."""
    rows = task.describe()
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    cells = lambda row: "  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True))
    return [f"  {cells(row)}".rstrip() for row in rows]


def source_words(c: Config) -> str:
    """Return " (size 12)": the settings of the data source that are not the defaults."""
    config = source_config(c)
    default = defaults(type(config))
    changed = {k: v for k, v in defaults(config).items() if v != default[k]}
    return f" ({', '.join(f'{k} {v}' for k, v in changed.items())})" if changed else ""


def _size(view: View) -> str:
    """Return the size of a view, "224x224"; with the channels where they are not 3."""
    return "x".join(map(str, (*view.size, view.channels) if view.channels != 3 else view.size))


@dataclasses.dataclass(frozen=True)
class Row:
    """A line of the parameter table; the names of the fields are the headings."""

    parameter: str
    shape: str
    decay: str
    lr_scale: str
    sharding: str


def parameter_table(c: Config, program: Program) -> str:
    """Return a table of every parameter: shape, weight decay, learning-rate scale and sharding."""
    params = program.abstract_state.params
    cfg = build(OptimizerConfig, c.optimizer, "optimizer")
    decay, scale = map(jax.tree.leaves, factors(cfg, params, program.task))
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


# ------------------------------------------------------------------ the end
def end_lines(run: Run) -> str:
    """Return the lines at the end of a run: what is predicted, picture, table, what to do next."""
    picture = newest_picture(run.workdir)
    table = run.workdir.read_text("table.md").strip()
    parts = [
        f"What is predicted: {run.setup.program.task.story}",
        *([] if run.setup.task.learns_labels else [f"Picture: {picture or why_no_picture(run)}"]),
        *mistaken(run),
        *([table] if table else []),
        "\n  ".join(["Next:", *commands(run, bool(picture))]),
    ]
    return "\n\n".join(parts)


def mistaken(run: Run) -> list[str]:
    """Return what was wrong at the last evaluation of each name, and where it is kept."""
    out = []
    for file in confusions.latest(run.workdir, run.setup.clock.total_steps):
        if found := confusions.read(run.workdir, file):
            path = lambda name: typed_path(run.workdir.file(name))
            picture = f"; pictures: {path(f'pictures/{found.picture}')}" * bool(found.mistakes)
            counts = path(f"{confusions.FOLDER}/{file}")
            out.append(f"Mistakes: {mistakes.sentence(found)}\n  counts: {counts}{picture}")
    return out


def newest_picture(workdir: Workdir) -> str:
    """Return the path of the newest reconstruction; "" where there is none."""
    names = report.reconstructions(workdir)
    return typed_path(workdir.file(f"pictures/{names[-1]}")) if names else ""


def why_no_picture(run: Run) -> str:
    """Return why a run has no picture, in words."""
    makers = [e.measure for e in run.setup.evaluators if isinstance(e.measure, PictureWriter)]
    if makers and makers[0].painter.possible is False:
        return "none, this target predicts nothing that can be shown"
    return "none was drawn" if makers else "none (eval.pictures=None)"


def commands(run: Run, reconstructs: bool) -> list[str]:
    """Return the commands that apply to this run, one per program.

    The kind of its network decides which these are, and not the name of its method.

    Args:
      reconstructs: whether its predictions can be drawn.
    """
    # imported here, because only the end of a run needs them
    from mimjax.torch_io.write import export, formats

    task = run.setup.program.task
    place = shlex.quote(typed_path(run.workdir.path))
    program = lambda name, rest: f"{typed_program()} {name} --model={place} {rest}"
    out = [program("reconstruct", f"--images={FOLDER}")] if reconstructs else []
    if isinstance(task, Pretraining):
        if num_blocks(run.setup.program.abstract_state.params["encoder"]):
            out.append(program("attention", f"--images={FOLDER}"))
        out.append(program("features", f"--images={FOLDER} --output=features.npz"))
    if task.classified is not None:
        found = export.formats_of(task.classified, run.setup.program.abstract_state)
        shown = [f"--format={name} --output=exported/classifier" for name in found[:1]]
        return [*out, *(program("export", words) for words in shown)]
    name = next(iter(formats.places_of(export.kind_of(task))))
    suffixes = formats.FORMATS[name].suffixes
    suffix = ".safetensors" if ".safetensors" in suffixes else suffixes[0]  # needs no torch
    return [*out, program("export", f"--format={name} --output=exported/encoder{suffix}")]


def typed_program() -> str:
    """Return how `mimjax` is called here: by the interpreter's path if it is not on PATH."""
    if shutil.which("mimjax"):
        return "mimjax"
    # the path as it was typed: a link's target would be another environment
    short = os.path.relpath(sys.executable)
    return f"{shlex.quote(sys.executable if short.startswith('..') else short)} -m mimjax"


def typed_path(path: os.PathLike) -> str:
    """Return a path as a user would type it: relative to the current folder where it lies below."""
    full = os.fspath(path)
    if "://" in full:
        return full
    short = os.path.relpath(full)
    return full if short.startswith("..") else short
