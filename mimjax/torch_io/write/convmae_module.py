"""MCMAE's encoder as a PyTorch module, for the files that `--format=convmae` writes.

No class of timm or transformers has convolutional stages before a ViT. The module follows
`models.conv_vit` for whole images, without masks; its parameters have the official names. It needs
torch and, of mimjax, only the reader of files.

    model = ConvMAE.from_file("encoder.pth", heads=12).eval()
    tokens = model(images)  # [b n d] after the final norm
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mimjax.errors import ConfigError
from mimjax.torch_io.read import load

STAGE_EPS, EPS = 1e-5, 1e-6  # epsilon of the LayerNorms in the stages, and of all others


class PatchEmbed(nn.Module):
    """Strided convolution, LayerNorm over channels and GELU on maps [b c h w]."""

    def __init__(self, channels: int, width: int, stride: int):
        super().__init__()
        self.proj = nn.Conv2d(channels, width, stride, stride)
        self.norm = nn.LayerNorm(width, STAGE_EPS)

    def forward(self, x: Tensor) -> Tensor:
        return F.gelu(over_channels(self.norm, self.proj(x)))


class Mlp(nn.Module):
    """Two layers with an exact GELU between them; `layer(inputs, outputs)` makes a layer."""

    def __init__(self, width: int, hidden: int, layer: Any):
        super().__init__()
        self.fc1, self.fc2 = layer(width, hidden), layer(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class ConvBlock(nn.Module):
    """Residual block on maps [b c h w].

    It has 1x1, 5x5 depthwise and 1x1 convolutions, then an MLP of 1x1 convolutions.
    """

    def __init__(self, width: int, hidden: int):
        super().__init__()
        pointwise = lambda a, b: nn.Conv2d(a, b, 1)
        self.norm1, self.norm2 = (nn.LayerNorm(width, STAGE_EPS) for _ in range(2))
        self.conv1, self.conv2 = pointwise(width, width), pointwise(width, width)
        self.attn = nn.Conv2d(width, width, 5, padding=2, groups=width)  # the official name
        self.mlp = Mlp(width, hidden, pointwise)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.conv2(self.attn(self.conv1(over_channels(self.norm1, x))))
        return x + self.mlp(over_channels(self.norm2, x))


class Attention(nn.Module):
    """Multi-head self-attention on tokens [b n d]."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        b, n, d = x.shape
        q, k, v = self.qkv(x).view(b, n, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        out = F.scaled_dot_product_attention(q, k, v)
        return self.proj(out.transpose(1, 2).reshape(b, n, d))


class Block(nn.Module):
    """Pre-norm transformer block on tokens [b n d]."""

    def __init__(self, width: int, hidden: int, heads: int):
        super().__init__()
        self.norm1, self.norm2 = (nn.LayerNorm(width, EPS) for _ in range(2))
        self.attn = Attention(width, heads)
        self.mlp = Mlp(width, hidden, nn.Linear)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class ConvMAE(nn.Module):
    """Encoder of two convolutional stages and a transformer.

    Args:
      shapes: {name: shape} of a file's tensors, from which all sizes but `heads` are derived.
      heads: number of attention heads: 12 for B, 6 for S, 16 for L and H.

    Raises:
      ConfigError: `heads` does not divide the width.
    """

    def __init__(self, shapes: dict[str, tuple[int, ...]], heads: int):
        super().__init__()
        self.patch_embed1, self.patch_embed2, self.patch_embed3 = (
            PatchEmbed(s[1], s[0], s[2])
            for s in (shapes[f"patch_embed{k}.proj.weight"] for k in (1, 2, 3))
        )
        width = shapes["patch_embed4.weight"][0]
        if width % heads:
            raise ConfigError(f"heads: {heads}; allowed: divisors of the width {width}")
        depth = lambda name: len({k.split(".")[1] for k in shapes if k.startswith(f"{name}.")})
        hidden = lambda name: [shapes[f"{name}.{i}.mlp.fc1.weight"][:2] for i in range(depth(name))]
        self.blocks1, self.blocks2 = (
            nn.ModuleList(ConvBlock(w, h) for h, w in hidden(f"blocks{k}")) for k in (1, 2)
        )
        self.patch_embed4 = nn.Linear(width, width)
        self.pos_embed = nn.Parameter(torch.zeros(shapes["pos_embed"]))
        self.blocks3 = nn.ModuleList(Block(w, h, heads) for h, w in hidden("blocks3"))
        self.norm = nn.LayerNorm(width, EPS)

    @classmethod
    def from_file(cls, path: str, heads: int) -> ConvMAE:
        """Return the encoder in a file that has no other network.

        Args:
          path: file that `--format=convmae` wrote without --decoder.
          heads: number of attention heads.

        Raises:
          ConfigError: there is no such file, it has other networks, or it lacks keys.
        """
        state = load.read_file(path)
        try:
            model = cls({k: tuple(v.shape) for k, v in state.items()}, heads)
            model.load_state_dict({k: torch.from_numpy(v) for k, v in state.items()})
        except (KeyError, RuntimeError) as error:
            reason = " ".join(str(error).split())[:300]
            raise ConfigError(f"{path}: no encoder of MCMAE alone: {reason}") from None
        return model

    def stages(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return maps [b c h w] at strides 4, 8 and 16 for dense prediction, without final norm.

        Args:
          images: normalized, [b 3 h w]. They may have another size than in training if the training
            images were square; positions are then interpolated.
        """
        first = self.patch_embed1(images)
        for block in self.blocks1:
            first = block(first)
        second = self.patch_embed2(first)
        for block in self.blocks2:
            second = block(second)
        third = self.patch_embed3(second)
        grid = third.shape[2:]
        x = self.patch_embed4(third.flatten(2).transpose(1, 2)) + self.table(*grid)
        for block in self.blocks3:
            x = block(x)
        return first, second, x.transpose(1, 2).unflatten(2, grid)

    def table(self, height: int, width: int) -> Tensor:
        """Return the positions of a grid, [1 h*w d], interpolated if it is another one."""
        table = self.pos_embed
        if height * width == table.shape[1]:
            return table
        side = round(table.shape[1] ** 0.5)
        square = table.transpose(1, 2).unflatten(2, (side, side))
        new = F.interpolate(square, (height, width), mode="bicubic", align_corners=False)
        return new.flatten(2).transpose(1, 2)

    def forward(self, images: Tensor) -> Tensor:
        """Return tokens [b n d] after the final norm."""
        return self.norm(self.stages(images)[2].flatten(2).transpose(1, 2))


def over_channels(norm: nn.Module, x: Tensor) -> Tensor:
    """Return maps [b c h w] with the norm applied over the channels of each position."""
    return norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
