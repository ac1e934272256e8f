"""Settings of a config that are given as text, KEY=VALUE.

Overrides are applied in two passes. The first takes those that name a class, as
`--config.method.masking=Block`, and replaces the section by that class's, with the defaults of the
class: nothing of the section before is kept. The second sets all others in order. So a part can be
swapped and its options be set on one command line. The annotation of a setting says how its text is
read; of a key that is given twice the last value counts.
"""

from __future__ import annotations

import ast
import dataclasses
import typing
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

from ml_collections import ConfigDict

from mimjax.errors import ConfigError

NONE = ("None", "none")


class Override(NamedTuple):
    """A setting's dotted key and its text; None = `--config.KEY` without a value."""

    key: str
    text: str | None


def apply(c: Any, overrides: Sequence[Override]) -> None:
    """Replace the sections of plugs, then set all other keys in order."""
    from mimjax import schema, values
    from mimjax.inference import teachers
    from mimjax.run.sections import Settings

    others = list(overrides)
    for override in others:
        teachers.check_old(c, f"config.{override.key}")
    for override in sorted(overrides, key=lambda o: o.key.count(".")):  # outer sections first
        if base := schema.plug_base(schema.annotation(Settings, c, override.key)):
            swap(c, override, base, values.parts(schema.annotation(Settings, c, override.key))[2])
            others.remove(override)
    for override in others:
        assign(c, override, schema.annotation(Settings, c, override.key))


def swap(c: Any, override: Override, base: type, optional: bool = False) -> None:
    """Replace a section by that of the class that an override names, or by None.

    Raises:
      ConfigError: there is no such class, or no place for it.
      UserCodeError: the user's module fails.
    """
    from mimjax import schema

    parent, last = parent_of(c, override.key, new=True)
    section = None
    if not (optional and override.text in NONE):
        try:
            cls = schema.find_plug(base, override.text or "", f"config.{override.key}")
        except ConfigError as error:
            raise ConfigError(f"{error}{', or None' if optional else ''}") from None
        section = schema.section(cls)
    with parent.unlocked():
        if last in parent:
            del parent[last]
        parent[last] = section


def assign(c: Any, override: Override, hint: Any) -> None:
    """Set a setting to the value that its text means.

    Raises:
      ConfigError: an unknown key, or a text that is no value of this kind.
    """
    parent, last = parent_of(c, override.key)
    old, key = parent[last], f"config.{override.key}"
    if isinstance(old, ConfigDict):
        names = ", ".join(sorted(old))
        raise ConfigError(f"{key}: is a section; allowed: --{key}.NAME=VALUE with {names}")
    if hint is None and old is not None:
        hint = type(old)
    with parent.ignore_type():
        parent[last] = value_of(override.text, hint, key)


def parent_of(c: Any, key: str, new: bool = False) -> tuple[Any, str]:
    """Return the section that holds a key, and the key's last name.

    Args:
      new: whether the last name may be one that the section does not have yet.

    Raises:
      ConfigError: there is no such section or name.
    """
    node, where = c, "config"
    names = key.split(".")
    for number, name in enumerate(names):
        section = isinstance(node, ConfigDict)
        if not section or (name not in node and not (new and number == len(names) - 1)):
            allowed = ", ".join(sorted(node)) if section else "no keys"
            if node is None:
                allowed = f"after --{where}=CLASS, which makes a section of it"
            raise ConfigError(f"{where}.{name}: unknown; allowed: {allowed}")
        if number == len(names) - 1:
            break
        if node[name] is None:
            make_section(c, node, ".".join(names[: number + 1]))
        node, where = node[name], f"{where}.{name}"
    return node, names[-1]


def make_section(c: Any, parent: Any, key: str) -> None:
    """Put the defaults in the place of a section that is None, where one class alone may fill it.

    Args:
      parent: the section in which it stands; key: its dotted name.
    """
    from mimjax import schema, values
    from mimjax.run.sections import Settings

    cls, last = values.parts(schema.annotation(Settings, c, key))[0], key.rpartition(".")[2]
    if isinstance(cls, type) and dataclasses.is_dataclass(cls) and not schema.pluggable(cls):
        with parent.unlocked():
            del parent[last]
            parent[last] = schema.section(cls)


def value_of(text: str | None, hint: Any, key: str) -> Any:
    """Return the value that a text means for an annotation; ranges are checked later, with others.

    Raises:
      ConfigError: the text is no value of the annotation's type.
    """
    from mimjax import values

    inner, _, optional = values.parts(hint)
    kind = values.kind(hint)
    if text is None:
        if kind is bool:
            return True
        raise ConfigError(f"{key}: no value; allowed: {values.allowed(hint)}")
    if typing.get_origin(inner) is Literal:
        choices = {str(choice): choice for choice in typing.get_args(inner)}
        if text in choices:
            return choices[text]
    if text in NONE and (optional or kind in (int, float, tuple)):
        return None  # where it is not allowed, the check of all settings says so
    try:
        return _parsed(text, kind)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        raise values.wrong(key, text, hint) from None


def _parsed(text: str, kind: type) -> Any:
    if kind is bool:
        words = {"true": True, "t": True, "1": True, "false": False, "f": False, "0": False}
        if text.lower() not in words:
            raise ValueError(text)
        return words[text.lower()]
    if kind in (int, float):
        return kind(text)
    if kind is str:
        return text
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        if kind is object:
            return text
        raise
    if kind is not tuple:
        return value
    return tuple(value) if isinstance(value, list | tuple) else (value,)
