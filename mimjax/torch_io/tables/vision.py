"""Tables of published encoders that `models.published_vit` computes: DINOv2, DINOv3 and CAPI.

DINOv2 and DINOv3 have the names of their official code or of transformers (4.57 and 5.23 write the
same files). timm's names, and those that transformers 5 has in memory, are changed into these by
`tables.variants`. I-JEPA and Pixio have the names of MAE (timm's, the official ones) or of
transformers' ViT, whose tables serve them; what differs is the number of class tokens.
"""

from __future__ import annotations

from mimjax.torch_io.tables.layouts import Row, Table, block, linear, norm, without
from mimjax.torch_io.tables.libraries import hf_embeddings

ROOT = "vision"
BLOCK = f"{ROOT}/block_{{i}}"


def tokens(registers: str) -> list[Row]:
    """Return the rows of tokens and patches with official names; `registers` is the file's key."""
    return [
        Row(f"{ROOT}/cls_token", "cls_token", "same"),
        Row(f"{ROOT}/registers", registers, "same"),
        Row(f"{ROOT}/patch_embed/kernel", "patch_embed.proj.weight", "patch_conv"),
        Row(f"{ROOT}/patch_embed/bias", "patch_embed.proj.bias", "same"),
    ]


def gated(theirs: str, gate: tuple[str, ...], down: str) -> list[Row]:
    """Return the rows of a gated MLP.

    Args:
      theirs: prefix of the file's keys.
      gate: layer or layers of the file for the half that is a gate and for the other one.
      down: the layer behind them.
    """
    stacked = lambda leaf: tuple(f"{theirs}.{name}.{leaf}" for name in gate)
    return [
        Row(f"{BLOCK}/mlp/gate/kernel", stacked("weight"), "linear"),
        Row(f"{BLOCK}/mlp/gate/bias", stacked("bias"), "same"),
        *linear(f"{BLOCK}/mlp/down", f"{theirs}.{down}"),
    ]


def official_block() -> list[Row]:
    """Return the rows of a block with official names, without gated MLPs."""
    rows = block(BLOCK, "blocks.{i}", gammas=("ls1.gamma", "ls2.gamma"))
    return without(rows, f"{BLOCK}/norm_q", f"{BLOCK}/norm_kv", f"{BLOCK}/cross")


def dinov2() -> list[Row]:
    """Return the rows of facebookresearch/dinov2."""
    return [
        *tokens("register_tokens"),
        Row(f"{ROOT}/pos_embed", "pos_embed", "same"),
        *official_block(),
        *gated("blocks.{i}.mlp", ("w12",), "w3"),
        *norm(f"{ROOT}/norm", "norm"),
    ]


def dinov3() -> list[Row]:
    """Return the rows of facebookresearch/dinov3."""
    return [
        *tokens("storage_tokens"),
        Row(f"{ROOT}/turns", "rope_embed.turns", "same"),
        *official_block(),
        *gated("blocks.{i}.mlp", ("w1", "w2"), "w3"),
        *norm(f"{ROOT}/norm", "norm"),
    ]


def hf_scales(theirs: str) -> list[Row]:
    """Return the rows of a block's norms and layer scales with transformers' names."""
    rows = norm(f"{BLOCK}/norm1", f"{theirs}.norm1") + norm(f"{BLOCK}/norm2", f"{theirs}.norm2")
    for i in (1, 2):
        rows.append(Row(f"{BLOCK}/gamma_{i}", f"{theirs}.layer_scale{i}.lambda1", "same"))
    return rows


def dinov2_hf() -> list[Row]:
    """Return the rows of Dinov2Model and Dinov2WithRegistersModel."""
    theirs = "encoder.layer.{i}"
    leaves = lambda leaf: tuple(
        f"{theirs}.attention.attention.{x}.{leaf}" for x in ("query", "key", "value")
    )
    return [
        *hf_embeddings(ROOT),
        Row(f"{ROOT}/registers", "embeddings.register_tokens", "same"),
        Row(f"{BLOCK}/attn/qkv/kernel", leaves("weight"), "linear"),
        Row(f"{BLOCK}/attn/qkv/bias", leaves("bias"), "same"),
        *linear(f"{BLOCK}/attn/proj", f"{theirs}.attention.output.dense"),
        *hf_scales(theirs),
        *linear(f"{BLOCK}/mlp/fc1", f"{theirs}.mlp.fc1"),
        *linear(f"{BLOCK}/mlp/fc2", f"{theirs}.mlp.fc2"),
        *gated(f"{theirs}.mlp", ("weights_in",), "weights_out"),
        *norm(f"{ROOT}/norm", "layernorm"),
    ]


