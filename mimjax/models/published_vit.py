"""The vision transformer of published encoders that have other tokens or layers than `ViT`.

They have registers, several class tokens or none, positions that turn queries and keys, gated MLPs
or RMS norms: DINOv2, DINOv3, I-JEPA, Pixio and CAPI. The network encodes whole images and is read
from files alone; no method trains it. Names of parameters are those of `ViT` where it has them.

Positions that turn ("rope"): a token at coordinates c turns the pair (i, i + d/2) of the d channels
of each head by the angle c . frequencies[:, i]. DINOv3 and CAPI differ in the coordinates, and in
whether the blocks share the frequencies.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from mimjax import errors
from mimjax.errors import ConfigError
from mimjax.models.attention import Attention, Bias, Form
from mimjax.models.layers import Branch, Dtype, LayerNorm, dense, gelu, shard_batch
from mimjax.models.vit import check_channels, grid_of
from mimjax.patches import patchify
from mimjax.task import Features, PatchEncoder
from mimjax.values import Count, Positive, Size, Whole

Rope = Literal["none", "centers", "corners"]  # see `coordinates`
Norm = Literal["layer", "rms"]


def coordinates(rope: str, grid: tuple[int, int], prefix: int) -> np.ndarray:
    """Return the (row, column) coordinates of all tokens, float32 [prefix + n, 2].

    Args:
      rope: "centers" (DINOv3): centers of the patches, where the image reaches from -1 to 1;
        tokens before them are at 0, which turns nothing. "corners" (CAPI): the outermost patches
        are at 0 and 1, and the registers go around that square in even steps, a quarter of them on
        each side.
      grid: (height, width) in patches.
      prefix: number of tokens before the patches.
    """
    if rope == "centers":
        rows, columns = (2 * (np.arange(n, dtype=np.float32) + 0.5) / n - 1 for n in grid)
        before = np.zeros((prefix, 2), np.float32)
    else:
        rows, columns = (np.linspace(0, 1, n, dtype=np.float32) for n in grid)
        step = np.arange(prefix // 4, dtype=np.float32) / max(prefix // 4, 1)
        zero, one = np.zeros_like(step), np.ones_like(step)
        sides = ((step, zero), (one, step), (1 - step, one), (zero, 1 - step))
        before = np.concatenate([np.stack(side, axis=1) for side in sides])
        before = before * np.array([rows[-1], columns[-1]])  # a grid of one patch ends at 0
    patches = np.stack(np.meshgrid(rows, columns, indexing="ij"), axis=-1).reshape(-1, 2)
    return np.concatenate([before, patches]).astype(np.float32)


def frequencies(head: int, periods: Any = None, base: float = 100.0) -> np.ndarray:
    """Return DINOv3's frequencies, float32 [2, head]: rows in the first quarter, then columns.

    Args:
      head: channels of a head.
      periods: [head / 4] in units of the coordinates; None = base ** (0, 4 / head, 8 / head, ...).
      base: of these periods.
    """
    if periods is None:
        periods = base ** (np.arange(head // 4) / (head // 4))
    turns = 2 * np.pi / np.asarray(periods, np.float64)
    zero = np.zeros_like(turns)
    rows, columns = (turns, zero), (zero, turns)
    return np.stack([np.concatenate(rows * 2), np.concatenate(columns * 2)]).astype(np.float32)


def turned(x: Float[Array, "b t h d"], angles: Float[Array, "t d"]) -> Float[Array, "b t h d"]:
    """Return queries or keys whose channels i and i + d/2 are turned by the angles, float32."""
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    angles = angles[:, None]
    half = jnp.concatenate([-second, first], axis=-1)
    return (x * jnp.cos(angles) + half * jnp.sin(angles)).astype(x.dtype)


def angles(place: Float[Array, "t 2"], turns: Float[Array, "2 d"]) -> Float[Array, "t d"]:
    """Return the angle of each token and channel, in radians and with float32's precision."""
    return place[:, :1] * turns[0] + place[:, 1:] * turns[1]


