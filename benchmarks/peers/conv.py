"""MCMAE (ConvMAE) and MR-MAE in PyTorch, on convolutional stages and a transformer.

As in mimjax, stages are computed at visible patches alone: a patch is a cell of side x side
positions, an image of its own to all convolutions; the 5x5 depthwise one reads a border of two
positions around it, with zeros at masked patches. `dense` computes all positions instead and sets
masked ones to zero before the depthwise convolution, as the official code does.
"""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.peers import frozen
from benchmarks.peers.layers import (
    Batch,
    Decoder,
    Peer,
    Settings,
    gather,
    norm,
    patchify,
    pixels,
    sincos,
)

EPS = 1e-5  # of the norms in the stages


class ChannelNorm(nn.LayerNorm):
    """LayerNorm over the channels of [b c h w]."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class PatchEmbed(nn.Module):
    """Convolution with stride = kernel size, norm, GELU."""

    def __init__(self, channels: int, width: int, stride: int):
        super().__init__()
        self.proj = nn.Conv2d(channels, width, stride, stride)
        self.norm = ChannelNorm(width, eps=EPS)

    def forward(self, x: Tensor) -> Tensor:
        return F.gelu(self.norm(self.proj(x)))


class ConvMlp(nn.Module):
    """Two 1x1 convolutions with a GELU between."""

    def __init__(self, width: int, ratio: float):
        super().__init__()
        self.fc1 = nn.Conv2d(width, int(width * ratio), 1)
        self.fc2 = nn.Conv2d(int(width * ratio), width, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class CBlock(nn.Module):
    """ConvMAE's convolutional block."""

    def __init__(self, width: int, ratio: float):
        super().__init__()
        self.norm1, self.norm2 = ChannelNorm(width, eps=EPS), ChannelNorm(width, eps=EPS)
        self.conv1, self.conv2 = nn.Conv2d(width, width, 1), nn.Conv2d(width, width, 1)
        self.attn = nn.Conv2d(width, width, 5, padding=2, groups=width)
        self.mlp = ConvMlp(width, ratio)

    def forward(self, x: Tensor, cells: Cells) -> Tensor:
        y = cells.depthwise(self.conv1(self.norm1(x)), self.attn)
        x = x + self.conv2(y)
        return x + self.mlp(self.norm2(x))


class Cells:
    """The positions that the stages compute, and how the depthwise convolution reads around them.

    Attributes:
      ids: of the visible patches, [b v].
      grid: rows and columns of patches.
      dense: whether x is whole maps [b c h w]; else it is the visible cells [b*v c side side].
    """

    def __init__(self, ids: Tensor, grid: tuple[int, int], dense: bool):
        self.ids, self.grid, self.dense = ids, grid, dense
        self.count = grid[0] * grid[1]

    def begin(self, images: Tensor, patch: int) -> Tensor:
        """Return what the first stage reads of images."""
        if self.dense:
            return images
        x = gather(patchify(images, patch), self.ids)
        return x.reshape(-1, patch, patch, images.shape[1]).permute(0, 3, 1, 2)

    def depthwise(self, x: Tensor, conv: nn.Conv2d) -> Tensor:
        """Return the 5x5 depthwise convolution of visible positions."""
        b, (rows, columns) = len(self.ids), self.grid
        if self.dense:
            shown = torch.zeros(b, self.count, device=x.device, dtype=x.dtype)
            shown = shown.scatter(1, self.ids, 1.0).unflatten(1, (1, rows, columns))
            return conv(x * F.interpolate(shown, x.shape[2:]))
        side, c = x.shape[2], x.shape[1]
        # cells into maps, each with a border of two; then the cells with their surroundings
        maps = x.new_zeros(b, self.count, c, side, side)
        index = torch.arange(b, device=x.device)[:, None], self.ids
        maps = maps.index_put(index, x.unflatten(0, (b, -1)))
        maps = maps.unflatten(1, (rows, columns)).permute(0, 3, 1, 4, 2, 5)
        maps = F.pad(maps.reshape(b, c, rows * side, columns * side), (2, 2, 2, 2))
        around = maps.unfold(2, side + 4, side).unfold(3, side + 4, side)  # [b c rows columns h w]
        around = around.permute(0, 2, 3, 1, 4, 5).flatten(1, 2)[index].flatten(0, 1)
        return F.conv2d(around, conv.weight, conv.bias, groups=c)

    def end(self, x: Tensor) -> Tensor:
        """Return tokens [b v c] of visible patches, one position each."""
        if self.dense:
            return gather(x.flatten(2).transpose(1, 2), self.ids)
        return x.flatten(1).unflatten(0, (len(self.ids), -1))


