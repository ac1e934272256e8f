"""Networks as methods see them: encoders, networks that predict, and what passes between them.

An encoder is any network that keeps the protocol `Encoder`; a network that predicts is a
`Predictor`. Neither knows a method, a target or a loss.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, runtime_checkable

import flax.linen as nn
import jax
import jax.numpy as jnp

ByPlace = dict[str, jax.Array]  # {place: [b k ...]}
PLACES = ("cls", "visible", "masked")  # where a target has values and a network predicts
Student = Any  # an `Encoder`, whose class may have settings of its own that a part reads


class Features(NamedTuple):
    """The output of an encoder.

    Attributes:
      tokens: [b p+n d] after the final norm: p prefix tokens (CLS), then n patches.
      blocks: the output of each block before the final norm, [b p+n d] each.
      prefix: number of prefix tokens; 1 = CLS, 0 = none.
      classes: how many of them, the first ones, are class tokens; the others are registers. With
        fewer prefix tokens than that, all are.
    """

    tokens: jax.Array
    blocks: tuple[jax.Array, ...]
    prefix: int
    classes: int = 1

    @property
    def num_classes(self) -> int:
        """Number of class tokens."""
        return min(self.prefix, self.classes)

    def read(self, pool: str = "mean", layer: int | None = None) -> jax.Array:
        """Return the features of one layer, as probes, pictures and exports read them.

        Args:
          pool: "cls" (the mean of several class tokens), "mean" of the patches or the "first" token
            ([b d]); "cls_mean", both side by side ([b 2d]); "patches" ([b n d]) or "all" tokens
            ([b p+n d]).
          layer: block index (negative counts from the end); None = after the final norm.
        """
        x = self.tokens if layer is None else self.blocks[layer]
        if pool == "cls_mean":
            return jnp.concatenate([self.read("cls", layer), self.read("mean", layer)], axis=-1)
        if pool == "cls":
            if not self.num_classes:
                raise ValueError("pool=cls: this encoder has no CLS token; allowed: mean, all")
            return x[:, 0] if self.num_classes == 1 else x[:, : self.num_classes].mean(1)
        if pool == "first":
            return x[:, 0]
        return {"patches": x[:, self.prefix :], "mean": x[:, self.prefix :].mean(1), "all": x}[pool]


class Network(nn.Module):
    """A linen module whose `apply` has the type of its result.

    Flax gives every call of `apply` the type "a result, or a tuple of a result and variables";
    which of the two it is depends on arguments that a type checker does not see.
    """

    if TYPE_CHECKING:

        def apply(self, variables: Any, *args: Any, **kwargs: Any) -> Any: ...


class PatchEncoder(Network):
    """What encoders of patches share, also those that no method trains; see `Encoder`."""

    pos_grid = None  # see `Encoder`

    @property
    def class_tokens(self) -> int:
        """The number of class tokens; tokens before the patches may be others, too."""
        me: Any = self
        return me.num_prefix

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches."""
        me: Any = self  # its sizes are fields or properties of the subclass
        return me.image_size[0] // me.patch, me.image_size[1] // me.patch

    @property
    def num_patches(self) -> int:
        """The number of patches."""
        return math.prod(self.grid)

    @property
    def notes(self) -> tuple[str, ...]:
        """Sentences about settings that are guesses, see `Task.notes`."""
        return ()

    @property
    def behind(self) -> tuple[str, ...]:
        """Parameter subtrees behind the encoder, see `Encoder`."""
        return ()

    def layer_of(self, name: str) -> int | None:
        """Return the number, from 1, of the block that a parameter belongs to.

        Names of blocks are `block_00`, `block_01`, ...; a relative bias of a block's own belongs to
        it.

        Args:
          name: path of the parameter in the encoder, "block_00/attn/qkv/kernel".

        Returns:
          0 = in front of the blocks, None = behind them or in all of them.
        """
        if numbered := re.match(r"(?:block|rel_pos)_(\d+)/", name):
            return int(numbered[1]) + 1
        return None if name.split("/")[0] in ("norm", "rel_pos", *self.behind) else 0


