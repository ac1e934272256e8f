"""Errors of missing memory, a device's or the host's, as one line that says what helps.

The line names settings that make a run smaller, and the command that computes what a step takes.
Nothing here measures memory; `programs.plan` does.
"""

from __future__ import annotations

import re
import shlex
import sys

import jax
from absl.flags import FlagValues

from mimjax import errors

# messages of XLA and the GPU driver; jax has one exception class for all their errors
SHORT_OF_MEMORY = re.compile(r"RESOURCE_EXHAUSTED|CUDA_ERROR_OUT_OF_MEMORY|out of memory", re.I)
LONGEST = 200  # characters of a message that are shown; lists of buffers may follow them


def explain(error: BaseException, flags: FlagValues) -> str:
    """Return one line about an error of missing memory with what can be changed; else "".

    Args:
      flags: of the program; one with --config trains, so the line names settings of the run.
    """
    shortage = next((e for e in errors.causes(error) if is_shortage(e)), None)
    if shortage is None:
        return ""
    kind = "memory of the host" if isinstance(shortage, MemoryError) else "device memory"
    said = errors.first_line(shortage).removeprefix("RESOURCE_EXHAUSTED: ").rstrip(".")[:LONGEST]
    notes = "".join(f", {note}" for note in getattr(error, "__notes__", ()) if "\n" not in note)
    if "config" in flags and flags["config"].value is not None:
        host = ["fewer data.workers", "a smaller eval.max_images"]
        ways = host * isinstance(shortage, MemoryError) + settings(flags["config"].value, notes)
        devices = f"--topology=cpu:{jax.device_count()}"
        command = f"mimjax plan {typed_config(sys.argv[1:])} {devices}"
        more = f"; {command} tells what a step takes, without a device"
    else:
        names = [name for name in ("batch_size", "count") if name in flags and flags[name].value]
        ways = [f"--{name} below {flags[name].value}" for name in names]
        ways, more = ways or ["a machine with more memory"], ""
    return f"out of {kind}: {said}{notes}; allowed: {', '.join(ways)}{more}"


def is_shortage(error: BaseException) -> bool:
    """Return whether memory was missing: an error of Python or numpy, or one of XLA's."""
    if isinstance(error, jax.errors.JaxRuntimeError):
        return SHORT_OF_MEMORY.search(str(error)) is not None
    return isinstance(error, MemoryError)


def settings(c, notes: str) -> list[str]:
    """Return the settings that make a run smaller, with what they cost.

    Args:
      c: the config of the run.
      notes: of the error; an evaluator's name there adds the batch size of evaluations.
    """
    smaller = "a smaller eval.batch_size (unset, it is batch_size / accum)"
    remat = "method.encoder.remat=full (activations are computed twice)"
    return [
        *([smaller] if "evaluator" in notes else []),
        f"accum above {c.accum} (the same update from smaller pieces)",
        *([remat] if "remat" in c.method.get("encoder", ()) else []),  # tokenizers have none
        f"mesh.fsdp above {c.mesh.fsdp} (parameters are spread over devices)",
    ]


def typed_config(argv: list[str]) -> str:
    """Return --config and its overrides as they were typed, quoted for a shell."""
    out, takes_next = [], False
    for word in argv:
        name = word.lstrip("-").partition("=")[0]
        is_config = word.startswith("-") and (name == "config" or name.startswith("config."))
        if is_config or takes_next:
            out.append(shlex.quote(word))
        takes_next = is_config and "=" not in word
    return " ".join(out)
