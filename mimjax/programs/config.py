"""Print the settings of a config, where each comes from, and what its plugs may be.

  mimjax config NAME[:argument=value,...] [--config.KEY=VALUE ...]
  mimjax config --completion=bash|zsh

A setting comes from the default of its class, from the config file, or from the command line.
--completion prints a script for the shell; `eval "$(mimjax config --completion=bash)"` loads it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any, NamedTuple

from absl import flags
from ml_collections import ConfigDict

from mimjax.errors import ConfigError
from mimjax.programs import cli, completion, parser

REQUIRED: tuple[str, ...] = ()
POSITIONAL = "config"  # the flag that a first word without dashes is the value of


class Row(NamedTuple):
    """A setting, its value and where that comes from."""

    key: str
    value: Any
    origin: str


def define_flags() -> None:
    """Define all flags of the program."""
    parser.define()
    flags.DEFINE_enum("completion", None, ["bash", "zsh"], "Print a script of tab completion.")
    cli.define_base_flags()


def main() -> None:
    """Print the table, or the script."""
    from mimjax.run import config_files

    f = flags.FLAGS
    if f.completion:
        print(completion.script(f.completion), end="")
        return
    if f.config is None:
        known = ", ".join(config_files.shipped())
        raise ConfigError(f"--config: missing; allowed: mimjax config NAME, with {known}")
    flag: Any = f["config"]
    found, plugs = rows(f.config, [o.key for o in flag.overrides]), plug_lines(f.config)
    name = config_files.find(flag.text.partition(":")[0])
    print(f"{flag.text} of {name}")
    width = min(max(len(row.key) for row in found), 40)
    for row in found:
        print(f"  {row.key:{width}}  {row.value!s:32}  {row.origin}")
    if plugs:
        print(
            "\nplugs, --config.KEY=CLASS, with the defaults of the class; also 'module:Class' and "
            "'file.py:Class':"
        )
        print("\n".join(f"  {line}" for line in plugs))
    print("\n" + "\n".join(terms(f.config)))


def terms(c: Any) -> list[str]:
    """Return what the task learns as lines of a table, or its story; parts that do not fit raise.

    Raises:
      ConfigError: a setting of the task is wrong, or its parts do not go together.
    """
    from mimjax import schema
    from mimjax.run import messages
    from mimjax.task import Clock

    task = schema.make_task(c, Clock(1, 1))
    return messages.composition(task) or [f"  learned: {task.story}"]


def rows(c: Any, overridden: list[str]) -> list[Row]:
    """Return every setting of a config in order, sections after plain settings.

    Args:
      overridden: keys that the command line gave.
    """
    from mimjax import schema
    from mimjax.run.sections import Settings

    task = schema.find_class(c.task, "task")
    known = schema.defaults(Settings) | {"method": task}
    return list(_rows(c, known, "", overridden))


def _rows(section: Any, known: dict[str, Any], prefix: str, overridden: list[str]) -> Iterator[Row]:
    from mimjax import schema

    inner = []
    for name in section:
        value, key = section[name], prefix + name
        if not isinstance(value, ConfigDict):
            yield Row(key, value, _origin(key, value, known.get(name, _MISSING), overridden))
            continue
        thing = known.get(name)
        if "type" not in value or "type" in _settings(thing):
            inner.append((value, _settings(thing), key))
            continue
        known_class = thing if isinstance(thing, type) else type(thing)
        plug = dataclasses.is_dataclass(thing)
        cls = schema.chosen(thing, value, key)[0] if plug else schema.find_class(value["type"], key)
        same = cls is known_class
        default = {"type": schema.class_path(cls)} if same else {}
        inner.append((value, _settings(thing if same else cls) | default, key))
    for value, defaults, key in inner:
        yield from _rows(value, defaults, f"{key}.", overridden)


_MISSING = object()


def _settings(thing: Any) -> dict[str, Any]:
    from mimjax import schema

    return schema.defaults(thing) if dataclasses.is_dataclass(thing) else {}


def _origin(key: str, value: Any, default: Any, overridden: list[str]) -> str:
    section, _, last = key.rpartition(".")
    if key in overridden or (last in ("type", "digest") and section in overridden):
        return "command line"
    return "default" if value == default else "config file"


def plug_lines(c: Any) -> list[str]:
    """Return a line for each setting that names a class: its key, and the shipped classes."""
    from mimjax import plugs, schema, values
    from mimjax.run.sections import Settings

    out = []
    for key in _keys(c):
        hint = schema.annotation(Settings, c, key)
        inner, _, optional = values.parts(hint)
        if base := schema.plug_base(hint):
            out.append(f"{key}: {', '.join(plugs.shipped(base))}" + ", None" * optional)
        elif base := getattr(inner, "EXTRA", None):
            out.append(f"{key}.NAME: {', '.join(plugs.shipped(base))}")
    return out


def _keys(section: Any, prefix: str = "") -> Iterator[str]:
    """Yield the keys of all sections, and of settings that are None and may become one."""
    for name in section:
        value = section[name]
        if isinstance(value, ConfigDict):
            yield prefix + name
            yield from _keys(value, f"{prefix}{name}.")
        elif value is None:
            yield prefix + name
