"""The contract of a target: what is predicted.

A target is a frozen dataclass in a field of a method. It knows the encoder, whose grid and patches
decide, and never the method. It may own frozen networks, or read the run's own weights; all of it
runs in `prepare`, outside the gradient. Most frozen networks define `encode` and `read`, from which
`values` follows.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Annotated, Any, ClassVar, NamedTuple

import jax

from mimjax.errors import ConfigError
from mimjax.rng import named
from mimjax.task import PLACES, Batch, Frozen, Key, Known, PyTree, Reader, Seen, View, take
from mimjax.task import Student as Student
from mimjax.values import Text

Path = Annotated[str, Text("a workdir, .safetensors, .pth, or 'random' (noise, for tests)")]
Grid = tuple[int, int]


class Colors(NamedTuple):
    """The student's images, for targets that need true statistics to be shown.

    Attributes:
      image: normalized, float32 [b h w c].
      mean, std: with which they were normalized.
    """

    image: jax.Array
    mean: tuple[float, ...]
    std: tuple[float, ...]


@dataclasses.dataclass(frozen=True)
class Target:
    """Base class of all targets.

    Attributes:
      kind: "vectors" [b k d], "codes" int32 [b k] or "probabilities" [b k d].
      of: the run's own weights that it reads, "current" or "average"; "" = none. Such a target can
        shrink to a constant while the loss falls, so monitors watch its variance.
      networks: whose weights these are.
      num_prefix: tokens before the patches in what `encode` returns (CLIP's class token).
      decodes: whether `decode` can turn values into pictures.
      has_attention: whether it can tell where its class token looks.
      path: file or workdir of its frozen networks; a field of those that have some.
      brings: what a workdir at `path` fills in where a setting is None: its name here, and that of
        the field of the run's task.
      follows: whether the run's own task fills in what no workdir does.
      standard: what fills in the rest, by the name here.
    """

    PLUGGABLE: ClassVar[bool] = True  # the config section names the class
    HOME: ClassVar[tuple[str, ...]] = tuple(
        f"mimjax.targets.{name}"
        for name in (
            *("clip", "dalle", "dino", "dvae", "encoder", "joint", "own", "pixels", "vqgan"),
            "vqkd",
        )
    )
    kind = "vectors"
    of = ""
    networks: ClassVar[tuple[str, ...]] = ("encoder",)
    num_prefix = 0
    decodes = False
    has_attention = False
    path = None
    brings: ClassVar[dict[str, str]] = {}
    follows: ClassVar[bool] = False
    standard: ClassVar[dict[str, Any]] = {}

    def channels(self, encoder: Student) -> int:
        """Return the number of channels of the images that it reads; published weights fix it."""
        return 3

    def width(self, encoder: Student) -> int:
        """Return the width of predictions: the vocabulary, or the length of a vector."""
        raise NotImplementedError(type(self).__name__)

    def grid(self, encoder: Student) -> Grid:
        """Return rows and columns of its values."""
        return encoder.grid

    def places(self, encoder: Student) -> tuple[str, ...]:
        """Return the places at which it has values, of "cls", "visible" and "masked"."""
        return PLACES if self.num_prefix else PLACES[1:]

    def views(self, encoder: Student) -> dict[str, View]:
        """Return the image that it reads, by name; {} = the student's. See `target_view`."""
        return {}

    def check(self, key: str, encoder: Student) -> None:
        """Raise a ConfigError for settings that do not go together; `key` names its section."""

    # ---------------------------------------------------------------- frozen networks
    def frozen(self, key: str) -> dict[str, Frozen]:
        """Return its frozen networks by the name of the part that owns them; "" = itself.

        {} = there are none, as by default where the class has no field `path`.
        """
        if all(field.name != "path" for field in dataclasses.fields(self)):
            return {}
        return {"": Frozen(f"{key}.path", self.path, self.readers())}

    def init_frozen(self, key: Key, encoder: Student) -> PyTree:
        """Return {name: tree} of random weights; {} = there are none.

        A name is that of the tree in a workdir's parameters and in the tables of `torch_io`.
        """
        return {}

    def readers(self) -> dict[str, Reader]:
        """Return {name: reader} of those networks that a run of this project can train."""
        return {}

    def fit(self, frozen: PyTree, encoder: Student, images: Callable[[int], jax.Array]) -> PyTree:
        """Return `frozen` with what is estimated from data before step 0.

        Args:
          images: n -> normalized training images [n h w c].
        """
        return frozen

    def init_state(self, encoder: Student) -> PyTree:
        """Return its non-gradient arrays, which `values` renews; {} = there are none."""
        return {}

    # ---------------------------------------------------------------- values
    def image(self, batch: Batch, encoder: Student) -> jax.Array:
        """Return the image that it reads: its own view if it has one, else the student's."""
        return batch[next(iter(self.views(encoder)), "image")]

    def encode(self, frozen: PyTree, images: jax.Array, encoder: Student) -> jax.Array:
        """Return hidden vectors of all tokens, [b p+n d], before the last projection.

        Args:
          images: its view, uint8 [b h w c]; floats pass as normalized.
        """
        raise NotImplementedError(type(self).__name__)

    def encode_with_attention(
        self, frozen: PyTree, images: jax.Array, encoder: Student
    ) -> tuple[jax.Array, jax.Array]:
        """Return `encode`, and how the class token attends to each patch, float32 [b h n].

        The attention is that of the last block, head by head: softmax probabilities without the
        class token's own column and not normalized anew. Only where `has_attention`.
        """
        raise NotImplementedError(f"{type(self).__name__} has no attention of a class token")

    def read(self, frozen: PyTree, hidden: jax.Array, key: Key | None = None) -> jax.Array:
        """Return the values of tokens, [b k] or [b k d], from their hidden vectors.

        Args:
          key: for values that are drawn at random (VQGAN with `sample`); others ignore it.
        """
        raise NotImplementedError(type(self).__name__)

    def attention(self, encoder: Student, seen: Seen) -> tuple[jax.Array, PyTree]:
        """Return where its class token looks, [b n], the mean over heads, and the hidden vectors.

        `values` is given the hidden vectors as `Seen.hidden`, so that one pass gives both.
        """

        def part(key: Key, images: jax.Array) -> tuple[jax.Array, jax.Array]:
            hidden, heads = self.encode_with_attention(seen.frozen, images, encoder)
            return heads.mean(1), hidden

        return seen.in_pieces(part, self.image(seen.batch, encoder))

    def values(self, encoder: Student, seen: Seen, at: tuple[str, ...]) -> Known:
        """Return the values at the places `at`; networks run inside `seen.in_pieces`."""

        def read(key: Key, hidden: jax.Array, ids: Any) -> Any:
            rows = take(hidden, self.num_prefix, ids, at)
            return {p: self.read(seen.frozen, x, named(key, p)) for p, x in rows.items()}

        def part(key: Key, images: jax.Array, ids: Any) -> Any:
            return read(key, self.encode(seen.frozen, images, encoder), ids)

        if seen.hidden is not None:
            return Known(seen.in_pieces(read, seen.hidden, seen.ids))
        return Known(seen.in_pieces(part, self.image(seen.batch, encoder), seen.ids))

    # ---------------------------------------------------------------- words and pictures
    def decode(
        self, frozen: PyTree, values: jax.Array, encoder: Student, colors: Colors
    ) -> jax.Array:
        """Return images, float32 [b h w c] in [0, 1], of the values of all n patches by raster."""
        raise NotImplementedError(type(self).__name__)

    @property
    def story(self) -> str:
        """What it is, as the object of a sentence."""
        name = type(self).__name__
        words = "codes of a frozen tokenizer" if self.kind == "codes" else "features of a teacher"
        return f"the {words} ({name})"

    @property
    def picture_note(self) -> str:
        """What a reader must know about what `decode` shows."""
        return ""


def target_view(
    key: str, size: tuple[int, int] | None, step: int, encoder: Student, resample: str, channels=3
) -> dict[str, View]:
    """Return the view that gives one token per patch of the student: `step` pixels for each.

    Its name says what it is, so that targets that read the same image share it.

    Args:
      key: of the target in the config, for errors.
      size: (height, width) asked for; None = derived from the student's grid.
      step: pixels of the view per token.

    Returns:
      {} where the student's own view is just that.

    Raises:
      ConfigError: a size whose token grid is not the student's.
    """
    grid = encoder.grid
    needed = grid[0] * step, grid[1] * step
    if size is not None and tuple(size) != needed:
        raise ConfigError(
            f"{key}.size: {size[0]}x{size[1]} gives a grid of {size[0] / step:g}x{size[1] / step:g}"
            f" tokens, but the student has {grid[0]}x{grid[1]} patches; allowed: "
            f"{needed[0]}x{needed[1]}, or None = derived"
        )
    view = View(needed, resample, channels)
    if view == View(tuple(encoder.image_size), channels=channels):
        return {}
    return {f"image_{needed[0]}x{needed[1]}_{resample}": view}
