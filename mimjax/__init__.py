"""mimjax: masked image modeling for vision transformers in JAX."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from mimjax import stopping

if TYPE_CHECKING:
    from mimjax.inference.model import Model

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


def load(path: Any, *args: Any, **options: Any) -> Model:
    """A model from a workdir or a published checkpoint file; see `mimjax.inference.model.load`."""
    from mimjax.inference import model  # jax and all models: not needed to import the package

    return model.load(path, *args, **options)
