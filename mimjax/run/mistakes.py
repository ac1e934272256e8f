"""What a report and the end of a run say about what a classifier confused."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

from mimjax.errors import ConfigError
from mimjax.plots import mistakes, page
from mimjax.storage import confusions
from mimjax.storage.classes import Classes
from mimjax.storage.confusions import FOLDER, Confusion
from mimjax.storage.files import Workdir


def sections(workdir: Workdir, step: int) -> str:
    """Return the parts of a page about the last evaluations; "" where nothing was counted.

    Args:
      step: the last one of the run.
    """
    files = confusions.latest(workdir, step)
    return "".join(_section(workdir, file, len(files) > 1) for file in files)


def _section(workdir: Workdir, file: str, several: bool) -> str:
    """Return what a page says about one evaluation."""
    found = confusions.read(workdir, file)
    if found is None:
        said = f"<p>{page.text(f'{FOLDER}/{file}')} is damaged and left out.</p>"
        return page.section("Confusion", said)
    of = f" ({found.name})" if several else ""
    names = _names(workdir, found)
    counted = mistakes.confusion(found, names)
    line = f"<p>{page.text(sentence(found))}</p>"
    return page.section(f"Confusion{of}", line + counted) + page.section(
        f"Most confident mistakes{of}", _gallery(workdir, found, names)
    )


def _gallery(workdir: Workdir, found: Confusion, names: Sequence[str]) -> str:
    """Return the mistakes with their images; "" where none was kept."""
    if not found.mistakes:
        return ""
    place = workdir.file(f"pictures/{found.picture}")
    said, images = "", []
    try:
        images = mistakes.tiles(place.read_bytes(), [m.box for m in found.mistakes])
    except (OSError, ValueError):
        said = f" The images are gone: pictures/{found.picture} cannot be read."
    line = f"The {len(found.mistakes):,} most confident of {found.wrong:,}, sorted by probability;"
    line += f" the true class in bold.{said}"
    return f"<p>{page.text(line)}</p>{mistakes.gallery(found, names, images)}"


def _names(workdir: Workdir, found: Confusion) -> Sequence[str]:
    """Return the names of the classes; their numbers where the workdir does not name these."""
    with contextlib.suppress(ConfigError):
        classes = Classes.read(workdir)
        if classes and classes.names and classes.count == found.classes:
            return classes.names
    return [str(i) for i in range(found.classes)]


def sentence(found: Confusion) -> str:
    """Return how many images are wrong, in words."""
    when = f"At step {found.step:,}"
    if not found.wrong:
        return f"{when} none of {found.images:,} test images is wrong."
    verb = "is" if found.wrong == 1 else "are"
    return f"{when}, {found.wrong:,} of {found.images:,} test images {verb} wrong."
