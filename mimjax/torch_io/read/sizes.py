"""Sizes of networks from a file: layout and tensors in, settings of our modules out.

The file's keys become our parameter paths by the layout's table, so that one function per network
serves every layout. What no tensor shows (how many heads a width is split into, unless there are
relative positions) is left out; who asks must know it.
"""

from __future__ import annotations

import re
from typing import Any

import numpy as np

from mimjax.errors import ConfigError
from mimjax.torch_io.read import detect, positions
from mimjax.torch_io.read.files import State

Settings = dict[str, Any]
BUFFERS = ("relative_position_index", "position_ids", "num_batches_tracked")
SCALED = 0.1  # a start value of layer scales, where the config has none


class Held:
    """The tensors of a file under our paths, in their layout.

    Attributes:
      keys: our path -> their keys.
      about: see `files.File`.
    """

    def __init__(
        self,
        state: State,
        layout: str,
        where: str = "checkpoint",
        about: dict[str, str] | None = None,
    ):
        self.state, self.layout, self.where, self.about = state, layout, where, about or {}
        self.keys: dict[str, tuple[str, ...]] = {}
        for row in detect.TABLES[layout][0]:
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
        return path in self.keys

    def has(self, root: str) -> bool:
        """Whether any parameter of the network is there."""
        return any(path.startswith(f"{root}/") for path in self.keys)

    def shape(self, path: str) -> tuple[int, ...]:
        """Of their tensor, several of them stacked.

        Raises:
          ConfigError: it is missing, so that nothing can be derived from it.
        """
        if path not in self.keys:
            rows = [r for r in detect.TABLES[self.layout][0] if r.ours == path]
            key = rows[0].keys[0] if rows else path
            raise ConfigError(f"{self.where}: no {key}, which layout {self.layout!r} begins with")
        parts = [self.state[k].shape for k in self.keys[path]]
        return (sum(p[0] for p in parts), *parts[0][1:]) if len(parts) > 1 else parts[0]

    def blocks(self, root: str, name: str = "block") -> int:
        """How many blocks root/block_00, root/block_01, ... there are."""
        found = {m[1] for p in self.keys if (m := re.match(rf"{root}/{name}_(\d+)/", p))}
        return len(found)

    def unread(self, read: set[str]) -> list[str]:
        """Keys of the file that neither our paths `read` nor a fixed position table needs."""
        known = {k for p in read for k in self.keys.get(p, ())} | detect.TABLES[self.layout][
            1
        ].keys()
        return sorted(self.state.keys() - known)

    def check_blocks(self) -> None:
        """Every tensor in the encoder's blocks has a place: one left out is another function.

        Raises:
          ConfigError: window attention's positions, norms of queries and keys, ...
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
    """The MLP ratio whose int(width * ratio) is `hidden`."""
    value = hidden / width
    return value if int(width * value) == hidden else (hidden + 0.5) / width


def scaled(held: Held, path: str) -> bool:
    """Whether a layer scale is there and is one: CAE's code keeps ones for none."""
    return path in held and not np.all(held.state[held.keys[path][0]] == 1.0)


