"""The type in which a trained network computes, where nothing is trained.

Features of one file are the same on every device: float32 with full products, unless another type
is asked for. In bfloat16 the tokens that blocks add to stay float32, as under PyTorch's autocast.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from mimjax import schema
from mimjax.errors import ConfigError

DTYPES = ("float32", "bfloat16")


def name_of(dtype: Any) -> str:
    """Return the name of a type, "float32" or "bfloat16"; jax's types have names, too.

    Raises:
      ConfigError: another type.
    """
    try:
        name = dtype if isinstance(dtype, str) else jnp.dtype(dtype).name
    except TypeError:
        name = str(dtype)
    if dtype is None or name not in DTYPES:
        raise ConfigError(f"dtype: {dtype!r}; allowed: {', '.join(DTYPES)}")
    return name


def computing(thing: Any, dtype: str) -> Any:
    """Return a network, or a task with all its networks, that computes in a type.

    Args:
      dtype: a name of DTYPES.
    """
    kind = schema.compute_dtype(name_of(dtype))
    return schema.with_dtype(thing, kind, jnp.dtype(jnp.float32))


def precise(fn: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function whose products of float32 are float32 when it is compiled.

    TPUs and GPUs round the factors of such products unless they are told not to.
    """

    @functools.wraps(fn)
    def full(*args: Any) -> Any:
        with jax.default_matmul_precision("highest"):
            return fn(*args)

    return full
