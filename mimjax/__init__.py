"""mimjax: masked image modeling for vision transformers in JAX."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from mimjax import stopping

if TYPE_CHECKING:
    from mimjax.inference.model import Model

__version__ = "0.1.0"

# before the imports of a program, which take seconds: Ctrl-C is answered from the first moment
if stopping.program_of_mimjax(sys.orig_argv):
    stopping.install()


def load(path: Any, *args: Any, **options: Any) -> Model:
    """A model from a workdir or a published checkpoint file; see `mimjax.inference.model.load`."""
    from mimjax.inference import model  # jax and all models: not needed to import the package

    return model.load(path, *args, **options)
