"""What a finished run says last, in the same form for every method.

What was predicted, the picture, the table, and the commands to type next.
"""

from __future__ import annotations

import os
import shlex
from typing import TYPE_CHECKING

from mimjax.evaluators.pictures import Pictures
from mimjax.models.attention_maps import num_blocks
from mimjax.task import Pretraining
from mimjax.torch_io.write import export, formats

if TYPE_CHECKING:
    from mimjax.storage.files import Workdir
    from mimjax.train.run import Run

FOLDER = "YOUR_FOLDER"


def text(run: Run) -> str:
    """All of it."""
    picture = newest_picture(run.workdir)
    table = run.workdir.read_text("table.md").strip()
    parts = [
        f"What is predicted: {run.program.task.story}",
        f"Picture: {picture or no_picture(run)}",
        *([table] if table else []),
        "\n  ".join(["Next:", *commands(run, bool(picture))]),
    ]
    return "\n\n".join(parts)


def newest_picture(workdir: Workdir) -> str:
    """Path of the last reconstruction, "" if there is none."""
    folder = workdir.file("pictures")
    names = [p.name for p in folder.iterdir()] if folder.exists() else []
    names = sorted(n for n in names if n.startswith("reconstruction_") and n.endswith(".png"))
    return shown(workdir.file(f"pictures/{names[-1]}")) if names else ""


def no_picture(run: Run) -> str:
    """Why."""
    makers = [e for e in run.evaluators if isinstance(e, Pictures)]
    if makers and makers[0].painter.possible is False:
        return "none, this target predicts nothing that can be shown"
    return "none was drawn" if makers else "none (eval.pictures=0)"


def commands(run: Run, reconstructs: bool) -> list[str]:
    """What can be done with this run; its kind of network decides, not its method's name."""
    task = run.program.task
    place = shlex.quote(shown(run.workdir.path))
    program = lambda name, rest: f"python -m mimjax.{name} --workdir={place} {rest}"
    out = [program("reconstruct", f"--images={FOLDER}")] if reconstructs else []
    if isinstance(task, Pretraining):
        if num_blocks(run.program.abstract_state.params["encoder"]):
            out.append(program("attention", f"--images={FOLDER}"))
        out.append(program("features", f"--images={FOLDER} --output=features.npz"))
    name = next(iter(formats.pairs_of(export.method_of(task))))
    suffixes = formats.FORMATS[name].suffixes
    suffix = ".safetensors" if ".safetensors" in suffixes else suffixes[0]  # needs no torch
    return [*out, program("export", f"--format={name} --output=exported/encoder{suffix}")]


def shown(path: os.PathLike) -> str:
    """A path as one would type it here."""
    full = os.fspath(path)
    if "://" in full:
        return full
    short = os.path.relpath(full)
    return full if short.startswith("..") else short
