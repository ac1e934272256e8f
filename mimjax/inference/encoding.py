"""Features of many images, batch by batch.

Images are decoded in threads ahead of the device. A file that cannot be read is left out and
listed: a row is never another image's.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from mimjax import progress
from mimjax.data.bad_files import named
from mimjax.data.bands import Bands
from mimjax.data.decoding import BadImage
from mimjax.data.pipeline import eval_batches
from mimjax.errors import ConfigError
from mimjax.inference import model as api
from mimjax.inference import workdir as trained
from mimjax.inference.samples import Subset
from mimjax.task import View


class Rows(NamedTuple):
    """A batch of images that could be read.

    Attributes:
      places: in the source, int [k].
      labels: int64 [k], -1 = none.
      images: uint8 [k h w c].
      features: float32 by name, see `api.Model.read`.
    """

    places: np.ndarray
    labels: np.ndarray
    images: np.ndarray
    features: dict[str, np.ndarray]


@dataclasses.dataclass
class Readable:
    """A source in which a blank image stands in for every file that cannot be read.

    Attributes:
      bad: place -> path and reason, complete for all images that were asked for.
    """

    source: Any
    channels: int = 3
    bad: dict[int, tuple[str, str]] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        self.name, self.num_classes = self.source.name, self.source.num_classes
        self.label_name, self.fingerprint = self.source.label_name, self.source.fingerprint

    def __len__(self) -> int:
        return len(self.source)

    def image(self, index: int) -> Image.Image | Bands:
        try:
            return self.source.image(index)
        except BadImage as error:
            self.bad[index] = error.path, error.reason
            if self.channels == 3:
                return Image.new("RGB", (8, 8))
            return Bands([Image.new("L", (8, 8))] * self.channels)

    def label(self, index: int) -> int:
        return self.source.label(index)


def readings(
    pools: Sequence[str], layers: Sequence[str], model: api.Model, flag: str = "layers"
) -> list[api.Reading]:
    """Every pool with every layer that the flags name; -1 and the last block's number are one.

    Args:
      flag: that names the layers.

    Raises:
      ConfigError: the model cannot read one of them.
    """
    if not pools or not layers:
        raise ConfigError(f"--{flag if pools else 'pool'}: empty; allowed: see --help")
    out: dict[str, api.Reading] = {}
    for text in layers:
        text = text.strip()
        if text != "norm" and not text.lstrip("-").isdecimal():
            raise ConfigError(f"--{flag}: {text!r}; allowed: norm, or numbers of blocks")
        layer = None if text == "norm" else int(text)
        for pool in pools:
            pool = pool.strip()
            try:
                out.setdefault(f"{pool}_{model.check(pool, layer)}", (pool, layer))
            except ConfigError as error:
                name, _, what = str(error).partition(":")
                raise ConfigError(f"--{flag if name == 'layer' else name}:{what}") from None
    return list(out.values())


def encode(
    model: api.Model,
    source: Readable,
    wanted: Sequence[api.Reading],
    batch_size: int,
    threads: int = 8,
) -> Iterator[Rows]:
    """Features of all images in order, a batch at a time.

    Args:
      source: what it lists as bad is left out.

    Raises:
      ConfigError: --batch_size below 1.
    """
    if batch_size < 1:
        raise ConfigError(f"--batch_size: {batch_size}; allowed: 1 or more")
    size = min(batch_size, len(source))
    view = View(model.image_size, channels=source.channels)
    batches = eval_batches(
        source, {"image": view}, size, None, 0, augment=model.reader.augment, threads=threads
    )
    with batches:
        for batch in progress.track(batches, "features", -(-len(source) // size), "batch"):
            places = batch["index"]
            kept = (batch["weight"] > 0) & ~np.isin(places, list(source.bad))
            if kept.any():
                found = model.read(batch["image"], wanted)
                features = {name: x[kept] for name, x in found.items()}
                labels = batch["label"][kept].astype(np.int64)
                yield Rows(places[kept], labels, batch["image"][kept], features)


def say_bad(source: Readable) -> list[str]:
    """Lines that say what the folder holds, and name the files that were left out.

    Raises:
      ConfigError: all of them.
    """
    notes = [f"images: {note}" for note in trained.notes_of(source.source)]
    return notes + named([source.bad[i] for i in sorted(source.bad)], len(source))


def label_names(subset: Subset) -> list[str] | None:
    """Of the labels, where the source has names; None = their numbers."""
    return getattr(subset.source, "class_names", None) or None
