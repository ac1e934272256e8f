"""Tables of frozen networks: the teachers and tokenizers that give methods their targets.

CLIP's visual tower has the names of openai/CLIP `clip/model.py` or of transformers'
CLIPVisionModel[WithProjection]; VQGAN those of CompVis/taming-transformers (commit 3ba01b2). Text
towers, position_ids and a VQGAN's `loss.*` (discriminator and LPIPS) are not read.

"dalle" has the keys of OpenAI's `dall_e` package (`.w`, `.b`), "flava" those of transformers'
FlavaImageCodebook: the same network and numbers. "flava_full" is the codebook inside a
FlavaForPreTraining checkpoint. "dvae" is CAE's "customized" tokenizer, "vqkd" that of BEiT v2.

A DINO backbone has the names of facebookresearch/dino or of transformers' ViT. Its file has the
same keys as MAE's encoder, so the requested network decides between the two (`detect.TWINS`). Full
checkpoints have a teacher and a student, each with a projection head; `backbone` returns the
teacher's network.
"""

from __future__ import annotations

import re
from typing import TypeVar

from mimjax.torch_io.tables.layouts import Row, Table, block, linear, norm
from mimjax.torch_io.tables.libraries import hf_vit

T = TypeVar("T")


# ------------------------------------------------------------------ CLIP and VQGAN
def clip_openai() -> list[Row]:
    """Return the rows of CLIP with OpenAI's names, as in a state dict of the whole model."""
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
    """Return the rows of CLIP with the names of transformers, where q, k and v are not fused.

    Args:
      prefix: prefix of the file's keys.
    """
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
    """Return the rows of a convolution; `layout` is a key of LAYOUTS."""
    return [
        Row(f"{ours}/kernel", f"{theirs}.weight", layout),
        Row(f"{ours}/bias", f"{theirs}.bias", "same"),
    ]


def resnet(ours: str, theirs: str) -> list[Row]:
    """Return the rows of a residual block of VQGAN."""
    rows = norm(f"{ours}/norm1", f"{theirs}.norm1") + norm(f"{ours}/norm2", f"{theirs}.norm2")
    rows += conv(f"{ours}/conv1", f"{theirs}.conv1") + conv(f"{ours}/conv2", f"{theirs}.conv2")
    return rows + conv(f"{ours}/nin_shortcut", f"{theirs}.nin_shortcut", "conv1x1")


def attention(ours: str, theirs: str) -> list[Row]:
    """Return the rows of an attention block of VQGAN."""
    rows = norm(f"{ours}/norm", f"{theirs}.norm")
    for name in ("q", "k", "v", "proj_out"):
        rows += conv(f"{ours}/{name}", f"{theirs}.{name}", "conv1x1")
    return rows


def vqgan() -> list[Row]:
    """Return the rows of VQGAN with either quantizer.

    The Gumbel quantizer has `proj` and `embed`, the plain one has `embedding`.
    """
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


CLIP_TABLES: dict[str, Table] = {
    "clip_openai": (clip_openai(), {}),
    "clip_hf": (clip_hf("vision_model."), {}),
    "clip_hf_bare": (clip_hf(""), {}),  # transformers 5's CLIPVisionModel drops the prefix
    "vqgan": (vqgan(), {}),
}

# {layout: (pattern of the network's keys, pattern of those that need not be read)}
CLIP_OWN = {
    "clip_openai": (r"visual\.", r"visual\.proj"),
    "clip_hf": (r"vision_model\.|visual_proj", r".*position_ids|visual_projection\.weight"),
    "clip_hf_bare": (r"embeddings\.|encoder\.|p\w+_lay", r".*position_ids"),
    "vqgan": (r"encoder\.|decoder\.|quant|post_quant_conv\.", r"(?!)"),
}


def detect_clip(keys: set[str]) -> str | None:
    """Return the layout of a checkpoint of CLIP or VQGAN; None for other files."""
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


