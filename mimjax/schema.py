"""Config sections from dataclasses and back; a dataclass is the schema of its section.

`section` writes the settings of a dataclass as a ConfigDict, so that each can be overridden by
name. `build` reads a section back and names the key of each value that the field's annotation does
not allow (`values`). A field whose class is PLUGGABLE may hold any subclass of its annotation, and
a class with EXTRA any number of plugs under names of the user's; such a section names its class in
`type` (`plugs`). `make_task` turns a whole config into a task; flags and files play no part here.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, TypeGuard

import flax.linen as nn
import jax
import jax.numpy as jnp
from ml_collections import ConfigDict
from ml_collections.config_dict import FieldReference

from mimjax import values
from mimjax.errors import ConfigError
from mimjax.plugs import abstract, base_of, class_path, digest_of, find_class, find_plug, pluggable
from mimjax.task import Clock, Task

# A ConfigDict. Its attributes are typed as a union of all types, which helps no checker.
Config = Any


def defaults(thing: Any) -> dict[str, Any]:
    """Return the settings of a dataclass or linen module and their default values.

    Args:
      thing: a class, for its declared defaults (a task derives some fields when it is made), or an
        instance, for its values.
    """
    if not isinstance(thing, type):
        return {name: getattr(thing, name) for name in values.fields(type(thing))}
    fields = {f.name: f for f in dataclasses.fields(thing)}
    made = lambda f: f.default if f.default_factory is dataclasses.MISSING else f.default_factory()
    return {name: made(fields[name]) for name in values.fields(thing)}


def brief(thing: Any) -> str:
    """Return a part in one line: its class and the settings that differ from the class's defaults.

    Settings that the part derives, and those of a network that only the run sets, are left out.
    """
    if isinstance(thing, float):
        return f"{thing:.10g}"
    if isinstance(thing, type) or not dataclasses.is_dataclass(thing):
        return repr(thing)
    usual = defaults(type(thing))
    changed = [f"{k}={brief(v)}" for k, v in defaults(thing).items() if v != usual[k]]
    return type(thing).__name__ + (f"({', '.join(changed)})" if changed else "")


def section(thing: Any, **overrides: Any) -> Config:
    """Return a config section with every setting of `thing`, nested, with some replaced.

    Args:
      thing: a dataclass or linen module, or an instance of one.
      overrides: new values by name; for a nested section a dict of settings, an instance to be
        written out, or None where the section may be left out.

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
        override = overrides.get(name, {})
        if dataclasses.is_dataclass(override):
            inner = section(override)
            if type(override) is not type(value):
                inner.update(naming(type(override)))
            out[name] = inner
        elif override is None:
            out[name] = leaf(values.fields(cls)[name], None)
        elif dataclasses.is_dataclass(value):
            out[name] = section(value, **override)
        else:
            out[name] = leaf(values.fields(cls)[name], overrides.get(name, value))
    return out


def naming(cls: type) -> dict[str, str]:
    """Return a section's entries about its class: `type`, and `digest` for a user's file."""
    digest = digest_of(cls)
    return {"type": class_path(cls)} | ({"digest": digest} if digest else {})


class Setting(FieldReference):
    """A value in a ConfigDict that may be None, or for which one number may stand for a pair.

    A ConfigDict takes the type of a setting from its value, so the command line could not replace
    None by a value. Here the type comes from the annotation.

    Attributes:
      hint: the annotation of the setting.
    """

    def __init__(self, hint: Any, value: Any):
        self.hint = hint
        super().__init__(None, values.kind(hint))
        self.set(value)

    def set(self, value: Any, type_safe: bool = True) -> None:
        """Set the value; a plain number for a pair becomes the pair."""
        super().set(values.square(self.hint, value), type_safe)

    def __reduce__(self) -> tuple[Any, ...]:
        return Setting, (self.hint, self.get())  # the base class's copies forget the annotation


def leaf(hint: Any, value: Any) -> Any:
    """Return what a section holds for a setting that is no section itself."""
    if isinstance(value, dict):
        return ConfigDict(value)
    optional = values.parts(hint)[2]
    return Setting(hint, value) if optional or values.mark(hint, values.Square) else value


def is_section(value: Any) -> TypeGuard[ConfigDict]:
    """Return whether a value is a section of settings."""
    return isinstance(value, ConfigDict | Mapping)


def build_extra(thing: Any, value: Any, key: str, known: list[str]) -> Any:
    """Return the plug of a section whose name is no field.

    A class allows such sections by `EXTRA`, the base class of their plugs; they fill its field
    `extra`, a dictionary by name.

    Raises:
      ConfigError: the class allows none, or the section names no class.
    """
    allowed, base = ", ".join(known), getattr(thing, "EXTRA", None)
    if base is None:
        raise ConfigError(f"{key}: unknown; allowed: {allowed}")
    if not (is_section(value) and "type" in value):
        raise ConfigError(
            f"{key}: unknown; allowed: {allowed}, or a section that names its {base.__name__} in "
            "`type`"
        )
    return build(base, value, key)


