"""Two targets at once: their vectors side by side, which one network predicts.

MR-MAE's Table 4 joins two teachers of visible patches; its Figure 1b joins pixels and a teacher at
masked ones. With parts of one width, MSE is the mean of the two losses.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp

from mimjax.errors import ConfigError
from mimjax.rng import named
from mimjax.targets.base import Student, Target
from mimjax.targets.clip import CLIP
from mimjax.targets.dino import DINO
from mimjax.task import Frozen, Key, Known, PyTree, Seen, View


@dataclasses.dataclass(frozen=True)
class Joint(Target):
    """The vectors of two targets, at the places where both have some.

    Attributes:
      first, second: targets of vectors; the attention is that of the first that has one.
    """

    first: Target = CLIP(project=False)
    second: Target = DINO()

    @property
    def parts(self) -> dict[str, Target]:
        """Both targets, by the name of their field."""
        return {"first": self.first, "second": self.second}

    @property
    def drawn(self) -> str:
        """The name of the part that is shown in pictures; "" = none decodes."""
        return next((name for name, part in self.parts.items() if part.decodes), "")

    @property
    def decodes(self) -> bool:
        return bool(self.drawn)

    @property
    def has_attention(self) -> bool:
        return any(part.has_attention for part in self.parts.values())

    def check(self, key: str, encoder: Student) -> None:
        grid, channels = encoder.grid, self.channels(encoder)
        for name, part in self.parts.items():
            where, own = f"{key}.{name}", bool(part.of or part.init_state(encoder))
            if part.kind != "vectors" or own:
                raise ConfigError(
                    f"{where}.type: {type(part).__name__}; allowed: a target of vectors that reads "
                    "no weights and no state of the run"
                )
            if part.channels(encoder) != channels:
                raise ConfigError(
                    f"{where}: it reads {part.channels(encoder)} channels; allowed: {channels}, as "
                    f"{key}.first"
                )
            if part.grid(encoder) != grid:
                raise ConfigError(
                    f"{where}: a grid of {part.grid(encoder)}; allowed: {grid}, the encoder's"
                )
            part.check(where, encoder)

    def channels(self, encoder: Student) -> int:
        return self.first.channels(encoder)

    def width(self, encoder: Student) -> int:
        return self.first.width(encoder) + self.second.width(encoder)

    def places(self, encoder: Student) -> tuple[str, ...]:
        second = self.second.places(encoder)
        return tuple(place for place in self.first.places(encoder) if place in second)

    def views(self, encoder: Student) -> dict[str, View]:
        return self.first.views(encoder) | self.second.views(encoder)

    # ---------------------------------------------------------------- frozen networks
    def frozen(self, key: str) -> dict[str, Frozen]:
        return {
            f"{name}.{inner}" if inner else name: frozen
            for name, part in self.parts.items()
            for inner, frozen in part.frozen(f"{key}.{name}").items()
        }

    def init_frozen(self, key: Key, encoder: Student) -> PyTree:
        """Return the random weights of both, {"first": ..., "second": ...}, of those with some."""
        parts = self.parts.items()
        trees = {name: part.init_frozen(named(key, name), encoder) for name, part in parts}
        return {name: tree for name, tree in trees.items() if tree}

    def fit(self, frozen: PyTree, encoder: Student, images: Callable[[int], jax.Array]) -> PyTree:
        parts = self.parts
        return {name: parts[name].fit(tree, encoder, images) for name, tree in frozen.items()}

    # ---------------------------------------------------------------- values
    def seen(self, name: str, seen: Seen) -> Seen:
        """Return what the part `name` may look at."""
        hidden = None if seen.hidden is None else seen.hidden.get(name)
        frozen = seen.frozen.get(name, {})
        return seen._replace(frozen=frozen, key=named(seen.key, name), hidden=hidden)

    def attention(self, encoder: Student, seen: Seen) -> tuple[jax.Array, PyTree]:
        for name, part in self.parts.items():
            if part.has_attention:
                attention, hidden = part.attention(encoder, self.seen(name, seen))
                return attention, {name: hidden}
        return super().attention(encoder, seen)  # raises

    def values(self, encoder: Student, seen: Seen, at: tuple[str, ...]) -> Known:
        """Return the vectors of both, float32 [b k d1+d2], at the places `at`."""
        parts = self.parts.items()
        known = [part.values(encoder, self.seen(name, seen), at) for name, part in parts]
        if any(x.rows for x in known):
            raise ValueError("Joint: a part knows only some patches of a place, and which may vary")
        both = lambda p: jnp.concatenate([x.values[p].astype(jnp.float32) for x in known], axis=-1)
        return Known({place: both(place) for place in at})

    def decode(self, frozen, values, encoder, colors) -> jax.Array:
        """Return the pictures of the first part that decodes, from its share of the vectors."""
        width, name = self.first.width(encoder), self.drawn
        own = values[..., :width] if name == "first" else values[..., width:]
        return self.parts[name].decode(frozen.get(name, {}), own, encoder, colors)

    @property
    def picture_note(self) -> str:
        return self.parts[self.drawn].picture_note if self.drawn else ""

    @property
    def story(self) -> str:
        return f"{self.first.story} and {self.second.story}"
