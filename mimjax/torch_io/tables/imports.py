"""What is only ever read: names that vary between libraries, and heads of fine-tuned files.

`official_names` brings a file's tensors under the names of the tables; `with_heads` adds to those
tables where each layout keeps the classifier of a fine-tuned or linearly probed model.
"""

from __future__ import annotations

import re

import numpy as np

from mimjax.torch_io.tables import methods
from mimjax.torch_io.tables.layouts import Row, Table, linear, norm

# layout -> (norm after mean pooling, "" = none; linear layer) of its classifiers
HEADS = {
    "mae": ("fc_norm", "head"),
    "bootmae": ("fc_norm", "head"),
    "beit": ("fc_norm", "head"),
    "mcmae": ("fc_norm", "head"),
    "vit_transformers": ("", "classifier"),
    "vitmae_transformers": ("", "classifier"),
    "beit_transformers": ("beit.pooler.layernorm", "classifier"),
    "beit_transformers_pooled": ("pooler.layernorm", "classifier"),
}
# of fixed tables, see `methods.POSITIONS`
POSITIONS = methods.POSITIONS | {"vitmae_transformers": "xy", "vitmae_transformers_5": "xy"}


def classifier(fc_norm: str, head: str) -> list[Row]:
    """Rows of `models.heads.Classifier`; a linear probe has a BatchNorm without parameters."""
    ours, statistics = "classifier/params", "classifier/batch_stats/batch_norm"
    return [
        *(norm(f"{ours}/norm", fc_norm) if fc_norm else []),
        *linear(f"{ours}/linear", head),
        Row(f"{statistics}/mean", "head.0.running_mean", "same"),
        Row(f"{statistics}/var", "head.0.running_var", "same"),
    ]


def with_heads(tables: dict[str, Table]) -> dict[str, Table]:
    """The tables with rows for classifiers."""
    new = {k: (tables[k][0] + classifier(*names), tables[k][1]) for k, names in HEADS.items()}
    return tables | new


def official_names(state: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """A state dict under the names that the tables know.

    Without DistributedDataParallel's `module.`; the linear layer of a probe's `head` (a BatchNorm
    and a linear layer) as any other head; positions without a row for CLS (DeiT-III) with zeros
    for it, which is what adding CLS afterwards means.
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


def whole_square(shape: tuple[int, ...]) -> bool:
    """Whether the rows of positions fill a square, so that none of them is that of CLS."""
    return len(shape) == 3 and round(shape[1] ** 0.5) ** 2 == shape[1] > 1
