"""Tables of frozen networks: tokenizers and teachers that methods take their targets from."""

from __future__ import annotations

from mimjax.torch_io import teachers_clip_vqgan, teachers_dino, teachers_tokenizers
from mimjax.torch_io.layouts import Table

ROOMS = (teachers_clip_vqgan, teachers_tokenizers, teachers_dino)
TABLES: dict[str, Table] = {k: v for room in ROOMS for k, v in room.TABLES.items()}
# layout -> regexes: keys that are the network's own, those among them that may stay unread
OWN: dict[str, tuple[str, str]] = {k: v for room in ROOMS for k, v in room.OWN.items()}


def detect(keys: set[str]) -> str | None:
    """The layout of a tokenizer's or teacher's checkpoint; None if it is none of these."""
    return next((found for room in ROOMS if (found := room.detect(keys))), None)
