"""What programs say of themselves: the list of all, and --help of each."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Any

from absl import flags

WIDTH = 100
PROGRAMS = {  # name -> one line; the module is `mimjax.programs.NAME`
    "train": "train a method, or continue a run",
    "plan": "compile the train step for devices you do not have: memory, FLOPs, traffic",
    "config": "print the settings of a config, where each comes from, and what plugs there are",
    "evaluate": "score an encoder by k-NN and probes, beside the untrained one and raw pixels",
    "robustness": "score a classifier on ImageNet-A, -R, -Sketch, -V2, -C or folders like them",
    "reconstruct": "draw what a trained model reconstructs of masked images",
    "attention": "draw where a trained encoder looks",
    "features": "write features of images into a file",
    "map": "draw features as a map: t-SNE or principal components",
    "report": "write a run's report anew, or lay several runs side by side",
    "export": "write a run's weights for PyTorch libraries, and verify the file",
    "convert": "turn a published PyTorch file into a workdir",
    "stats": "compute mean and standard deviation of a data set's channels",
    "prepare": "rewrite a folder of images to a small short side",
}


def programs() -> str:
    """Return the list of all programs, a line each."""
    lines = [f"  {name:12} {text}" for name, text in PROGRAMS.items()]
    head = "usage: mimjax PROGRAM [--flag=value ...]   (also python -m mimjax PROGRAM ...)"
    return "\n".join([head, "", *lines, "", "mimjax PROGRAM --help shows a program's flags."])


def command(program: Any) -> str:
    """Return how a program is called: "mimjax train"."""
    return f"mimjax {program.__name__.rpartition('.')[2]}"


def text(program: Any, names: Sequence[str], values: flags.FlagValues) -> str:
    """Return the help of a program: its docstring, its own flags, then those that others share.

    Args:
      names: of the flags that the program defines.
    """
    own = set(values.flags_by_module_dict().get(program.__name__, ()))
    groups = {
        "flags": [name for name in names if values[name] in own],
        "flags that other programs have too": [n for n in names if values[n] not in own],
    }
    parts = [(program.__doc__ or "").strip()]
    for title, group in groups.items():
        if group:
            title = title if parts[1:] else "flags"
            parts.append("\n".join([f"{title}:", *(line(values[name]) for name in group)]))
    last = "--helpfull shows the flags of libraries too."
    if "config" in names:
        last += " mimjax config NAME shows what --config.KEY=VALUE can set."
    return "\n\n".join([*parts, last])


def line(flag: Any) -> str:
    """Return a flag's name, default and meaning, a line or two."""
    name = f"--[no]{flag.name}" if flag.boolean else f"--{flag.name}"
    default = flag.default
    if default not in (None, False, "", []):
        default = ",".join(map(str, default)) if isinstance(default, list) else default
        name += f"={default}"
    said = " ".join(str(flag.help).split())
    first = f"  {name:24} "
    return textwrap.fill(said, WIDTH, initial_indent=first, subsequent_indent=" " * 27)
