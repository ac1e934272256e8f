"""Two teachers at once: their features side by side (MR-MAE, Table 4, "joint").

One linear head predicts both. With teachers of one width the loss is the mean of the two losses.
`teacher.path` names both files, separated by a comma.
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from mimjax import values
from mimjax.errors import ConfigError
from mimjax.targets.base import Student, Target
from mimjax.targets.clip import CLIP
from mimjax.targets.dino import DINO
from mimjax.task import Batch, Key, PyTree, Reader, View


@dataclasses.dataclass(frozen=True)
class Joint(Target):
    """The features of two teachers that read the same view.

    Attributes:
      first, second: teachers with a CLS token; the attention is the first one's.
    """

    num_prefix: ClassVar[int] = 1
    has_attention: ClassVar[bool] = True

    first: Target = CLIP(project=False)
    second: Target = DINO()

    def __post_init__(self):
        values.check(self, "method.target")
        for name in ("first", "second"):
            target = getattr(self, name)
            if target.discrete or target.num_prefix != 1:
                raise ConfigError(
                    f"method.target.{name}.type: {type(target).__name__}; allowed: a teacher with "
                    "a CLS token"
                )

    @property
    def channels(self) -> int:
        """Of the first that is not of three: CLIP and DINO are."""
        return self.first.channels if self.first.channels != 3 else self.second.channels

    def out_dim(self, encoder: Student) -> int:
        return self.first.out_dim(encoder) + self.second.out_dim(encoder)

    def views(self, encoder: Student) -> dict[str, View]:
        views = self.first.views(encoder)
        if views != self.second.views(encoder):
            raise ConfigError("method.target: two teachers with views of their own; allowed: one")
        return views

    def init_frozen(self, key: Key, encoder: Student) -> PyTree:
        first, second = (t.init_frozen(key, encoder) for t in (self.first, self.second))
        if first.keys() & second.keys():
            raise ConfigError("method.target: two teachers of one kind; allowed: CLIP and DINO")
        return first | second

    def readers(self) -> dict[str, Reader]:
        return self.first.readers() | self.second.readers()

    def encode_with_attention(
        self, frozen: PyTree, batch: Batch, encoder: Student
    ) -> tuple[jax.Array, jax.Array]:
        hidden, attention = self.first.encode_with_attention(frozen, batch, encoder)
        second = self.second.encode(frozen, batch, encoder)
        return jnp.concatenate([hidden, second], axis=-1), attention

    def encode(self, frozen: PyTree, batch: Batch, encoder: Student) -> jax.Array:
        """Hidden vectors of both, [b 1+n d1+d2]."""
        parts = [t.encode(frozen, batch, encoder) for t in (self.first, self.second)]
        return jnp.concatenate(parts, axis=-1)

    def read(self, frozen: PyTree, hidden: jax.Array, key: Key | None = None) -> jax.Array:
        """Features of both, float32 [b k p1+p2]."""
        first: Any = self.first
        width = first.network.width
        parts = hidden[..., :width], hidden[..., width:]
        return jnp.concatenate(
            [t.read(frozen, x, key) for t, x in zip((self.first, self.second), parts)], axis=-1
        )
