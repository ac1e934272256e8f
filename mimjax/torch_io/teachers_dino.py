"""Tables of DINO's backbone: facebookresearch/dino's names and those of transformers' ViT.

A backbone file has the same keys as an encoder of MAE's, whose positions are fixed: which of the
two is meant follows from the network that is asked for (`names.TWINS`). Full checkpoints hold a
teacher and a student, each with a projection head; `backbone` takes the teacher's network out.
"""

from __future__ import annotations

import re
from typing import TypeVar

from mimjax.torch_io.ecosystem import hf_vit
from mimjax.torch_io.layouts import Row, Table, block, norm

T = TypeVar("T")
# MultiCropWrapper calls the network `backbone`; `module` is DistributedDataParallel's.
WRAPPED = re.compile(r"(?:(teacher|student)\.)?(?:module\.)?backbone\.(.+)")


def dino() -> list[Row]:
    """`vision_transformer.py`, commit 7c446df."""
    return [
        Row("dino/cls_token", "cls_token", "same"),
        Row("dino/pos_embed", "pos_embed", "same"),
        Row("dino/patch_embed/kernel", "patch_embed.proj.weight", "patch_conv"),
        Row("dino/patch_embed/bias", "patch_embed.proj.bias", "same"),
        *block("dino/block_{i}", "blocks.{i}"),
        *norm("dino/norm", "norm"),
    ]


TABLES: dict[str, Table] = {
    "dino": (dino(), {}),
    # files of ViTModel: a teacher (facebook/dino-vitb16), or an encoder
    "vit_transformers": ([*hf_vit("dino"), *hf_vit("encoder")], {}),
}

# layout -> (keys that belong to the network, those among them that need not be read); DINO's and
# classifiers' `head`, and transformers' pooler, do not
OWN = {
    "dino": (r"cls_token|pos_embed|patch_embed\.|blocks\.|norm\.", r"(?!)"),
    "vit_transformers": (r"embeddings\.|encoder\.|layernorm\.", r"embeddings\.mask_token"),
}


def detect(keys: set[str]) -> str | None:
    """The layout of a file of transformers' ViT, or None; for "dino" see `names.TWINS`."""
    first = "encoder.layer.0"
    # BEiT's keys have no bias, DINO v2's blocks other norms.
    marks = {f"{first}.attention.attention.key.bias", f"{first}.layernorm_before.weight"}
    return "vit_transformers" if marks | {"embeddings.cls_token"} <= keys else None


def backbone(state: dict[str, T]) -> dict[str, T]:
    """The network of a full checkpoint under its own names: the teacher's if there are two.

    A state without `backbone.` keys comes back as it is; heads, centers and the student go.
    """
    found: dict[str, dict[str, T]] = {}
    for key, value in state.items():
        if m := WRAPPED.fullmatch(key):
            found.setdefault(m[1] or "", {})[m[2]] = value
    return next((found[who] for who in ("teacher", "", "student") if who in found), state)
