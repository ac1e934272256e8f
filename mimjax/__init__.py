"""mimjax: masked image modeling for vision transformers in JAX."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mimjax.api import Model

__version__ = "0.1.0"


def load(path: Any, *args: Any, **options: Any) -> Model:
    """A model from a workdir or a published checkpoint file; see `mimjax.api.load`."""
    from mimjax import api  # jax and all models: not needed to import the package

    return api.load(path, *args, **options)
