"""What can be exported: the properties of an encoder for which each format has a place.

No name of a method or class decides, but what the encoder computes and which parameters it has
(`Kind`). A format has one or several places, each with the properties that it takes and the steps
that change the encoder before it is written; the first that fits is taken. What fits nowhere is
refused, with what the format would take. Tensors are made in `export.py`.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import Any, NamedTuple

from mimjax import values
from mimjax.errors import ConfigError
from mimjax.models.heads import Classifier
from mimjax.task import Student
from mimjax.torch_io.read.detect import OWN, rows_for
from mimjax.torch_io.write.classifier import Heads, reading

TENSORS, PICKLES = (".safetensors",), (".pth", ".pt")


class Kind(NamedTuple):
    """Properties of an encoder of blocks as `models.vit.ViT` has them.

    Attributes:
      stages: whether convolutional stages stand before the blocks.
      key_bias: whether keys have biases, as queries and values do.
      relative: whether blocks have relative positions.
      scale: whether blocks have layer scales.
      absolute: whether tokens have absolute positions, fixed or learned.
      prefix: number of tokens before those of the patches.
    """

    stages: bool = False
    key_bias: bool = False
    relative: bool = False
    scale: bool = False
    absolute: bool = True
    prefix: int = 1

    def __str__(self) -> str:
        if self.stages:
            return "convolutional stages and a ViT"
        parts = ["biases of q, k and v" if self.key_bias else "biases of q and v"]
        parts += ["layer scales"] * self.scale + ["relative positions"] * self.relative
        parts += ["no absolute positions"] * (not self.absolute)
        parts += [f"{self.prefix} tokens before the patches"] * (self.prefix != 1)
        return f"a ViT with {', '.join(parts)}"


class Place(NamedTuple):
    """Place of a format for an encoder.

    Attributes:
      layout: layout of the tensors, a key of `detect.TABLES`; "" = with a classifier only.
      pooled: layout with --pool=avg; "" = the format has no norm after pooling.
      full: layout with --decoder, if it has a place for all trained networks; "" = none.
      heads: layouts with a classifier.
      steps: names in `tensors.STEPS`, applied to the encoder in this order: "per_block" copies a
        shared relative table to every block, "folded" multiplies layer scales into weights,
        "keyless" drops biases of keys. Where they change nothing the file has the trained values
        bit for bit.
      any: whether every network has a place, whatever its properties.
      stages, key_bias, relative, scale, absolute: see `Kind`; None = both fit.
    """

    layout: str
    pooled: str = ""
    full: str = ""
    heads: Heads = Heads()
    steps: tuple[str, ...] = ()
    any: bool = False
    stages: bool = False
    key_bias: bool | None = None
    relative: bool | None = None
    scale: bool | None = None
    absolute: bool | None = None

    def wants(self, kind: Kind | None) -> list[str]:
        """Return what an encoder of this kind would have to be, in words; [] = it fits."""
        if self.any:
            return []
        if kind is None:
            return ["that is a ViT"]
        names = ["stages"] if self.stages != kind.stages else list(PROPERTIES)
        wrong = [n for n in names if getattr(self, n) not in (None, getattr(kind, n))]
        out = [f"{'with' if getattr(self, n) else 'without'} {PROPERTIES[n]}" for n in wrong]
        prefix = 0 if self.stages else 1
        return out if wrong or kind.prefix == prefix else [f"with {prefix} tokens before patches"]


PROPERTIES = {
    "stages": "convolutional stages",
    "key_bias": "biases of keys",
    "relative": "relative positions",
    "scale": "layer scales",
    "absolute": "absolute positions",
}


class Format(NamedTuple):
    """Properties of a file format.

    Attributes:
      places: places for encoders, the first one that fits is taken.
      suffixes: allowed suffixes of the file; () = a folder only.
      wrapper: key of a .pth file under which the state dict is.
      library: library that reads the file and verifies it; "" = mimjax reads it back.
      folder: whether a path without these suffixes is a folder.
      final_norm: whether the library's features end with the encoder's last norm.
    """

    places: tuple[Place, ...]
    suffixes: tuple[str, ...]
    wrapper: str = "model"
    library: str = ""
    folder: bool = False
    final_norm: bool = True


COPIED = ("per_block",)
BEIT = Heads("beit_transformers_token", "beit_transformers")  # BeitForImageClassification
VIT = Place("", relative=False, absolute=True)  # what classes of the plain ViT have in common
FORMATS: dict[str, Format] = {
    "timm": Format(
        (
            Place("mae", "mae_pooled", heads=Heads("mae", "mae", "mae"), relative=False),
            Place(
                *("beit", "beit_pooled"),
                heads=Heads("beit", "beit", "beit"),
                steps=COPIED,
                key_bias=False,
                relative=True,
            ),
        ),
        TENSORS + PICKLES,
        library="timm",
        folder=True,
    ),
    "hf": Format(
        (
            VIT._replace(
                layout="vit_transformers",
                full="vitmae_transformers",
                heads=Heads("vitmae_transformers"),  # whose encoder has these names, too
                key_bias=True,
                scale=False,
            ),
            Place(
                *("beit_transformers_bare", "beit_transformers_pooled", "beit_transformers"),
                heads=BEIT,
                key_bias=False,
            ),
            Place("", heads=BEIT, steps=("keyless",), key_bias=True),
        ),
        (),
        library="transformers",
        folder=True,
    ),
    "mae": Format(
        (VIT._replace(layout="mae", full="mae", heads=Heads("mae", "mae"), scale=False),),
        PICKLES + TENSORS,
    ),
    "bootmae": Format(
        (
            VIT._replace(
                layout="bootmae",
                full="bootmae",
                heads=Heads("bootmae", "bootmae"),
                key_bias=False,
                scale=False,
            ),
        ),
        PICKLES + TENSORS,
    ),
    "beit": Format(
        (Place("beit", full="beit", heads=Heads("beit", "beit"), key_bias=False),),
        PICKLES + TENSORS,
    ),
    "cae": Format(
        (VIT._replace(layout="cae", full="cae", key_bias=False, scale=True),),
        PICKLES + TENSORS,
    ),
    "convmae": Format(
        (Place("mcmae", full="mcmae", heads=Heads("mcmae", "mcmae"), stages=True),),
        PICKLES + TENSORS,
        library="torch",
    ),
    # mmengine does not read .safetensors, and knows no other wrapper than "state_dict"
    "mmpretrain": Format(
        (
            VIT._replace(
                layout="mmpretrain", pooled="mmpretrain_pooled", key_bias=True, scale=False
            ),
            Place("mmpretrain_beit", "mmpretrain_beit_pooled", steps=COPIED, key_bias=False),
        ),
        PICKLES,
        "state_dict",
        "mmpretrain",
    ),
    "mmseg": Format(
        (
            VIT._replace(layout="mmseg"),
            Place("mmseg_beit", steps=COPIED, key_bias=False, relative=True, absolute=False),
        ),
        PICKLES,
        "state_dict",
        "mmseg",
        final_norm=False,
    ),
    "detectron2": Format(
        (Place("detectron2", steps=("folded",), relative=False),), PICKLES, final_norm=False
    ),
    "safetensors": Format(
        (Place(OWN, full=OWN, heads=Heads(OWN, OWN, OWN), any=True),),
        TENSORS,
    ),
}
# settings by which an encoder is known to be a ViT
OF_VIT = {"rel_pos", "bias", "layer_scale", "pos_embed", "mlp_ratio", "heads"}


def kind_of(encoder: Student | None) -> Kind | None:
    """Return the properties of an encoder; None = it is no ViT, or a task has none."""
    if encoder is None:
        return None
    if getattr(encoder, "stage_mlp_ratios", ()):
        return Kind(stages=True, key_bias=True, prefix=encoder.num_prefix)
    if OF_VIT - set(values.fields(type(encoder))):
        return None
    return Kind(
        key_bias=encoder.bias == "full",
        relative=encoder.rel_pos != "none",
        scale=encoder.layer_scale is not None,
        absolute=encoder.pos_embed != "none",
        prefix=encoder.num_prefix,
    )


def with_head(name: str, head: Classifier | None) -> list[Place]:
    """Return the places of the format `name` for an encoder alone, or with a classifier."""
    layout = lambda p: getattr(p.heads, reading(head)) if head else p.layout
    return [p for p in FORMATS[name].places if layout(p)]


def places_of(kind: Kind | None, head: Classifier | None = None) -> dict[str, Place]:
    """Return {format: place} of all formats that take such an encoder, in their order.

    Args:
      head: the classifier behind it; None = it is alone.
    """
    fit = lambda n: next((p for p in with_head(n, head) if not p.wants(kind)), None)
    return {name: place for name in FORMATS if (place := fit(name))}


def find_place(kind: Kind | None, name: str, head: Classifier | None = None) -> Place:
    """Return the place of the format `name` for an encoder, see `places_of`.

    Raises:
      ConfigError: there is none; the line says what the format takes, and the formats that fit.
    """
    fitting = places_of(kind, head)
    if name not in fitting and head and not with_head(name, head):
        raise ConfigError(
            f"--format: {name} has no place for a classifier that reads {head.words}; allowed: "
            f"{', '.join(fitting) or 'mimjax.load(WORKDIR), which classifies'}"
        )
    if name not in fitting:
        wants = [place.wants(kind) for place in with_head(name, head)]
        takes = ", or one ".join(" and ".join(w) for w in wants)
        module = "; mimjax/torch_io/write/convmae_module.py is a module for PyTorch"
        raise ConfigError(
            f"--format: {name} for {kind or 'another network than a ViT'}: not supported (it takes "
            f"an encoder {takes}{module if kind and kind.stages else ''}); allowed: "
            f"{', '.join(fitting) or 'mimjax.load(WORKDIR), which classifies'}"
        )
    return fitting[name]


def whole(kind: Kind | None, held: Iterable[str] = ()) -> dict[str, str]:
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
    return {name: p.full for name, p in places_of(kind).items() if p.full and holds(p.full)}


def choose_layout(
    kind: Kind | None,
    name: str,
    pool: str,
    decoder: bool,
    held: Iterable[str] = (),
    head: Classifier | None = None,
) -> str:
    """Return the layout of an export.

    Args:
      kind: of the encoder.
      name: the format.
      pool: "token" or "avg" (a norm after mean pooling).
      decoder: whether all trained networks are exported and not the encoder alone.
      held: see `whole`; read with `decoder` only.
      head: the classifier that is exported with the encoder, if any.

    Raises:
      ConfigError: the format has no place for the encoder, or not with this `pool` or `decoder`.
    """
    place = find_place(kind, name, head)
    if head:
        for flag, given in (("decoder", decoder), ("pool", pool == "avg" and pool)):
            if given:
                raise ConfigError(
                    f"--{flag}: {given} with a run that classifies, whose head reads {head.words}; "
                    "allowed: without"
                )
        return getattr(place.heads, reading(head))
    if decoder:
        layouts = whole(kind, held)
        if name not in layouts or pool == "avg":
            raise ConfigError(
                f"--decoder: {name} has no place for all networks of this run; allowed: "
                f"{', '.join(layouts)} (with --pool=token)"
            )
        return layouts[name]
    if pool == "avg" and not place.pooled:
        some = [f for f, p in places_of(kind).items() if p.pooled]
        raise ConfigError(
            f"--pool: avg in the format {name}, which has one final norm; allowed: token"
            f"{', or the formats ' + ', '.join(some) if some else ''}"
        )
    return place.pooled if pool == "avg" else place.layout


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


def mark(kind: Kind | None, place: Place | None) -> str:
    """Return how an encoder's values are in a file, see `table`."""
    if place is None:
        return "-"
    changes = [("per_block", "copied", kind and kind.relative)]
    changes += [("folded", "folded", kind and kind.scale)]
    return next((word for step, word, is_so in changes if is_so and step in place.steps), "exact")


