"""The parts of a method that wire the others: terms, and a moving average of weights."""

from __future__ import annotations

import dataclasses
from typing import Annotated, ClassVar, Literal

from mimjax.losses import MSE, Loss
from mimjax.schedules import Constant, Schedule
from mimjax.values import Length, NonNegative, Text

Places = Annotated[str, Text("masked, visible, cls, or several of them joined by +")]
FIELD = "the name of a field of the method"


@dataclasses.dataclass(frozen=True)
class Term:
    """One thing that is learned.

    Attributes:
      target, network: names of fields of the method; terms may share either.
      at: "masked", "visible", "cls", or several joined by "+": one mean over all their tokens, in
        which a class token counts as one patch. A second term with the same target and network
        gives a place a weight of its own (`CAEv2.masked`). Where the masking weighs masked
        patches, a term is at "masked" or at "cls".
      loss: the distance of predictions to the target.
      normalize: what is brought to mean 0 and variance 1 before the loss, vector by vector:
        "none", "target" or "both" (target and prediction). With "both", MSE is 2 (1 - cos), so that
        `Cosine` differs from it by that factor alone.
      weight: factor of the loss; 0 leaves the term out, and with it its network and its target.
      schedule: a further factor, which changes over the run.
    """

    target: Annotated[str, Text(FIELD)]
    network: Annotated[str, Text(FIELD)]
    at: Places = "masked"
    loss: Loss = MSE()
    normalize: Literal["none", "target", "both"] = "none"
    weight: NonNegative = 1.0
    schedule: Schedule = Constant()


@dataclasses.dataclass(frozen=True)
class Average:
    """A moving average of the weights of some networks: float32, always a copy.

    Attributes:
      networks: names of fields of the method.
      decay: share of the old average that is kept at a step.
      takes: the weights after the optimizer's step ("new") or before it ("old").
      evaluate: evaluators and export read the averaged encoder, even where no target does.
    """

    PLUGGABLE: ClassVar[bool] = True  # so that a method without one can be given one
    ABSTRACT: ClassVar[bool] = False

    networks: Annotated[tuple[Annotated[str, Text(FIELD)], ...], Length(1)] = ("encoder",)
    decay: Schedule = Constant(0.9999)
    takes: Literal["new", "old"] = "new"
    evaluate: bool = False
