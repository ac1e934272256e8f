"""Changes to an encoder and its parameters before they are exported.

Positions become parameters, and what other libraries have no parameter for is removed or folded
into other parameters. Each such function returns a new (encoder, parameters), which computes the
same function unless the docstring says otherwise. Key names and files are not handled here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from mimjax import values
from mimjax.errors import ConfigError
from mimjax.models.positions import resize_absolute
from mimjax.models.vit import ViT, at_size, fixed_positions
from mimjax.task import Encoder
from mimjax.torch_io.read.positions import resize_relative

PyTree = Any


def plain(encoder: Encoder, params: PyTree) -> tuple[Any, PyTree]:
    """Return the encoder for whole images, without what only pretraining needs.

    Removed are the mask token, drop path, what stands behind the norm, and the sums of several
    blocks or stages before it.
    An encoder with such sums (MCMAE, MR-MAE) then computes another function: the one from which
    fine-tuning starts in their official code.
    """
    absent = lambda name: name in ("mask_token", *encoder.behind) or name.endswith("_fuse")
    params = {name: value for name, value in params.items() if not absent(name)}
    return encoder.plain(), jax.tree.map(np.asarray, params)


def fixed_table(network: Any, encoder: Encoder) -> np.ndarray:
    """Return fixed positions [1 p+n d] as in files, with zeros for the encoder's p prefix tokens.

    Args:
      network: the encoder, or a network behind it.
      encoder: says the grid.
    """
    assert network.positions, network
    table = fixed_positions(encoder.grid, network.width, network.positions, encoder.pos_grid)
    return np.pad(table, ((encoder.num_prefix, 0), (0, 0)))[None]


def settings(encoder: Encoder) -> dict[str, Any]:
    """Return an encoder's settings as plain values, without its dtype."""
    names = values.fields(type(encoder))
    return {name: getattr(encoder, name) for name in names if name != "dtype"}


def with_table(encoder: Encoder, params: PyTree) -> tuple[Any, PyTree]:
    """Return the encoder with fixed positions turned into a parameter, as all libraries need."""
    if not encoder.positions:
        return encoder, params
    table = fixed_table(encoder, encoder)
    plain = {} if encoder.pos_grid is None else {"pos_grid": None}
    return encoder.clone(pos_embed="learned", **plain), params | {"pos_embed": table}


def resized(encoder: Encoder, params: PyTree, image_size: tuple[int, int]) -> tuple[Any, PyTree]:
    """Return the encoder for images of another size, with interpolated positions.

    Fixed tables are interpolated too and not computed for the new grid, as in the fine-tuning code
    of all methods: the network was trained on the coordinates of the old grid.

    Args:
      encoder, params: the encoder.
      image_size: (height, width) in pixels.

    Raises:
      ConfigError: the patch does not divide the size.
    """
    patch = encoder.patch
    if any(side < patch or side % patch for side in image_size):
        raise ConfigError(
            f"--image_size: {image_size[0]}x{image_size[1]}; allowed: multiples of {patch}"
        )
    new, params = at_size(encoder, image_size), dict(params)
    if encoder.positions:
        return with_table(new, params)
    if "pos_embed" in params:
        params["pos_embed"] = resize_absolute(
            params["pos_embed"], encoder.grid, new.grid, num_prefix=encoder.num_prefix
        )
    for name in params:
        if name.startswith("rel_pos"):
            table = resize_relative(params[name]["table"], encoder.grid, new.grid)
            params[name] = {"table": table}
    return new, params


def per_block(encoder: ViT, params: PyTree) -> tuple[ViT, PyTree]:
    """Return the encoder with a shared relative table copied to each block (BEiT's fine-tuning)."""
    if encoder.rel_pos != "shared":
        return encoder, params
    copies = {f"rel_pos_{i:02d}": params["rel_pos"] for i in range(encoder.depth)}
    rest = {name: value for name, value in params.items() if name != "rel_pos"}
    return encoder.clone(rel_pos="per_block"), rest | copies


def folded(encoder: ViT, params: PyTree) -> tuple[ViT, PyTree]:
    """Return the encoder with layer scales multiplied into the linear layers before them."""
    if encoder.layer_scale is None:
        return encoder, params
    fold = lambda layer, gamma: {k: v * gamma for k, v in layer.items()}  # kernels are [in out]
    params = dict(params)
    for name, block in params.items():
        if name.startswith("block_"):
            block = dict(block)
            attn, mlp = dict(block["attn"]), dict(block["mlp"])
            attn["proj"] = fold(attn["proj"], block.pop("gamma_1"))
            mlp["fc2"] = fold(mlp["fc2"], block.pop("gamma_2"))
            params[name] = block | {"attn": attn, "mlp": mlp}
    return encoder.clone(layer_scale=None), params


def keyless(encoder: ViT, params: PyTree) -> tuple[ViT, PyTree]:
    """Return the encoder without biases of keys.

    The bias adds the same number to all scores of a query, of which softmax knows nothing.
    """
    if encoder.bias != "full":
        return encoder, params
    params = dict(params)
    for name, block in params.items():
        if name.startswith("block_"):
            attn = dict(block["attn"])
            qkv = dict(attn["qkv"])
            attn["q_bias"], _, attn["v_bias"] = np.split(np.asarray(qkv.pop("bias")), 3)
            params[name] = block | {"attn": attn | {"qkv": qkv}}
    return encoder.clone(bias="qv"), params


# by name, for `formats.Place.steps`; the encoders of places that name one are ViTs
STEPS: dict[str, Callable[[Any, PyTree], tuple[ViT, PyTree]]] = {
    "per_block": per_block,
    "folded": folded,
    "keyless": keyless,
}
