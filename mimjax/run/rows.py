"""The rows of an evaluation: the trained encoder, the untrained one, and raw pixels.

A row gives features of images; which of them protocols may read stands in its `Space`.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from mimjax import patches
from mimjax.errors import ConfigError
from mimjax.inference.encoders import Network
from mimjax.inference.model import Model
from mimjax.inference.workdir import SavedRun
from mimjax.rng import step_key
from mimjax.run.cells import Space
from mimjax.task import View, initial
from mimjax.transfer.head import Reading

PyTree = Any
ROWS = {
    "pretrained": "pretrained encoder",
    "untrained": "untrained encoder",
    "raw_pixels": "raw pixels",
}


@dataclasses.dataclass(frozen=True)
class Row:
    """An encoder with its weights, or raw pixels.

    Attributes:
      name: of `ROWS`.
      params: of the encoder; {} for raw pixels.
      features: (params, uint8 images [b h w c], reading) -> float32 [b d] or [b n d].
      space: what it gives.
      parts: texts that, with the parameters, decide the features.
      network: the encoder; None = there is none.
      model: what a training begins with; None = with random weights.
    """

    name: str
    params: PyTree
    features: Callable[[PyTree, jax.Array, Reading], jax.Array]
    space: Space
    parts: tuple[str, ...]
    network: Network | None = None
    model: Model | None = None

    def shapes(self, view: View, readings: Sequence[Reading]) -> dict[Reading, tuple[int, ...]]:
        """Return the shape of one image's features by reading."""
        image = jax.ShapeDtypeStruct((1, *view.size, view.channels), jnp.uint8)
        one = lambda r: jax.eval_shape(lambda q, x: self.features(q, x, r), self.params, image)
        return {r: one(r).shape[1:] for r in readings}


def encoder_row(
    name: str, network: Network, params: PyTree, layers: Sequence[str] | None = None
) -> Row:
    """Return the row of an encoder.

    Args:
      layers: "norm" or numbers of blocks that every protocol tries. None = vectors of the norm and
        of the last block before it; tokens of the norm for CAE's probe and of the last block for
        efficient probing, as their codes read them.

    Raises:
      ConfigError: --layers names a block that the encoder does not have.
    """
    module = network.module
    pools = (("cls",) if module.class_tokens else ()) + ("mean",)
    norm, last = (None if network.normed else module.depth - 1), module.depth - 1
    tried = [norm, last] if layers is None else [number(x, module.depth, norm) for x in layers]
    tried = list(dict.fromkeys(tried))
    vectors = [Reading(pool, layer) for layer in tried for pool in pools]
    tokens = [Reading("all", layer) for layer in ([norm] if layers is None else tried)]
    patches_ = [Reading("patches", layer) for layer in ([last] if layers is None else tried)]
    widths = module.width, module.out_width
    space = Space(
        tuple(vectors),
        tuple(tokens),
        tuple(patches_),
        module.width,
        dividing(heads_of(module), *widths),
    )
    features = lambda q, x, r: network.features(q, x).read(*r).astype(jnp.float32)
    parts = (repr(module), repr((network.mean, network.std)), network.method or "")
    return Row(name, params, features, space, parts, network)


def number(text: str, depth: int, norm: int | None) -> int | None:
    """Return the block that a word of --layers names; None = the final norm.

    Args:
      norm: what stands for it in an encoder whose tokens have none, its last block.

    Raises:
      ConfigError: there is no such block.
    """
    text = text.strip()
    if text == "norm":
        return norm
    if not re.fullmatch(r"-?[0-9]+", text) or not -depth <= int(text) < depth:
        raise ConfigError(f"--layers: {text!r}; allowed: norm, {-depth} to {depth - 1}")
    return int(text) % depth


def heads_of(module: Any) -> int:
    """Return the number of heads of an encoder's attention; CLIP derives it from its width."""
    return getattr(module, "num_heads", module.heads)


def dividing(number: int, *widths: int) -> int:
    """Return the largest number up to `number` that divides all widths."""
    return max(n for n in range(1, number + 1) if not any(width % n for width in widths))


def raw_row(patch: int, heads: int, channels: int) -> Row:
    """Return the row of raw pixels: all of an image, and those of its patches as tokens."""

    def features(params: PyTree, images: jax.Array, reading: Reading) -> jax.Array:
        x = images.astype(jnp.float32) / 255
        return x.reshape(len(x), -1) if reading.pool == "pixels" else patches.patchify(x, patch)

    width = patch * patch * channels
    heads = dividing(heads, width)
    tokens = (Reading("patch pixels"),)
    space = Space((Reading("pixels"),), tokens, tokens, width, heads)
    return Row("raw_pixels", {}, features, space, ("pixels / 255", str(patch)))


def make_rows(
    model: Model, run: SavedRun | None, names: Sequence[str], layers: Sequence[str] | None = None
) -> list[Row]:
    """Return the rows of a model.

    Args:
      run: the run that it is of; None = it is of a file.
      names: of `ROWS`.
      layers: see `encoder_row`.

    Raises:
      ConfigError: a row or layer that does not exist.
    """
    out, module = [], model.module
    for name in dict.fromkeys(name.strip() for name in names):
        if name not in ROWS:
            raise ConfigError(f"--rows: {name!r}; allowed: {', '.join(ROWS)}")
        if name == "raw_pixels":
            out.append(raw_row(module.patch, heads_of(module), model.view.channels))
            continue
        trained = name == "pretrained"
        params = model.params if trained else {"encoder": untrained(model, run)}
        row = encoder_row(name, model.network, params, layers)
        out.append(dataclasses.replace(row, model=model if trained else None))
    if not out:
        raise ConfigError(f"--rows: empty; allowed: {', '.join(ROWS)}")
    return out


def untrained(model: Model, run: SavedRun | None) -> PyTree:
    """Return random parameters of a model's encoder; of a run those that it began with."""
    if run is not None:
        return initial(run.task)(step_key(run.config.seed, "init", 0))[0]["encoder"]
    images = jnp.zeros((1, *model.view.size, model.view.channels))
    method = {"method": model.network.method} if model.network.method else {}
    init = jax.jit(lambda key: model.module.init(key, images, **method)["params"])
    return init(step_key(0, "init", 0))
