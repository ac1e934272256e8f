"""Tables of the libraries that use our encoders: timm, transformers, OpenMMLab, detectron2.

timm's VisionTransformer and BEiT have the names of the official MAE and BEiT files, whose tables
are in `methods.py`. This file has their variants with a norm after mean pooling ("..._pooled") and
all layouts with other names. Sources: timm 1.0.31, transformers 4.57 and 5.23 (which read the same
files), mmpretrain 1.2.0, mmsegmentation 1.2.2, detectron2 02b5c4e.
"""

from __future__ import annotations

from collections.abc import Collection

from mimjax.torch_io.tables import methods
from mimjax.torch_io.tables.layouts import Row, Table, linear, norm, renamed, without

RELATIVE = "relative_position_bias"


def hf_blocks(ours: str, theirs: str, keys: bool = True) -> list[Row]:
    """Return the rows of a block of transformers' ViT or BEiT, where q, k and v are not fused.

    Args:
      ours, theirs: prefixes of a block's parameters, its number included.
      keys: whether the file has biases of k (ViT); they are zero if our encoder has none.
    """
    attention = f"{theirs}.attention.attention"
    leaves = lambda leaf: tuple(f"{attention}.{x}.{leaf}" for x in ("query", "key", "value"))
    q_bias, k_bias, v_bias = leaves("bias")
    queries = (q_bias, k_bias) if keys else q_bias
    return [
        Row(f"{ours}/attn/qkv/kernel", leaves("weight"), "linear"),
        *([Row(f"{ours}/attn/qkv/bias", leaves("bias"), "same")] if keys else []),
        Row(f"{ours}/attn/q_bias", queries, "with_zeros" if keys else "same"),
        Row(f"{ours}/attn/v_bias", v_bias, "same"),
        *linear(f"{ours}/attn/proj", f"{theirs}.attention.output.dense"),
        *norm(f"{ours}/norm1", f"{theirs}.layernorm_before"),
        *norm(f"{ours}/norm2", f"{theirs}.layernorm_after"),
        *linear(f"{ours}/mlp/fc1", f"{theirs}.intermediate.dense"),
        *linear(f"{ours}/mlp/fc2", f"{theirs}.output.dense"),
    ]


def hf_embeddings(root: str, prefix: str = "") -> list[Row]:
    """Return the rows of CLS token, positions and patch embedding.

    Args:
      root: our network, the first part of its paths.
      prefix: prefix of the file's keys.
    """
    embed = f"{prefix}embeddings"
    patch = f"{embed}.patch_embeddings.projection"
    return [
        Row(f"{root}/cls_token", f"{embed}.cls_token", "same"),
        Row(f"{root}/pos_embed", f"{embed}.position_embeddings", "same"),
        Row(f"{root}/patch_embed/kernel", f"{patch}.weight", "patch_conv"),
        Row(f"{root}/patch_embed/bias", f"{patch}.bias", "same"),
    ]


def hf_vit(root: str = "encoder", prefix: str = "") -> list[Row]:
    """Return the rows of ViTModel, or with the prefix "vit." of the encoder in its task models."""
    return [
        *hf_embeddings(root, prefix),
        *hf_blocks(f"{root}/block_{{i}}", f"{prefix}encoder.layer.{{i}}"),
        *norm(f"{root}/norm", f"{prefix}layernorm"),
    ]


def hf_mae(layers: str) -> list[Row]:
    """Return the rows of ViTMAEForPreTraining.

    Args:
      layers: name of the decoder's blocks: "decoder_layers" (4.x writes it, 4.x and 5.x read it) or
        "decoder_encoder.layer" (5.x writes it, 4.x does not read it).
    """
    return [
        *hf_vit(prefix="vit."),
        Row("decoder/mask_token", "decoder.mask_token", "same"),
        *linear("decoder/embed", "decoder.decoder_embed"),
        *hf_blocks("decoder/block_{i}", f"decoder.{layers}.{{i}}"),
        *norm("decoder/norm", "decoder.decoder_norm"),
        *linear("decoder/head", "decoder.decoder_pred"),
    ]


def hf_beit(prefix: str, final_norm: str) -> list[Row]:
    """Return the rows of BeitModel and its head for masked image modeling.

    Args:
      prefix: prefix of BeitModel's keys.
      final_norm: key of the final norm.
    """
    ours, theirs = "encoder/block_{i}", f"{prefix}encoder.layer.{{i}}"
    table = f"{RELATIVE}.{RELATIVE}_table"
    return [
        *hf_embeddings("encoder", prefix),
        Row("encoder/mask_token", f"{prefix}embeddings.mask_token", "same"),
        Row("encoder/rel_pos/table", f"{prefix}encoder.{table}", "same"),
        Row("encoder/rel_pos_{i}/table", f"{theirs}.attention.attention.{table}", "same"),
        *hf_blocks(ours, theirs, keys=False),
        Row(f"{ours}/gamma_1", f"{theirs}.lambda_1", "same"),
        Row(f"{ours}/gamma_2", f"{theirs}.lambda_2", "same"),
        *norm("encoder/norm", final_norm),
        *linear("head/linear", "lm_head"),
    ]