# ------------------------------------------------------------------ tokenizers
def _pair(ours: str, theirs: str, layout: str, weight: str = "weight", bias: str = "bias"):
    """Return the rows of a layer whose weight and bias have the given names in the file."""
    return [
        Row(f"{ours}/kernel", f"{theirs}.{weight}", layout),
        Row(f"{ours}/bias", f"{theirs}.{bias}", "same"),
    ]


def _dalle(weight: str, bias: str, group: str = "", path: str = "", prefix: str = "") -> Table:
    """Return the table of DALL-E's encoder.

    Args:
      weight, bias: the file's names of a layer's parameters.
      group, path: levels that transformers adds to the keys.
      prefix: prefix of the file's keys.
    """
    names = weight, bias
    rows = _pair("dalle/body/input", f"{prefix}blocks.input", "conv", *names)
    for g in range(1, 5):
        ours = f"dalle/body/group_{g}/block_{{i}}"
        theirs = f"{prefix}blocks.group_{g}{group}.block_{{i}}"
        rows += _pair(f"{ours}/id_path", f"{theirs}.id_path", "conv1x1", *names)
        for c in range(1, 5):
            kind = "conv1x1" if c == 4 else "conv"
            rows += _pair(f"{ours}/conv_{c}", f"{theirs}.res_path{path}.conv_{c}", kind, *names)
    return rows + _pair("dalle/output", f"{prefix}blocks.output.conv", "conv1x1", *names), {}


def _dvae() -> Table:
    """Return the table of CAE's discrete VAE.

    Our blocks have the numbers that they have in the official nn.Sequentials, so that one table
    serves any number of layers.
    """
    rows = [Row("decoder/codebook", "codebook.weight", "same")]
    for net, body in (("encoder", "encoder/body"), ("decoder", "decoder")):
        for c, (index, kind) in enumerate(((0, "conv"), (2, "conv"), (4, "conv1x1")), 1):
            rows += _pair(f"{body}/res_{{i}}/conv_{c}", f"{net}.{{i}}.net.{index}", kind)
        rows += _pair(f"{net}/out_{{i}}", f"{net}.{{i}}", "conv1x1")
    rows += _pair("encoder/body/down_{i}", "encoder.{i}.0", "conv")
    # ours is [h w out in] and theirs [in out h w], transposed like an ordinary convolution
    rows += _pair("decoder/up_{i}", "decoder.{i}.0", "conv")
    return rows + _pair("decoder/in_{i}", "decoder.{i}", "conv1x1"), {}


_VQKD: Table = (
    [
        Row("vqkd/encoder/cls_token", "encoder.cls_token", "same"),
        Row("vqkd/encoder/pos_embed", "encoder.pos_embed", "same"),
        Row("vqkd/encoder/patch_embed/kernel", "encoder.patch_embed.proj.weight", "patch_conv"),
        Row("vqkd/encoder/patch_embed/bias", "encoder.patch_embed.proj.bias", "same"),
        *block("vqkd/encoder/block_{i}", "encoder.blocks.{i}"),
        # their `norm` is the identity; `fc_norm` stands on the patch tokens
        *norm("vqkd/encoder/norm", "encoder.fc_norm"),
        *linear("vqkd/head/fc1", "encode_task_layer.0"),
        *linear("vqkd/head/fc2", "encode_task_layer.2"),
        Row("vqkd/codebook", "quantize.embedding.weight", "same"),
    ],
    {},
)

TOKENIZER_TABLES: dict[str, Table] = {
    "dalle": _dalle("w", "b"),
    "flava": _dalle("weight", "bias", ".group", ".path"),
    "flava_full": _dalle("weight", "bias", ".group", ".path", "image_codebook."),
    "dvae": _dvae(),
    "vqkd": _VQKD,
}

# Keys of the network: one that is not read means a wrong size in the config. The d-VAE needs no
# such check, since the number in its last layer's key changes with the depth.
TOKENIZER_OWN: dict[str, tuple[str, str]] = {
    "dalle": (r"blocks\.", ""),
    "flava": (r"blocks\.", ""),
    "flava_full": (r"image_codebook\.", ""),
    "vqkd": (r"encoder\.|encode_task_layer\.|quantize\.embedding\.weight", ""),
}


