"""Encoders of files that `models.published_vit` computes: settings, tensors at a size.

Such a file is recognized by its layout, or by a number of class tokens other than one.
"""

from __future__ import annotations

import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from mimjax.errors import ConfigError
from mimjax.losses import LN_EPS
from mimjax.models.positions import Grid, resize_absolute
from mimjax.models.published_vit import frequencies
from mimjax.torch_io.read import beside, load, positions, sizes
from mimjax.torch_io.tables import vision

DEFAULT_SIZE = (224, 224)  # of encoders without learned positions, in the code of all of them


def root_of(file: sizes.FileTensors) -> str | None:
    """Return the first part of our paths of the file's encoder; None = it is another network's."""
    if file.has(vision.ROOT):
        return vision.ROOT
    plain = file.layout in vision.IGNORED and "encoder/patch_embed/kernel" in file
    return "encoder" if plain and classes(file, "encoder") != 1 else None


def refuse(file: sizes.FileTensors) -> None:
    """Refuse a file for a method, none of which trains such an encoder.

    Raises:
      ConfigError: its encoder is one of these; the line names file and layout.
    """
    root = root_of(file)
    if root is None:
        return
    what = {0: "no class token"}.get(count := classes(file, root), f"{count} class tokens")
    if root == vision.ROOT:
        what = "layers and tokens of its own"
    raise ConfigError(
        f"{file.where} (layout {file.layout!r}) holds an encoder with {what}, which no method here "
        "trains; allowed: files of ViT and ConvViT encoders (mimjax.load and mimjax features read "
        "this one)"
    )


def classes(file: sizes.FileTensors, root: str) -> int:
    """Return the number of class tokens."""
    path = f"{root}/cls_token"
    return file.shape(path)[-2] if path in file else 0


def registers(file: sizes.FileTensors, root: str) -> int:
    """Return the number of tokens before the patches that are no class tokens."""
    path = f"{root}/registers"
    return file.shape(path)[-2] if path in file else 0


