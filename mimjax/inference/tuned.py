"""The model of a fine-tuning run: its encoder with the head that it trained."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax

from mimjax.inference.encoders import Network
from mimjax.storage.classes import Classes
from mimjax.storage.files import Workdir
from mimjax.task import Features, PyTree
from mimjax.transfer.fine_tune import FineTune


class RunHead(NamedTuple):
    """The head that a run trained with its encoder, with the interface of a `Classifier`.

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
    task: FineTune, params: PyTree, stats: PyTree, workdir: Workdir
) -> tuple[Network, PyTree]:
    """Return encoder and head of a task that trains both, and the parameters.

    Args:
      params, stats: the task's parameters and model_state.
      workdir: says the names of the classes.
    """
    head, trained, known = task.sized, params["encoder"], Classes.read(workdir)
    made = dataclasses.replace(
        Network.of(task),
        head=RunHead(head),
        pooled=head.reading.pool == "mean" and "norm" in params["head"],
        normed="norm" in trained,
        names=known.names if known else None,
    )
    classifier = {"params": params["head"]} | ({"stats": stats["head"]} if stats else {})
    return made, {"encoder": task.complete(trained), "classifier": classifier}