def table() -> str:
    """Return all formats as text, worked out for each kind of encoder.

    A cell is "exact" (values bit for bit), "copied" or "folded" (see `Place.steps`), or "-". A
    relative table that each block has already is exact.
    """
    sides = itertools.product((True, False), (False, True), (False, True))
    kinds: list[Any] = [Kind(key_bias=k, relative=r, scale=s, absolute=not r) for k, r, s in sides]
    kinds += [Kind(stages=True, key_bias=True, prefix=0), None]
    words = [str(kind or "any other network") for kind in kinds]
    wide, width = max(map(len, words)) + 2, max(map(len, FORMATS)) + 2
    lines = ["encoder".ljust(wide) + "".join(name.ljust(width) for name in FORMATS)]
    for kind, text in zip(kinds, words, strict=True):
        places = places_of(kind)
        cells = [mark(kind, places.get(name)).ljust(width) for name in FORMATS]
        lines.append(text.ljust(wide) + "".join(cells))
    lines += ["", "classifiers of fine-tuned runs, by what they read"]
    for name in Heads._fields:
        head = Classifier(0, pooled=name == "mean", mean=name == "normed")
        holding = [n for n in FORMATS if with_head(n, head)]
        lines.append(f"{head.words.ljust(wide)}{', '.join(holding)}")
    return "\n".join(line.rstrip() for line in lines)