class EncoderNetwork(PatchEncoder):
    """Base class of the networks that may fill a method's field `encoder`; see `Encoder`."""

    PLUGGABLE = True
    HOME = ("mimjax.models.vit", "mimjax.models.conv_vit")


class Predictor(Network):
    """Base class of the networks that predict targets from what an encoder makes of an image.

    A user's own class defines `__call__`, and the others where the defaults do not suit it.
    """

    PLUGGABLE = True
    HOME = ("mimjax.models.decoders", "mimjax.models.regressor", "mimjax.models.heads")
    pos_grid = None  # the encoder's, where it has fixed positions

    def sized(self, encoder: Student, out: int) -> Any:
        """Return this network for an encoder, with predictions [b k out]."""
        return self.clone(out=out)

    def places(self, encoder: Student, given: tuple[str, ...]) -> tuple[str, ...]:
        """Return the places where it can predict, where encoder and regressor give tokens."""
        return given

    def inputs(self, encoded: Encoded, at: tuple[str, ...]) -> tuple[Any, ...]:
        """Return the arguments of its call, which returns {place: [b k out]} for the places.

        Here it is one: the tokens at the places, {place: [b k d]}.
        """
        return (encoded.at(at),)

    def check(self, key: str, encoder: Student) -> None:
        """Raise a ConfigError for settings that do not go together; `self` is sized."""

    def guesses(self, encoder: Student) -> tuple[str, ...]:
        """Return sentences about settings that no source decides; `self` is sized."""
        return ()


@runtime_checkable
class Encoder(Protocol):
    """The properties and calls of an encoder that methods, evaluators, exports and the API read.

    Called as encoder(images [b h w c], ids [b v], mask [b n], train) through `init` or `apply`, it
    returns `Features`. With `ids` it encodes these patches alone; `mask` is True where a patch
    is shown as the mask token.

    Attributes:
      image_size: height and width of the images in pixels.
      patch: side of a patch in pixels.
      width, depth, heads: numbers in a token, transformer blocks, heads of each attention.
      channels: number of channels of the images.
      out_width: numbers in a token after the final norm; the width, but for a projection.
      use_mask_token: whether masked patches enter as a learned token instead of being left out.
      fuses: whether several blocks or stages are summed before the final norm.
      behind: names of the parameter subtrees behind the final norm (CAE-Large's projection): only
        the networks of pretraining read them, so exports and target averages are without them.
      grid, num_patches: rows and columns of patches, and their product.
      num_prefix: number of tokens before the patches; 1 = CLS, 0 = none.
      class_tokens: how many of them, the first ones, are class tokens; others are registers.
      positions: the coordinate that comes first in the fixed sine-cosine table, "xy" (column first)
        or "yx"; "" = there is no such table.
      pos_grid: rows and columns that fixed tables, those of the networks behind it too, are made
        for where images have others, to which they are interpolated; None = those of the images.
      notes: sentences about settings that are guesses, see `Task.notes`.
    """

    @property
    def image_size(self) -> tuple[int, int]: ...

    @property
    def patch(self) -> int: ...

    @property
    def width(self) -> int: ...

    @property
    def out_width(self) -> int: ...

    @property
    def behind(self) -> tuple[str, ...]: ...

    @property
    def depth(self) -> int: ...

    @property
    def heads(self) -> int: ...

    @property
    def channels(self) -> int: ...

    @property
    def use_mask_token(self) -> bool: ...

    @property
    def fuses(self) -> bool: ...

    @property
    def grid(self) -> tuple[int, int]: ...

    @property
    def num_patches(self) -> int: ...

    @property
    def num_prefix(self) -> int: ...

    @property
    def class_tokens(self) -> int: ...

    @property
    def positions(self) -> str: ...

    @property
    def pos_grid(self) -> tuple[int, int] | None: ...

    @property
    def notes(self) -> tuple[str, ...]: ...

    def check(self, key: str) -> None:
        """Raise a ConfigError for sizes that do not go together; `key` is the encoder's section."""

    def plain(self) -> Any:
        """Return the encoder of whole images: float32, without what only pretraining needs."""

    def clone(self, **changes: Any) -> Any: ...

    def init(self, rngs: Any, *args: Any, **kwargs: Any) -> Any: ...

    def init_with_output(self, rngs: Any, *args: Any, **kwargs: Any) -> tuple[Any, Any]: ...

    def apply(self, variables: Any, *args: Any, **kwargs: Any) -> Any: ...