# official names -> OpenMMLab's names
MM = {
    "patch_embed.proj": "patch_embed.projection",
    "blocks.{i}": "layers.{i}",
    "blocks.{i}.norm1": "layers.{i}.ln1",
    "blocks.{i}.norm2": "layers.{i}.ln2",
    "blocks.{i}.mlp.fc1": "layers.{i}.ffn.layers.0.0",
    "blocks.{i}.mlp.fc2": "layers.{i}.ffn.layers.1",
    "norm": "ln1",
}


def mm(prefix: str, fused: bool) -> list[Row]:
    """Return the rows of OpenMMLab's backbones.

    Args:
      prefix: prefix of the file's keys.
      fused: whether q, k and v have one bias (VisionTransformer, mmseg's MAE) or q and v one each
        (BEiT).
    """
    rows = renamed(methods.encoder("", fused), MM)
    return [Row(r.ours, tuple(prefix + k for k in r.keys), r.layout) for r in rows]


def pooled(rows: list[Row], last: str, fc_norm: str) -> list[Row]:
    """Return the rows with the final norm `last` renamed to the norm after pooling, `fc_norm`."""
    return renamed(rows, {last: fc_norm})


VIT = methods.timm_vit()
GAMMAS = "encoder/block_{i}/gamma"
# mmpretrain's VisionTransformer; its layer scales have other names, which no method needs
MM_VIT = without(mm("backbone.", True), "encoder/rel_pos", GAMMAS)
MM_BEIT = mm("backbone.", False)
TABLES: dict[str, Table] = {
    # fine-tuned MAE files, timm with global_pool="avg"
    "mae_pooled": (pooled(VIT, "norm", "fc_norm"), {"pos_embed": "encoder"}),
    "beit_pooled": (pooled(methods.encoder(), "norm", "fc_norm"), {}),
    "vitmae_transformers": (
        hf_mae("decoder_layers"),
        {
            "vit.embeddings.position_embeddings": "encoder",
            "decoder.decoder_pos_embed": "decoder",
        },
    ),
    "vitmae_transformers_5": (
        hf_mae("decoder_encoder.layer"),
        {
            "vit.embeddings.position_embeddings": "encoder",
            "decoder.decoder_pos_embed": "decoder",
        },
    ),
    "beit_transformers": (hf_beit("beit.", "layernorm"), {}),  # BeitForMaskedImageModeling
    "beit_transformers_token": (hf_beit("beit.", "beit.layernorm"), {}),  # a head on the token
    "beit_transformers_bare": (hf_beit("", "layernorm"), {}),
    "beit_transformers_pooled": (hf_beit("", "pooler.layernorm"), {}),
    # a model that would pool and has no pooler, as data2vec's encoders are published
    "beit_transformers_normless": (without(hf_beit("", "layernorm"), "encoder/norm"), {}),
    "mmpretrain": (MM_VIT, {}),
    "mmpretrain_pooled": (pooled(MM_VIT, "backbone.ln1", "backbone.ln2"), {}),
    "mmpretrain_beit": (MM_BEIT, {}),
    "mmpretrain_beit_pooled": (pooled(MM_BEIT, "backbone.ln1", "backbone.ln2"), {}),
    # backbones of segmentation, which have no final norm
    "mmseg": (without(mm("", True), "encoder/norm", "encoder/rel_pos"), {}),
    "mmseg_beit": (without(mm("", False), "encoder/norm", "encoder/pos_embed"), {}),
    # ViTDet: no CLS, no final norm; layer scale is folded into the layers before it
    "detectron2": (
        without(
            renamed(VIT, {k: f"backbone.net.{k}" for k in ("pos_embed", "patch_embed", "blocks")}),
            *("encoder/cls_token", "encoder/norm", GAMMAS),
        ),
        {},
    ),
}
# layouts without layer scales, whose files have them multiplied into other weights
FOLDED = {"detectron2"}
# {layout: a key by which its file is timm's alone}: a plain DINOv2 or a DeiT III, whose layer
# scales no official code names so. timm resizes learned positions with antialiasing.
ANTIALIASED = {"mae": "blocks.0.ls1.gamma", "mae_pooled": "blocks.0.ls1.gamma"}


def antialiased(layout: str, keys: Collection[str]) -> bool:
    """Return whether the code that a file's names belong to resizes positions antialiased."""
    return ANTIALIASED.get(layout) in keys


def detect(keys: set[str]) -> str | None:
    """Return the layout of a file of one of these libraries; None for other files."""
    if "vit.embeddings.cls_token" in keys:
        new = any(k.startswith("decoder.decoder_encoder.") for k in keys)
        return "vitmae_transformers_5" if new else "vitmae_transformers"
    if "beit.embeddings.cls_token" in keys:
        normed = "beit.layernorm.weight" in keys
        return "beit_transformers_token" if normed else "beit_transformers"
    if "embeddings.cls_token" in keys and "encoder.layer.0.lambda_1" in keys:
        if "pooler.layernorm.weight" in keys:
            return "beit_transformers_pooled"
        normed = "layernorm.weight" in keys
        return "beit_transformers_bare" if normed else "beit_transformers_normless"
    return None
