"""Published accuracies on ImageNet-1k, to stand beside ours where the data set is ImageNet-1k.

Linear, attentive and fine-tuned numbers are those of the papers' repositories; k-NN and EP numbers,
and the rows of other encoders, those of the efficient-probing board (billpsomas/efficient-probing,
results.csv at b8f4fb84; top-1 of the best epoch on the validation set, k-NN at the best k and T).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

FIRST_CLASS = "n01440764"  # of ImageNet-1k, sorted by name
CLASSES, VALIDATION = 1000, 50_000


class Number(NamedTuple):
    """A published accuracy.

    Attributes:
      top1: percent.
      source: where it stands, with the length of pretraining.
    """

    top1: float
    source: str


# (class of the method, width of the encoder) -> protocol -> number
PAPERS: dict[tuple[str, int], dict[str, Number]] = {
    ("MAE", 384): {
        "knn": Number(18.02, "EP board"),
        "linear": Number(47.08, "EP board"),
        "ep": Number(64.58, "EP board"),
    },
    ("MAE", 768): {
        "knn": Number(35.57, "EP board"),
        "linear": Number(67.8, "MAE, 1600 epochs"),
        "attentive": Number(74.2, "CAE's README, MAE of 1600 epochs"),
        "ep": Number(75.46, "EP board"),
        "fine_tune": Number(83.66, "MAE's FINETUNE.md, 1600 epochs"),
    },
    ("MAE", 1024): {
        "knn": Number(48.06, "EP board"),
        "linear": Number(76.0, "MAE, 1600 epochs"),
        "attentive": Number(78.8, "CAE's README, MAE of 1600 epochs"),
        "ep": Number(79.52, "EP board"),
        "fine_tune": Number(85.95, "MAE's FINETUNE.md, 1600 epochs"),
    },
    ("MAE", 1280): {
        "linear": Number(77.2, "MAE, 1600 epochs"),
        "fine_tune": Number(86.93, "MAE's FINETUNE.md, 1600 epochs"),
    },
    ("BootMAE", 768): {
        "linear": Number(66.1, "BootMAE's README, 800 epochs"),
        "fine_tune": Number(84.2, "BootMAE's README, 800 epochs"),
    },
    ("BootMAE", 1024): {
        "linear": Number(77.1, "BootMAE's README, 800 epochs"),
        "fine_tune": Number(85.9, "BootMAE's README, 800 epochs"),
    },
    ("CAE", 768): {
        "linear": Number(70.3, "CAE's README, 1600 epochs"),
        "attentive": Number(77.2, "CAE's README, 1600 epochs"),
        "fine_tune": Number(83.9, "CAE's paper, 1600 epochs"),
    },
    ("CAE", 1024): {
        "linear": Number(77.8, "CAE's README, 1600 epochs"),
        "attentive": Number(81.2, "CAE's README, 1600 epochs"),
        "fine_tune": Number(86.3, "CAE's paper, 1600 epochs"),
    },
    ("MCMAE", 768): {
        "linear": Number(70.9, "ConvMAE's README, 1600 epochs"),
        "fine_tune": Number(85.0, "ConvMAE's FINETUNE.md, 1600 epochs"),
    },
    ("BEiT", 768): {
        "fine_tune": Number(83.2, "BootMAE's Table 6, BEiT of 800 epochs"),
    },
    ("BEiT", 1024): {
        "fine_tune": Number(85.2, "BootMAE's Table 6, BEiT of 800 epochs"),
    },
    ("CAE", 384): {
        "fine_tune": Number(82.0, "CAE's paper, 300 epochs"),
    },
    ("CAEv2", 192): {
        "fine_tune": Number(77.8, "CAE v2's paper, 300 epochs"),
    },
    ("CAEv2", 384): {
        "fine_tune": Number(83.1, "CAE v2's paper, 300 epochs"),
    },
    ("CAEv2", 768): {
        "fine_tune": Number(85.5, "CAE v2's paper, 300 epochs"),
    },
    ("CAEv2", 1024): {
        "fine_tune": Number(87.6, "CAE v2's paper, 300 epochs"),
    },
    ("MRMAE", 384): {
        "fine_tune": Number(83.6, "MR-MAE's paper, 200 epochs"),
    },
    ("MRMAE", 768): {
        "fine_tune": Number(85.5, "MR-MAE's paper, 200 epochs"),
    },
    ("MRMAE", 1024): {
        "fine_tune": Number(86.8, "MR-MAE's paper, 200 epochs"),
    },
    ("MRMAE", 1280): {
        "fine_tune": Number(88.0, "MR-MAE's paper, 200 epochs"),
    },
}


class Encoder(NamedTuple):
    """A row of the efficient-probing board; None = not measured there."""

    name: str
    pretraining: str
    knn: float
    linear: float
    ep: float


BOARD = (
    Encoder("MAE S/16", "IN-1K", 18.02, 47.08, 64.58),
    Encoder("MAE B/16", "IN-1K", 35.57, 67.78, 75.46),
    Encoder("MAE L/16", "IN-1K", 48.06, 76.01, 79.52),
    Encoder("SimMIM B/16", "IN-1K", 8.59, 47.15, 64.86),
    Encoder("MaskFeat B/16", "IN-1K", 15.94, 62.24, 71.76),
    Encoder("MaskFeat L/16", "IN-1K", 5.72, 40.85, 69.63),
    Encoder("BEiT v2 B/16", "IN-1K", 70.09, 78.99, 81.39),
    Encoder("CAPI L/14", "IN-1K", 72.94, 81.94, 82.98),
    Encoder("EVA-02 L/14 (MIM)", "IN-22K", 73.95, 82.76, 83.58),
    Encoder("I-JEPA H/14", "IN-1K", 68.09, 78.08, 79.00),
    Encoder("DINO B/16", "IN-1K", 71.64, 77.19, 77.39),
    Encoder("iBOT B/16", "IN-1K", 73.58, 78.74, 78.98),
    Encoder("DINOv2 B/14", "LVD-142M", 79.34, 83.55, 84.01),
    Encoder("DINOv3 B/16", "LVD-1689M", 79.64, 83.94, 84.11),
    Encoder("CLIP B/16", "WIT-400M", 65.66, 77.86, 77.95),
)


def is_imagenet(names: Sequence[str], tested: int) -> bool:
    """Return whether classes and number of validation images are those of ImageNet-1k."""
    return len(names) == CLASSES and tested == VALIDATION and names[0] in (FIRST_CLASS, "tench")


def of_method(task: str, width: int) -> dict[str, Number]:
    """Return the published numbers of a method's encoder by protocol.

    Args:
      task: the config's task, "mimjax.methods.mae:MAE".
      width: of the encoder.
    """
    return PAPERS.get((task.rpartition(":")[2], width), {})
