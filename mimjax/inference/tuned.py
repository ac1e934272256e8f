"""Model of a run that trained a classification head: the head with its encoder.

The encoder was tuned by the run, or frozen.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax

from mimjax.inference.encoders import Network
from mimjax.storage.classes import Classes
from mimjax.storage.files import Workdir
from mimjax.task import Classified, Features, PyTree


class Weights(NamedTuple):
    """The arrays of a run.

    Attributes:
      params, stats: the task's parameters and model_state.
      frozen: its frozen networks.
    """

    params: PyTree
    stats: PyTree
    frozen: PyTree


class RunHead(NamedTuple):
    """The head that a run trained, with the interface of a `Classifier`.

    Attributes:
      head: the network, which reads vectors or tokens.
    """

    head: Any

    @property
    def classes(self) -> int:
        """The number of classes."""
        return self.head.classes

    @property
    def words(self) -> str:
        """What it reads, in words."""
        return self.head.reading.words

    def apply(self, variables: PyTree, features: Features) -> jax.Array:
        """Return logits, float32 [b c]."""
        return self.head.apply(variables, features.read(*self.head.reading))


def network(
    classified: Classified, resample: str, weights: Weights, workdir: Workdir
) -> tuple[Network, PyTree]:
    """Return a head with the encoder that it reads, and the parameters.

    Args:
      resample: filter with which images are brought to the encoder's size.
      workdir: says the names of the classes.
    """
    params, stats, frozen = weights
    head, (module, mean, std), of, complete = classified
    trained, known = of(params, frozen), Classes.read(workdir)
    alone = f"its head {type(head).__name__} takes statistics of the other images of a batch"
    made = Network(
        module,
        tuple(mean or ()),
        tuple(std or ()),
        head=None if head.of_batch else RunHead(head),
        no_head=alone if head.of_batch else "",
        pooled=head.reading.pool == "mean" and "norm" in params["head"],
        normed="norm" in trained,
        names=known.names if known else None,
        resample=resample,
    )
    classifier = {"params": params["head"]} | ({"stats": stats["head"]} if stats else {})
    return made, {"encoder": complete(trained), "classifier": classifier}
