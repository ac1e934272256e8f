"""The contract of a frozen target: what patches are to be predicted as.

A target is a frozen dataclass, plugged into a method's `target` field; `method.target.type` in the
config names its class. It owns a network that nothing updates (or none, for pixels) and reads the
student's image or a view of its own. All of it runs in `prepare`, outside the gradient.
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import jax

from mimjax.errors import ConfigError
from mimjax.task import Batch, Key, PyTree, Reader, View

# An encoder module: of all it is, targets read `grid`, `patch`, `image_size` and `num_patches`.
Student = Any


@dataclasses.dataclass(frozen=True)
class Target:
    """Base class. Every method gets the student's `encoder`: its grid and image size decide.

    Attributes:
      discrete: True = codes (int32 [b k]), learned with cross-entropy; False = vectors
        (float32 [b k d]).
      num_prefix: tokens before the patches in what `encode` returns (CLIP's CLS token).
      decodes: whether `decode` can turn values into pictures.
      has_attention: whether it can tell where its CLS token looks (`attention`).
    """

    PLUGGABLE: ClassVar[bool] = True  # the config section names the class
    HOME: ClassVar[tuple[str, ...]] = tuple(
        f"mimjax.targets.{name}"
        for name in ("clip", "dalle", "dino", "dvae", "encoder", "joint", "pixels", "vqgan", "vqkd")
    )
    discrete: ClassVar[bool] = False
    num_prefix: ClassVar[int] = 0
    decodes: ClassVar[bool] = False
    has_attention: ClassVar[bool] = False

    @property
    def channels(self) -> int:
        """Of the images that it reads; three where published weights fix it."""
        return 3

    def out_dim(self, encoder: Student) -> int:
        """Width of the head that predicts it: the vocabulary or the length of a vector."""
        raise NotImplementedError(type(self).__name__)

    def views(self, encoder: Student) -> dict[str, View]:
        """{} = reads the student's image; else {"target_image": View}, same crop box and flip."""
        return {}

    def init_frozen(self, key: Key, encoder: Student) -> PyTree:
        """{name: tree} with random weights. Each name is read from `teacher.path`."""
        return {}

    def readers(self) -> dict[str, Reader]:
        """How each of its networks that a run of this project can have trained is read, by name."""
        return {}

    def encode(self, frozen: PyTree, batch: Batch, encoder: Student) -> jax.Array:
        """Hidden vectors of all tokens, [b p+n d], before the last projection.

        Args:
          batch: as the data pipeline delivers it (uint8 images; floats pass as normalized).
        """
        raise NotImplementedError(type(self).__name__)

    def encode_with_attention(
        self, frozen: PyTree, batch: Batch, encoder: Student
    ) -> tuple[jax.Array, jax.Array]:
        """`encode` and, from the same pass, `attention`; only where `has_attention`."""
        raise NotImplementedError(f"{type(self).__name__} has no attention of a CLS token")

    def attention(self, frozen: PyTree, batch: Batch, encoder: Student) -> jax.Array:
        """How CLS attends to each patch in the last block, float32 [b h n], head by head.

        Softmax probabilities without CLS's own column and not normalized anew. The mean over heads
        is the caller's (MILAN and MR-MAE select patches by it).
        """
        return self.encode_with_attention(frozen, batch, encoder)[1]

    def read(self, frozen: PyTree, hidden: jax.Array, key: Key | None = None) -> jax.Array:
        """Targets of the tokens that a loss reads, [b k] or [b k d], from their hidden vectors.

        Args:
          key: for targets that are drawn at random (VQGAN with `sample`); others ignore it.
        """
        raise NotImplementedError(type(self).__name__)

    def decode(
        self, frozen: PyTree, values: jax.Array, encoder: Student, image: jax.Array | None = None
    ) -> jax.Array:
        """Values of all n patches in raster order back to images, float32 [b h w c] in [0, 1].

        Args:
          image: the student's normalized images, for targets that need true statistics.
        """
        raise NotImplementedError(type(self).__name__)

    @property
    def story(self) -> str:
        """What it is, as the object of a sentence."""
        name = type(self).__name__
        kind = "codes of a frozen tokenizer" if self.discrete else "features of a frozen teacher"
        return f"the {kind} ({name})"

    @property
    def picture_note(self) -> str:
        """What a reader must know about what `decode` shows."""
        return ""


def target_view(
    key: str, size: tuple[int, int] | None, step: int, encoder: Student, resample: str
) -> dict[str, View]:
    """The view that gives one token per patch of the student: `step` pixels for each.

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
    view = View(needed, resample)
    return {} if view == View(tuple(encoder.image_size)) else {"target_image": view}


def checked_views(target: Target, encoder: Student, channels: int) -> dict[str, View]:
    """The target's views for a student of so many channels.

    Raises:
      ConfigError: the target reads another number.
    """
    if target.channels != channels:
        raise ConfigError(
            f"method.target: {type(target).__name__} reads {target.channels} channels, but "
            f"method.mean has {channels}; allowed: as many in both (method.target.mean and .std of "
            "pixels, or of a tokenizer or encoder trained on such images)"
        )
    views = target.views(encoder)
    return {name: view._replace(channels=channels) for name, view in views.items()}


def target_image(batch: Batch) -> jax.Array:
    """The image that a target reads: its own view if there is one, else the student's."""
    return batch.get("target_image", batch["image"])
