"""What a classifier took for what at an evaluation, kept as `tables/NAME_STEP.json` in a workdir.

A file holds the number of test images of every true class that were predicted as every class, and
the most confident mistakes, whose images are those of a picture, `pictures/mistakes_NAME_STEP.png`.
The names of the classes stand in `classes.json`.
"""

from __future__ import annotations

import dataclasses
import json
import re
from typing import Any, NamedTuple

import numpy as np

from mimjax.storage.files import Workdir

FOLDER = "tables"
FILE = re.compile(r"(.+)_(\d{7,})\.json")


class Mistake(NamedTuple):
    """A test image that was taken for one of another class.

    Attributes:
      index: its place in the test split.
      true, predicted: classes.
      probability: of the predicted class, 0 to 1.
      box: where it stands in the picture: left, top, right, bottom in pixels.
    """

    index: int
    true: int
    predicted: int
    probability: float
    box: tuple[int, int, int, int] = (0, 0, 0, 0)


@dataclasses.dataclass(frozen=True)
class Confusion:
    """The counts of an evaluation, and its most confident mistakes.

    Attributes:
      name: of the evaluation, "accuracy".
      step: updates before it.
      classes: their number.
      cells: (true class, predicted class, images) of all that are not 0, in order.
      mistakes: the most confident first.
    """

    name: str
    step: int
    classes: int
    cells: tuple[tuple[int, int, int], ...]
    mistakes: tuple[Mistake, ...] = ()

    @property
    def file(self) -> str:
        """The name of the file in `tables/`."""
        return f"{self.name}_{self.step:07d}.json"

    @property
    def picture(self) -> str:
        """The name of the picture in `pictures/`; there is one where there are mistakes."""
        return f"mistakes_{self.name}_{self.step:07d}.png"

    @property
    def images(self) -> int:
        """The number of images."""
        return sum(n for _, _, n in self.cells)

    @property
    def pairs(self) -> list[tuple[int, int, int]]:
        """The cells of wrong predictions, the most frequent first."""
        wrong = [cell for cell in self.cells if cell[0] != cell[1]]
        return sorted(wrong, key=lambda cell: (-cell[2], *cell[:2]))

    @property
    def wrong(self) -> int:
        """The number of images of wrong predictions."""
        return sum(n for _, _, n in self.pairs)

    @property
    def counts(self) -> np.ndarray:
        """Images by true and predicted class, int64 [c c]."""
        out = np.zeros((self.classes, self.classes), np.int64)
        for true, predicted, count in self.cells:
            out[true, predicted] = count
        return out

    def to_json(self) -> str:
        """Return the content of the file."""
        content = dataclasses.asdict(self) | {"mistakes": [m._asdict() for m in self.mistakes]}
        return json.dumps(content) + "\n"


def count(true: np.ndarray, predicted: np.ndarray) -> tuple[tuple[int, int, int], ...]:
    """Return `Confusion.cells` of true and predicted classes, int [n] each."""
    pairs, counts = np.unique(np.stack([true, predicted], 1), axis=0, return_counts=True)
    return tuple((int(a), int(b), int(n)) for (a, b), n in zip(pairs, counts, strict=True))


def read(workdir: Workdir, file: str) -> Confusion | None:
    """Return the content of a file in `tables/`; None where it is damaged."""
    try:
        content: Any = json.loads(workdir.read_text(f"{FOLDER}/{file}"))
        cells = tuple((int(a), int(b), int(n)) for a, b, n in content["cells"])
        mistakes = tuple(Mistake(**m | {"box": tuple(m["box"])}) for m in content["mistakes"])
        out = Confusion(content["name"], content["step"], content["classes"], cells, mistakes)
        labels = [label for a, b, *_ in (*cells, *(m[1:3] for m in mistakes)) for label in (a, b)]
        whole = all(0 <= label < out.classes for label in labels)
        probable = all(0 <= m.probability <= 1 and len(m.box) == 4 for m in mistakes)
        return out if whole and probable and out.file == file else None
    except (ValueError, TypeError, KeyError):
        return None


def latest(workdir: Workdir, step: int) -> list[str]:
    """Return the files of the last evaluations, one for each name.

    Args:
      step: the last one of the run; files of later steps are left from before it went back.
    """
    folder = workdir.file(FOLDER)
    found: dict[str, tuple[int, str]] = {}
    for path in folder.iterdir() if folder.exists() else ():
        if (match := FILE.fullmatch(path.name)) and (here := int(match[2])) <= step:
            found[match[1]] = max(found.get(match[1], (-1, "")), (here, path.name))
    return [found[name][1] for name in sorted(found)]
