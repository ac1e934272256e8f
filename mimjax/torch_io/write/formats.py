"""Table of what can be exported: pairs of encoder and format, and the properties of each format.

Which parameters an encoder has decides, and not the method that trains it: a row of the table is
named after the method whose encoders are such. A pair names the layout of its tensors and the steps
that change the encoder before it is written. A pair that is not in the table is refused, with the
reason if there is a known one. Tensors are made in `export.py`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from mimjax import values
from mimjax.errors import ConfigError
from mimjax.task import Student
from mimjax.torch_io.read.detect import OWN, rows_for

TENSORS, PICKLES = (".safetensors",), (".pth", ".pt")


class Format(NamedTuple):
    """Properties of a file format.

    Attributes:
      suffixes: allowed suffixes of the file; () = a folder only.
      wrapper: key of a .pth file under which the state dict is.
      library: library that reads the file and verifies it; "" = mimjax reads it back.
      folder: whether a path without these suffixes is a folder.
      final_norm: whether the library's features end with the encoder's last norm.
    """

    suffixes: tuple[str, ...]
    wrapper: str = "model"
    library: str = ""
    folder: bool = False
    final_norm: bool = True


FORMATS: dict[str, Format] = {
    "timm": Format(TENSORS + PICKLES, library="timm", folder=True),
    "hf": Format((), library="transformers", folder=True),
    "mae": Format(PICKLES + TENSORS),
    "bootmae": Format(PICKLES + TENSORS),
    "beit": Format(PICKLES + TENSORS),
    "cae": Format(PICKLES + TENSORS),
    "convmae": Format(PICKLES + TENSORS, library="torch"),
    # mmengine does not read .safetensors, and knows no other wrapper than "state_dict"
    "mmpretrain": Format(PICKLES, "state_dict", "mmpretrain"),
    "mmseg": Format(PICKLES, "state_dict", "mmseg", final_norm=False),
    "detectron2": Format(PICKLES, final_norm=False),
    "safetensors": Format(TENSORS),
}


class Pair(NamedTuple):
    """Export of one kind of encoder in one format.

    Attributes:
      layout: layout of the tensors, a key of `detect.TABLES`.
      pooled: layout with --pool=avg; "" = the format has no norm after pooling.
      full: layout with --decoder, if it has a place for all trained networks; "" = none.
      steps: names in `tensors.STEPS`, applied to the encoder in this order: "per_block" copies a
        shared relative table to every block, "folded" multiplies layer scales into weights. Without
        steps the file has the trained values bit for bit.
    """

    layout: str
    pooled: str = ""
    full: str = ""
    steps: tuple[str, ...] = ()


SAFETENSORS = {"safetensors": Pair(OWN, full=OWN)}
DENSE = {"mmseg": Pair("mmseg"), "detectron2": Pair("detectron2")}
FOLDED = DENSE | {"detectron2": Pair("detectron2", steps=("folded",))}
BEIT = {
    "hf": Pair("beit_transformers_bare", "beit_transformers_pooled", full="beit_transformers"),
    "beit": Pair("beit", full="beit"),
}
# an encoder with biases of queries and values alone, in transformers and mmpretrain a BEiT
QV = {
    "timm": Pair("mae", "mae_pooled"),
    **BEIT,
    "mmpretrain": Pair("mmpretrain_beit", "mmpretrain_beit_pooled"),
}
COPIED = ("per_block",)
MATRIX: dict[str, dict[str, Pair]] = {
    "mae": {
        "timm": Pair("mae", "mae_pooled"),
        "hf": Pair("vit_transformers", full="vitmae_transformers"),
        "mae": Pair("mae", full="mae"),
        "mmpretrain": Pair("mmpretrain", "mmpretrain_pooled"),
        **DENSE,
        **SAFETENSORS,
    },
    "bootmae": {
        **QV,
        "bootmae": Pair("bootmae", full="bootmae"),
        "mae": Pair("mae"),
        **DENSE,
        **SAFETENSORS,
    },
    "beit": {
        "timm": Pair("beit", "beit_pooled", steps=COPIED),
        **BEIT,
        "mmpretrain": Pair("mmpretrain_beit", "mmpretrain_beit_pooled", steps=COPIED),
        "mmseg": Pair("mmseg_beit", steps=COPIED),
        **SAFETENSORS,
    },
    "cae": {**QV, "cae": Pair("cae", full="cae"), **FOLDED, **SAFETENSORS},
    "mcmae": {"convmae": Pair("mcmae", full="mcmae"), **SAFETENSORS},
}
WORDS = {
    "mae": "a ViT with biases of q, k and v",
    "bootmae": "a ViT with biases of q and v",
    "beit": "a ViT with relative positions",
    "cae": "a ViT with biases of q and v and with layer scales",
    "mcmae": "convolutional stages and a ViT",
    "others": "any other network",
}

RELATIVE = "has no place for BEiT's relative positions"
STAGES = "knows no convolutional stages"
REFUSED = {
    ("beit", "detectron2"): f"ViTDet {RELATIVE}",
    ("beit", "mae"): f"MAE's layout {RELATIVE}",
    ("cae", "mae"): "MAE's layout has no layer scale",
    **{
        ("mcmae", name): f"{name} {STAGES}; take convmae and "
        "mimjax/torch_io/write/convmae_module.py"
        for name in ("timm", "hf", "mmpretrain", "mmseg", "detectron2")
    },
}


def row_of(encoder: Student) -> str:
    """Return the row of MATRIX for an encoder, by the parameters that its settings give it.

    An encoder with settings of its own has none: "others".
    """
    if getattr(encoder, "stage_mlp_ratios", ()):
        return "mcmae"
    if not {"rel_pos", "bias", "layer_scale"} <= set(values.fields(type(encoder))):
        return "others"
    if encoder.rel_pos != "none":
        return "beit"
    if encoder.bias == "full":
        return "mae"
    return "cae" if encoder.layer_scale else "bootmae"


def pairs_of(row: str) -> dict[str, Pair]:
    """Return {format: pair} of a row; other networks have mimjax's own format only."""
    return MATRIX.get(row, SAFETENSORS)


