"""Tables of frozen networks: tokenizers and teachers that methods take their targets from."""

from __future__ import annotations

from mimjax.torch_io import teachers_clip_vqgan, teachers_tokenizers
from mimjax.torch_io.layouts import Table

TABLES: dict[str, Table] = {**teachers_clip_vqgan.TABLES, **teachers_tokenizers.TABLES}
# layout -> regexes: keys that are the network's own, those among them that may stay unread
OWN: dict[str, tuple[str, str]] = {**teachers_clip_vqgan.OWN, **teachers_tokenizers.OWN}
DETECT = (teachers_clip_vqgan.detect, teachers_tokenizers.detect)


def detect(keys: set[str]) -> str | None:
    """The layout of a tokenizer's or teacher's checkpoint; None if it is none of these."""
    return next((found for detect in DETECT if (found := detect(keys))), None)
