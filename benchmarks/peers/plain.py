"""MAE, BootMAE and BEiT in PyTorch, whose official files have the encoder at the top."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import ViTMAEConfig, ViTMAEForPreTraining

from benchmarks.peers import frozen
from benchmarks.peers.layers import (
    Attention,
    Batch,
    Decoder,
    Encoder,
    Mlp,
    Peer,
    Settings,
    gather,
    norm,
    patchify,
    pixels,
    sincos,
    standardize,
)


class MAE(Encoder, Decoder):
    """MAE."""

    LAYOUT = "mae"

    def __init__(self, s: Settings):
        super().__init__(s, "xy", qv=False)
        self.build_decoder(s)
        self.how = s.method["pixel_target"]["norm"]

    def forward(self, batch: Batch) -> Tensor:
        patches = patchify(batch["image"], self.patch)
        ids_v, ids_m = self.ids(batch["mask"])
        x = self.norm(self.encode(patches, ids_v)[-1])
        return F.mse_loss(self.decode(x, ids_v, ids_m), gather(pixels(patches, self.how), ids_m))


class TransformersMAE(Peer):
    """MAE as the package transformers has it: all patches are embedded, all are predicted."""

    LAYOUT = "vitmae_transformers"

    def __init__(self, s: Settings):
        super().__init__()
        e, d = s.encoder, s.method["decoder"]
        n = e["image_size"][0] // e["patch"] * (e["image_size"][1] // e["patch"])
        config = ViTMAEConfig(
            hidden_size=e["width"],
            num_hidden_layers=e["depth"],
            num_attention_heads=e["heads"],
            intermediate_size=int(e["mlp_ratio"] * e["width"]),
            hidden_act="gelu",
            layer_norm_eps=1e-6,
            image_size=e["image_size"][0],
            patch_size=e["patch"],
            decoder_hidden_size=d["width"],
            decoder_num_hidden_layers=d["depth"],
            decoder_num_attention_heads=d["heads"],
            decoder_intermediate_size=4 * d["width"],
            mask_ratio=(s.masked - 0.5) / n,  # it rounds the visible share down
            norm_pix_loss=s.method["pixel_target"]["norm"] == "patch",
            attn_implementation="sdpa" if s.sdpa else "eager",  # pyright: ignore[reportCallIssue]
        )
        self.model = ViTMAEForPreTraining(config)
        table = lambda width: F.pad(sincos(s.grid(e["patch"]), width, "xy"), (0, 0, 1, 0))[None]
        self.tables = {
            "vit.embeddings.position_embeddings": table(e["width"]),
            "decoder.decoder_pos_embed": table(d["width"]),
        }

    def fill(self, state: dict[str, Tensor]) -> None:
        """Load a published checkpoint; the package renames its keys."""
        options: Any = {"config": self.model.config, "state_dict": state | self.tables}
        self.model, found = ViTMAEForPreTraining.from_pretrained(
            None, output_loading_info=True, **options
        )
        assert not [*found["missing_keys"], *found["unexpected_keys"]], found
        for name, parameter in self.model.train().named_parameters():
            parameter.requires_grad_(name not in self.tables)

    def forward(self, batch: Batch) -> Tensor:
        return self.model(batch["image"], noise=batch["mask"].float()).loss


# ------------------------------------------------------------------ BootMAE
class CrossBlock(nn.Module):
    """BootMAE's decoder block: self-attention, attention to the encoder, MLP."""

    def __init__(self, width: int, heads: int, context: int, sdpa: bool):
        super().__init__()
        self.norm1, self.norm2, self.norm3 = norm(width), norm(width), norm(width)
        self.norm4 = norm(context)
        self.attn = Attention(width, heads, True, None, sdpa)
        self.c_attn = Attention(width, heads, True, context, sdpa)
        self.mlp = Mlp(width, 4.0)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        x = x + self.c_attn(self.norm3(x), self.norm4(context))
        return x + self.mlp(self.norm2(x))


