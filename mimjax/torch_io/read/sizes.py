"""Sizes of networks, derived from the shapes of a checkpoint file's tensors.

The keys of the file are translated to our parameter paths by the table of its layout, so that one
function per network serves all layouts. The functions return settings of our modules. The number of
attention heads is not among them unless the file has relative positions, since no other tensor
shows it; the caller must know it. Values of weights are read in `load.py`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

import numpy as np

from mimjax.errors import ConfigError
from mimjax.torch_io.read import detect, positions
from mimjax.torch_io.read.beside import Beside
from mimjax.torch_io.read.files import State
from mimjax.torch_io.tables import imports, libraries

Settings = dict[str, Any]
BUFFERS = ("relative_position_index", "position_ids", "num_batches_tracked")  # no parameters
SCALED = 0.1  # initial value of layer scales if the config has none; the file's values replace it


class FileTensors:
    """Tensors of a checkpoint file, found by our parameter paths.

    Attributes:
      state: {key of the file: array}.
      layout: name of the file's layout, a key of `detect.TABLES`.
      where: name of the file, for errors.
      about, beside: metadata of the file, see `files.File`, and what stands beside it.
      keys: {our path: keys of the file}; several keys are stacked along their first axis.
    """

    def __init__(
        self,
        state: State,
        layout: str,
        where: str = "checkpoint",
        about: dict[str, str] | None = None,
        beside: Beside | None = None,
    ):
        self.state, self.layout, self.where = state, layout, where
        self.about, self.beside = about or {}, beside or Beside()
        self.keys: dict[str, tuple[str, ...]] = {}
        if layout == detect.OWN:  # our own names and shapes
            self.keys = {path: (path,) for path in state}
        for row in detect.TABLES[layout][0]:
            # {i} and {j} stand for the numbers of blocks
            pattern = re.compile(re.sub(r"\\{[ij]\\}", r"(\\d+)", re.escape(row.keys[0])))
            for key in state:
                if m := pattern.fullmatch(key):
                    path, keys = row.ours, row.keys
                    for mark, number in zip(("{i}", "{j}"), m.groups()):
                        path = path.replace(mark, f"{int(number):02d}")
                        keys = tuple(k.replace(mark, number) for k in keys)
                    if all(k in state for k in keys):
                        self.keys.setdefault(path, keys)

    def __contains__(self, path: str) -> bool:
        """Return whether the file has the parameter at `path`."""
        return path in self.keys

    def has(self, root: str) -> bool:
        """Return whether the file has any parameter of the network `root`."""
        return any(path.startswith(f"{root}/") for path in self.keys)

    def shape(self, path: str) -> tuple[int, ...]:
        """Return the shape of the file's tensor for the parameter at `path`.

        Several tensors that are one parameter here are stacked along their first axis.

        Raises:
          ConfigError: the file lacks the tensor.
        """
        if path not in self.keys:
            rows = [r for r in detect.TABLES[self.layout][0] if r.ours == path]
            key = rows[0].keys[0] if rows else path
            raise ConfigError(f"{self.where}: no {key}, which layout {self.layout!r} begins with")
        parts = [self.state[k].shape for k in self.keys[path]]
        return (sum(p[0] for p in parts), *parts[0][1:]) if len(parts) > 1 else parts[0]

    def blocks(self, root: str, name: str = "block") -> int:
        """Return the number of blocks root/block_00, root/block_01, ..."""
        numbers = {m[1] for p in self.keys if (m := re.match(rf"{root}/{name}_(\d+)/", p))}
        return len(numbers)

    def unread(self, read: set[str]) -> list[str]:
        """Return the keys of the file that nothing uses, sorted.

        Args:
          read: our paths of the parameters that were read. Fixed position tables count as used.
        """
        known = {k for p in read for k in self.keys.get(p, ())} | {*detect.TABLES[self.layout][1]}
        tables = [p for p in self.keys if p.endswith("/pos_embed")]
        known |= {self.keys[p][0] for p in tables if fixed_grid(self, p.split("/")[0])}
        return sorted(self.state.keys() - known)

    def check_unread(self, unread: Iterable[str]) -> None:
        """Check that what nothing uses is no part of the encoder (a norm before its blocks).

        Raises:
          ConfigError: there is one; the line names it.
        """
        rest = [k for k in unread if not k.endswith(BUFFERS)]
        if foreign := [k for k in rest if not imports.BEHIND.fullmatch(k)]:
            raise ConfigError(
                f"{self.where}: {len(foreign)} keys that layout {self.layout!r} has no place for: "
                f"{', '.join(foreign[:20])}; allowed: a file without them, where they are none of "
                "its encoder's"
            )

    def check_blocks(self) -> None:
        """Check that each tensor in the blocks of the networks has a parameter here.

        A block with a further tensor (a norm of queries, positions of window attention) computes
        another function.

        Raises:
          ConfigError: there are such tensors; the line names them.
        """
        rows = [r for r in detect.TABLES[self.layout][0] if re.match(r"\w+/block_\{i\}/", r.ours)]
        begin = {re.escape(r.keys[0].split("{i}")[0]) + r"\d+\." for r in rows}
        known = {k for keys in self.keys.values() for k in keys}
        inside = [k for k in self.state if k not in known and any(re.match(b, k) for b in begin)]
        foreign = sorted(k for k in inside if not k.endswith(BUFFERS))
        if foreign:
            raise ConfigError(
                f"{self.where}: {len(foreign)} keys in blocks of layout {self.layout!r} have no "
                f"place in its network here: {', '.join(foreign[:20])}"
            )


def ratio(hidden: int, width: int) -> float:
    """Return the MLP ratio for which int(width * ratio) is `hidden`."""
    value = hidden / width
    return value if int(width * value) == hidden else (hidden + 0.5) / width


def scaled(file: FileTensors, path: str) -> bool:
    """Return whether the layer scale at `path` exists and is not all ones.

    CAE's code stores ones for an encoder without layer scales.
    """
    return path in file and not np.all(file.state[file.keys[path][0]] == 1.0)


def patches(file: FileTensors, root: str, image_size: tuple[int, int] | None) -> Settings:
    """Return patch, pos_embed, pos_grid, image_size and rel_pos of the network `root`.

    Args:
      file: the file's tensors.
      root: first part of the network's paths: "encoder".
      image_size: (height, width) in pixels of the images that will be read; None = the file's,
        which it shows if its patches fill a square or its positions are fixed.

    Raises:
      ConfigError: the patches are not square, or the image size is needed.
    """
    kernel = file.shape(f"{root}/patch_embed/kernel")
    if len(kernel) != 4 or kernel[2] != kernel[3]:
        raise ConfigError(f"{file.where}: patches of {list(kernel)}; allowed: square patches")
    patch, relative = kernel[2], [p for p in file.keys if "/rel_pos" in p]
    known = (image_size[0] // patch, image_size[1] // patch) if image_size else None
    kind, made_for = "none", None
    if table := position_table(file, root):
        kind, made_for = table_kind(file, file.state[table][0], 1, known)
    elif relative:
        made_for = positions.square(file.shape(relative[0])[0], absolute=False)
    grid = known or made_for
    if grid is None:
        raise ask(file, "image_size", "the image size", "--image_size=224,224")
    relation = "shared" if f"{root}/rel_pos/table" in file else "per_block"
    return {
        "patch": patch,
        "pos_embed": kind,
        "pos_grid": made_for if kind.startswith("sincos") and made_for != grid else None,
        "image_size": (grid[0] * patch, grid[1] * patch),
        "rel_pos": relation if relative else "none",
    }


def fixed_grid(file: FileTensors, root: str) -> tuple[int, int] | None:
    """Return rows and columns of a network's fixed positions; None = they are learned, or none."""
    table = position_table(file, root)
    x = None if table is None else file.state[table]
    if x is None or x.ndim != 3:
        return None
    found = (table_kind(file, x[0], prefix, None) for prefix in (1, 0))
    return next((grid for kind, grid in found if kind.startswith("sincos")), None)


