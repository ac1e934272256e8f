"""The classifier of a run as files have it: one vector, one norm, one linear layer.

A file says where that norm stands: behind the mean of the patch tokens, or as the encoder's own.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from typing import Any, NamedTuple

import jax
import numpy as np

from mimjax.errors import ConfigError
from mimjax.models.heads import Classifier
from mimjax.storage.classes import Classes
from mimjax.task import Classified, Features, TrainState
from mimjax.transfer.head import Affine, Head

PyTree = Any
VECTORS = ("cls", "first", "mean")  # what files' heads read


class Heads(NamedTuple):
    """Layouts with a classifier behind the encoder, by what it reads; "" = there is none.

    Attributes:
      token: the first token after the final norm.
      mean: a norm of the mean of the last block's patch tokens.
      normed: the mean of the patch tokens after the final norm.
    """

    token: str = ""
    mean: str = ""
    normed: str = ""


def reading(head: Classifier) -> str:
    """Return the field of `Heads` for a classifier."""
    return "mean" if head.pooled else "normed" if head.mean else "token"


@dataclasses.dataclass(frozen=True)
class Learned:
    """A head that a run trained on an encoder, or with it.

    Attributes:
      head: the network.
      params, stats: its parameters and statistics.
      depth: number of the encoder's blocks.
      names: of the classes, by label; None = they have numbers alone.
    """

    head: Head
    params: PyTree
    stats: PyTree
    depth: int
    names: tuple[str, ...] | None = None

    def __post_init__(self):
        _ = self.network  # raises where it is none that a file can have

    @functools.cached_property
    def affine(self) -> Affine | None:
        """Norm and linear layer."""
        return self.head.affine(self.params, self.stats)

    @functools.cached_property
    def network(self) -> Classifier:
        """The head as a file's classifier, without parameters.

        Raises:
          ConfigError: it is none.
        """
        (pool, layer), found = self.head.reading, self.affine
        last = layer is not None and layer % self.depth == self.depth - 1
        own = found is not None and bool(found.norm)
        # one norm, either the encoder's or the head's own
        if found and own == last and (last or layer is None) and pool in VECTORS:
            mean = pool == "mean"
            return Classifier(self.head.classes, pooled=mean and last, mean=mean and not last)
        raise ConfigError(
            f"--model: the head {type(self.head).__name__} on {self.head.reading.words} of this "
            "run is not one norm and a linear layer on one token or the mean of the patches, which "
            "is what formats have places for; allowed: mimjax.load(WORKDIR), which classifies"
        )

    @property
    def reads(self) -> str:
        """What it reads, a field of `Heads`."""
        return reading(self.network)

    @property
    def pool(self) -> str:
        """What it reads, in timm's words."""
        return "token" if self.reads == "token" else "avg"

    @property
    def norm(self) -> PyTree:
        """The final norm that stands in the place of the encoder's; {} = the encoder's stays."""
        return {} if self.network.pooled or not self.affine else self.affine.norm

    @property
    def tree(self) -> PyTree:
        """The classifier's variables in a file."""
        assert self.affine is not None
        norm = {"norm": self.affine.norm} if self.network.pooled else {}
        return {"params": {**norm, "linear": self.affine.linear}}

    def logits(self, features: Features) -> jax.Array:
        """Return the run's own logits, float32 [b c]."""
        variables = {"params": self.params} | ({"stats": self.stats} if self.stats else {})
        return self.head.apply(variables, features.read(*self.head.reading))

    @property
    def labels(self) -> dict[str, Any]:
        """Names of the classes for config.json of transformers."""
        names = self.names or tuple(f"LABEL_{i}" for i in range(self.head.classes))
        out: dict[str, Any] = {"id2label": {str(i): name for i, name in enumerate(names)}}
        if len(set(names)) == len(names):  # else a name would be that of one class of several
            out["label2id"] = {name: i for i, name in enumerate(names)}
        return out

    @property
    def about(self) -> dict[str, str]:
        """Metadata of the file, for those beside which stands no config.json."""
        out = {"head_pool": self.pool}
        return out | ({"classes": json.dumps(self.names)} if self.names else {})


def of_run(
    classified: Classified,
    params: PyTree,
    stats: PyTree,
    frozen: PyTree,
    classes: Classes | None,
) -> tuple[PyTree, Learned]:
    """Return the parameters of the encoder that a head reads, and the head.

    Args:
      params, stats, frozen: the task's parameters, model_state and frozen networks.
      classes: of the run's labels, if they are known.
    """
    learned = head_of(classified, params, stats, classes)
    return {"encoder": classified.complete(classified.encoder(params, frozen))}, learned


def head_of(
    classified: Classified, params: PyTree, stats: PyTree, classes: Classes | None = None
) -> Learned:
    """Return the head of a task's parameters and model_state.

    Raises:
      ConfigError: files have no place for such a one.
    """
    head, depth = classified.head, classified.reader.network.depth
    names = classes.names if classes else None
    return Learned(head, numbers(params["head"]), numbers(stats.get("head", {})), depth, names)


def blank(
    classified: Classified, state: TrainState, frozen: PyTree, classes: Classes | None
) -> tuple[PyTree, Learned]:
    """Return what `of_run` returns of a state's shapes, with zeros that take no memory."""
    params, stats = zeros(state.params), zeros(state.model_state)
    return of_run(classified, params, stats, zeros(frozen), classes)


def zeros(tree: PyTree) -> PyTree:
    """Return zeros of a tree's shapes, float32, that take no memory."""
    return jax.tree.map(lambda x: np.broadcast_to(np.float32(0), x.shape), tree)


def numbers(tree: PyTree) -> PyTree:
    """Return a tree of float32 numpy arrays."""
    return jax.tree.map(lambda x: np.asarray(x, np.float32), tree)
