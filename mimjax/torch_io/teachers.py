"""Tables of frozen networks: tokenizers and teachers that methods take their targets from."""

from __future__ import annotations

from mimjax.torch_io.layouts import Table

TABLES: dict[str, Table] = {}


def detect(keys: set[str]) -> str | None:
    """The layout of a tokenizer's or teacher's checkpoint; None if it is none of these."""
    return None