def settings(
    file: sizes.FileTensors, root: str, size: Grid | None, heads: int | None
) -> sizes.Settings:
    """Return the settings of `PublishedViT`.

    Args:
      size: (height, width) of the images in pixels; None = those of the file's positions.
      heads: number of heads; None = what the file shows, or that of a published size.

    Raises:
      ConfigError: something cannot be told, or tensors would not be read.
    """
    kernel = file.shape(f"{root}/patch_embed/kernel")
    if len(kernel) != 4 or kernel[2] != kernel[3]:
        raise ConfigError(f"{file.where}: patches of {list(kernel)}; allowed: square patches")
    width, patch, depth = kernel[0], kernel[2], file.blocks(root)
    first = f"{root}/block_00"
    gated = f"{first}/mlp/gate/kernel" in file
    hidden = file.shape(f"{first}/mlp/{'gate' if gated else 'fc1'}/kernel")[0]
    learned = f"{root}/pos_embed" in file
    if not classes(file, root) and root == "encoder":
        check_fixed(file)
    size = size or file.beside.size_of(file)
    grid = grid_of(file, root, size and (size[0] // patch, size[1] // patch)) if learned else None
    native = (grid[0] * patch, grid[1] * patch) if grid else DEFAULT_SIZE
    out = {
        "width": width,
        "depth": depth,
        "patch": patch,
        "hidden": hidden // 2 if gated else hidden,
        "image_size": tuple(size or native),
        "classes": classes(file, root),
        "registers": registers(file, root),
        "learned": learned,
        "gated": gated,
        "bias": sizes.attention_bias(file, root),
        "layer_scale": sizes.SCALED if f"{first}/gamma_1" in file else None,
        **vision.SETTINGS.get(file.layout, {}),
    }
    check_beside(file, root, gated, out)
    out["eps"] = file.beside.eps or out.get("eps", LN_EPS)
    return out | {"heads": heads_of(file, root, heads, width, depth)}


def heads_of(file: sizes.FileTensors, root: str, heads: int | None, width: int, depth: int) -> int:
    """Return the number of heads.

    Raises:
      ConfigError: it cannot be told, or is not that of the file.
    """
    told = file.beside
    if heads and told.heads and heads != told.heads:
        raise ConfigError(f"heads: {heads}; allowed: {told.heads}, as {told.source} has")
    paths = (f"{root}/turns", f"{root}/block_00/turns")
    shown = next((width // file.shape(p)[1] for p in paths if p in file), None)
    if heads and shown and heads != shown:
        raise ConfigError(f"{file.where}: heads: {heads}, but its positions show {shown}")
    heads = shown or heads or vision.heads(file.layout).get((width, depth))
    if heads is None:
        raise sizes.ask(file, "heads", "the number of heads", "--heads=12")
    if width % heads:
        raise ConfigError(
            f"{file.where}: heads: {heads} does not divide its width {width}; allowed: divisors "
            f"of {width}"
        )
    return heads


def check_beside(file: sizes.FileTensors, root: str, gated: bool, out: sizes.Settings) -> None:
    """Check that `PublishedViT` computes what stands beside the file.

    Args:
      root: first part of our paths of the encoder.
      gated: whether its MLPs are.
      out: its other settings.

    Raises:
      ConfigError: another activation, numbers that mean nothing, or other frequencies than the
        file's own.
    """
    told = file.beside
    if not gated:
        told.check_activation(beside.GELU)
    elif file.layout not in vision.FIXED_GATES:
        told.check_activation(beside.SILU)
    path = f"{root}/turns"
    if told.rope_theta and path in file and out.get("rope") == "centers":
        (key,) = file.keys[path]
        turns = file.state[key]
        if not np.allclose(turns, frequencies(turns.shape[1], base=told.rope_theta), rtol=0.02):
            raise ConfigError(
                f"{told.source}: rope_theta {told.rope_theta:g}, but {file.where} holds other "
                "frequencies of its positions; allowed: the same in both"
            )


def check_fixed(file: sizes.FileTensors) -> None:
    """Check that an encoder without class token is I-JEPA's.

    Others have its names too, and another activation or pooling (SigLIP's in timm). transformers'
    names are I-JEPA's alone.

    Raises:
      ConfigError: its positions are not I-JEPA's fixed table.
    """
    if file.layout != "mae":
        return
    table = file.state[file.keys["encoder/pos_embed"][0]][0]
    found = positions.fixed(table)
    if found is None or found[0] != "sincos_xy":
        raise ConfigError(
            f"{file.where}: no class token and learned positions (pos_embed), by which its model "
            "cannot be told (timm's with other poolings, ViTDet's with windows of attention); "
            "allowed: I-JEPA's, whose positions are a fixed table"
        )


def grid_of(file: sizes.FileTensors, root: str, wanted: Grid | None) -> Grid:
    """Return rows and columns of the file's learned positions.

    Args:
      wanted: grid of the images, if known; it is the file's where it has as many patches.

    Raises:
      ConfigError: they fill no square and `wanted` has another number of patches.
    """
    count = file.shape(f"{root}/pos_embed")[1] - classes(file, root)
    if wanted and wanted[0] * wanted[1] == count and round(count**0.5) ** 2 != count:
        return wanted
    side = round(count**0.5)
    if side * side != count:
        raise sizes.ask(file, "image_size", "the image size", "--image_size=224,224")
    return side, side


def tensors(file: sizes.FileTensors, root: str, module: Any) -> dict[str, np.ndarray]:
    """Return the file's tensors, its learned positions resized to the grid of the network.

    Raises:
      ConfigError: keys of the file would change the features and are not read.
    """
    known = {k for path in file.keys if path.startswith(f"{root}/") for k in file.keys[path]}
    ignored = vision.IGNORED[file.layout]
    other = sorted(k for k in file.state if k not in known and not re.fullmatch(ignored, k))
    if other:
        raise ConfigError(
            f"{file.where}: {len(other)} keys have no place in the encoder of layout "
            f"{file.layout!r}: {', '.join(other[:20])}"
        )
    if not module.learned:
        return file.state
    (key,), prefix = file.keys[f"{root}/pos_embed"], module.classes
    table, source = file.state[key], grid_of(file, root, module.grid)
    extra, antialias = resizing(file, module)
    resized = resize_absolute(table, source, module.grid, extra, prefix, antialias)
    return file.state | {key: resized}


def resizing(file: sizes.FileTensors, module: Any) -> tuple[float, bool]:
    """Return how learned positions are resized, see `tables.vision.RESIZED`."""
    # timm's: I-JEPA's code takes the first patch for a class token, and timm drops mask tokens
    timm = {"mae": not module.classes, "dinov2": "mask_token" not in file.state}
    if timm.get(file.layout):
        return vision.ANTIALIASED
    return vision.RESIZED[file.layout, module.registers > 0]


def notes(file: sizes.FileTensors, root: str, module: Any) -> list[str]:
    """Return lines that say what was resized, and what is taken since no tensor shows it."""
    mlp = "SwiGLU" if module.gated else "GELU"
    taken = f"heads {module.heads}, {module.norm} norms with eps {module.eps:g}, {mlp}"
    if not module.learned:
        height, width = module.image_size
        taken += f", images of {height}x{width} (its positions fit any size)"
    if module.rope != "none" and f"{root}/turns" not in file and not module.own_turns:
        taken += f", positions that turn with rope_theta {base_of(file):g}"
    lines = [f"taken as given, as beside the file or as in its code: {taken}"]
    if not module.learned:
        return lines
    source = grid_of(file, root, module.grid)
    extra, antialias = resizing(file, module)
    how = "antialiased bicubic" if antialias else "bicubic" + (f", +{extra:g}" if extra else "")
    sides = " to ".join(f"{g[0]}x{g[1]}" for g in (source, module.grid))
    moved = f"positions resized from {sides} patches ({how} interpolation, as in its code)"
    return [*lines, moved] if source != tuple(module.grid) else lines


def params(file: sizes.FileTensors, root: str, module: Any) -> Any:
    """Return the encoder's parameters.

    Raises:
      ConfigError: keys are missing or not read, or tensors do not fit.
    """
    images = jnp.zeros((1, *module.image_size, module.channels))
    like = jax.eval_shape(module.init, jax.random.key(0), images)["params"]
    given: dict[str, Any] = dict(flatten_dict(like, sep="/"))
    absent = {p: x for p, x in given.items() if lacks(file, f"{root}/{p}")}
    held = unflatten_dict({p: x for p, x in given.items() if p not in absent}, sep="/")
    state = tensors(file, root, module)
    read = load.from_torch(state, {root: held}, file.layout, file.where)[root]
    rest = {p: neutral(p, x.shape, base_of(file)) for p, x in absent.items()}
    return unflatten_dict(flatten_dict(read, sep="/") | rest, sep="/")


def lacks(file: sizes.FileTensors, path: str) -> bool:
    """Return whether files of this layout may lack a parameter and no block of this one has it."""
    _, _, name = path.partition("/")
    plain = lambda p: re.sub(r"block_\d+", "block", p)
    may = re.fullmatch(vision.ABSENT.get(file.layout, r"(?!)"), name)
    return bool(may) and plain(path) not in {plain(p) for p in file.keys}


def base_of(file: sizes.FileTensors) -> float:
    """Return the base of the periods of positions that turn, where the file does not hold these."""
    return file.beside.rope_theta or vision.ROPE_BASE


def neutral(path: str, shape: tuple[int, ...], base: float) -> np.ndarray:
    """Return a parameter that a file lacks, with which the layer does what it does without.

    Args:
      base: see `base_of`.
    """
    if path.endswith("turns"):
        return frequencies(shape[1], base=base)
    return np.ones(shape, np.float32) if path.endswith("scale") else np.zeros(shape, np.float32)
