"""The settings of a command line: `--config=NAME[:ARGUMENTS]` and `--config.KEY=VALUE`.

How an override changes a config stands in `run.overrides`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from absl import flags

from mimjax.errors import ConfigError
from mimjax.run.overrides import Override, apply

WORD = re.compile(r"--?config\.([^=]+)(?:=(.*))?", re.S)


class ConfigFlag(flags.Flag):
    """--config; after `read` its value is the config.

    Attributes:
      text: what was given, "mae:size=l".
      overrides: in the order of the command line.
    """

    def __init__(self) -> None:
        super().__init__(
            *(flags.ArgumentParser(), flags.ArgumentSerializer(), "config", None),
            "Name or file of a config, NAME[:argument=value,...]; --config.KEY=VALUE overrides. A "
            "class, as --config.method.masking=Block, replaces its section by its own defaults.",
        )
        self.text = ""
        self.overrides: list[Override] = []

    def parse(self, argument: Any) -> None:
        """Take the text of the command line.

        Raises:
          ConfigError: it is the second one.
        """
        if self.present and argument != self.default:
            raise ConfigError(f"--config: {self.text!r} and {argument!r}; allowed: one of them")
        super().parse(argument)
        self.text = argument or ""


def define(flag_values: flags.FlagValues = flags.FLAGS) -> None:
    """Define --config."""
    flags.DEFINE_flag(ConfigFlag(), flag_values)


def read(words: Sequence[str], flag_values: flags.FlagValues = flags.FLAGS) -> list[str]:
    """Parse the flags of a program, the first word; `--config` becomes a config with its overrides.

    Returns:
      The words that are no flags.

    Raises:
      ConfigError: no such config, key or class, or a text that is no value of the setting.
    """
    rest, overrides = split(words)
    left = flag_values(rest)
    if "config" not in flag_values:
        if overrides:
            raise ConfigError(f"--config.{overrides[0].key}: this program reads no config")
        return left
    flag: Any = flag_values["config"]
    if flag.value is not None:
        from mimjax.run import config_files  # takes jax, which --help need not wait for

        c = config_files.load(flag.text)
        apply(c, overrides)
        flag.value, flag.overrides = c, overrides
    elif overrides:
        raise ConfigError(f"--config: missing, but --config.{overrides[0].key}; allowed: a config")
    return left


def split(words: Sequence[str]) -> tuple[list[str], list[Override]]:
    """Part a command line into other words and overrides, whose value may be a word of its own."""
    rest, found, todo = [], [], list(words)
    while todo:
        word = todo.pop(0)
        if word == "--":
            return [*rest, word, *todo], found
        match = WORD.fullmatch(word)
        if not match:
            rest.append(word)
            continue
        text = match[2]
        if text is None and todo and not re.match(r"-[^\d.]", todo[0]):
            text = todo.pop(0)
        found.append(Override(match[1], text))
    return rest, found


def config_text(flag_values: flags.FlagValues = flags.FLAGS) -> str:
    """Return the text of --config."""
    flag: Any = flag_values["config"]
    return flag.text
