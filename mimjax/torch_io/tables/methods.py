"""Tables of the methods' official checkpoints: MAE, ConvMAE, BootMAE, BEiT, CAE and CAE v2.

Each table maps our parameter paths to the keys of the official code. Frozen teachers and tokenizers
are in `teachers.py`, layouts of libraries in `libraries.py`.
"""

from __future__ import annotations

from typing import NamedTuple

from mimjax.torch_io.tables.layouts import Row, Table, block, conv, linear, norm, without


def encoder(
    theirs: str = "", fused: bool = False, gammas: tuple[str, str] = ("gamma_1", "gamma_2")
) -> list[Row]:
    """Return the rows of all parameters that a ViT encoder may have.

    Args:
      theirs: prefix of the file's keys.
      fused, gammas: see `layouts.block`.
    """
    table = "relative_position_bias_table"
    return [
        Row("encoder/cls_token", f"{theirs}cls_token", "same"),
        Row("encoder/pos_embed", f"{theirs}pos_embed", "same"),
        Row("encoder/patch_embed/kernel", f"{theirs}patch_embed.proj.weight", "patch_conv"),
        Row("encoder/patch_embed/bias", f"{theirs}patch_embed.proj.bias", "same"),
        Row("encoder/rel_pos/table", f"{theirs}rel_pos_bias.{table}", "same"),
        Row("encoder/rel_pos_{i}/table", f"{theirs}blocks.{{i}}.attn.{table}", "same"),
        *block("encoder/block_{i}", f"{theirs}blocks.{{i}}", fused=fused, gammas=gammas),
        *norm("encoder/norm", f"{theirs}norm"),
    ]


def timm_vit() -> list[Row]:
    """Return the rows of MAE's encoder and timm's VisionTransformer.

    They have no relative positions and one tensor for the biases of q, k and v. The layer scales
    ls1 and ls2 exist in timm only.
    """
    return without(encoder("", True, ("ls1.gamma", "ls2.gamma")), "encoder/rel_pos")


def regressor(ours: str, theirs: str) -> list[Row]:
    """Return the rows of a block of CAE's regressor."""
    rows = []
    for name in ("norm1_q", "norm1_k", "norm1_v", "norm2_cross"):
        rows += norm(f"{ours}/{name}", f"{theirs}.{name}")
    for name in ("q", "k", "v", "proj"):
        rows += linear(f"{ours}/cross_attn/{name}", f"{theirs}.cross_attn.{name}")
    for name in ("q_bias", "v_bias"):
        rows.append(Row(f"{ours}/cross_attn/{name}", f"{theirs}.cross_attn.{name}", "same"))
    for name in ("fc1", "fc2"):
        rows += linear(f"{ours}/mlp_cross/{name}", f"{theirs}.mlp_cross.{name}")
    for name in ("gamma_1_cross", "gamma_2_cross"):
        rows.append(Row(f"{ours}/{name}", f"{theirs}.{name}", "same"))
    return rows


def cae(
    regress: str, regress_norm: str, decode: str, decode_norm: str, head: str, project: str
) -> list[Row]:
    """Return the rows of CAE and CAE v2.

    CAE v2 has no decoder; its head has the keys of the norm and head of CAE's decoder.

    Args:
      regress, regress_norm, decode, decode_norm, head, project: prefixes of the file's keys of the
        regressor, its norm, the decoder, its norm, the head, and the layer after the encoder.
    """
    return [
        *encoder("encoder."),
        Row("regressor/mask_token", "mask_token", "same"),
        *regressor("regressor/block_{i}", regress + ".regressor_blocks.{i}"),
        *norm("regressor/norm", regress_norm),
        *block("decoder/block_{i}", decode + ".decoder_blocks.{i}"),
        *norm("decoder/norm", decode_norm),
        *linear("decoder/head", head),
        *norm("head/norm", decode_norm),
        *linear("head/head", head),
        *linear("encoder/projection/linear", project),
        *norm("encoder/projection/norm", f"{project}_norm"),
    ]


def conv_encoder() -> list[Row]:
    """Return the rows of ConvMAE's encoder: convolutional stages and a ViT."""
    rows = [Row("encoder/pos_embed", "pos_embed", "same")]
    for k in (1, 2, 3):
        rows += conv(f"encoder/patch_embed{k}/proj", f"patch_embed{k}.proj")
        rows += norm(f"encoder/patch_embed{k}/norm", f"patch_embed{k}.norm")
    rows += linear("encoder/patch_embed4", "patch_embed4")
    for k in (1, 2):
        ours, theirs = f"encoder/stage{k}_block_{{i}}", f"blocks{k}.{{i}}"
        rows += norm(f"{ours}/norm1", f"{theirs}.norm1") + norm(f"{ours}/norm2", f"{theirs}.norm2")
        rows += conv(f"{ours}/depthwise", f"{theirs}.attn")
        for a, b in (
            ("conv1", "conv1"),
            ("conv2", "conv2"),
            ("fc1", "mlp.fc1"),
            ("fc2", "mlp.fc2"),
        ):
            rows += conv(f"{ours}/{a}", f"{theirs}.{b}", "conv1x1")
        rows += conv(f"encoder/stage{k}_fuse", f"stage{k}_output_decode")
    return [*rows, *block("encoder/block_{i}", "blocks3.{i}"), *norm("encoder/norm", "norm")]


def mae_decoder() -> list[Row]:
    """Return the rows of MAE's decoder."""
    return [
        Row("decoder/mask_token", "mask_token", "same"),
        *linear("decoder/embed", "decoder_embed"),
        *block("decoder/block_{i}", "decoder_blocks.{i}", fused=True),
        *norm("decoder/norm", "decoder_norm"),
        *linear("decoder/head", "decoder_pred"),
    ]


