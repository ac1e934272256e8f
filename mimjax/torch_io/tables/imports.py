"""Variants of keys, which are read and never written, and names of classifiers.

`official_names` renames a file's tensors to the names of the tables, `own_names` those of our own
files to the names of today. `with_heads` adds to the
tables where each layout has the classifier of a fine-tuned or linearly probed model.
"""

from __future__ import annotations

import re

import numpy as np

from mimjax.torch_io.tables import methods
from mimjax.torch_io.tables.layouts import Row, Table, linear, norm

# {layout: (norm after mean pooling, "" = none; linear layer)} of the classifiers
HEADS = {
    "mae": ("fc_norm", "head"),
    "bootmae": ("fc_norm", "head"),
    "beit": ("fc_norm", "head"),
    "mae_pooled": ("fc_norm", "head"),
    "beit_pooled": ("fc_norm", "head"),
    "mmpretrain_pooled": ("backbone.ln2", "head.layers.head"),
    "mmpretrain_beit_pooled": ("backbone.ln2", "head.layers.head"),
    "mcmae": ("fc_norm", "head"),
    "vit_transformers": ("", "classifier"),
    "vitmae_transformers": ("", "classifier"),
    "beit_transformers": ("beit.pooler.layernorm", "classifier"),
    "beit_transformers_token": ("", "classifier"),
    "beit_transformers_pooled": ("pooler.layernorm", "classifier"),
}
# keys of what stands behind an encoder or beside it, which its features do not need
BEHIND = re.compile(
    r"(.*\.)?(head\w*|\w+_heads?|classifier|fc|fpn\d?|neck|rpn|simfp_\d|decode\w*|pretext_neck|dec|"
    r"lm_head\w*|mask_token\w*|de_pos_embed|rd_pos_embed|down\w*|regress\w*|encoder_to_\w+|"
    r"stage\d_output_decode|pooler\.dense|attn_pool|attentive\w*|query_token\w*|pre_logits|"
    r"proj\w*|predict\w*|alignment_encoder|logit_\w+|text\w*|queue\w*|loss\w*|criterion|\w*teacher\w*|mimic_head)"
    r"([._].*)?"
)
# order of the coordinates in fixed position tables, see `methods.POSITIONS`
POSITIONS = methods.POSITIONS | {"vitmae_transformers": "xy", "vitmae_transformers_5": "xy"}


def classifier(fc_norm: str, head: str) -> list[Row]:
    """Return the rows of `models.heads.Classifier`, those of a linear probe's BatchNorm included.

    Args:
      fc_norm: key of the norm after pooling; "" = none.
      head: key of the linear layer.
    """
    ours, statistics = "classifier/params", "classifier/batch_stats/batch_norm"
    return [
        *(norm(f"{ours}/norm", fc_norm) if fc_norm else []),
        *linear(f"{ours}/linear", head),
        Row(f"{statistics}/mean", "head.0.running_mean", "same"),
        Row(f"{statistics}/var", "head.0.running_var", "same"),
    ]


def with_heads(tables: dict[str, Table]) -> dict[str, Table]:
    """Return the tables with the rows of classifiers added to the layouts in HEADS."""
    new = {k: (tables[k][0] + classifier(*names), tables[k][1]) for k, names in HEADS.items()}
    return tables | new


def official_names(state: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return a state dict under the names of the tables.

    Three variants are changed. The prefix `module.` of DistributedDataParallel is removed. The
    linear layer `head.1` of a probe, which follows a BatchNorm, becomes `head`. Positions without a
    row for CLS (DeiT-III) get a row of zeros, since CLS is added after the positions.
    """
    if state and all(k.startswith("module.") for k in state):
        state = {k.removeprefix("module."): v for k, v in state.items()}
    if "head.0.running_mean" in state:
        state = {re.sub(r"^head\.1\.", "head.", k): v for k, v in state.items()}
    pos = state.get("pos_embed")
    if pos is not None and "blocks.0.ls1.gamma" in state and whole_square(pos.shape):
        zeros = np.zeros((1, 1, pos.shape[2]), pos.dtype)
        state = state | {"pos_embed": np.concatenate([zeros, pos], axis=1)}
    return state


def own_names(state: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return a file that mimjax exported under today's names.

    CAE's projection stood beside the encoder until version 3 of the settings.
    """
    if not any(k.startswith("encoder/") for k in state):
        return state  # the names are those of another layout
    moved = lambda k: f"encoder/{k}" if k.startswith("projection/") else k
    return {moved(k): v for k, v in state.items()}


def whole_square(shape: tuple[int, ...]) -> bool:
    """Return whether positions [1 n d] fill a square, so that none of the rows belongs to CLS."""
    return len(shape) == 3 and round(shape[1] ** 0.5) ** 2 == shape[1] > 1
