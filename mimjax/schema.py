"""A dataclass is the schema of its config section.

`section` writes a dataclass's settings out as a ConfigDict, so that each can be overridden by
name; `build` reads such a section back, naming the key of anything that does not fit. A field
whose class is PLUGGABLE (a method's target) may hold any subclass, and a network may be replaced by
one of another class (MR-MAE's encoder); such a section names its class in `type`.
"""

from __future__ import annotations

import dataclasses
import importlib
from typing import Any

import flax.linen as nn
from ml_collections import ConfigDict

from mimjax.errors import ConfigError

# A ConfigDict; its attributes are typed as a union of everything, which helps no checker.
Config = Any

HIDDEN = {"parent", "clock", "dtype"}  # not settings: flax, the run and `dtype` set them


def find_class(path: Any, key: str) -> type:
    """The class that "mimjax.methods.mae:MAE" names.

    Raises:
      ConfigError: there is none.
    """
    module, _, name = str(path).partition(":")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError):
        raise ConfigError(
            f"{key}: {path!r} not found; allowed: 'module:Class', like 'mimjax.methods.mae:MAE'"
        ) from None


def class_path(cls: type) -> str:
    """The name that `find_class` reads."""
    return f"{cls.__module__}:{cls.__qualname__}"


def pluggable(thing: Any) -> bool:
    """Whether a section of `thing` names its class."""
    return getattr(thing, "PLUGGABLE", False)


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


def section(thing: Any, **overrides: Any) -> Config:
    """A config section that holds every setting of `thing`, nested, with some replaced.

    An override of a nested section is a dict of settings, or an instance to be written out.

    Raises:
      ConfigError: an override that is no setting.
    """
    known = defaults(thing)
    for key in overrides:
        if key not in known:
            raise ConfigError(f"{key}: unknown; allowed: {', '.join(sorted(known))}")
    out = ConfigDict(convert_dict=False)
    if pluggable(thing):
        out.type = class_path(thing if isinstance(thing, type) else type(thing))
    for name, value in known.items():
        given = overrides.get(name, {})
        if dataclasses.is_dataclass(given):
            inner = section(given)
            if type(given) is not type(value):
                inner.type = class_path(type(given))
            out[name] = inner
        elif dataclasses.is_dataclass(value):
            out[name] = section(value, **given)
        else:
            out[name] = overrides.get(name, value)
    return out


def build(thing: Any, values: Config, where: str) -> Any:
    """An instance of `thing` (a class, or an instance to start from) with a section's settings.

    Raises:
      ConfigError: an unknown key, or a value of the wrong type.
    """
    if pluggable(thing) or ("type" in values and "type" not in defaults(thing)):
        base = (thing if isinstance(thing, type) else type(thing)).__mro__[-2]
        thing = find_class(values.type, f"{where}.type")
        if not (isinstance(thing, type) and issubclass(thing, base)):
            raise ConfigError(f"{where}.type: {values.type!r}; allowed: a {base.__name__}")
        values = {k: v for k, v in values.items() if k != "type"}
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
