"""CAE and CAE v2 in PyTorch."""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.peers import frozen
from benchmarks.peers.layers import (
    Batch,
    Block,
    Encoder,
    Mlp,
    Peer,
    Settings,
    attend,
    gather,
    norm,
    patchify,
    sincos,
)


class CrossAttention(nn.Module):
    """Attention with separate queries, keys and values, and without biases of keys."""

    def __init__(self, width: int, heads: int, sdpa: bool):
        super().__init__()
        inner = heads * (width // heads)
        self.heads, self.sdpa = heads, sdpa
        self.q, self.k, self.v = (nn.Linear(width, inner, bias=False) for _ in range(3))
        self.q_bias = nn.Parameter(torch.zeros(inner))
        self.v_bias = nn.Parameter(torch.zeros(inner))
        self.proj = nn.Linear(inner, width)

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, v = F.linear(q, self.q.weight, self.q_bias), F.linear(v, self.v.weight, self.v_bias)
        q, k, v = (t.unflatten(-1, (self.heads, -1)) for t in (q, self.k(k), v))
        return self.proj(attend(q, k, v, self.sdpa))


class RegressorBlock(nn.Module):
    """Masked queries attend to visible latents and themselves; the norm replaces the stream."""

    def __init__(self, width: int, heads: int, sdpa: bool, ratio: float, scale: float):
        super().__init__()
        self.norm1_q, self.norm1_k, self.norm1_v = norm(width), norm(width), norm(width)
        self.norm2_cross = norm(width)
        self.cross_attn = CrossAttention(width, heads, sdpa)
        self.mlp_cross = Mlp(width, ratio)
        self.gamma_1_cross = nn.Parameter(torch.full((width,), scale))
        self.gamma_2_cross = nn.Parameter(torch.full((width,), scale))

    def forward(self, x: Tensor, latents: Tensor, pos_m: Tensor, pos: Tensor) -> Tensor:
        context = torch.cat([latents, x], 1)
        q, k = self.norm1_q(x + pos_m), self.norm1_k(context + pos)
        x = x + self.gamma_1_cross * self.cross_attn(q, k, self.norm1_v(context))
        x = self.norm2_cross(x)
        return x + self.gamma_2_cross * self.mlp_cross(x)


class Regressor(nn.Module):
    """The latent contextual regressor."""

    def __init__(self, s: Settings, width: int):
        super().__init__()
        r = s.method["regressor"]
        sizes = width, r["heads"], s.sdpa, r["mlp_ratio"], r["layer_scale"]
        make = lambda: RegressorBlock(*sizes)
        self.regressor_blocks = nn.ModuleList(make() for _ in range(r["depth"]))
        self.norm = norm(width) if r["final_norm"] else nn.Identity()

    def forward(self, x: Tensor, latents: Tensor, pos_m: Tensor, pos: Tensor) -> Tensor:
        for block in self.regressor_blocks:
            x = block(x, latents, pos_m, pos)
        return self.norm(x)


class Latents(nn.Module):
    """CAE's decoder, blocks over predicted latents; CAE v2's head has the same names."""

    def __init__(self, s: Settings, width: int, out: int):
        super().__init__()
        d = s.method.get("decoder", {"depth": 0})
        make = lambda: Block(width, d["heads"], s.sdpa, d["mlp_ratio"], True, d["layer_scale"])
        self.decoder_blocks = nn.ModuleList(make() for _ in range(d["depth"]))
        self.norm, self.head = norm(width), nn.Linear(width, out)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.decoder_blocks:
            x = block(x)
        return self.head(self.norm(x))


class Context(Peer):
    """What CAE and CAE v2 share: encoder and regressor."""

    LAYOUT = "cae"

    def __init__(self, s: Settings):
        super().__init__()
        e = s.encoder
        self.encoder = Encoder(s, "yx", qv=True)
        self.patch, self.visible = self.encoder.patch, self.encoder.visible
        self.width = e["project"] or e["width"]
        if e["project"]:
            self.encoder_to_regresser = nn.Linear(e["width"], self.width)
            self.encoder_to_regresser_norm = norm(self.width)
        self.project = bool(e["project"])
        self.mask_token = nn.Parameter(torch.zeros(1, 1, self.width))
        self.regresser = Regressor(s, self.width)
        table = sincos(self.encoder.grid, self.width, "yx")
        self.register_buffer("positions", table, persistent=False)

    def latents(self, patches: Tensor, ids: Tensor) -> Tensor:
        """Return the encoder's tokens of patches `ids`, CLS first."""
        x = self.encoder.norm(self.encoder.encode(patches, ids)[-1])
        return self.encoder_to_regresser_norm(self.encoder_to_regresser(x)) if self.project else x

    def regress(self, latents: Tensor, ids_v: Tensor, ids_m: Tensor) -> tuple[Tensor, Tensor]:
        """Return the latents of masked patches as predicted, and the patches' positions."""
        pos_m = self.positions[ids_m]
        pos = torch.cat([self.positions[ids_v], pos_m], 1)
        x = self.mask_token.expand(*ids_m.shape, -1)
        return self.regresser(x, latents, pos_m, pos), pos_m


class CAE(Context):
    """CAE: codes from predicted latents, which are aligned with the encoder's own."""

    FROZEN = ("tokenizer",)
    NETWORKS: ClassVar = {"tokenizer": "dalle"}

    def __init__(self, s: Settings):
        super().__init__(s)
        network = s.method["code_target"]["network"]
        self.decoder = Latents(s, self.width, network["vocab"])
        self.tokenizer = frozen.DallE(network)
        self.weights = s.weights

    def targets(self, batch: Batch) -> Batch:
        ids_m = self.ids(batch["mask"])[1]
        latents = self.latents(patchify(batch["image"], self.patch), ids_m)[:, 1:]
        if "codes" in batch:
            return batch | {"latents": latents}
        return batch | {"latents": latents, "codes": self.tokenizer(batch["target"], ids_m)}

    def forward(self, batch: Batch) -> Tensor:
        ids_v, ids_m = self.ids(batch["mask"])
        seen = self.latents(patchify(batch["image"], self.patch), ids_v)[:, 1:]
        found, pos = self.regress(seen, ids_v, ids_m)
        logits = self.decoder(found + pos)
        codes = F.cross_entropy(logits.flatten(0, 1), batch["codes"].flatten())
        align = F.mse_loss(found, batch["latents"])
        return self.weights["code"] * codes + self.weights["align"] * align


class CAEv2(Context):
    """CAE v2: all tokens are aligned with CLIP's through one head."""

    FROZEN = ("teacher",)
    NETWORKS: ClassVar = {"teacher": "clip"}

    def __init__(self, s: Settings):
        super().__init__(s)
        self.teacher = frozen.CLIP(s.method["teacher_target"], self.encoder.grid[0], s.sdpa)
        self.decoder = Latents(s, self.width, self.teacher.width)

    def targets(self, batch: Batch) -> Batch:
        if "features" in batch:
            return batch
        return batch | {"features": self.teacher.read(self.teacher.hidden(batch["target"]))}

    def forward(self, batch: Batch) -> Tensor:
        ids_v, ids_m = self.ids(batch["mask"])
        seen = self.latents(patchify(batch["image"], self.patch), ids_v)
        found, _ = self.regress(seen[:, 1:], ids_v, ids_m)
        order = torch.cat([torch.zeros_like(ids_v[:, :1]), ids_v + 1, ids_m + 1], 1)
        target = gather(batch["features"], order)
        likeness = F.cosine_similarity(self.decoder(torch.cat([seen, found], 1)), target, -1)
        return (1 - likeness).mean()