def build(thing: Any, settings: Config, where: str, base: type | None = None) -> Any:
    """Return an instance with the settings of a section.

    Args:
      thing: its class, or an instance whose other settings are kept.
      settings: the section.
      where: dotted name of the section, for errors; "" = the top of the config.
      base: see `chosen`.

    Raises:
      ConfigError: an unknown key, a class that cannot be found, or a value that the field's
        annotation does not allow.
    """
    if not is_section(settings):
        raise ConfigError(f"{where}: {settings!r}; allowed: a section of settings")
    thing, settings = chosen(thing, settings, where, base)
    known, new = defaults(thing), {}
    hints = values.fields(thing if isinstance(thing, type) else type(thing))
    for name, value in settings.items():
        key = f"{where}.{name}" if where else name
        if name not in known:
            plug = build_extra(thing, value, key, sorted(known))
            new.setdefault("extra", {})[name] = plug
            continue
        part, _, optional = values.parts(hints[name])
        if value is None and optional:
            new[name] = None
        elif optional and dataclasses.is_dataclass(part) and not is_section(value):
            raise ConfigError(f"{key}: {value!r}; allowed: a section of settings, or None")
        elif dataclasses.is_dataclass(known[name]):
            new[name] = build(known[name], value, key, plug_base(hints[name]))
        elif dataclasses.is_dataclass(part):  # it is left out by default
            new[name] = build(part, value, key)
        else:
            new[name] = values.fit(hints[name], value, key)
    return thing(**new) if isinstance(thing, type) else dataclasses.replace(thing, **new)


def chosen(
    thing: Any, settings: Config, where: str, base: type | None = None
) -> tuple[Any, Config]:
    """Return what a section describes, and its settings without those about its class.

    Where the section names no class, it is that of the default, whose other settings are kept; so
    are sections read that were written before their part could be replaced.

    Args:
      thing: class of the field's annotation, or its default.
      base: the class is a subclass of it; None = of the base class of such plugs.

    Raises:
      ConfigError: there is no such class, or none is named and the annotation names none.
    """
    cls = thing if isinstance(thing, type) else type(thing)
    if "type" in settings and "type" not in values.fields(cls):
        rest = {k: v for k, v in settings.items() if k not in ("type", "digest")}
        return find_plug(base or base_of(cls), settings["type"], f"{where}.type"), rest
    if pluggable(cls) and abstract(cls):
        raise ConfigError(f"{where}.type: missing; allowed: the class of a {cls.__name__}")
    return thing, settings


def annotation(settings: type, c: Config, key: str) -> Any:
    """Return the annotation of the setting that a dotted key names, None where no class says it.

    A section has the fields of the class that its `type` names, else of its default or annotation;
    `method` those of the class `c.task`. A class of settings with sections that a user names, as
    evaluators, says their base class in `EXTRA`.

    Args:
      settings: the dataclass of the whole config, `mimjax.run.sections.Settings`.

    Raises:
      ConfigError: a section's class does not exist.
    """
    hint, thing, node = None, settings, c
    for end, name in enumerate(key.split("."), 1):
        if thing is None:
            return None  # inside a dictionary
        if thing is settings and name == "method":
            hint = thing = find_class(c.task, "task")
        else:
            cls = thing if isinstance(thing, type) else type(thing)
            hint = values.fields(cls).get(name, getattr(cls, "EXTRA", None))
            inner, known = values.parts(hint)[0], defaults(thing).get(name)
            known = inner if known is None else known
            thing = known if dataclasses.is_dataclass(known) else None
        node = node.get(name) if is_section(node) else {}
        where = ".".join(key.split(".")[:end])
        if thing is not None and is_section(node) and "type" in node:
            thing = chosen(thing, node, where, plug_base(hint))[0]
    return hint


def plug_base(hint: Any) -> type | None:
    """Return the class whose subclasses a setting may hold as plugs, None where it holds none."""
    inner = values.parts(hint)[0]
    return inner if isinstance(inner, type) and pluggable(inner) else None


def compute_dtype(name: str) -> Any:
    """Return the compute type of a name; "auto" is bfloat16 on accelerators, float32 on CPU.

    Raises:
      ConfigError: another name than auto, float32 and bfloat16.
    """
    if name == "auto":
        name = "float32" if jax.default_backend() == "cpu" else "bfloat16"
    if name not in ("float32", "bfloat16"):
        raise ConfigError(f"dtype: {name!r}; allowed: auto, float32, bfloat16")
    return jnp.dtype(name)


def make_task(c: Config, clock: Clock) -> Task:
    """Return the task of a config; every network in it computes in the run's dtype.

    Raises:
      ConfigError: the task is not found, or a setting of the method is wrong.
    """
    task = build(find_class(c.task, "task"), c.method, "method")
    # the config of a published file has neither `stream` nor `attention`
    stream = jnp.dtype(jnp.float32) if c.get("stream") == "float32" else None
    task = with_dtype(task, compute_dtype(c.dtype), stream, c.get("attention", "auto"))
    return dataclasses.replace(task, clock=clock)


def with_dtype(thing: Any, dtype: Any, stream: Any = None, attention: str = "auto") -> Any:
    """Return a network, or a dataclass with all networks in it, that computes in `dtype`.

    A user's network without such a field decides by itself.

    Args:
      stream: the type of the tokens that an encoder's blocks add to; None = `dtype`.
      attention: how attention is computed, see `models.attention.attend`.
    """
    if isinstance(thing, nn.Module):
        found = {"dtype": dtype, "stream": stream, "attention_form": attention}
        return thing.clone(**{name: x for name, x in found.items() if hasattr(thing, name)})
    new = {}
    for field in dataclasses.fields(thing):
        value = getattr(thing, field.name)
        if dataclasses.is_dataclass(value):  # linen modules are, too
            new[field.name] = with_dtype(value, dtype, stream, attention)
    return dataclasses.replace(thing, **new)
