"""Tells in one line what helps where memory does not suffice, a device's or the host's."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Iterator

import jax
from absl.flags import FlagValues

# what XLA and the GPU driver say; jax has one exception class for all their errors
SHORT_OF_MEMORY = re.compile(r"RESOURCE_EXHAUSTED|CUDA_ERROR_OUT_OF_MEMORY|out of memory", re.I)
LONGEST = 200  # characters of what was said; lists of buffers may follow


def explain(error: BaseException, flags: FlagValues) -> str:
    """One line about an error of missing memory, with what can be changed; "" for other errors.

    Args:
      flags: of the program; with --config it is a run, whose settings are named.
    """
    found = next((e for e in causes(error) if is_shortage(e)), None)
    if found is None:
        return ""
    kind = "memory of the host" if isinstance(found, MemoryError) else "device memory"
    said = (str(found).strip().splitlines() or [type(found).__name__])[0]
    said = said.removeprefix("RESOURCE_EXHAUSTED: ").rstrip(".")[:LONGEST]
    notes = "".join(f", {note}" for note in getattr(error, "__notes__", ()) if "\n" not in note)
    if "config" in flags and flags["config"].value is not None:
        host = ["fewer data.workers", "a smaller eval.max_images"]
        ways = host * isinstance(found, MemoryError) + settings(flags["config"].value, notes)
        devices = f"--topology=cpu:{jax.device_count()}"
        command = f"mimjax plan {given_config(sys.argv[1:])} {devices}"
        more = f"; {command} tells what a step takes, without a device"
    else:
        names = [name for name in ("batch_size", "count") if name in flags and flags[name].value]
        ways = [f"--{name} below {flags[name].value}" for name in names]
        ways, more = ways or ["a machine with more memory"], ""
    return f"out of {kind}: {said}{notes}; allowed: {', '.join(ways)}{more}"


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """The error and those that it was raised from."""
    while error is not None:
        yield error
        error = error.__cause__


def is_shortage(error: BaseException) -> bool:
    """Whether memory was missing: numpy's and Python's error, or one of XLA's."""
    if isinstance(error, jax.errors.JaxRuntimeError):
        return SHORT_OF_MEMORY.search(str(error)) is not None
    return isinstance(error, MemoryError)


def settings(c, notes: str) -> list[str]:
    """What makes a run smaller; evaluations have a setting of their own."""
    smaller = "a smaller eval.batch_size (unset, it is batch_size / accum)"
    remat = "method.encoder.remat=True (activations are computed twice)"
    return [
        *([smaller] if "evaluator" in notes else []),
        f"accum above {c.accum} (the same update from smaller pieces)",
        *([remat] if "remat" in c.method.get("encoder", ()) else []),  # tokenizers have none
        f"mesh.fsdp above {c.mesh.fsdp} (parameters are spread over devices)",
    ]


def given_config(argv: list[str]) -> str:
    """--config and its overrides as they were typed."""
    out, takes_next = [], False
    for word in argv:
        name = word.lstrip("-").partition("=")[0]
        is_config = word.startswith("-") and (name == "config" or name.startswith("config."))
        if is_config or takes_next:
            out.append(shlex.quote(word))
        takes_next = is_config and "=" not in word
    return " ".join(out)