def resizing(file: FileTensors, grid: tuple[int, int], prefix: int, root: str) -> list[str]:
    """Return the line that says which positions are resized; [] = none are.

    Args:
      grid: (height, width) of the model in patches.
      prefix: number of the encoder's tokens before the patches.
      root: first part of the network's paths.
    """
    relative = [p for p in file.keys if p.startswith(f"{root}/rel_pos")]
    source, how = None, ["bicubic interpolation"]
    if table := position_table(file, root):
        kind, source = table_kind(file, file.state[table][0], prefix, grid)
        if kind == "learned" and libraries.antialiased(file.layout, file.state):
            how = ["antialiased bicubic interpolation", "timm's code"]
    elif relative:
        source = positions.square(file.shape(relative[0])[0], absolute=False)
        how = ["spline over distances"]
    return [positions.moved(source, grid, *how)] if source not in (None, tuple(grid)) else []


def position_table(file: FileTensors, root: str) -> str | None:
    """Return the file's key of the network's absolute positions, learned or fixed; None = none."""
    if f"{root}/pos_embed" in file:
        return file.keys[f"{root}/pos_embed"][0]
    fixed = [k for k, net in detect.TABLES[file.layout][1].items() if net == root]
    return next((k for k in fixed if k in file.state), None)


def table_kind(
    file: FileTensors, table: np.ndarray, prefix: int, grid: tuple[int, int] | None
) -> tuple[str, tuple[int, int] | None]:
    """Return the kind of positions and their grid.

    Args:
      file: the file's tensors.
      table: absolute positions [prefix + n, d].
      prefix: number of rows before those of patches (1 = CLS).
      grid: (height, width) of the model in patches, if known.

    Returns:
      A value of `vit.ViT.pos_embed`, and (height, width) of the table in patches; None = unknown.
    """
    count = table.shape[0] - prefix
    if prefix and grid and grid[0] * grid[1] == count - 1 and not table[0].any():
        return "learned", grid  # see `positions.resized`
    if grid and grid[0] * grid[1] != count:
        grid = None  # positions of another size, which are resized later
    may_be_fixed = not prefix or not table[0].any()  # a fixed table has zeros for CLS
    if may_be_fixed and (kind_and_grid := positions.fixed(table[prefix:], grid)):
        return kind_and_grid
    side = round(count**0.5)
    return "learned", grid or ((side, side) if side * side == count else None)