def find_pair(row: str, name: str) -> Pair:
    """Return the pair of a row and the format `name`.

    Raises:
      ConfigError: the pair is not supported; the line has the reason and the row's formats.
    """
    pairs = pairs_of(row)
    if name not in pairs:
        why = REFUSED.get((row, name), "no layout of it is known for such an encoder")
        raise ConfigError(
            f"--format: {name} for {WORDS[row]}: not supported ({why}); allowed: {', '.join(pairs)}"
        )
    return pairs[name]


def whole(row: str, held: Iterable[str] = ()) -> dict[str, str]:
    """Return {format: layout} of those that have a place for all parameters of a run.

    Args:
      held: paths of all trained parameters; () = not known, so that every layout counts that has
        other networks beside the encoder.
    """

    def holds(layout: str) -> bool:
        try:
            return bool(rows_for(layout, held)) or not held
        except ConfigError:
            return False

    held = list(held)
    return {name: p.full for name, p in pairs_of(row).items() if p.full and holds(p.full)}


def choose_layout(row: str, name: str, pool: str, decoder: bool, held: Iterable[str] = ()) -> str:
    """Return the layout of an export.

    Args:
      row: of MATRIX.
      name: the format.
      pool: "token" or "avg" (a norm after mean pooling).
      decoder: whether all trained networks are exported and not the encoder alone.
      held: see `whole`; read with `decoder` only.

    Raises:
      ConfigError: the pair is not supported, or not with this `pool` or `decoder`.
    """
    pair = find_pair(row, name)
    if decoder:
        layouts = whole(row, held)
        if name not in layouts or pool == "avg":
            raise ConfigError(
                f"--decoder: {name} has no place for all networks of this run; allowed: "
                f"{', '.join(layouts)} (with --pool=token)"
            )
        return layouts[name]
    if pool == "avg" and not pair.pooled:
        some = [f for f, p in pairs_of(row).items() if p.pooled]
        raise ConfigError(
            f"--pool: avg in the format {name}, which has one final norm; allowed: token"
            f"{', or the formats ' + ', '.join(some) if some else ''}"
        )
    return pair.pooled if pool == "avg" else pair.layout


def check_output(name: str, path: str) -> bool:
    """Return whether an output path is a folder of the format `name`, and not a file.

    Raises:
      ConfigError: the format allows no such path.
    """
    kind = FORMATS[name]
    if path.endswith(kind.suffixes or ("\0",)):  # no path has a null byte
        return False
    if kind.folder and not path.endswith((*TENSORS, *PICKLES, ".bin", ".ckpt")):
        return True
    allowed = ["a folder"] * kind.folder
    allowed += [f"a file name that ends in {' or '.join(kind.suffixes)}"] * bool(kind.suffixes)
    raise ConfigError(f"--output: {path!r} for --format={name}; allowed: {', or '.join(allowed)}")


def table() -> str:
    """Return MATRIX as text, a row per kind of encoder and a column per format.

    A cell is "exact" (values bit for bit), "copied" or "folded" (see `Pair.steps`), or "-".
    """
    marks = {(): "exact", ("per_block",): "copied", ("folded",): "folded"}
    width = max(map(len, FORMATS)) + 2
    lines = ["encoder as".ljust(12) + "".join(name.ljust(width) for name in FORMATS)]
    for row, pairs in (MATRIX | {"others": SAFETENSORS}).items():
        cells = [marks[pairs[f].steps] if f in pairs else "-" for f in FORMATS]
        lines.append(row.ljust(12) + "".join(cell.ljust(width) for cell in cells).rstrip())
    return "\n".join([*lines, "", *(f"{row.ljust(12)}{words}" for row, words in WORDS.items())])
