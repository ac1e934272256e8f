"""The one border where a configuration becomes objects.

Reads ConfigDicts, files of frozen networks and workdirs; hands plain dataclasses to the rest. The
dataclass is the schema: a key that it lacks is an error that names the allowed ones.
"""

from __future__ import annotations

import dataclasses
import importlib
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from mimjax.data.augment import Augment
from mimjax.data.pipeline import Pipeline
from mimjax.data.sources import Source, make_source
from mimjax.errors import ConfigError
from mimjax.task import Clock, Task
from mimjax.train import optim

HIDDEN = {"parent", "clock", "dtype"}  # not settings: flax, the run and `dtype` set them


def defaults(thing: Any) -> dict[str, Any]:
    """The settings of a dataclass or linen module and their default values.

    Args:
      thing: a class (its declared defaults: a task derives some fields when it is made) or an
        instance (its values).
    """
    hidden = HIDDEN | set(getattr(thing, "DERIVED", ()))
    if issubclass(thing if isinstance(thing, type) else type(thing), nn.Module):
        hidden |= {"parent", "name"}  # flax's own fields
    fields = [f for f in dataclasses.fields(thing) if f.init and f.name not in hidden]
    if isinstance(thing, type):
        return {f.name: f.default for f in fields}
    return {f.name: getattr(thing, f.name) for f in fields}


def section(thing: Any, **overrides: Any) -> ConfigDict:
    """A config section that holds every setting of `thing`, nested, with some replaced.

    Raises:
      ConfigError: an override that is no setting.
    """
    known = defaults(thing)
    for key in overrides:
        if key not in known:
            raise ConfigError(f"{key}: unknown; allowed: {', '.join(sorted(known))}")
    out = ConfigDict(convert_dict=False)
    for name, value in known.items():
        if dataclasses.is_dataclass(value):
            out[name] = section(value, **overrides.get(name, {}))
        else:
            out[name] = overrides.get(name, value)
    return out


def build(thing: Any, values: ConfigDict, where: str) -> Any:
    """An instance of `thing` (a class, or an instance to start from) with a section's settings.

    Raises:
      ConfigError: an unknown key, or a value of the wrong type.
    """
    known, new = defaults(thing), {}
    for key, value in values.items():
        if key not in known:
            raise ConfigError(f"{where}.{key}: unknown; allowed: {', '.join(sorted(known))}")
        if dataclasses.is_dataclass(known[key]):
            new[key] = build(known[key], value, f"{where}.{key}")
        else:
            new[key] = typed(known[key], value, f"{where}.{key}")
    return thing(**new) if isinstance(thing, type) else dataclasses.replace(thing, **new)


def typed(old: Any, value: Any, where: str) -> Any:
    """`value` if it can stand for `old`: the same type, an int for a float, tuples alike."""
    value = tuple(value) if isinstance(old, tuple) and isinstance(value, list) else value
    kinds = (int, float) if type(old) is float else (type(old),)
    if not isinstance(value, kinds) or (isinstance(value, bool) and type(old) is not bool):
        raise ConfigError(f"{where}: {value!r} is no {type(old).__name__}")
    return float(value) if type(old) is float else value


def task_class(path: str) -> type[Task]:
    """The class that "mimjax.methods.mae:MAE" names."""
    module, _, name = path.partition(":")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError):
        raise ConfigError(
            f"task: {path!r} not found; allowed: 'module:Class', like 'mimjax.methods.mae:MAE'"
        ) from None


def compute_dtype(name: str) -> Any:
    """ "auto" = bfloat16 on accelerators, float32 on CPU."""
    if name == "auto":
        name = "float32" if jax.default_backend() == "cpu" else "bfloat16"
    if name not in ("float32", "bfloat16"):
        raise ConfigError(f"dtype: {name!r}; allowed: auto, float32, bfloat16")
    return jnp.dtype(name)


def make_task(c: ConfigDict, clock: Clock) -> Task:
    """The configured task; every network computes in the run's dtype."""
    task, dtype = build(task_class(c.task), c.method, "method"), compute_dtype(c.dtype)
    values = {f.name: getattr(task, f.name) for f in dataclasses.fields(task)}
    networks = {k: v.clone(dtype=dtype) for k, v in values.items() if isinstance(v, nn.Module)}
    return dataclasses.replace(task, clock=clock, **networks)


def make_data(c: ConfigDict, task: Task, split: str) -> Pipeline:
    """The data pipeline of one split, with the views and masks that the task asks for."""
    return Pipeline(
        make_split(c, split),
        views=task.views,
        augment=build(Augment, c.data.augment, "data.augment"),
        mask_fn=task.mask_fn,
        batch_size=c.batch_size,
        seed=c.seed,
    )


def make_split(c: ConfigDict, split: str) -> Source:
    """The configured source; `data.path` is an option of those that read files."""
    options = dict(c.data.options)
    if c.data.path:
        options["path"] = c.data.path
    return make_source(c.data.source, split, **options)


def make_clock(c: ConfigDict, steps_per_epoch: int) -> Clock:
    """The run's length from `steps`, or else from `epochs`."""
    total = c.steps or round(c.epochs * steps_per_epoch)
    if total < 1:
        raise ConfigError(f"epochs: {c.epochs} gives {total} steps; allowed: at least one step")
    return Clock(steps_per_epoch, total)


def check_batch(c: ConfigDict, devices: int) -> None:
    """The batch divides over devices and accumulation steps."""
    if c.accum < 1:
        raise ConfigError(f"accum: {c.accum}; allowed: 1 or more")
    if c.batch_size < 1 or c.batch_size % (devices * c.accum):
        raise ConfigError(
            f"batch_size: {c.batch_size} is not divisible by devices {devices} x accum {c.accum}; "
            f"allowed: multiples of {devices * c.accum}"
        )


def make_tx(c: ConfigDict, params: Any, clock: Clock):
    """The optimizer and its learning-rate schedule."""
    cfg = build(optim.OptimizerConfig, c.optimizer, "optimizer")
    lr = optim.learning_rate(cfg, clock, c.batch_size)
    return optim.make_optimizer(cfg, params, lr, optim.weight_decay(cfg, clock)), lr
