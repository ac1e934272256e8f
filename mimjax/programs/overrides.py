"""How the text of `--config.key=value` becomes a value: None and tuples beside what there was.

ml_collections chooses a parser by the type of a setting. Its own refuse None, and join a tuple that
is given twice (of a number the last one counts, and so it is of a tuple here). Which of these
values a setting takes is decided later, by its annotation (`mimjax.values`).
"""

from __future__ import annotations

from typing import Any

from absl import flags
from ml_collections import config_flags
from ml_collections.config_flags.tuple_parser import TupleParser


class OrNone(flags.ArgumentParser):
    """Another parser's values, and None for the words None and none."""

    def __init__(self, inner: flags.ArgumentParser):
        self.inner = inner

    def parse(self, argument: Any) -> Any:
        return None if argument in (None, "None", "none") else self.inner.parse(argument)

    def flag_type(self) -> str:
        return self.inner.flag_type()


def register() -> None:
    """Makes the parsers those of every config flag of this process."""
    inner = {int: flags.IntegerParser(), float: flags.FloatParser(), tuple: TupleParser()}
    for kind, parser in inner.items():
        config_flags.register_flag_parser_for_type(kind, OrNone(parser))