# ------------------------------------------------------------------ frozen networks
class Reader(NamedTuple):
    """The settings with which the weights of another run or file are read.

    Attributes:
      network: the module, whose settings must be those that the weights were trained with.
      mean, std: statistics of the images that it sees, per channel on the scale 0 to 1; None = the
        network has none of its own.
    """

    network: Any = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None


class Classified(NamedTuple):
    """A head that a task trains, and the encoder that it reads.

    Attributes:
      head: sized; its parameters are `params["head"]`, its statistics `model_state["head"]`.
      reader: the encoder, and the statistics of its images.
      encoder: (params, frozen) -> the encoder's parameters, without those that nothing reads.
      complete: fills these in, with values that do nothing.
    """

    head: Any
    reader: Reader
    encoder: Callable[[Any, Any], Any]
    complete: Callable[[Any], Any]


class Frozen(NamedTuple):
    """The frozen networks of one part of a task, a target as a rule.

    Attributes:
      key: the setting that names their file or workdir, "method.code_target.path"; "" = they are
        estimated from the data and come from no file.
      path: its value; None = not set.
      readers: by name, how each network that a workdir can hold is read.
      alone: whether it is an encoder of the run's images; a file is then read as `mimjax.load`
        reads it, at the size of the reader's network.
    """

    key: str
    path: str | None = None
    readers: dict[str, Reader] = {}
    alone: bool = False


# ------------------------------------------------------------------ places
class Encoded(NamedTuple):
    """What networks that predict may read.

    Attributes:
      tokens: prefix tokens, then visible patches or, where `whole`, all in raster order [b p+k d].
      blocks: the same after each block.
      prefix: number of prefix tokens.
      whole: whether the encoder saw mask tokens at the masked patches.
      ids_v, ids_m: ids of visible and masked patches, [b v] and [b m].
      sequences: see `Prepared`.
      train: whether branches are dropped.
      latents: of the masked patches, from the regressor, [b m w]; None = there is no regressor.
    """

    tokens: jax.Array
    blocks: tuple[jax.Array, ...]
    prefix: int
    whole: bool
    ids_v: jax.Array
    ids_m: jax.Array
    sequences: int
    train: bool
    latents: jax.Array | None = None

    def at(self, places: tuple[str, ...]) -> ByPlace:
        """Return the tokens at the places."""
        if self.whole:
            return take(
                self.tokens, self.prefix, {"visible": self.ids_v, "masked": self.ids_m}, places
            )
        tokens: dict[str, Any] = {
            "cls": self.tokens[:, :1],
            "visible": self.tokens[:, self.prefix :],
            "masked": self.latents,
        }
        return {place: tokens[place] for place in places}


def split_places(at: str) -> tuple[str, ...]:
    """Return the places of "cls+visible", in the order of PLACES and each once."""
    return tuple(place for place in PLACES if place in at.split("+"))


def gather_rows(x: jax.Array, ids: jax.Array) -> jax.Array:
    """Return the rows `ids` [b k] of x [b n ...]."""
    return jnp.take_along_axis(x, ids.reshape(*ids.shape, *(1,) * (x.ndim - 2)), axis=1)


def take(x: jax.Array, prefix: int, ids: ByPlace, places: tuple[str, ...]) -> ByPlace:
    """Return values at places out of those of all tokens.

    Args:
      x: [b p+n ...], prefix tokens and then the patches in raster order.
      prefix: number of prefix tokens.
      ids: ids of the patches of "visible" and "masked", [b k].
    """
    patches = x[:, prefix:]
    at = lambda place: x[:, :1] if place == "cls" else gather_rows(patches, ids[place])
    return {place: at(place) for place in places}
