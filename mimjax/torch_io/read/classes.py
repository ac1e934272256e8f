"""Names of the classes of a head, as transformers and timm write them in `config.json`."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mimjax.torch_io.read.sizes import FileTensors

KEYS = ("id2label", "label_names", "labels")  # transformers; timm; timm, once
SHOWN = 3  # names in a line
Numbered = tuple[tuple[int, str], ...]  # numbers and names, by number


def told(section: dict[str, Any]) -> Numbered:
    """Return the classes that a section of `config.json` names; () = it names none.

    They are a list, or an object whose keys are the numbers as text, so that "10" may stand before
    "2". transformers' placeholders ("LABEL_0") are no names.
    """
    found = next((section[key] for key in KEYS if key in section), None)
    named = dict(enumerate(found)) if isinstance(found, list) else found
    if not isinstance(named, dict):
        return ()
    try:
        out = sorted((int(number), str(name)) for number, name in named.items())
    except ValueError:
        return ()
    return () if all(name == f"LABEL_{number}" for number, name in out) else tuple(out)


def of_file(file: FileTensors) -> tuple[Numbered, str]:
    """Return the classes that a file or the config.json beside it names, and what names them."""
    if file.beside.classes or "classes" not in file.about:
        return file.beside.classes, file.beside.source
    return told({KEYS[1]: json.loads(file.about["classes"])}), file.where


def of_head(named: Numbered, where: str, outputs: int) -> tuple[tuple[str, ...] | None, list[str]]:
    """Return the names of a head's classes, None where nothing tells them, and what to say.

    Names that are not one for each output are not taken: a name would be another's.

    Args:
      named, where: what `of_file` returned.
      outputs: of the head; 0 = there is none.
    """
    if not outputs or not named:
        return None, []
    numbers, names = zip(*named)
    if numbers == tuple(range(outputs)):
        more = ", ..." if outputs > SHOWN else ""
        return names, [f"class names from {where}: {', '.join(names[:SHOWN])}{more}"]
    return None, [
        f"class names of {where} are not taken: it names {len(named):,} classes, {numbers[0]} to "
        f"{numbers[-1]}, and the head has {outputs:,}"
    ]