def dinov3_hf() -> list[Row]:
    """Return the rows of DINOv3ViTModel, whose keys have no biases of k."""
    theirs = "layer.{i}"
    kernel = tuple(f"{theirs}.attention.{x}_proj.weight" for x in "qkv")
    return [
        Row(f"{ROOT}/cls_token", "embeddings.cls_token", "same"),
        Row(f"{ROOT}/registers", "embeddings.register_tokens", "same"),
        Row(f"{ROOT}/patch_embed/kernel", "embeddings.patch_embeddings.weight", "patch_conv"),
        Row(f"{ROOT}/patch_embed/bias", "embeddings.patch_embeddings.bias", "same"),
        Row(f"{BLOCK}/attn/qkv/kernel", kernel, "linear"),
        Row(f"{BLOCK}/attn/q_bias", f"{theirs}.attention.q_proj.bias", "same"),
        Row(f"{BLOCK}/attn/v_bias", f"{theirs}.attention.v_proj.bias", "same"),
        *linear(f"{BLOCK}/attn/proj", f"{theirs}.attention.o_proj"),
        *hf_scales(theirs),
        *linear(f"{BLOCK}/mlp/fc1", f"{theirs}.mlp.up_proj"),
        *linear(f"{BLOCK}/mlp/fc2", f"{theirs}.mlp.down_proj"),
        *norm(f"{ROOT}/norm", "norm"),
    ]


def dinov3_hf_gated() -> list[Row]:
    """Return the rows of DINOv3ViTModel with gated MLPs, whose names the plain ones have too."""
    rows = without(dinov3_hf(), f"{BLOCK}/mlp")
    return [*rows, *gated("layer.{i}.mlp", ("gate_proj", "up_proj"), "down_proj")]


def capi() -> list[Row]:
    """Return the rows of facebookresearch/capi: linear layers without biases, norms of scales."""
    theirs = "encoder.blocks.{i}"
    attention = f"{theirs}.residual1.fn"
    kernel = tuple(f"{attention}.{x}_proj.weight" for x in "qkv")
    return [
        Row(f"{ROOT}/registers", "registers", "same"),
        Row(f"{ROOT}/patch_embed/kernel", "patch_embed.weight", "patch_conv"),
        Row(f"{ROOT}/patch_embed/bias", "patch_embed.bias", "same"),
        Row(f"{BLOCK}/turns", f"{attention}.rope.freqs", "same"),
        Row(f"{BLOCK}/norm1/scale", f"{theirs}.residual1.norm.weight", "same"),
        Row(f"{BLOCK}/norm2/scale", f"{theirs}.residual2.norm.weight", "same"),
        Row(f"{BLOCK}/attn/qkv/kernel", kernel, "linear"),
        Row(f"{BLOCK}/attn/proj/kernel", f"{attention}.proj.weight", "linear"),
        Row(f"{BLOCK}/mlp/fc1/kernel", f"{theirs}.residual2.fn.fc1.weight", "linear"),
        Row(f"{BLOCK}/mlp/fc2/kernel", f"{theirs}.residual2.fn.fc2.weight", "linear"),
    ]


TABLES: dict[str, Table] = {
    "dinov2": (dinov2(), {}),
    "dinov2_transformers": (dinov2_hf(), {}),
    "dinov3": (dinov3(), {}),
    "dinov3_transformers": (dinov3_hf(), {}),
    "dinov3_transformers_gated": (dinov3_hf_gated(), {}),
    "capi": (capi(), {}),
}