class RMSNorm(nn.Module):
    """Division by the root of the mean square over the last axis, in float32, and a scale."""

    dtype: Dtype = jnp.float32
    eps: float = 1e-5

    @nn.compact
    def __call__(self, x):
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],), jnp.float32)
        x = x.astype(jnp.float32)
        x = x * jax.lax.rsqrt(jnp.square(x).mean(-1, keepdims=True) + self.eps)
        return (x * scale).astype(self.dtype)


NORMS: dict[str, Any] = {"layer": LayerNorm, "rms": RMSNorm}


class PublishedMlp(nn.Module):
    """The MLP of a block: linear, exact GELU, linear; or the gated form, SwiGLU.

    SwiGLU multiplies silu of the first half of one linear layer with the second half.

    Attributes:
      hidden: width between the layers.
      gated: whether it is SwiGLU.
    """

    hidden: int
    gated: bool = False
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x):
        if not self.gated:
            h = gelu(dense(self.hidden, "fc1", self.dtype)(x))
            return dense(x.shape[-1], "fc2", self.dtype)(h)
        gate, value = jnp.split(dense(2 * self.hidden, "gate", self.dtype)(x), 2, axis=-1)
        return dense(x.shape[-1], "down", self.dtype)(jax.nn.silu(gate) * value)