def patches(held: Held, root: str, image_size: tuple[int, int] | None) -> Settings:
    """Patch and image size and the kind of positions, of the network at `root`.

    Args:
      image_size: (height, width) if the caller knows it; needed where the patches fill no square.
    """
    kernel = held.shape(f"{root}/patch_embed/kernel")
    if len(kernel) != 4 or kernel[2] != kernel[3]:
        raise ConfigError(f"{held.where}: patches of {list(kernel)}; allowed: square patches")
    patch, relative = kernel[2], [p for p in held.keys if "/rel_pos" in p]
    known = (image_size[0] // patch, image_size[1] // patch) if image_size else None
    kind, grid = "none", known
    if table := position_table(held, root):
        kind, grid = table_kind(held, held.state[table][0], 1, known)
    elif relative and not known:
        grid = positions.square(held.shape(relative[0])[0], absolute=False)
    if grid is None:
        raise ask(held, "image_size", "the image size", "--image_size=224,224")
    return {
        "patch": patch,
        "pos_embed": kind,
        "image_size": (grid[0] * patch, grid[1] * patch),
        "rel_pos": "none"
        if not relative
        else "shared"
        if f"{root}/rel_pos/table" in held
        else "per_block",
    }


def position_table(held: Held, root: str) -> str | None:
    """The key of the network's positions, fixed or learned."""
    if f"{root}/pos_embed" in held:
        return held.keys[f"{root}/pos_embed"][0]
    fixed = [k for k, net in detect.TABLES[held.layout][1].items() if net == root]
    return next((k for k in fixed if k in held.state), None)


def table_kind(
    held: Held, table: np.ndarray, prefix: int, grid: tuple[int, int] | None
) -> tuple[str, tuple[int, int] | None]:
    """The kind of positions (see `vit.ViT.pos_embed`) and the grid, None if it cannot be told."""
    count = table.shape[0] - prefix
    if grid and grid[0] * grid[1] != count:
        grid = None  # positions of another size: they will be resized
    plain = not prefix or not table[0].any()  # a fixed table has zeros for CLS
    if plain and (found := positions.fixed(table[prefix:], grid)):
        return found
    side = round(count**0.5)
    return "learned", grid or ((side, side) if side * side == count else None)


def vit(held: Held, root: str = "encoder", image_size: tuple[int, int] | None = None) -> Settings:
    """Settings of `models.vit.ViT`, without heads unless relative positions show them."""
    width = held.shape(f"{root}/patch_embed/kernel")[0]
    first = f"{root}/block_00"
    out = patches(held, root, image_size) | {
        "width": width,
        "depth": held.blocks(root),
        "mlp_ratio": ratio(held.shape(f"{first}/mlp/fc1/kernel")[0], width),
        "bias": attention_bias(held, root),
        "layer_scale": SCALED if scaled(held, f"{first}/gamma_1") else None,
        "use_mask_token": f"{root}/mask_token" in held,
    }
    tables = [p for p in held.keys if p.startswith(f"{root}/rel_pos")]
    return out | ({"heads": held.shape(tables[0])[1]} if tables else {})


def attention_bias(held: Held, root: str) -> str:
    """Whether q, k and v have biases ("full") or q and v alone ("qv")."""
    return "full" if f"{root}/block_00/attn/qkv/bias" in held else "qv"


def no_key_bias(held: Held, root: str) -> bool:
    """Whether the keys of all blocks have zero biases, which "qv" is."""
    paths = [p for p in held.keys if re.fullmatch(rf"{root}/block_\d+/attn/qkv/bias", p)]
    stack = lambda p: np.concatenate([held.state[k] for k in held.keys[p]])
    return not any(np.split(stack(p), 3)[1].any() for p in paths)


def conv_vit(held: Held, image_size: tuple[int, int] | None = None) -> Settings:
    """Settings of `models.conv_stages.ConvViT`, without heads."""
    kernels = [held.shape(f"encoder/patch_embed{k}/proj/kernel") for k in (1, 2, 3)]
    strides = tuple(k[2] for k in kernels)
    patch, width = int(np.prod(strides)), kernels[2][0]
    table = position_table(held, "encoder")
    known = (image_size[0] // patch, image_size[1] // patch) if image_size else None
    kind, grid = table_kind(held, held.state[table][0], 0, known) if table else ("sincos_xy", known)
    if grid is None:
        raise ask(held, "image_size", "the image size", "--image_size=224,224")
    stage = lambda k: f"encoder/stage{k}_block_00"
    hidden = lambda p, w: ratio(held.shape(p)[0], w)
    return {
        "width": width,
        "depth": held.blocks("encoder"),
        "stage_widths": tuple(k[0] for k in kernels[:2]),
        "stage_depths": tuple(held.blocks("encoder", f"stage{k}_block") for k in (1, 2)),
        "stage_mlp_ratios": tuple(
            hidden(f"{stage(k)}/fc1/kernel", kernels[k - 1][0]) for k in (1, 2)
        ),
        "strides": strides,
        "image_size": (grid[0] * patch, grid[1] * patch),
        "mlp_ratio": hidden("encoder/block_00/mlp/fc1/kernel", width),
        "pos_embed": kind,
        "fuse_stages": "encoder/stage1_fuse/kernel" in held,
    }


def clip(held: Held) -> Settings:
    """Settings of `models.clip.CLIPVision`, without heads."""
    width, _, patch, _ = held.shape("clip/patch_embed/kernel")
    _, grid = table_kind(held, held.state[held.keys["clip/pos_embed"][0]], 1, None)
    if grid is None:
        raise ask(held, "image_size", "the image size", "--image_size=224,224")
    projection = held.shape("clip/proj/kernel") if "clip/proj/kernel" in held else (None, None)
    return {
        "width": width,
        "depth": held.blocks("clip"),
        "patch": patch,
        "pos_grid": grid,
        # a plain matrix [width proj] in OpenAI's files, a linear layer in others
        "proj_dim": projection[1] if held.layout == "clip_openai" else projection[0],
        "mlp_ratio": held.shape("clip/block_00/mlp/fc1/kernel")[0] / width,
    }


def decoders(held: Held) -> dict[str, Settings]:
    """Settings of the networks beside the encoder, without heads: {"decoder": {"width", ...}}."""
    out: dict[str, Settings] = {}
    if "decoder/embed/kernel" in held:  # MAE's
        out["decoder"] = sized(held, "decoder", "decoder/embed/kernel")
    for name in ("pixel_decoder", "feature_decoder"):
        if held.has(name):
            out[name] = sized(held, name, f"{name}/down/kernel")
            out[name]["inject"] = f"{name}/block_00/cross/q/kernel" in held
    if held.has("regressor"):
        width, depth = held.shape("regressor/mask_token")[-1], held.blocks("regressor")
        gamma = scaled(held, "regressor/block_00/gamma_1_cross")
        out["regressor"] = {
            "width": width,
            "depth": depth,
            "layer_scale": SCALED if gamma else None,
        }
        out["decoder"] = {
            "depth": held.blocks("decoder"),
            "layer_scale": SCALED if scaled(held, "decoder/block_00/gamma_1") else None,
        }
    return out


def sized(held: Held, root: str, projection: str) -> Settings:
    """Width and depth of a decoder behind a linear layer."""
    return {"width": held.shape(projection)[0], "depth": held.blocks(root)}


def inner_width(held: Held, root: str) -> int:
    """The width inside a network's attention: heads * (width // heads)."""
    kernel = f"{root}/block_00/attn/qkv/kernel"
    if kernel in held:
        return held.shape(kernel)[0] // 3
    return held.shape(f"{root}/block_00/cross_attn/q/kernel")[0]


def vocabulary(held: Held) -> int:
    """Rows of the head that predicts targets; 0 = none."""
    heads = ("head/linear/kernel", "decoder/head/kernel")
    return next((held.shape(p)[0] for p in heads if p in held), 0)


def ask(held: Held, argument: str, what: str, example: str) -> ConfigError:
    """The error that asks for what no tensor shows."""
    return ConfigError(
        f"{held.where}: {what} cannot be told from its tensors; give it: {example} "
        f"({argument}= in Python)"
    )