class PixelHead(nn.Module):
    """A transposed convolution whose stride is its kernel's side, as a product with tokens."""

    def __init__(self, width: int, patch: int):
        super().__init__()
        self.proj = nn.ConvTranspose2d(width, 3, patch, patch)

    def forward(self, x: Tensor) -> Tensor:
        weight = self.proj.weight.permute(2, 3, 1, 0).flatten(0, 2)
        assert self.proj.bias is not None
        return F.linear(x, weight, self.proj.bias.repeat(len(weight) // 3))


class BootMAE(Encoder):
    """BootMAE: pixels from the first block, features of the averaged encoder from the last."""

    LAYOUT = "bootmae"
    FROZEN = ("average",)

    def __init__(self, s: Settings):
        e, m = s.encoder, s.method
        width, heads = e["width"], e["heads"]
        super().__init__(s, "yx", qv=True)
        self.average = Encoder(s, "yx", qv=True)
        self.how, self.weights = m["pixel_target"]["norm"], s.weights
        self.inject = [m[k]["inject"] for k in ("pixel_decoder", "feature_decoder")]
        for suffix, name in (("", "pixel_decoder"), ("_1", "feature_decoder")):
            d = m[name]
            inner, inner_heads = d["width"] or width, d["heads"] or heads
            blocks = [CrossBlock(inner, inner_heads, width, s.sdpa) for _ in range(d["depth"])]
            setattr(self, f"mask_token{suffix}", nn.Parameter(torch.zeros(1, 1, inner)))
            setattr(self, f"down{suffix}", nn.Linear(width, inner))
            setattr(self, f"decode_blocks{suffix}", nn.ModuleList(blocks))
            setattr(self, f"decode_norm{suffix}", norm(inner))
            table = sincos(self.grid, inner, "yx")
            self.register_buffer(f"decode_positions{suffix}", table, persistent=False)
            last = PixelHead(inner, self.patch) if not suffix else nn.Linear(inner, width)
            setattr(self, f"lm_head{suffix}", last)

    def targets(self, batch: Batch) -> Batch:
        ids_m = self.ids(batch["mask"])[1]
        x = self.average.encode(patchify(batch["image"], self.patch))[-1]
        return batch | {"features": standardize(gather(x[:, 1:], ids_m))}

    def forward(self, batch: Batch) -> Tensor:
        patches, mask = patchify(batch["image"], self.patch), batch["mask"]
        ids_v, ids_m = self.ids(mask)
        blocks = self.encode(patches, ids_v)
        x = self.norm(blocks[-1])
        first, last = (blocks[i] for i in self.inject)
        error = (self.decode("", x, first, ids_m) - gather(pixels(patches, self.how), ids_m)) ** 2
        found = standardize(self.decode("_1", x, last, ids_m))
        far = (found - batch["features"]) ** 2
        m = mask.float().unflatten(1, (1, *self.grid))
        near = (m * F.avg_pool2d(m, 3, 1, 1) + m).flatten(1).gather(1, ids_m)
        pixel, feature = ((near * t.mean(-1)).mean() for t in (error, far))
        return self.weights["pixel"] * pixel + self.weights["feature"] * feature

    def decode(self, suffix: str, latents: Tensor, context: Tensor, ids_m: Tensor) -> Tensor:
        """Return one decoder's predictions for the masked patches."""
        own = lambda name: getattr(self, name + suffix)
        hidden = own("mask_token") + own("decode_positions")[ids_m]
        x = torch.cat([own("down")(latents), hidden], 1)
        for block in own("decode_blocks"):
            x = block(x, context)
        return own("lm_head")(own("decode_norm")(x[:, latents.shape[1] :]))

    def fill(self, state: dict[str, Tensor]) -> None:
        super().fill(state)
        self.move(1.0)

    def updated(self) -> None:
        self.move(1 - self.decay)

    @torch.no_grad()
    def move(self, share: float) -> None:
        """Move the average towards the weights by a share of the way."""
        mine = dict(self.named_parameters())
        pairs = [(p, mine[k]) for k, p in self.average.named_parameters()]
        torch._foreach_lerp_([a for a, _ in pairs], [b for _, b in pairs], share)


# ------------------------------------------------------------------ BEiT
class RelativeBias(nn.Module):
    """A learned number per head and displacement of two patches; three more of CLS."""

    index: Tensor

    def __init__(self, grid: tuple[int, int], heads: int):
        super().__init__()
        (h, w), n = grid, grid[0] * grid[1]
        rows = (2 * h - 1) * (2 * w - 1)
        self.relative_position_bias_table = nn.Parameter(torch.zeros(rows + 3, heads))
        y, x = torch.arange(n) // w, torch.arange(n) % w
        apart = (y[:, None] - y + h - 1) * (2 * w - 1) + x[:, None] - x + w - 1
        index = torch.full((n + 1, n + 1), rows + 2)
        index[1:, 1:], index[0, 1:], index[1:, 0] = apart, rows, rows + 1
        self.register_buffer("index", index, persistent=False)

    def forward(self) -> Tensor:
        return self.relative_position_bias_table[self.index].permute(2, 0, 1)[None].contiguous()


class BEiT(Encoder):
    """BEiT: codes of DALL-E's tokenizer from mask tokens in the encoder."""

    LAYOUT = "beit"
    FROZEN = ("tokenizer",)
    NETWORKS: ClassVar = {"tokenizer": "dalle"}

    def __init__(self, s: Settings):
        e, m = s.encoder, s.method
        width, heads = e["width"], e["heads"]
        super().__init__(s, "", qv=True)
        self.rel_pos_bias = RelativeBias(self.grid, heads)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width))
        self.lm_head = nn.Linear(width, m["code_target"]["network"]["vocab"])
        self.tokenizer = frozen.DallE(m["code_target"]["network"])

    def targets(self, batch: Batch) -> Batch:
        if "codes" in batch:
            return batch
        return batch | {"codes": self.tokenizer(batch["target"], self.ids(batch["mask"])[1])}

    def forward(self, batch: Batch) -> Tensor:
        x = self.patch_embed(patchify(batch["image"], self.patch))
        x = torch.where(batch["mask"][..., None], self.mask_token, x)
        x = self.run(x, self.rel_pos_bias())[-1][:, 1:]
        logits = self.lm_head(self.norm(gather(x, self.ids(batch["mask"])[1])))
        return F.cross_entropy(logits.flatten(0, 1), batch["codes"].flatten())