def vit(
    file: FileTensors, root: str = "encoder", image_size: tuple[int, int] | None = None
) -> Settings:
    """Return settings of `models.vit.ViT`; `heads` only if relative positions show them."""
    width = file.shape(f"{root}/patch_embed/kernel")[0]
    first = f"{root}/block_00"
    out = patches(file, root, image_size) | {
        "width": width,
        "depth": file.blocks(root),
        "mlp_ratio": ratio(file.shape(f"{first}/mlp/fc1/kernel")[0], width),
        "bias": attention_bias(file, root),
        "layer_scale": SCALED if scaled(file, f"{first}/gamma_1") else None,
        "use_mask_token": f"{root}/mask_token" in file,
    }
    tables = [p for p in file.keys if p.startswith(f"{root}/rel_pos")]
    return out | ({"heads": file.shape(tables[0])[1]} if tables else {})


def attention_bias(file: FileTensors, root: str) -> str:
    """Return "full" if q, k and v have biases, "qv" if only q and v have."""
    return "full" if f"{root}/block_00/attn/qkv/bias" in file else "qv"


def no_key_bias(file: FileTensors, root: str) -> bool:
    """Return whether the biases of k are zero in all blocks, which equals "qv"."""
    paths = [p for p in file.keys if re.fullmatch(rf"{root}/block_\d+/attn/qkv/bias", p)]
    stack = lambda p: np.concatenate([file.state[k] for k in file.keys[p]])
    return not any(np.split(stack(p), 3)[1].any() for p in paths)