class MCMAE(Peer, Decoder):
    """MCMAE; with `fuse_layers` the encoder of MR-MAE."""

    LAYOUT = "mcmae"
    dense = False

    def __init__(self, s: Settings):
        super().__init__()
        e = s.encoder
        (a, b), width = e["stage_widths"], e["width"]
        one, two, three = e["strides"]
        self.patch = one * two * three
        self.grid = s.grid(self.patch)
        self.visible = self.grid[0] * self.grid[1] - s.masked
        self.patch_embed1 = PatchEmbed(3, a, one)
        self.patch_embed2 = PatchEmbed(a, b, two)
        self.patch_embed3 = PatchEmbed(b, width, three)
        self.patch_embed4 = nn.Linear(width, width)
        (deep1, deep2), (wide1, wide2) = e["stage_depths"], e["stage_mlp_ratios"]
        self.blocks1 = nn.ModuleList(CBlock(a, wide1) for _ in range(deep1))
        self.blocks2 = nn.ModuleList(CBlock(b, wide2) for _ in range(deep2))
        self.blocks3 = nn.ModuleList(s.block() for _ in range(e["depth"]))
        self.stage1_output_decode = nn.Conv2d(a, width, two * three, two * three)
        self.stage2_output_decode = nn.Conv2d(b, width, three, three)
        self.norm, self.fuse = norm(width), e["fuse_layers"]
        self.how, self.weights = s.method["pixel_target"]["norm"], s.weights
        table = sincos(self.grid, width, "xy")
        self.register_buffer("positions", table, persistent=False)
        self.build_decoder(s)

    def encode(self, images: Tensor, ids: Tensor) -> Tensor:
        """Return the tokens [b v d] of visible patches after the norm."""
        cells, fused = Cells(ids, self.grid, self.dense), []
        x = cells.begin(images, self.patch)
        for k in (1, 2):
            x = getattr(self, f"patch_embed{k}")(x)
            for block in getattr(self, f"blocks{k}"):
                x = block(x, cells)
            fused.append(cells.end(getattr(self, f"stage{k}_output_decode")(x)))
        x = self.patch_embed4(cells.end(self.patch_embed3(x))) + self.positions[ids]
        outputs = []
        for block in self.blocks3:
            x = block(x)
            outputs.append(x)
        return self.norm(sum([outputs[i] for i in self.fuse] + fused))

    def forward(self, batch: Batch) -> Tensor:
        ids_v, ids_m = self.ids(batch["mask"])
        return self.reconstruct(self.encode(batch["image"], ids_v), batch, ids_v, ids_m)

    def reconstruct(self, x: Tensor, batch: Batch, ids_v: Tensor, ids_m: Tensor) -> Tensor:
        """Return the squared error of masked pixels, in the mean."""
        target = gather(pixels(patchify(batch["image"], self.patch), self.how), ids_m)
        return F.mse_loss(self.decode(x, ids_v, ids_m), target)


class DenseMCMAE(MCMAE):
    """MCMAE whose stages compute all positions, as the official code."""

    dense = True


class MRMAE(MCMAE):
    """MR-MAE: pixels of masked patches, CLIP's features of visible ones."""

    FROZEN = ("teacher",)
    NETWORKS: ClassVar = {"teacher": "clip"}

    def __init__(self, s: Settings):
        super().__init__(s)
        self.teacher = frozen.CLIP(s.method["mimic_target"], self.grid[0], s.sdpa)
        self.mimic_head = nn.Linear(s.encoder["width"], self.teacher.width)

    def targets(self, batch: Batch) -> Batch:
        if "looks" in batch:
            x, looks = batch["features"], batch["looks"]
        else:
            hidden, looks = self.teacher.with_attention(batch["target"])
            x = hidden[:, 1:]
        order = looks.argsort(dim=1, descending=True, stable=True)
        ids_v = order[:, : self.visible].sort(dim=1).values
        ids_m = order[:, self.visible :].sort(dim=1).values
        x = gather(x, ids_v)
        x = x if "looks" in batch else self.teacher.read(x)
        return batch | {"features": x, "ids_v": ids_v, "ids_m": ids_m}

    def forward(self, batch: Batch) -> Tensor:
        ids_v, ids_m = batch["ids_v"], batch["ids_m"]
        x = self.encode(batch["image"], ids_v)
        pixel = self.reconstruct(x, batch, ids_v, ids_m)
        mimic = F.mse_loss(self.mimic_head(x), batch["features"])
        return self.weights["pixel"] * pixel + self.weights["mimic"] * mimic


class DenseMRMAE(MRMAE):
    """MR-MAE whose stages compute all positions."""

    dense = True
