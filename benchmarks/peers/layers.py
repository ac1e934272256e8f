"""What several peers are made of: patches, positions, blocks, an encoder, MAE's decoder."""

from __future__ import annotations

import functools
from typing import Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Batch = dict[str, Tensor]
norm = functools.partial(nn.LayerNorm, eps=1e-6)


class Settings(NamedTuple):
    """What a peer is built from.

    Attributes:
      method: the settings of mimjax's method under their names, nested.
      weights: the factor of each term at the step that is timed.
      masked: number of masked patches.
      sdpa: whether attention is PyTorch's `scaled_dot_product_attention`.
    """

    method: dict[str, Any]
    weights: dict[str, float]
    masked: int
    sdpa: bool = True

    @property
    def encoder(self) -> dict[str, Any]:
        """The settings of the encoder."""
        return self.method["encoder"]

    def block(self, qv: bool = False) -> Block:
        """A block of the encoder."""
        e = self.encoder
        scale = e.get("layer_scale")
        return Block(e["width"], e["heads"], self.sdpa, e["mlp_ratio"], qv, scale)

    def grid(self, patch: int) -> tuple[int, int]:
        """Rows and columns of patches of this side."""
        height, width = self.encoder["image_size"]
        return height // patch, width // patch


class Peer(nn.Module):
    """Base class: one method with its frozen networks.

    Attributes:
      visible: number of patches that the encoder sees.
      decay: of the moving average, where the method has one.
      LAYOUT: the published checkpoints that its parameters are named after.
      FROZEN: names of submodules that nothing trains.
      NETWORKS: {submodule: the network that fills it}.
    """

    LAYOUT: ClassVar[str]
    positions: Tensor
    FROZEN: ClassVar[tuple[str, ...]] = ()
    NETWORKS: ClassVar[dict[str, str]] = {}
    visible: int
    decay: float = 1.0

    def targets(self, batch: Batch) -> Batch:
        """Return the batch with what frozen and averaged networks make of it, without a gradient.

        Args:
          batch: "image" [b c h w] and, where masks are drawn by the host, "mask" bool [b n]; a
            teacher's own view is "target".
        """
        return batch

    def forward(self, batch: Batch) -> Tensor:
        """Return the loss."""
        raise NotImplementedError(type(self).__name__)

    def fill(self, state: dict[str, Tensor]) -> None:
        """Load the weights of an official checkpoint; each parameter must be there, and no other.

        Fixed positions are computed and not read. A moving average begins as a copy.
        """
        computed = ("pos_embed", "relative_position_index")
        state = {k: v for k, v in state.items() if not k.endswith(computed)}
        missing, unread = self.load_state_dict(state, strict=False)
        missing = [k for k in missing if k.partition(".")[0] not in self.FROZEN]
        assert not [*missing, *unread], f"missing: {missing}; not read: {unread}"

    def updated(self) -> None:
        """Do what follows the optimizer's update: average weights, where the method does."""

    def ids(self, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Return the ids of visible [b v] and of masked [b m] patches, each in raster order."""
        order = mask.to(torch.uint8).argsort(dim=1, stable=True)
        return order[:, : self.visible], order[:, self.visible :]


# ------------------------------------------------------------------ patches and positions
def patchify(images: Tensor, patch: int) -> Tensor:
    """Return patches [b n p*p*c] in the order (row, column, channel)."""
    b, c, height, width = images.shape
    x = images.reshape(b, c, height // patch, patch, width // patch, patch)
    return x.permute(0, 2, 4, 3, 5, 1).reshape(b, -1, patch * patch * c)


def gather(x: Tensor, ids: Tensor) -> Tensor:
    """Return rows `ids` [b k] of x [b n d]."""
    return x.gather(1, ids[..., None].expand(-1, -1, x.shape[-1]))


def standardize(x: Tensor, eps: float = 1e-6, correction: int = 0) -> Tensor:
    """Return x less its mean, over the root of its variance plus eps, along the last axis."""
    var, mean = torch.var_mean(x, -1, keepdim=True, correction=correction)
    return (x - mean) * (var + eps).rsqrt()


def pixels(patches: Tensor, how: str) -> Tensor:
    """Return the pixels that are predicted; `how` is the setting `pixel_target.norm`."""
    if how == "patch":
        return standardize(patches, correction=1)
    if how == "channel":
        x = patches.unflatten(-1, (-1, 3)).transpose(-1, -2)
        return standardize(x, 1e-5).transpose(-1, -2).flatten(-2)
    return patches


def sincos(grid: tuple[int, int], width: int, order: str) -> Tensor:
    """Return fixed positions [n width]; `order` says which coordinate comes first, "xy" or "yx"."""
    quarter = width // 4
    rate = 10000.0 ** -(torch.arange(quarter, dtype=torch.float64) / quarter)
    y, x = (t.flatten() for t in torch.meshgrid(*map(torch.arange, grid), indexing="ij"))
    turns = [c[:, None] * rate for c in ((x, y) if order == "xy" else (y, x))]
    return torch.cat([f(t) for t in turns for f in (torch.sin, torch.cos)], 1).float()


class PatchEmbed(nn.Module):
    """The patch convolution, computed as a product with patches that were cut before."""

    def __init__(self, patch: int, width: int):
        super().__init__()
        self.proj = nn.Conv2d(3, width, patch, patch)

    def forward(self, patches: Tensor) -> Tensor:
        return F.linear(patches, self.proj.weight.permute(0, 2, 3, 1).flatten(1), self.proj.bias)


# ------------------------------------------------------------------ blocks
def attend(q: Tensor, k: Tensor, v: Tensor, sdpa: bool, bias: Tensor | None = None) -> Tensor:
    """Return attention of queries, keys and values [b t h d], the heads side by side again.

    Args:
      sdpa: whether PyTorch's fused function computes it.
      bias: added to the logits, [1 h t t].
    """
    q, k, v = (t.transpose(1, 2) for t in (q, k, v))
    if sdpa:
        out = F.scaled_dot_product_attention(q, k, v, bias)
    else:
        logits = q * q.shape[-1] ** -0.5 @ k.transpose(-2, -1)
        out = (logits if bias is None else logits + bias).softmax(-1) @ v
    return out.transpose(1, 2).flatten(-2)


class Attention(nn.Module):
    """Self-attention, or attention to a context; a head has floor(width / heads) numbers.

    Attributes:
      sdpa: see `attend`.
    """

    def __init__(self, width: int, heads: int, qv: bool, context: int | None, sdpa: bool):
        """Make the layers.

        Args:
          qv: whether keys have no bias, as BEiT's, BootMAE's and CAE's.
          context: width of the tokens that make keys and values; None = queries make them.
        """
        super().__init__()
        inner = heads * (width // heads)
        self.heads, self.qv, self.sdpa = heads, qv, sdpa
        if context is None:
            self.qkv = nn.Linear(width, 3 * inner, bias=not qv)
        else:
            self.q = nn.Linear(width, inner, bias=False)
            self.kv = nn.Linear(context, 2 * inner, bias=False)
        if qv:
            self.q_bias = nn.Parameter(torch.zeros(inner))
            self.v_bias = nn.Parameter(torch.zeros(inner))
        self.proj = nn.Linear(inner, width)

    def forward(self, x: Tensor, context: Tensor | None = None, bias: Tensor | None = None):
        split = lambda t, parts: t.unflatten(-1, (parts, self.heads, -1)).unbind(2)
        if context is not None:
            (q,) = split(F.linear(x, self.q.weight, self.q_bias), 1)
            side = torch.cat((torch.zeros_like(self.v_bias), self.v_bias))
            k, v = split(F.linear(context, self.kv.weight, side), 2)
        elif self.qv:
            side = torch.cat((self.q_bias, torch.zeros_like(self.q_bias), self.v_bias))
            q, k, v = split(F.linear(x, self.qkv.weight, side), 3)
        else:
            q, k, v = split(self.qkv(x), 3)
        return self.proj(attend(q, k, v, self.sdpa, bias))


class Mlp(nn.Module):
    """Linear, GELU (erf), linear."""

    def __init__(self, width: int, ratio: float):
        super().__init__()
        self.fc1 = nn.Linear(width, int(width * ratio))
        self.fc2 = nn.Linear(int(width * ratio), width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class Block(nn.Module):
    """A pre-norm transformer block, in the operations of timm's."""

    def __init__(
        self,
        width: int,
        heads: int,
        sdpa: bool,
        ratio: float = 4.0,
        qv: bool = False,
        scale: float | None = None,
    ):
        """Make the layers; `scale` is that of the residual branches at first, None = there is none.

        The rest as in `Attention` and `Mlp`.
        """
        super().__init__()
        self.norm1, self.norm2 = norm(width), norm(width)
        self.attn = Attention(width, heads, qv, None, sdpa)
        self.mlp = Mlp(width, ratio)
        self.scaled = bool(scale)
        if scale:
            self.gamma_1 = nn.Parameter(torch.full((width,), scale))
            self.gamma_2 = nn.Parameter(torch.full((width,), scale))

    def forward(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        y = self.attn(self.norm1(x), None, bias)
        x = x + (self.gamma_1 * y if self.scaled else y)
        y = self.mlp(self.norm2(x))
        return x + (self.gamma_2 * y if self.scaled else y)


# ------------------------------------------------------------------ encoder and decoder
class Encoder(Peer):
    """A plain ViT over [CLS, patches], with fixed positions or a shared relative bias.

    The methods whose official files have the encoder's parameters at the top derive from it.
    """

    def __init__(self, s: Settings, order: str, qv: bool):
        """Make the layers.

        Args:
          order: see `sincos`; "" = no fixed positions.
          qv: see `Attention`.
        """
        super().__init__()
        e = s.encoder
        self.patch, width = e["patch"], e["width"]
        self.grid = s.grid(self.patch)
        self.visible = self.grid[0] * self.grid[1] - s.masked
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.patch_embed = PatchEmbed(self.patch, width)
        self.blocks = nn.ModuleList(s.block(qv) for _ in range(e["depth"]))
        self.norm = norm(width)
        if order:
            self.register_buffer("positions", sincos(self.grid, width, order), persistent=False)

    def encode(self, patches: Tensor, ids: Tensor | None = None) -> list[Tensor]:
        """Return the output of each block [b 1+k d] for patches `ids`, before the final norm."""
        if ids is None:
            x = self.patch_embed(patches) + self.positions
        else:
            x = self.patch_embed(gather(patches, ids)) + self.positions[ids]
        return self.run(x)

    def run(self, x: Tensor, *args: Any) -> list[Tensor]:
        """Return the output of each block for embedded patches x; CLS is put before them."""
        x, outputs = torch.cat([self.cls_token.expand(len(x), -1, -1), x], 1), []
        for block in self.blocks:
            x = block(x, *args)
            outputs.append(x)
        return outputs


class Decoder:
    """MAE's decoder, for classes whose official files have its parameters at the top."""

    mask_token: Tensor
    decoder_positions: Tensor

    def build_decoder(self: Any, s: Settings) -> None:
        """Make the layers; the class has `grid` and `patch` already."""
        d, patch = s.method["decoder"], self.patch
        self.mask_token = nn.Parameter(torch.zeros(1, 1, d["width"]))
        self.decoder_embed = nn.Linear(s.encoder["width"], d["width"])
        make = lambda: Block(d["width"], d["heads"], s.sdpa, d["mlp_ratio"])
        self.decoder_blocks = nn.ModuleList(make() for _ in range(d["depth"]))
        self.decoder_norm = norm(d["width"])
        self.decoder_pred = nn.Linear(d["width"], patch * patch * 3)
        table = sincos(self.grid, d["width"], "xy")
        self.register_buffer("decoder_positions", table, persistent=False)

    def decode(self: Any, tokens: Tensor, ids_v: Tensor, ids_m: Tensor) -> Tensor:
        """Return predictions for the masked patches; tokens are [prefix, visible patches]."""
        x = self.decoder_embed(tokens)
        prefix = x.shape[1] - ids_v.shape[1]
        seen = x[:, prefix:] + self.decoder_positions[ids_v]
        hidden = self.mask_token + self.decoder_positions[ids_m]
        x = torch.cat([x[:, :prefix], seen, hidden], 1)
        for block in self.decoder_blocks:
            x = block(x)
        return self.decoder_pred(self.decoder_norm(x[:, prefix + ids_v.shape[1] :]))
