"""An encoder as files carry it: positions written out, and what other code has no place for gone.

Each function takes an encoder and its parameters and gives both anew; the pair computes what the
one before did, unless its docstring says otherwise. Nothing here knows of names or files.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mimjax.errors import ConfigError
from mimjax.models.conv_vit import ConvViT
from mimjax.models.positions import Grid, resize_absolute
from mimjax.models.vit import sincos_table
from mimjax.torch_io.read.positions import resize_relative

PyTree = Any
Encoder = Any  # ViT or ConvViT


def plain(encoder: Encoder, params: PyTree) -> tuple[Encoder, PyTree]:
    """The encoder that reads whole images: what pretraining alone needs is left out.

    Mask token and drop path; sums of several blocks or stages before the norm, which MCMAE and
    MR-MAE have: without them it computes something else, namely what their fine-tuning starts from.
    """
    gone = lambda name: name == "mask_token" or name.endswith("_fuse")
    options = {"fuse_layers": (-1,), "drop_path": 0.0, "remat": False, "dtype": jnp.float32}
    options["fuse_stages" if isinstance(encoder, ConvViT) else "use_mask_token"] = False
    params = {name: value for name, value in params.items() if not gone(name)}
    return encoder.clone(**options), jax.tree.map(np.asarray, params)


def position_order(network: Any) -> str | None:
    """Which coordinate comes first in a network's fixed table; None if it has none."""
    kind = getattr(network, "pos_embed", "sincos_yx")  # CAE's regressor has no other
    return kind.removeprefix("sincos_") if kind.startswith("sincos") else None


def fixed_table(network: Any, grid: Grid, num_prefix: int) -> np.ndarray:
    """A network's fixed positions [1 p+n width] as files hold them: zeros for the prefix."""
    order = position_order(network)
    assert order is not None, network
    table = sincos_table(grid, network.width, order)
    return np.pad(table, ((num_prefix, 0), (0, 0)))[None]


def settings(encoder: Encoder) -> dict[str, Any]:
    """An encoder's fields but its dtype, as plain values."""
    fields = [f.name for f in dataclasses.fields(encoder) if f.init]
    return {n: getattr(encoder, n) for n in fields if n not in ("parent", "name", "dtype")}


def prefix_of(encoder: Encoder) -> int:
    """Tokens before the patches: CLS, or none."""
    return 0 if isinstance(encoder, ConvViT) else 1


def with_table(encoder: Encoder, params: PyTree) -> tuple[Encoder, PyTree]:
    """Fixed positions become a parameter, as every consumer wants them."""
    if position_order(encoder) is None:
        return encoder, params
    table = fixed_table(encoder, encoder.grid, prefix_of(encoder))
    return encoder.clone(pos_embed="learned"), params | {"pos_embed": table}


def resized(
    encoder: Encoder, params: PyTree, image_size: tuple[int, int]
) -> tuple[Encoder, PyTree]:
    """The encoder for images of another size, its positions interpolated.

    Fixed tables are interpolated too, and not computed anew for the larger grid: the network knows
    the coordinates it was trained on, and fine-tuning code of all methods does the same.

    Raises:
      ConfigError: a size that does not divide into patches.
    """
    patch = encoder.patch
    if any(side < patch or side % patch for side in image_size):
        raise ConfigError(
            f"--image_size: {image_size[0]}x{image_size[1]}; allowed: multiples of {patch}"
        )
    encoder, params = with_table(encoder, params)
    new = encoder.clone(image_size=image_size)
    params = dict(params)
    if "pos_embed" in params:
        params["pos_embed"] = resize_absolute(
            params["pos_embed"], encoder.grid, new.grid, num_prefix=prefix_of(encoder)
        )
    for name in params:
        if name.startswith("rel_pos"):
            table = resize_relative(params[name]["table"], encoder.grid, new.grid)
            params[name] = {"table": table}
    return new, params


def per_block(encoder: Encoder, params: PyTree) -> tuple[Encoder, PyTree]:
    """A relative table that all blocks share is copied to each, as BEiT's fine-tuning does."""
    if getattr(encoder, "rel_pos", "none") != "shared":
        return encoder, params
    copies = {f"rel_pos_{i:02d}": params["rel_pos"] for i in range(encoder.depth)}
    rest = {name: value for name, value in params.items() if name != "rel_pos"}
    return encoder.clone(rel_pos="per_block"), rest | copies


def folded(encoder: Encoder, params: PyTree) -> tuple[Encoder, PyTree]:
    """Layer scales become part of the linear layers before them."""
    if getattr(encoder, "layer_scale", None) is None:
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


STEPS = {"per_block": per_block, "folded": folded}
