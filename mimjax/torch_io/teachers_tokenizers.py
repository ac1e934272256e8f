"""Tables of tokenizers: DALL-E's encoder (two layouts), CAE's "customized" d-VAE, VQ-KD.

"dalle" has the keys of OpenAI's `dall_e` package (`.w`, `.b`), "flava" those of transformers'
FlavaImageCodebook: the same network and numbers. "flava_full" is the codebook inside a
FlavaForPreTraining checkpoint.
"""

from __future__ import annotations

from mimjax.torch_io.layouts import Row, Table, block, linear, norm


def _pair(ours: str, theirs: str, layout: str, weight: str = "weight", bias: str = "bias"):
    return [
        Row(f"{ours}/kernel", f"{theirs}.{weight}", layout),
        Row(f"{ours}/bias", f"{theirs}.{bias}", "same"),
    ]


def _dalle(weight: str, bias: str, group: str = "", path: str = "", prefix: str = "") -> Table:
    """The encoder's rows; `group` and `path` are the levels that transformers adds."""
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
    """Blocks are numbered as in the two nn.Sequentials, whatever the number of layers."""
    rows = [Row("decoder/codebook", "codebook.weight", "same")]
    for net, body in (("encoder", "encoder/body"), ("decoder", "decoder")):
        for c, (index, kind) in enumerate(((0, "conv"), (2, "conv"), (4, "conv1x1")), 1):
            rows += _pair(f"{body}/res_{{i}}/conv_{c}", f"{net}.{{i}}.net.{index}", kind)
        rows += _pair(f"{net}/out_{{i}}", f"{net}.{{i}}", "conv1x1")
    rows += _pair("encoder/body/down_{i}", "encoder.{i}.0", "conv")
    # ours is [h w out in] and theirs [in out h w]: the transposition of an ordinary convolution
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

TABLES: dict[str, Table] = {
    "dalle": _dalle("w", "b"),
    "flava": _dalle("weight", "bias", ".group", ".path"),
    "flava_full": _dalle("weight", "bias", ".group", ".path", "image_codebook."),
    "dvae": _dvae(),
    "vqkd": _VQKD,
}

# Keys that are the network's own: one that stays unread means a wrong size in the config. The
# d-VAE needs no such check, because its last layer's number changes with its depth.
OWN: dict[str, tuple[str, str]] = {
    "dalle": (r"blocks\.", ""),
    "flava": (r"blocks\.", ""),
    "flava_full": (r"image_codebook\.", ""),
    "vqkd": (r"encoder\.|encode_task_layer\.|quantize\.embedding\.weight", ""),
}


def detect(keys: set[str]) -> str | None:
    """The layout of a tokenizer's file; None if it is none of these."""
    marks = {
        "blocks.input.w": "dalle",
        "blocks.input.weight": "flava",
        "image_codebook.blocks.input.weight": "flava_full",
        "encode_task_layer.0.weight": "vqkd",
        "encoder.0.0.weight": "dvae",
    }
    return next((layout for mark, layout in marks.items() if mark in keys), None)