def conv_vit(file: FileTensors, image_size: tuple[int, int] | None = None) -> Settings:
    """Return settings of `models.conv_vit.ConvViT`, without heads."""
    kernels = [file.shape(f"encoder/patch_embed{k}/proj/kernel") for k in (1, 2, 3)]
    strides = tuple(k[2] for k in kernels)
    patch, width = int(np.prod(strides)), kernels[2][0]
    table = position_table(file, "encoder")
    known = (image_size[0] // patch, image_size[1] // patch) if image_size else None
    kind, made_for = "sincos_xy", known
    if table:
        kind, made_for = table_kind(file, file.state[table][0], 0, known)
    grid = known or made_for
    if grid is None:
        raise ask(file, "image_size", "the image size", "--image_size=224,224")
    stage = lambda k: f"encoder/stage{k}_block_00"
    hidden = lambda p, w: ratio(file.shape(p)[0], w)
    return {
        "width": width,
        "depth": file.blocks("encoder"),
        "stage_widths": tuple(k[0] for k in kernels[:2]),
        "stage_depths": tuple(file.blocks("encoder", f"stage{k}_block") for k in (1, 2)),
        "stage_mlp_ratios": tuple(
            hidden(f"{stage(k)}/fc1/kernel", kernels[k - 1][0]) for k in (1, 2)
        ),
        "strides": strides,
        "image_size": (grid[0] * patch, grid[1] * patch),
        "mlp_ratio": hidden("encoder/block_00/mlp/fc1/kernel", width),
        "pos_embed": kind,
        "pos_grid": made_for if kind.startswith("sincos") and made_for != grid else None,
        "fuse_stages": "encoder/stage1_fuse/kernel" in file,
    }


def clip(file: FileTensors) -> Settings:
    """Return settings of `models.clip.CLIPVision`, without heads."""
    width, _, patch, _ = file.shape("clip/patch_embed/kernel")
    _, grid = table_kind(file, file.state[file.keys["clip/pos_embed"][0]], 1, None)
    if grid is None:
        raise ask(file, "image_size", "the image size", "--image_size=224,224")
    projection = file.shape("clip/proj/kernel") if "clip/proj/kernel" in file else (None, None)
    return {
        "width": width,
        "depth": file.blocks("clip"),
        "patch": patch,
        "pos_grid": grid,
        # a plain matrix [width proj] in OpenAI's files, a linear layer in others
        "proj_dim": projection[1] if file.layout == "clip_openai" else projection[0],
        "mlp_ratio": file.shape("clip/block_00/mlp/fc1/kernel")[0] / width,
    }


def decoders(file: FileTensors) -> dict[str, Settings]:
    """Return settings of the networks behind the encoder, without heads.

    Returns:
      {field of the method: settings}: {"decoder": {"width": 512, "depth": 8}}.
    """
    out: dict[str, Settings] = {}
    if "decoder/embed/kernel" in file:  # MAE's
        out["decoder"] = sized(file, "decoder", "decoder/embed/kernel")
    for name in ("pixel_decoder", "feature_decoder"):
        if file.has(name):
            out[name] = sized(file, name, f"{name}/down/kernel")
            out[name]["inject"] = f"{name}/block_00/cross/q/kernel" in file
    if file.has("regressor"):
        width, depth = file.shape("regressor/mask_token")[-1], file.blocks("regressor")
        gamma = scaled(file, "regressor/block_00/gamma_1_cross")
        out["regressor"] = {
            "width": width,
            "depth": depth,
            "layer_scale": SCALED if gamma else None,
        }
        out["decoder"] = {
            "depth": file.blocks("decoder"),
            "layer_scale": SCALED if scaled(file, "decoder/block_00/gamma_1") else None,
        }
        for name, kernel in (("regressor", "mlp_cross/fc1"), ("decoder", "mlp/fc1")):
            if out[name]["depth"]:
                hidden = file.shape(f"{name}/block_00/{kernel}/kernel")[0]
                out[name]["mlp_ratio"] = ratio(hidden, width)
    return out


def sized(file: FileTensors, root: str, projection: str) -> Settings:
    """Return width and depth of the decoder `root`.

    Args:
      root: name of the decoder.
      projection: path of the linear layer before it, whose outputs have its width.
    """
    return {"width": file.shape(projection)[0], "depth": file.blocks(root)}


def inner_width(file: FileTensors, root: str) -> int:
    """Return the width of queries in a network's attention: heads * (width // heads)."""
    kernel = f"{root}/block_00/attn/qkv/kernel"
    if kernel in file:
        return file.shape(kernel)[0] // 3
    return file.shape(f"{root}/block_00/cross_attn/q/kernel")[0]


def vocabulary(file: FileTensors) -> int:
    """Return the number of outputs of the head that predicts targets; 0 = no head."""
    heads = ("head/linear/kernel", "decoder/head/kernel")
    return next((file.shape(p)[0] for p in heads if p in file), 0)


def ask(file: FileTensors, argument: str, what: str, example: str) -> ConfigError:
    """Return the error that asks the user for a size that no tensor shows.

    Args:
      file: the file's tensors.
      argument: name of the argument in Python.
      what: what is asked for, in words.
      example: flag with an example value.
    """
    return ConfigError(
        f"{file.where}: {what} cannot be told from its tensors; give it: {example} "
        f"({argument}= in Python)"
    )
