"""The frozen networks of the methods, as the package transformers has them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
    FlavaImageCodebook,
    FlavaImageCodebookConfig,
)

from benchmarks.peers.layers import attend


class DallE(nn.Module):
    """DALL-E's tokenizer: codes [b n] of images [b 3 h w], for all tokens or some of them."""

    def __init__(self, network: dict[str, Any]):
        super().__init__()
        config = FlavaImageCodebookConfig(
            hidden_size=network["n_hid"],
            num_blocks_per_group=network["n_blk"],
            vocab_size=network["vocab"],
        )
        self.model = FlavaImageCodebook(config).eval()

    def load(self, state: dict[str, Tensor]) -> None:
        """Take the tensors of a file of the layout "flava"."""
        self.model.load_state_dict(state)

    def forward(self, images: Tensor, ids: Tensor) -> Tensor:
        body, output = self.model.blocks[:-1], self.model.blocks[-1]
        x = body(images).flatten(2)  # the last convolution is 1x1: masked tokens alone pass it
        x = x.gather(2, ids[:, None].expand(-1, x.shape[1], -1))
        return output(x[..., None])[..., 0].argmax(1)


class CLIP(nn.Module):
    """CLIP's visual tower: features of all tokens, and where the class token looks.

    Args:
      target: the settings of mimjax's target.
      rows: rows of patches, those of the student.

    Attributes:
      width: width of the features.
    """

    def __init__(self, target: dict[str, Any], rows: int, sdpa: bool):
        super().__init__()
        net = target["network"]
        self.width = net["proj_dim"] if target["project"] else net["width"]
        config = CLIPVisionConfig(
            hidden_size=net["width"],
            intermediate_size=round(net["width"] * net["mlp_ratio"]),
            projection_dim=net["proj_dim"] or net["width"],
            num_hidden_layers=net["depth"],
            num_attention_heads=net["heads"] or net["width"] // 64,
            image_size=rows * net["patch"],
            patch_size=net["patch"],
            attn_implementation="sdpa" if sdpa else "eager",  # pyright: ignore[reportCallIssue]
        )
        self.model = CLIPVisionModelWithProjection(config).eval()
        self.project, self.sdpa = target["project"], sdpa

    def load(self, state: dict[str, Tensor]) -> None:
        """Take the tensors of a file of the layout "clip_hf"; a projection may be missing."""
        missing, unread = self.model.load_state_dict(state, strict=False)
        wanted = {"visual_projection.weight"} if not self.project else set()
        missing = {k for k in missing if not k.endswith("position_ids")}
        assert (missing, unread) == (wanted, []), (missing, unread)

    def hidden(self, images: Tensor, layers: int | None = None) -> Tensor:
        """Return the output [b 1+n d] of the first blocks, of all of them by default."""
        tower: Any = self.model.vision_model
        x = tower.pre_layrnorm(tower.embeddings(images))
        for layer in tower.encoder.layers[:layers]:
            x = layer(x, None)
        return x

    def read(self, x: Tensor) -> Tensor:
        """Return the features of tokens: normed and, where asked for, projected."""
        x = self.model.vision_model.post_layernorm(x)
        return self.model.visual_projection(x) if self.project else x

    def with_attention(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return `hidden` and how much CLS looks at each patch in the last block, [b n]."""
        x = self.hidden(images, -1)
        last: Any = self.model.vision_model.encoder.layers[-1]
        attention = last.self_attn
        y = last.layer_norm1(x)
        q, k, v = attention.q_proj(y), attention.k_proj(y), attention.v_proj(y)
        heads = lambda t: t.unflatten(-1, (attention.num_heads, -1))
        logits = torch.einsum("bhd,bthd->bht", heads(q[:, 0]) * attention.scale, heads(k))
        looks = logits.softmax(-1)[..., 1:].mean(1)
        x = x + attention.out_proj(attend(heads(q), heads(k), heads(v), self.sdpa))
        return x + last.mlp(last.layer_norm2(x)), looks