# {layout: settings of `PublishedViT` that no tensor shows}; eps of the norms is that of the code
DINOV3 = {"rope": "centers", "eps": 1e-5}
SETTINGS: dict[str, dict[str, object]] = {
    "dinov3": DINOV3,
    "dinov3_transformers": DINOV3,
    "dinov3_transformers_gated": DINOV3,
    "capi": {"rope": "corners", "own_turns": True, "norm": "rms", "eps": 1e-5},
}
ROPE_BASE = 100.0  # DINOv3's rope_theta
# layouts whose code has SiLU as the gate of SwiGLU, whatever a config says of the activation
FIXED_GATES = {"dinov2_transformers", "dinov3"}
# {layout: pattern of our parameters that its files may lack}. They do nothing then: biases are 0,
# scales 1, and the frequencies are those of the code.
ABSENT = {
    "dinov3": r"turns|block_\d+/attn/[qv]_bias",
    "dinov3_transformers": r"turns|block_\d+/attn/[qv]_bias",
    "dinov3_transformers_gated": r"turns|block_\d+/attn/[qv]_bias",
    "capi": r"norm/scale|block_\d+/(attn/([qv]_bias|proj/bias)|mlp/fc\d/bias)",
}
# {layout: pattern of keys that no feature of an image needs: mask tokens, heads, buffers}. What is
# left over besides would change the features, and is an error.
IGNORED = {
    "dinov2": r"mask_token|head\..*|(linear_)?head.*|dino_head.*|ibot_head.*",
    "dinov2_transformers": r"embeddings\.mask_token|classifier\..*",
    "dinov3": r"mask_token|local_cls_norm\..*|(fc_norm|head)\..*|projectors\..*|rope\..*",
    "dinov3_transformers": r"embeddings\.mask_token|rope_embeddings\..*|classifier\..*",
    "dinov3_transformers_gated": r"embeddings\.mask_token|rope_embeddings\..*|classifier\..*",
    "capi": r"mask_token|decoder\..*|(cls_)?head\..*|clustering\..*",
    # Pixio's and I-JEPA's
    "mae": r"mask_token|decoder_.*|head\..*",
    "vit_transformers": r"embeddings\.mask_token|pooler\..*|classifier\..*",
}
# How the code that the names belong to resizes learned positions where the image has another size:
# (what is added to the number of patches on each side, see `models.positions`; antialiased).
# facebookresearch/dinov2 builds its encoders with registers otherwise than those without.
PLAIN, DINO, ANTIALIASED = (0.0, False), (0.1, False), (0.0, True)
RESIZED = {
    ("dinov2", False): DINO,
    ("dinov2", True): ANTIALIASED,
    ("dinov2_transformers", False): PLAIN,
    ("dinov2_transformers", True): ANTIALIASED,
    # official Pixio; transformers' Pixio and I-JEPA
    ("mae", False): PLAIN,
    ("vit_transformers", False): PLAIN,
}

# {(width, depth): heads} of the published encoders; where files have frequencies, these show them
WIDTHS_OF_64 = {(384, 12), (768, 12), (1024, 24), (1536, 40), (1280, 32), (384, 24)}
DINO_HEADS = {(w, d): w // 64 for w, d in WIDTHS_OF_64} | {(4096, 40): 32}
CAPI_HEADS = {(1024, 24): 16}
# I-JEPA's and Pixio's, whose layouts are MAE's
OTHER_HEADS = {
    (192, 12): 3,
    (384, 12): 6,
    (768, 12): 12,
    (1024, 24): 16,
    (1280, 32): 16,
    (1408, 40): 16,
    (1536, 48): 24,
    (3072, 48): 32,
}


def heads(layout: str) -> dict[tuple[int, int], int]:
    """Return the heads of the published encoders of a layout, by width and depth."""
    if layout not in TABLES:
        return OTHER_HEADS
    return CAPI_HEADS if layout == "capi" else DINO_HEADS


def detect(keys: set[str]) -> str | None:
    """Return the layout of a file of one of these encoders; None for other files."""
    if "registers" in keys and "encoder.blocks.0.residual1.fn.q_proj.weight" in keys:
        return "capi"
    if "cls_token" in keys and "blocks.0.ls1.gamma" in keys and "decoder_embed.weight" not in keys:
        if "storage_tokens" in keys or ("mask_token" in keys and "pos_embed" not in keys):
            return "dinov3"
        if keys & {"mask_token", "register_tokens", "blocks.0.mlp.w12.weight"}:
            return "dinov2"
    if "embeddings.patch_embeddings.weight" in keys and "layer.0.layer_scale1.lambda1" in keys:
        is_gated = "layer.0.mlp.gate_proj.weight" in keys
        return "dinov3_transformers_gated" if is_gated else "dinov3_transformers"
    if {"embeddings.cls_token", "encoder.layer.0.layer_scale1.lambda1"} <= keys:
        return "dinov2_transformers"
    return None
