"""The protocols of `mimjax evaluate`: what a probe reads, how it is trained, and over which grid.

A protocol's optimizer, schedule and head are those of its paper's code; the grid around its
learning rate is ours, since no published rate suits other data. Every setting of a protocol is
chosen on images that were left out of training, see `run.evaluate`. Fine-tuning, which trains the
encoder too, stands in `run.fine_tuning`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from mimjax.run import scoring
from mimjax.run.cells import Cell, Protocol, Result, Results, Space, edges
from mimjax.run.cells import batch_of as batch_of
from mimjax.run.fine_tuning import FineTuned
from mimjax.run.rows import ROWS, Row
from mimjax.schedules import CAPICosine, MAECosine, Schedule
from mimjax.train.optimizers import LARS, SGD, AdamW, Rule
from mimjax.transfer import neighbors
from mimjax.transfer.attentive_probe import AttentiveProbe, EfficientProbe, QueryProbe
from mimjax.transfer.head import Head, Reading
from mimjax.transfer.linear_probe import LinearProbe
from mimjax.transfer.probing import Member

if TYPE_CHECKING:
    from mimjax.run.evaluate import Evaluation


@dataclasses.dataclass(frozen=True)
class Neighbors(Protocol):
    """k-NN by cosine similarity, votes exp(similarity / T); EP's board (its section 2.6).

    Attributes:
      ks, temperatures: the grid.
    """

    ks: tuple[int, ...] = (5, 10, 15, 20, 50, 100, 200)
    temperatures: tuple[float, ...] = (0.07, 0.1, 0.2)
    title: str = "k-NN"

    def readings(self, space: Space) -> tuple[Reading, ...]:
        """Return what is read: everything that may be chosen."""
        return space.vectors

    def seeded(self, everything: bool) -> bool:
        return not everything  # it learns nothing

    def check(self, evaluation: Evaluation) -> None:
        if self.ks != Neighbors().ks:
            neighbors.check_ks("--ks", self.ks, len(evaluation.train))

    def score(self, evaluation: Evaluation, cell: Cell) -> Result:
        row = evaluation.row(cell.row)
        drawn, cut, test = evaluation.features(cell, self.readings(row.space))
        return scoring.nearest(self, row.space, drawn, cut, test, len(evaluation.names))


@dataclasses.dataclass(frozen=True)
class Trained(Protocol):
    """Heads that are trained side by side, one for each point of a grid.

    Attributes:
      title: name in the table.
      rule: of the optimizer.
      base_lr: learning rate per 256 images, of the paper's code.
      rates: factors of it that are tried.
      decays: weight decays that are tried.
      warmup: share of the run over which the rate rises.
      min_lr: absolute rate at the end.
      epochs: passes over the training images.
    """

    title: str
    rule: Rule
    base_lr: float
    rates: tuple[float, ...]
    decays: tuple[float, ...] = (0.0,)
    warmup: float = 1 / 9  # 10 of 90 epochs
    min_lr: float = 0.0
    epochs: int = 90

    def schedule(self, steps: int) -> Schedule:
        """Return the learning rate's course over a run of so many steps."""
        warmup = min(round(self.warmup * steps), steps)
        return MAECosine(warmup_epochs=0.0, warmup_steps=warmup, min_lr=self.min_lr)

    def heads(self, space: Space) -> list[tuple[Head, Reading]]:
        """Return the heads and what each reads, before the number of classes is known."""
        raise NotImplementedError(type(self).__name__)

    def readings(self, space: Space) -> tuple[Reading, ...]:
        """Return what is read: everything that may be chosen."""
        return tuple(dict.fromkeys(reading for _, reading in self.heads(space)))

    def crops(self, row: Row) -> bool:
        return row.network is not None

    def check(self, evaluation: Evaluation) -> None:
        for row in evaluation.rows:
            self.heads(row.space)

    def score(self, evaluation: Evaluation, cell: Cell) -> Result:
        feed = evaluation.augmented if evaluation.crops(cell) else evaluation.cached
        return scoring.train_heads(*feed(cell, self), cell.seed, evaluation.words(cell))

    def notes(self, evaluation: Evaluation, results: Results) -> list[str]:
        crops = "cropped and mirrored anew" if evaluation.crop else "the same in every epoch"
        learned = f"{self.title}: {self.epochs} epochs, training images are {crops}."
        word, unit = lambda rate: f"lr {rate * self.base_lr:g}", f"{self.base_lr:g} per 256 images"
        return [*edges(self, results, ROWS, word, unit), learned]

    def members(self, space: Space, classes: int) -> dict[str, Member]:
        """Return a head for every point of the grid, by a name that says which."""
        top = max(self.decays)
        out = {}
        for head, reading in self.heads(space):
            for rate in self.rates:
                for decay in self.decays:
                    words = f"{reading.words}, lr {rate * self.base_lr:g}"
                    words += f", decay {decay:g}" if len(self.decays) > 1 else ""
                    factor = decay / top if top else 1.0
                    sized = head.clone(classes=classes)
                    out[words.replace("/", " ")] = Member(sized, rate, factor, reading)
        return out


