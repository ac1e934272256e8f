"""What can be exported: the committed table of methods and formats, and what each format is.

A pair names the layout of its tensors and what is done to the encoder before. A pair that is not
here is refused with the reason, where one is known.
"""

from __future__ import annotations

from typing import NamedTuple

from mimjax.errors import ConfigError
from mimjax.torch_io.read.detect import OWN

TENSORS, PICKLES = (".safetensors",), (".pth", ".pt")


class Format(NamedTuple):
    """A kind of file.

    Attributes:
      suffixes: of the file; () = a folder only.
      wrapper: key of a .pth file under which the state dict lies.
      library: what reads it; "" = this project reads it back.
      folder: whether a path without these suffixes means a folder.
      final_norm: whether the features of what reads it end with the encoder's last norm.
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
    # mmengine reads no .safetensors, and unwraps "state_dict" alone
    "mmpretrain": Format(PICKLES, "state_dict", "mmpretrain"),
    "mmseg": Format(PICKLES, "state_dict", "mmseg", final_norm=False),
    "detectron2": Format(PICKLES, final_norm=False),
    "safetensors": Format(TENSORS),
}


class Pair(NamedTuple):
    """How one method is written in one format.

    Attributes:
      layout: a name of `names.TABLES`.
      pooled: the layout with --pool=avg; "" = the format has no place for a norm after pooling.
      full: the layout with --decoder, of all networks that were trained; "" = not offered.
      steps: of `tensors.STEPS`: "per_block" copies a shared relative table to every block,
        "folded" multiplies layer scales into weights. Without any, what is written is exact: read
        back it is the same bit for bit.
    """

    layout: str
    pooled: str = ""
    full: str = ""
    steps: tuple[str, ...] = ()


SAFETENSORS = {"safetensors": Pair(OWN, full=OWN)}
DENSE = {"mmseg": Pair("mmseg"), "detectron2": Pair("detectron2")}
FOLDED = DENSE | {"detectron2": Pair("detectron2", steps=("folded",))}
# an encoder with biases of queries and values alone, in transformers and mmpretrain a BEiT
QV = {
    "timm": Pair("mae", "mae_pooled"),
    "hf": Pair("beit_transformers_bare", "beit_transformers_pooled"),
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
        "hf": Pair("beit_transformers_bare", "beit_transformers_pooled", full="beit_transformers"),
        "beit": Pair("beit", full="beit"),
        "mmpretrain": Pair("mmpretrain_beit", "mmpretrain_beit_pooled", steps=COPIED),
        "mmseg": Pair("mmseg_beit", steps=COPIED),
        **SAFETENSORS,
    },
    "cae": {**QV, "cae": Pair("cae", full="cae"), **FOLDED, **SAFETENSORS},
    "caev2": {**QV, "cae": Pair("cae", full="cae"), **FOLDED, **SAFETENSORS},
    "mcmae": {"convmae": Pair("mcmae", full="mcmae"), **SAFETENSORS},
    "mrmae": {"convmae": Pair("mcmae", full="mcmae"), **SAFETENSORS},
    "mrmae_vit": {  # backbone=vit
        "timm": Pair("mae", "mae_pooled"),
        "hf": Pair("vit_transformers"),
        "mae": Pair("mae", full="mae"),
        "mmpretrain": Pair("mmpretrain", "mmpretrain_pooled"),
        **DENSE,
        **SAFETENSORS,
    },
}

RELATIVE = "has no place for BEiT's relative positions"
STAGES = "knows no convolutional stages"
REFUSED = {
    ("beit", "detectron2"): f"ViTDet {RELATIVE}",
    ("beit", "mae"): f"MAE's layout {RELATIVE}",
    ("cae", "mae"): "MAE's layout has no layer scale",
    ("caev2", "mae"): "MAE's layout has no layer scale",
    **{
        (method, name): f"{name} {STAGES}; take convmae and mimjax/torch_io/write/convmae_module.py"
        for method in ("mcmae", "mrmae")
        for name in ("timm", "hf", "mmpretrain", "mmseg", "detectron2")
    },
}


def pairs_of(method: str) -> dict[str, Pair]:
    """The formats of a method; one without a row (a tokenizer, a method of yours) has our own."""
    return MATRIX.get(method, SAFETENSORS)


def find_pair(method: str, name: str) -> Pair:
    """The pair of a method and a format.

    Raises:
      ConfigError: not supported; the line says why and what is.
    """
    pairs = pairs_of(method)
    if name not in pairs:
        why = REFUSED.get((method, name), "no layout of it is known for this method")
        raise ConfigError(
            f"--format: {name} for {method}: not supported ({why}); allowed: {', '.join(pairs)}"
        )
    return pairs[name]


def choose_layout(method: str, name: str, pool: str, decoder: bool) -> str:
    """The layout that the flags ask for.

    Raises:
      ConfigError: the pair does not have it.
    """
    pair = find_pair(method, name)
    if decoder:
        if not pair.full or pool == "avg":
            raise ConfigError(
                f"--decoder: {name} for {method}: not supported; allowed: "
                + ", ".join(f for f, p in pairs_of(method).items() if p.full)
                + " (with --pool=token)"
            )
        return pair.full
    if pool == "avg" and not pair.pooled:
        some = [f for f, p in pairs_of(method).items() if p.pooled]
        raise ConfigError(
            f"--pool: avg for {method} in the format {name}, which has one final norm; allowed: "
            f"token{', or the formats ' + ', '.join(some) if some else ''}"
        )
    return pair.pooled if pool == "avg" else pair.layout


def check_output(name: str, path: str) -> bool:
    """Whether `path` means a folder.

    Raises:
      ConfigError: a file name that the format does not have.
    """
    kind = FORMATS[name]
    if path.endswith(kind.suffixes or ("\0",)):
        return False
    if kind.folder and not path.endswith((*TENSORS, *PICKLES, ".bin", ".ckpt")):
        return True
    allowed = ["a folder"] * kind.folder
    allowed += [f"a file name that ends in {' or '.join(kind.suffixes)}"] * bool(kind.suffixes)
    raise ConfigError(f"--output: {path!r} for --format={name}; allowed: {', or '.join(allowed)}")


def table() -> str:
    """MATRIX as text: methods by formats."""
    marks = {(): "exact", ("per_block",): "copied", ("folded",): "folded"}
    width = max(map(len, FORMATS)) + 2
    lines = ["".ljust(12) + "".join(name.ljust(width) for name in FORMATS)]
    for method, pairs in (MATRIX | {"others": SAFETENSORS}).items():
        cells = [marks[pairs[f].steps] if f in pairs else "-" for f in FORMATS]
        lines.append(method.ljust(12) + "".join(cell.ljust(width) for cell in cells).rstrip())
    return "\n".join(lines)
