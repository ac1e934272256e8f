"""Tables of the methods' published checkpoints, official key names."""

from __future__ import annotations

from mimjax.torch_io.layouts import Row, Table, block, linear, norm

_ENCODER = [
    Row("encoder/cls_token", "cls_token", "same"),
    Row("encoder/patch_embed/kernel", "patch_embed.proj.weight", "patch_conv"),
    Row("encoder/patch_embed/bias", "patch_embed.proj.bias", "same"),
    *block("encoder/block_{i}", "blocks.{i}"),
    *norm("encoder/norm", "norm"),
]

TABLES: dict[str, Table] = {
    "mae": (
        [
            *_ENCODER,
            Row("decoder/mask_token", "mask_token", "same"),
            *linear("decoder/embed", "decoder_embed"),
            *block("decoder/block_{i}", "decoder_blocks.{i}"),
            *norm("decoder/norm", "decoder_norm"),
            *linear("decoder/head", "decoder_pred"),
        ],
        {"pos_embed": "encoder", "decoder_pos_embed": "decoder"},
    ),
    "bootmae": (
        [
            *_ENCODER,
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
}