# MR-MAE's code is not published; the name is mimjax's
MIMIC = linear("mimic_head/linear", "mimic_head")

TABLES: dict[str, Table] = {
    "mae": (
        [*timm_vit(), *mae_decoder(), *MIMIC],
        {"pos_embed": "encoder", "decoder_pos_embed": "decoder"},
    ),
    # Alpha-VL/ConvMAE and FastConvMAE; the released files hold the encoder alone, without the
    # convolutions of the fusion
    "mcmae": (
        [*conv_encoder(), *mae_decoder(), *MIMIC],
        {"pos_embed": "encoder", "decoder_pos_embed": "decoder"},
    ),
    "bootmae": (
        [
            *encoder(),
            Row("pixel_decoder/mask_token", "mask_token", "same"),
            *linear("pixel_decoder/down", "down"),
            *block("pixel_decoder/block_{i}", "decode_blocks.{i}"),
            *norm("pixel_decoder/norm", "decode_norm"),
            Row("pixel_decoder/head/kernel", "lm_head.proj.weight", "patch_deconv"),
            Row("pixel_decoder/head/bias", "lm_head.proj.bias", "same"),
            Row("feature_decoder/mask_token", "mask_token_1", "same"),
            *linear("feature_decoder/down", "down_1"),
            *block("feature_decoder/block_{i}", "decode_blocks_1.{i}"),
            *norm("feature_decoder/norm", "decode_norm_1"),
            *linear("feature_decoder/head", "lm_head_1"),
        ],
        {"pos_embed": "encoder", "de_pos_embed": "pixel_decoder"},
    ),
    "beit": (
        [
            *encoder(),
            Row("encoder/mask_token", "mask_token", "same"),
            *linear("head/linear", "lm_head"),
        ],
        {},
    ),
    # Atten4Vis/CAE: CAE and CAE v2; files with the encoder alone as well
    "cae": (
        cae(
            "regresser",
            "regresser.norm",
            "decoder",
            "decoder.norm",
            "decoder.head",
            "encoder_to_regresser",
        ),
        {"encoder.pos_embed": "encoder", "rd_pos_embed": "regressor"},
    ),
    # lxtGH/CAE, the older official repository
    "cae_older": (
        cae(
            "pretext_neck",
            "pretext_neck.norm",
            "pretext_neck",
            "pretext_neck.norm2",
            "pretext_neck.head",
            "encoder_to_decoder",
        ),
        {"encoder.pos_embed": "encoder"},
    ),
}


class Maker(NamedTuple):
    """What the networks of a file say of the method that made it.

    Attributes:
      networks: beginnings of our paths that the file has.
      method: the method's class.
      layout: of the file; "" = any.
      codes: whether its head, "head/linear", scores the codes of a tokenizer.
    """

    networks: tuple[str, ...]
    method: str
    layout: str = ""
    codes: bool = False


MAKERS = (  # the first that fits
    Maker(("mimic_head",), "mimjax.methods.mrmae:MRMAE"),
    Maker(("pixel_decoder",), "mimjax.methods.bootmae:BootMAE"),
    Maker(("feature_decoder",), "mimjax.methods.bootmae:BootMAE"),
    Maker(("regressor", "decoder/block_00"), "mimjax.methods.cae:CAE"),
    Maker(("regressor", "head/norm"), "mimjax.methods.caev2:CAEv2"),
    Maker(("regressor",), "mimjax.methods.cae:CAE"),
    Maker(("decoder",), "mimjax.methods.mcmae:MCMAE", "mcmae"),
    Maker(("decoder",), "mimjax.methods.mae:MAE"),
    Maker(("head/linear",), "mimjax.methods.beit:BEiT", codes=True),
)
# which coordinate comes first in the fixed tables; see `models.vit.sincos_table`
POSITIONS = {"mae": "xy", "mcmae": "xy", "bootmae": "yx", "cae": "yx", "cae_older": "yx"}
# layouts of codes whose flag norm_pix_loss decides what a decoder predicts
NORM_PIX_BY_FLAG = {"mae", "mcmae", "vitmae_transformers", "vitmae_transformers_5"}
NO_CLS = {"mcmae"}  # layouts whose position tables have no row for CLS
# {layout: (pattern of keys that some published files lack, advice for the error)}
ADVICE = {
    "mcmae": (
        r"stage\d_output_decode\..*",
        "files without the convolutions of the multi-scale fusion (released encoders, fine-tuned "
        "models) need method.encoder.fuse_stages=False",
    ),
}


def detect(keys: set[str]) -> str | None:
    """Return the layout of a method's checkpoint; None for other files."""
    if any(k.startswith("pretext_neck.") for k in keys):
        return "cae_older"
    if "patch_embed4.weight" in keys and "blocks3.0.attn.qkv.weight" in keys:
        return "mcmae"
    relative = any(k.endswith("relative_position_bias_table") for k in keys)
    # SimMIM's encoder has the same prefix; its decoder is one convolution
    if "encoder.blocks.0.attn.q_bias" in keys and not relative and "decoder.0.weight" not in keys:
        return "cae"
    if "blocks.0.attn.q_bias" in keys:
        # only BEiT has layer scales, relative positions, or a linear layer as its head
        if relative or keys & {"lm_head.weight", "blocks.0.gamma_1"}:
            return "beit"
        if keys & {"pos_embed", "mask_token_1"}:
            return "bootmae"
    # I-JEPA's encoder has no class token
    if "blocks.0.attn.qkv.bias" in keys and keys & {"cls_token", "pos_embed"}:
        return "mae"
    return None
