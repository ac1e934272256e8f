"""Tables of CLIP's visual tower (OpenAI's and transformers' names) and of taming's VQGAN.

The keys are those of openai/CLIP `clip/model.py`, of transformers' CLIPVisionModel[WithProjection]
and of CompVis/taming-transformers (commit 3ba01b2). Text towers, position_ids and a VQGAN's
`loss.*` (discriminator and LPIPS) are not read.
"""

from __future__ import annotations

import re

from mimjax.torch_io.layouts import Row, Table, linear, norm


def clip_openai() -> list[Row]:
    """OpenAI's names, as in a state dict of the whole model."""
    v, block, ours = "visual", "visual.transformer.resblocks.{i}", "clip/block_{i}"
    rows = [
        Row("clip/cls_token", f"{v}.class_embedding", "same"),
        Row("clip/pos_embed", f"{v}.positional_embedding", "same"),
        Row("clip/patch_embed/kernel", f"{v}.conv1.weight", "patch_conv"),
        Row("clip/proj/kernel", f"{v}.proj", "same"),  # [width proj]: a plain matrix, no Linear
        Row(f"{ours}/attn/qkv/kernel", f"{block}.attn.in_proj_weight", "linear"),
        Row(f"{ours}/attn/qkv/bias", f"{block}.attn.in_proj_bias", "same"),
    ]
    rows += norm("clip/norm_pre", f"{v}.ln_pre") + norm("clip/norm_post", f"{v}.ln_post")
    rows += norm(f"{ours}/norm1", f"{block}.ln_1") + norm(f"{ours}/norm2", f"{block}.ln_2")
    rows += linear(f"{ours}/attn/proj", f"{block}.attn.out_proj")
    rows += linear(f"{ours}/mlp/fc1", f"{block}.mlp.c_fc")
    return rows + linear(f"{ours}/mlp/fc2", f"{block}.mlp.c_proj")


def clip_hf(prefix: str) -> list[Row]:
    """Names of the transformers library; queries, keys and values are fused in this order."""
    block, ours, embed = f"{prefix}encoder.layers.{{i}}", "clip/block_{i}", f"{prefix}embeddings"
    qkv = lambda leaf: tuple(f"{block}.self_attn.{p}_proj.{leaf}" for p in "qkv")
    rows = [
        Row("clip/cls_token", f"{embed}.class_embedding", "same"),
        Row("clip/pos_embed", f"{embed}.position_embedding.weight", "same"),
        Row("clip/patch_embed/kernel", f"{embed}.patch_embedding.weight", "patch_conv"),
        Row("clip/proj/kernel", "visual_projection.weight", "linear"),
        Row(f"{ours}/attn/qkv/kernel", qkv("weight"), "linear"),
        Row(f"{ours}/attn/qkv/bias", qkv("bias"), "same"),
    ]
    rows += norm("clip/norm_pre", f"{prefix}pre_layrnorm")  # their spelling
    rows += norm("clip/norm_post", f"{prefix}post_layernorm")
    rows += norm(f"{ours}/norm1", f"{block}.layer_norm1")
    rows += norm(f"{ours}/norm2", f"{block}.layer_norm2")
    rows += linear(f"{ours}/attn/proj", f"{block}.self_attn.out_proj")
    rows += linear(f"{ours}/mlp/fc1", f"{block}.mlp.fc1")
    return rows + linear(f"{ours}/mlp/fc2", f"{block}.mlp.fc2")


def conv(ours: str, theirs: str, layout: str = "conv") -> list[Row]:
    return [
        Row(f"{ours}/kernel", f"{theirs}.weight", layout),
        Row(f"{ours}/bias", f"{theirs}.bias", "same"),
    ]


def resnet(ours: str, theirs: str) -> list[Row]:
    rows = norm(f"{ours}/norm1", f"{theirs}.norm1") + norm(f"{ours}/norm2", f"{theirs}.norm2")
    rows += conv(f"{ours}/conv1", f"{theirs}.conv1") + conv(f"{ours}/conv2", f"{theirs}.conv2")
    return rows + conv(f"{ours}/nin_shortcut", f"{theirs}.nin_shortcut", "conv1x1")


def attention(ours: str, theirs: str) -> list[Row]:
    rows = norm(f"{ours}/norm", f"{theirs}.norm")
    for name in ("q", "k", "v", "proj_out"):
        rows += conv(f"{ours}/{name}", f"{theirs}.{name}", "conv1x1")
    return rows


def vqgan() -> list[Row]:
    """Both quantizers: Gumbel has `proj` and `embed`, plain VQ has `embedding`."""
    rows = []
    for half, way, step in (("encoder", "down", "downsample"), ("decoder", "up", "upsample")):
        ours, theirs = f"vqgan/{half}", half
        rows += conv(f"{ours}/conv_in", f"{theirs}.conv_in")
        rows += norm(f"{ours}/norm_out", f"{theirs}.norm_out")
        rows += conv(f"{ours}/conv_out", f"{theirs}.conv_out")
        a, b = f"{ours}/{way}_{{i}}", f"{theirs}.{way}.{{i}}"
        rows += resnet(f"{a}_block_{{j}}", f"{b}.block.{{j}}")
        rows += attention(f"{a}_attn_{{j}}", f"{b}.attn.{{j}}")
        rows += conv(f"{a}_{step}", f"{b}.{step}.conv")
        for name in ("block_1", "block_2"):
            rows += resnet(f"{ours}/mid_{name}", f"{theirs}.mid.{name}")
        rows += attention(f"{ours}/mid_attn_1", f"{theirs}.mid.attn_1")
    for name in ("quant_conv", "post_quant_conv"):
        rows += conv(f"vqgan/{name}", name, "conv1x1")
    rows += conv("vqgan/proj", "quantize.proj", "conv1x1")
    rows.append(Row("vqgan/embed", "quantize.embed.weight", "same"))
    rows.append(Row("vqgan/embedding", "quantize.embedding.weight", "same"))
    return rows


TABLES: dict[str, Table] = {
    "clip_openai": (clip_openai(), {}),
    "clip_hf": (clip_hf("vision_model."), {}),
    "clip_hf_bare": (clip_hf(""), {}),  # transformers 5's CLIPVisionModel drops the prefix
    "vqgan": (vqgan(), {}),
}

# layout -> (keys that belong to the network, those among them that need not be read)
OWN = {
    "clip_openai": (r"visual\.", r"visual\.proj"),
    "clip_hf": (r"vision_model\.|visual_proj", r".*position_ids|visual_projection\.weight"),
    "clip_hf_bare": (r"embeddings\.|encoder\.|p\w+_lay", r".*position_ids"),
    "vqgan": (r"encoder\.|decoder\.|quant|post_quant_conv\.", r"(?!)"),
}


def detect(keys: set[str]) -> str | None:
    """The layout of a checkpoint of one of these networks, or None."""
    if "visual.class_embedding" in keys:
        return "clip_openai"
    for layout, prefix in (("clip_hf", "vision_model."), ("clip_hf_bare", "")):
        if {f"{prefix}embeddings.class_embedding", f"{prefix}pre_layrnorm.weight"} <= keys:
            return layout
    if {"encoder.conv_in.weight", "decoder.conv_in.weight"} <= keys and any(
        re.match(r"encoder\.down\.\d+\.block\.", k) for k in keys
    ):
        return "vqgan"
    return None