def detect_tokenizer(keys: set[str]) -> str | None:
    """Return the layout of a tokenizer's file; None for other files."""
    marks = {
        "blocks.input.w": "dalle",
        "blocks.input.weight": "flava",
        "image_codebook.blocks.input.weight": "flava_full",
        "encode_task_layer.0.weight": "vqkd",
        "encoder.0.0.weight": "dvae",
    }
    return next((layout for mark, layout in marks.items() if mark in keys), None)


# ------------------------------------------------------------------ DINO
# MultiCropWrapper calls the network `backbone`; `module` is DistributedDataParallel's.
WRAPPED = re.compile(r"(?:(teacher|student)\.)?(?:module\.)?backbone\.(.+)")


def dino() -> list[Row]:
    """Return the rows of DINO's `vision_transformer.py`, commit 7c446df."""
    return [
        Row("dino/cls_token", "cls_token", "same"),
        Row("dino/pos_embed", "pos_embed", "same"),
        Row("dino/patch_embed/kernel", "patch_embed.proj.weight", "patch_conv"),
        Row("dino/patch_embed/bias", "patch_embed.proj.bias", "same"),
        *block("dino/block_{i}", "blocks.{i}"),
        *norm("dino/norm", "norm"),
    ]


DINO_TABLES: dict[str, Table] = {
    "dino": (dino(), {}),
    # files of ViTModel: a teacher (facebook/dino-vitb16), or an encoder
    "vit_transformers": (
        [*hf_vit("dino"), *hf_vit("encoder")],
        {"embeddings.position_embeddings": "encoder"},
    ),
}

# {layout: (pattern of the network's keys, pattern of those that need not be read)}. The `head` of
# DINO and of classifiers and the pooler of transformers are not the network's.
DINO_OWN = {
    "dino": (r"cls_token|pos_embed|patch_embed\.|blocks\.|norm\.", r"(?!)"),
    "vit_transformers": (r"embeddings\.|encoder\.|layernorm\.", r"embeddings\.mask_token"),
}


def detect_dino(keys: set[str]) -> str | None:
    """Return "vit_transformers" for a file of transformers' ViT, else None.

    Files with DINO's names are detected as "mae", see `detect.TWINS`.
    """
    first = "encoder.layer.0"
    # BEiT has no biases of k, and the norms in DINO v2's blocks have other names; I-JEPA's encoder
    # has no class token
    marks = {f"{first}.attention.attention.key.bias", f"{first}.layernorm_before.weight"}
    marks.add("embeddings.patch_embeddings.projection.weight")
    return "vit_transformers" if marks <= keys else None


def backbone(state: dict[str, T]) -> dict[str, T]:
    """Return the backbone in a full checkpoint, with prefixes removed from its keys.

    If there are a teacher and a student, the teacher's is returned. Heads and centers are left out.
    A state dict without `backbone.` keys is returned unchanged.
    """
    backbones: dict[str, dict[str, T]] = {}
    for key, value in state.items():
        if m := WRAPPED.fullmatch(key):
            backbones.setdefault(m[1] or "", {})[m[2]] = value
    return next((backbones[who] for who in ("teacher", "", "student") if who in backbones), state)


# ------------------------------------------------------------------ joined tables
TABLES: dict[str, Table] = CLIP_TABLES | TOKENIZER_TABLES | DINO_TABLES
# {layout: (pattern of the network's keys, pattern of those that need not be read)}
OWN: dict[str, tuple[str, str]] = CLIP_OWN | TOKENIZER_OWN | DINO_OWN


def detect(keys: set[str]) -> str | None:
    """Return the layout of a tokenizer's or teacher's checkpoint; None for other files."""
    return detect_clip(keys) or detect_tokenizer(keys) or detect_dino(keys)
