"""A dataclass is the schema of its config section.

`section` writes a dataclass's settings out as a ConfigDict, so that each can be overridden by
name; `build` reads such a section back, naming the key of anything that does not fit what the
field's annotation allows (`mimjax.values`). A field whose class is PLUGGABLE (a method's target, an
optimizer's rule) may hold any subclass, and a network may be replaced by one of another class
(MR-MAE's encoder); such a section names its class in `type`. `mimjax.plugs` finds classes.

Last, a config becomes a task (`make_task`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from ml_collections import ConfigDict
from ml_collections.config_dict import FieldReference

from mimjax import values
from mimjax.errors import ConfigError
from mimjax.plugs import class_path, digest_of, find_class, find_plug, pluggable
from mimjax.task import Clock, Task

# A ConfigDict; its attributes are typed as a union of everything, which helps no checker.
Config = Any


def defaults(thing: Any) -> dict[str, Any]:
    """The settings of a dataclass or linen module and their default values.

    Args:
      thing: a class (its declared defaults: a task derives some fields when it is made) or an
        instance (its values).
    """
    if not isinstance(thing, type):
        return {name: getattr(thing, name) for name in values.fields(type(thing))}
    fields = {f.name: f for f in dataclasses.fields(thing)}
    made = lambda f: f.default if f.default_factory is dataclasses.MISSING else f.default_factory()
    return {name: made(fields[name]) for name in values.fields(thing)}


def section(thing: Any, **overrides: Any) -> Config:
    """A config section that holds every setting of `thing`, nested, with some replaced.

    An override of a nested section is a dict of settings, or an instance to be written out.

    Raises:
      ConfigError: an override that is no setting.
    """
    known, cls = defaults(thing), thing if isinstance(thing, type) else type(thing)
    for key in overrides:
        if key not in known:
            raise ConfigError(f"{key}: unknown; allowed: {', '.join(sorted(known))}")
    out = ConfigDict(convert_dict=False)
    if pluggable(thing):
        out.update(naming(cls))
    for name, value in known.items():
        given = overrides.get(name, {})
        if dataclasses.is_dataclass(given):
            inner = section(given)
            if type(given) is not type(value):
                inner.update(naming(type(given)))
            out[name] = inner
        elif dataclasses.is_dataclass(value):
            out[name] = section(value, **given)
        else:
            out[name] = leaf(values.fields(cls)[name], overrides.get(name, value))
    return out


def naming(cls: type) -> dict[str, str]:
    """What a section says of its class: where it stands, and for a user's file the file's digest."""
    digest = digest_of(cls)
    return {"type": class_path(cls)} | ({"digest": digest} if digest else {})


class Setting(FieldReference):
    """A value in a ConfigDict that may be None, or a plain number for a pair.

    A ConfigDict takes the type of a setting from its value and would know nothing of one that is
    None: the command line could not give it another. Here the annotation tells.
    """

    def __init__(self, hint: Any, value: Any):
        self.hint = hint
        super().__init__(None, values.kind(hint))
        self.set(value)

    def set(self, value: Any, type_safe: bool = True) -> None:
        super().set(values.square(self.hint, value), type_safe)

    def __reduce__(self) -> tuple[Any, ...]:
        return Setting, (self.hint, self.get())  # the base class's copies forget the annotation


def leaf(hint: Any, value: Any) -> Any:
    """What a section holds for a setting that is no section itself."""
    if isinstance(value, dict):
        return ConfigDict(value)
    optional = values.parts(hint)[2]
    return Setting(hint, value) if optional or values.mark(hint, values.Square) else value


def build(thing: Any, settings: Config, where: str) -> Any:
    """An instance of `thing` (a class, or an instance to start from) with a section's settings.

    Raises:
      ConfigError: an unknown key, or a value that the field's annotation does not allow.
    """
    if not isinstance(settings, ConfigDict | Mapping):
        raise ConfigError(f"{where}: {settings!r}; allowed: a section of settings")
    if pluggable(thing) or ("type" in settings and "type" not in defaults(thing)):
        base = (thing if isinstance(thing, type) else type(thing)).__mro__[-2]
        if "type" not in settings:
            raise ConfigError(f"{where}.type: missing; allowed: the class of a {base.__name__}")
        thing = find_plug(base, settings["type"], f"{where}.type")
        settings = {k: v for k, v in settings.items() if k not in ("type", "digest")}
    known, new = defaults(thing), {}
    hints = values.fields(thing if isinstance(thing, type) else type(thing))
    for name, value in settings.items():
        key = f"{where}.{name}" if where else name
        if name not in known:
            raise ConfigError(f"{key}: unknown; allowed: {', '.join(sorted(known))}")
        part = values.parts(hints[name])[0]
        if dataclasses.is_dataclass(known[name]):
            new[name] = build(known[name], value, key)
        elif dataclasses.is_dataclass(part) and value is not None:  # a network that may be left out
            new[name] = build(part, value, key)
        else:
            new[name] = values.fit(hints[name], value, key)
    return thing(**new) if isinstance(thing, type) else dataclasses.replace(thing, **new)


def annotation(settings: type, c: Config, key: str) -> Any:
    """Return the annotation of the setting that a dotted key names, None where no class says it.

    A section has the fields of the class that its `type` names, else of its annotation; `method`
    those of the class `c.task`. A class of settings with sections that a user names, as evaluators,
    says their base class in `EXTRA`.

    Args:
      settings: the dataclass of the whole config, `mimjax.run.sections.Settings`.

    Raises:
      ConfigError: a section's class does not exist.
    """
    hint, owner, node = None, settings, c
    for name in key.split("."):
        if owner is None:
            return None  # inside a dictionary
        if owner is settings and name == "method":
            hint = find_class(c.task, "task")
        else:
            hint = values.fields(owner).get(name, getattr(owner, "EXTRA", None))
        node = node.get(name) if isinstance(node, ConfigDict | Mapping) else None
        owner = values.parts(hint)[0]
        owner = owner if isinstance(owner, type) and dataclasses.is_dataclass(owner) else None
        named = node.get("type") if isinstance(node, ConfigDict) else None
        if named is not None and (owner is None or "type" not in values.fields(owner)):
            owner = find_class(named, f"{key}.type")
    return hint


def plug_base(hint: Any) -> type | None:
    """Return the base class of the plugs that a setting may hold, None where it holds none."""
    inner = values.parts(hint)[0]
    if not isinstance(inner, type) or not pluggable(inner):
        return None
    return [cls for cls in inner.__mro__ if pluggable(cls)][-1]


def compute_dtype(name: str) -> Any:
    """The type that "auto" (bfloat16 on accelerators, float32 on CPU) or a name means."""
    if name == "auto":
        name = "float32" if jax.default_backend() == "cpu" else "bfloat16"
    if name not in ("float32", "bfloat16"):
        raise ConfigError(f"dtype: {name!r}; allowed: auto, float32, bfloat16")
    return jnp.dtype(name)


def make_task(c: Config, clock: Clock) -> Task:
    """The configured task; every network computes in the run's dtype."""
    task = build(find_class(c.task, "task"), c.method, "method")
    return dataclasses.replace(with_dtype(task, compute_dtype(c.dtype)), clock=clock)


def with_dtype(thing: Any, dtype: Any) -> Any:
    """`thing` with `dtype` for every network that it, or a dataclass in it, holds."""
    new = {}
    for field in dataclasses.fields(thing):
        value = getattr(thing, field.name)
        if isinstance(value, nn.Module):
            new[field.name] = value.clone(dtype=dtype)
        elif dataclasses.is_dataclass(value):
            new[field.name] = with_dtype(value, dtype)
    return dataclasses.replace(thing, **new)