class PublishedBlock(Branch):
    """Pre-norm transformer block; the attributes are those of `PublishedViT`."""

    heads: int = 12
    hidden: int = 3072
    gated: bool = False
    bias: Bias = "full"
    norm: Norm = "layer"
    eps: float = 1e-6
    own_turns: bool = False
    dtype: Dtype = jnp.float32
    attention_form: Form = "auto"

    @nn.compact
    def __call__(self, x, place=None, turns=None):
        """Return the tokens [b t d] after this block.

        Args:
          x: tokens, [b t d].
          place: their coordinates [t 2]; None = positions turn nothing.
          turns: frequencies that all blocks share, [2 channels of a head].
        """
        layer_norm = lambda name: NORMS[self.norm](self.dtype, self.eps, name=name)
        if self.own_turns:
            shape = (2, x.shape[-1] // self.heads)
            turns = self.param("turns", nn.initializers.zeros, shape, jnp.float32)
        turn = None
        if place is not None and turns is not None:
            turn = lambda t, angles=angles(place, turns): turned(t, angles)
        x = shard_batch(x)
        how = {"dtype": self.dtype, "attention_form": self.attention_form}
        attention = Attention(self.heads, self.bias, **how, name="attn")
        x = x + self.residual(attention(layer_norm("norm1")(x), turn=turn), "gamma_1", False)
        mlp = PublishedMlp(self.hidden, self.gated, self.dtype, name="mlp")
        return x + self.residual(mlp(layer_norm("norm2")(x)), "gamma_2", False)


class PublishedViT(PatchEncoder):
    """Vision transformer of published encoders, for whole images.

    Attributes:
      width, depth, heads, patch: see `ViT`.
      hidden: width inside the MLPs.
      image_size: (height, width) in pixels; without learned positions, images may have any size.
      classes: number of class tokens: 1, 0 (I-JEPA, CAPI) or several (Pixio).
      registers: number of tokens between the class tokens and the patches that belong to neither.
      learned: whether positions are learned, a row for each class token first; registers have none.
      rope: whether positions turn queries and keys, and by which coordinates; see `coordinates`.
      own_turns: whether each block has frequencies of its own.
      gated: whether the MLPs are SwiGLU.
      bias, layer_scale: see `ViT`.
      norm, eps: kind of all norms, and what is added to their variance.
      stream: type of the tokens that blocks add to; None = `dtype`.
      attention_form: how attention is computed, see `attend`.
      channels: of the images.
    """

    width: Count = 768
    depth: Count = 12
    heads: Count = 12
    patch: Count = 16
    hidden: Count = 3072
    image_size: Size = (224, 224)
    classes: Whole = 1
    registers: Whole = 0
    learned: bool = True
    rope: Rope = "none"
    own_turns: bool = False
    gated: bool = False
    bias: Bias = "full"
    layer_scale: Positive | None = None
    norm: Norm = "layer"
    eps: Positive = 1e-6
    dtype: Dtype = jnp.float32
    stream: Dtype | None = None
    attention_form: Form = "auto"
    channels: int = 3

    # what other encoders may have, see `Encoder`
    positions: ClassVar[str] = ""
    use_mask_token: ClassVar[bool] = False
    fuses: ClassVar[bool] = False

    @property
    def num_prefix(self) -> int:
        return self.classes + self.registers

    @property
    def out_width(self) -> int:
        return self.width

    @property
    def class_tokens(self) -> int:
        return self.classes

    def plain(self) -> PublishedViT:
        """Return the encoder in float32."""
        return self.clone(dtype=jnp.float32)

    def check(self, key: str) -> None:
        """Raise a ConfigError for sizes that do not go together."""
        errors.patches(key, self)
        errors.heads(key, self)
        if self.rope != "none" and self.width // self.heads % 4:
            raise ConfigError(
                f"{key}.heads: {self.heads} of {self.width // self.heads} channels; allowed: a "
                "multiple of 4 channels in each (positions that turn)"
            )
        if self.rope == "corners" and self.registers % 4:
            raise ConfigError(
                f"{key}.registers: {self.registers}; allowed: multiples of 4 (a quarter of them on "
                "each side of the image)"
            )

    def place(self, images: Any) -> Float[Array, "t 2"]:
        """Return the `coordinates` of all tokens of images [b h w c]."""
        grid = grid_of((images.shape[1], images.shape[2]), self.patch)
        return jnp.asarray(coordinates(self.rope, grid, self.num_prefix))

    def turning(self, params: Any, block: str, images: Any) -> Any:
        """Return the function by which positions turn a block's queries and keys [b t h d].

        Args:
          params: the encoder's parameters.
          block: name of the block, "block_00".
          images: [b h w c], whose size decides the coordinates.

        Returns:
          None where positions turn nothing.
        """
        if self.rope == "none":
            return None
        turns = params[block]["turns"] if self.own_turns else params["turns"]
        by = angles(self.place(images), turns)
        return lambda t: turned(t, by)

    @nn.compact
    def __call__(self, images: Float[Array, "b h w c"]) -> Features:
        """Return `Features` of normalized images: class tokens, registers, patches."""
        check_channels(images.shape[-1], self.channels)
        x = dense(self.width, "patch_embed", self.dtype)(
            patchify(images, self.patch).astype(self.dtype)
        ).astype(self.stream or self.dtype)
        init = nn.initializers.normal(0.02)
        token = lambda name, count: jnp.broadcast_to(
            self.param(name, init, (1, count, self.width), jnp.float32).astype(x.dtype),
            (len(x), count, self.width),
        )
        before = [token("cls_token", self.classes)] if self.classes else []
        if self.learned:
            shape = (1, self.classes + self.num_patches, self.width)
            pos = self.param("pos_embed", init, shape, jnp.float32).astype(x.dtype)
            before = [t + pos[:, : self.classes] for t in before]
            x = x + pos[:, self.classes :]
        if self.registers:
            before.append(token("registers", self.registers))
        x = jnp.concatenate([*before, x], axis=1)
        place, turns = None, None
        if self.rope != "none":
            place = self.place(images)
            if not self.own_turns:
                shape = (2, self.width // self.heads)
                turns = self.param("turns", nn.initializers.zeros, shape, jnp.float32)
        blocks = []
        for i in range(self.depth):
            x = PublishedBlock(
                layer_scale=self.layer_scale,
                heads=self.heads,
                hidden=self.hidden,
                gated=self.gated,
                bias=self.bias,
                norm=self.norm,
                eps=self.eps,
                own_turns=self.own_turns,
                dtype=self.dtype,
                attention_form=self.attention_form,
                name=f"block_{i:02d}",
            )(x, place, turns)
            blocks.append(x)
        x = NORMS[self.norm](self.dtype, self.eps, name="norm")(x)
        return Features(x, tuple(blocks), self.num_prefix, self.classes)
