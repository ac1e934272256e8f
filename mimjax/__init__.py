"""mimjax: masked image modeling for vision transformers in JAX."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from mimjax import stopping

if TYPE_CHECKING:
    from mimjax.inference.loading import load

__all__ = ["load"]
__version__ = "0.1.0"

# module that was a program once -> program of today, where the names differ
_RENAMED = {"embedding_map": "map", "data.stats": "stats", "data.prepare": "prepare"}
_PROGRAMS = ("plan", "export", "convert", "reconstruct", "attention", "features", *_RENAMED)


def _end_old_form(module: str) -> None:
    """End `python -m mimjax.NAME`, which programs were, in one line that says the new form."""
    name = module.removeprefix("mimjax.").removeprefix("programs.")
    if name in _PROGRAMS or module.startswith("mimjax.programs."):
        program = _RENAMED.get(name, name)
        print(f"error: python -m {module}: use mimjax {program} ...", file=sys.stderr)
        raise SystemExit(2)


# before the imports of a program, which take seconds: Ctrl-C is answered from the first moment
if stopping.program_of_mimjax(sys.orig_argv):
    _end_old_form(stopping.module_of(sys.orig_argv))
    stopping.install()


if not TYPE_CHECKING:  # what is below would tell a checker that any name exists

    def __getattr__(name):
        """Import `load` when it is first asked for: jax and all models take seconds."""
        if name != "load":
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from mimjax.inference.loading import load

        globals()["load"] = load  # the function itself, with its signature and its help
        return load

    def __dir__():
        return sorted({*globals(), *__all__})