@dataclasses.dataclass(frozen=True)
class Linear(Trained):
    """The linear probe of MAE's code: BatchNorm without parameters, linear layer, LARS."""

    def heads(self, space: Space) -> list[tuple[Head, Reading]]:
        return [(LinearProbe(), reading) for reading in space.vectors]


@dataclasses.dataclass(frozen=True)
class Attentive(Trained):
    """The attentive probe of CAE's code: cross-attention from one query to all tokens."""

    def heads(self, space: Space) -> list[tuple[Head, Reading]]:
        return [(AttentiveProbe(heads=space.heads), reading) for reading in space.tokens]


@dataclasses.dataclass(frozen=True)
class Efficient(Trained):
    """Efficient probing: queries that pool slices of the values' channels.

    Attributes:
      queries: as many, or the largest number below that divides the width.
    """

    queries: int = 32  # the board's

    def heads(self, space: Space) -> list[tuple[Head, Reading]]:
        queries = max(q for q in range(1, self.queries + 1) if space.width % q == 0)
        return [(EfficientProbe(queries=queries), reading) for reading in space.patches]


@dataclasses.dataclass(frozen=True)
class Capi(Trained):
    """The probes of CAPI's code: linear layers on vectors, a query per head on patch tokens.

    There is no BatchNorm. Layers and pools are chosen with the rest, where the code reports each.
    """

    def schedule(self, steps: int) -> Schedule:
        warmup = min(round(self.warmup * steps), steps)
        return CAPICosine(warmup_epochs=0.0, warmup_steps=warmup)

    def heads(self, space: Space) -> list[tuple[Head, Reading]]:
        linear = LinearProbe(batch_norm=False, init_std=0.02)
        width = 64 if space.width % 64 == 0 else space.width // space.heads
        vectors: list[tuple[Head, Reading]] = [(linear, reading) for reading in space.vectors]
        return [*vectors, *((QueryProbe(head_width=width), reading) for reading in space.patches)]


PROTOCOLS: dict[str, Protocol] = {
    "knn": Neighbors(),
    # main_linprobe.py (MAE): --blr 0.1, LARS, 90 epochs, 10 of warm-up
    "linear": Linear("linear", LARS(), 0.1, rates=(1.0, 3.0, 10.0, 30.0, 100.0, 300.0)),
    # tools/run_attentive.py (CAE): SGD with Nesterov's momentum, 0.4 at batch 8192
    "attentive": Attentive(
        "attentive", SGD(nesterov=True), 0.0125, rates=(1.0, 3.0, 10.0, 30.0, 100.0), min_lr=1e-6
    ),
    # LARS with MAE's rate and schedule
    # eval_classification.py (CAPI): ten rates per 256 images by three decays
    "capi": Capi(
        "CAPI",
        AdamW(0.9, 0.95),
        1.0,
        rates=(1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2),
        decays=(5e-4, 1e-3, 5e-2),
        warmup=0.1,
        epochs=11,  # 12,500 steps of 1024 images of ImageNet-1k
    ),
    "ep": Efficient("EP", LARS(), 0.1, rates=(1.0, 3.0, 10.0, 30.0, 100.0)),
    "fine_tune": FineTuned(),
}


def changed(protocol: Protocol, settings: dict[str, Any]) -> Protocol:
    """Return a protocol with the settings that it has among those that are given.

    Args:
      settings: by name; None = as the protocol has it.
    """
    made: Any = protocol
    known = {f.name for f in dataclasses.fields(made)}
    new = {k: v for k, v in settings.items() if v is not None and k in known}
    return dataclasses.replace(made, **new)


def unknown_settings(names: Sequence[str], settings: dict[str, Any]) -> list[str]:
    """Return the settings that are given and that no protocol of these names has."""
    known = {f.name for p in map(PROTOCOLS.get, names) for f in dataclasses.fields(p)}  # pyright: ignore
    return [k for k, v in settings.items() if v is not None and k not in known]
