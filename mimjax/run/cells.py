"""What an evaluation is made of: its cells, their results, and what a protocol is.

A protocol says everything that sets it apart from others: which rows and seeds it has a number for,
how that number is computed, and what is said of it. `run.evaluate` and `run.scores` ask it and know
none by name. Those that are shipped stand in `run.protocols` and `run.fine_tuning`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from mimjax.transfer.head import Reading

if TYPE_CHECKING:
    from mimjax.run.evaluate import Evaluation
    from mimjax.run.rows import Row


class Cell(NamedTuple):
    """One number of the table.

    Attributes:
      row: of `ROWS`; protocol: of `PROTOCOLS`.
      labels: "all", "10%", or a number of images of each class.
      seed: of the weights, the order of the images and the labeled images that are drawn.
    """

    row: str
    protocol: str
    labels: str
    seed: int


class Result(NamedTuple):
    """The result of a cell.

    Attributes:
      top1, top5: on the test split, percent.
      validation: top-1 on the images that were left out to choose on.
      setting: what was chosen, "cls of the norm, lr 0.3".
      learned, chosen_on, tested: numbers of images.
    """

    top1: float
    top5: float
    validation: float
    setting: str
    learned: int
    chosen_on: int
    tested: int


@dataclasses.dataclass(frozen=True)
class Space:
    """What an encoder gives, as protocols read it.

    Attributes:
      vectors: readings [b d] that are tried.
      tokens, patches: readings [b n d] that are tried, with and without class tokens.
      width: of a token at the layers that are read.
      heads: of the encoder's attention.
    """

    vectors: tuple[Reading, ...]
    tokens: tuple[Reading, ...]
    patches: tuple[Reading, ...]
    width: int
    heads: int


Results = Mapping[Cell, dict[str, Any]]


class Protocol:
    """Base class of protocols. A protocol is a frozen dataclass, whose fields flags may change.

    Attributes:
      title: name in the table; every protocol has a field for it.
    """

    title: str

    def has(self, row: Row) -> bool:
        """Return whether there is a number for a row."""
        return True

    def seeded(self, everything: bool) -> bool:
        """Return whether a seed changes the number.

        Args:
          everything: whether all labels are read, so that none are drawn.
        """
        return True

    def crops(self, row: Row) -> bool:
        """Return whether --augment changes the number of a row."""
        return False

    def check(self, evaluation: Evaluation) -> None:
        """Check the settings before anything is computed or written.

        Raises:
          ConfigError: they do not suit the data or the encoder.
        """

    def identity(self, evaluation: Evaluation, cell: Cell) -> Sequence[Any]:
        """Return what decides a cell beside features, images, settings and the cell itself."""
        return ()

    def score(self, evaluation: Evaluation, cell: Cell) -> Result:
        """Return the result of a cell."""
        raise NotImplementedError(type(self).__name__)

    def notes(self, evaluation: Evaluation, results: Results) -> list[str]:
        """Return sentences on how its numbers were made.

        Args:
          results: those of its own cells.
        """
        return []


def edges(
    protocol: Any,
    results: Results,
    names: Mapping[str, str],
    word: Callable[[float], str],
    unit: str,
) -> list[str]:
    """Return a sentence where the best learning rate is the last one that was tried.

    Args:
      protocol: has factors `rates` that are tried; results: of its cells.
      names: of the rows.
      word: says a factor as what was chosen says it, "rate 0.3".
      unit: what the factors multiply, in words.
    """
    out = []
    for end, which in ((max(protocol.rates), "largest"), (min(protocol.rates), "smallest")):
        hit = [c for c, r in results.items() if word(end) in r["setting"].split(", ")]
        if hit and len(protocol.rates) > 1:
            rows = ", ".join(dict.fromkeys(names[c.row] for c in hit))
            out.append(
                f"{protocol.title}, {rows}: the {which} learning rate that was tried is the best; "
                f"another one may be better (--rates, factors of {unit})."
            )
    return out


def batch_of(images: int, devices: int) -> int:
    """Return how many images the heads are trained on at once.

    A sixteenth of them, between 32 and 1024 and a multiple of 8, so that it is the same on any
    number of devices that divides 8.
    """
    wanted = min(max(images // 16, 32), 1024, images)
    step = 8 if wanted >= 8 and 8 % devices == 0 else devices
    return max(wanted // step, 1) * step
