"""What programs that write or draw features share: which model, which images, batch by batch.

Images are decoded in threads ahead of the device. A file that cannot be read is left out and
listed: a row is never another image's.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from absl import flags
from PIL import Image

from mimjax import progress
from mimjax.data import configured
from mimjax.data.bad_files import named
from mimjax.data.bands import Bands
from mimjax.data.decoding import BadImage
from mimjax.data.files import Files
from mimjax.data.pipeline import eval_batches
from mimjax.data.sources import Source
from mimjax.errors import ConfigError
from mimjax.inference import model as api
from mimjax.inference import workdir as trained
from mimjax.inference.samples import Subset
from mimjax.programs import cli
from mimjax.storage.files import Workdir
from mimjax.task import View
from mimjax.torch_io.read import load as torch_load


class Opened(NamedTuple):
    """A model and how to speak of it.

    Attributes:
      title: "MAE, step 1,500".
      about: method, step, weights, mean, std and image size, as text.
      workdir: None for a file.
    """

    model: api.Model
    title: str
    about: dict[str, str]
    workdir: Workdir | None


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


def open_model() -> Opened:
    """What --workdir or --weights names.

    Raises:
      ConfigError: both or none of them, or nothing that encodes images.
    """
    f = flags.FLAGS
    if (f.workdir is None) == (f.weights is None):
        raise ConfigError("--workdir, --weights: both or none given; allowed: one of them")
    try:
        return _of_workdir(f) if f.workdir is not None else _of_file(f)
    except ConfigError as error:
        if f.weights and str(error).startswith(f"{f.weights}: "):
            raise ConfigError(f"--weights: {error}") from None
        name, colon, text = str(error).partition(":")
        flag = {"path": "workdir" if f.workdir else "weights", "ema": "ema"}.get(name)
        if not flag:
            raise
        raise ConfigError(f"--{flag}{colon}{text}") from None


def _of_workdir(f: Any) -> Opened:
    for name in ("heads", "decoder_heads", "image_size"):
        if f[name].present:
            raise ConfigError(f"--{name}: with --workdir, whose run knows it; allowed: --weights")
    run = trained.open_run(f.workdir, f.step)
    model = api.of_run(run, f.workdir, f.ema)
    method = type(run.program.task).__name__
    return Opened(model, run.title, _about(model, method, str(run.step), f), run.workdir)


def _of_file(f: Any) -> Opened:
    if f.step is not None:
        raise ConfigError("--step: with --weights, a file has none; allowed: --workdir")
    if not f.weights.endswith(torch_load.SUFFIXES):
        allowed = ", ".join(torch_load.SUFFIXES)
        raise ConfigError(f"--weights: {f.weights!r}; allowed: files that end in {allowed}")
    heads, decoder_heads, size = cli.file_sizes()
    model = api.load(f.weights, heads, decoder_heads, ema=f.ema, image_size=size)
    method = model.config.task.rpartition(":")[2] or "an encoder"
    title = f"{method} of {os.path.basename(f.weights)}"
    return Opened(model, title, _about(model, method, "", f), None)


def _about(model: api.Model, method: str, step: str, f: Any) -> dict[str, str]:
    mean, std = model.statistics
    return {
        "method": method,
        "step": step,
        "weights": f.workdir or f.weights,
        "average": str(f.ema),
        "mean": json.dumps(mean),
        "std": json.dumps(std),
        "image_size": json.dumps(model.image_size),
    }


def open_source(opened: Opened, images: str | None, split: str | None, count: int) -> Subset:
    """The images at a path, or those of a split of the run.

    Args:
      split: "train", "test"; None = not said, "test".
      count: at most so many, drawn from all of them; 0 = all.

    Raises:
      ConfigError: there are none, or a path and a split.
    """
    if count < 0:
        raise ConfigError(f"--count: {count}; allowed: 0 (all) or more")
    if images is not None and split is not None:
        raise ConfigError("--split: with --images; allowed: splits of the run's own images")
    if images is None and opened.workdir is None:
        raise ConfigError("--images: missing; with --weights there are no other images")
    if images is not None:
        source: Source = Files(images, how=opened.model.reader.how)
    else:
        source = configured.make_split(opened.model.config, split or "test")
    return Subset(source, count or len(source))


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
    opened: Opened,
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
    model, size = opened.model, min(batch_size, len(source))
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
