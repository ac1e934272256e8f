"""Features of many images: of a model, batch by batch, and of a run's encoder for its probes.

`encode` serves programs: images are decoded in threads ahead of the device; a file that cannot be
read is left out and listed, so that a row is never another image's. `FeatureBank` serves k-NN and
linear probes: raw pixels, the untrained and the pretrained encoder. One compiled call per batch
gives every candidate (pool, layer) of an encoder, so that both encoders are searched in the same
way. "Untrained" is the run's own state at step 0, also after a restart or when weights were loaded.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from mimjax import progress
from mimjax.data.bad_files import named
from mimjax.data.bands import Bands
from mimjax.data.decoding import BadImage
from mimjax.data.pipeline import eval_batches
from mimjax.data.sources import class_names
from mimjax.errors import ConfigError
from mimjax.inference.encoders import candidates, encode_images
from mimjax.inference.model import Model, Reading
from mimjax.inference.samples import Bench, Subset
from mimjax.inference.workdir import notes_of
from mimjax.rng import step_key
from mimjax.task import Student, TrainState, pretraining

ROWS = ("raw_pixels", "untrained", "pretrained")


# ------------------------------------------------------------------ of a model
class Rows(NamedTuple):
    """A batch of images that could be read.

    Attributes:
      places: indices of the images in the source, int [k].
      labels: int64 [k], -1 = none.
      images: uint8 [k h w c].
      features: float32 by name, see `Model.read`.
    """

    places: np.ndarray
    labels: np.ndarray
    images: np.ndarray
    features: dict[str, np.ndarray]


@dataclasses.dataclass
class Readable:
    """A source in which a blank image stands in for every file that cannot be read.

    Attributes:
      bad: index -> path and reason, complete for all images that were asked for.
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
    pools: Sequence[str], layers: Sequence[str], model: Model, flag: str = "layers"
) -> list[Reading]:
    """Return every pool with every layer that the flags name.

    -1 and the last block's number name one layer, which is read once.

    Args:
      flag: name of the flag that holds `layers`, for errors.

    Raises:
      ConfigError: the model cannot read one of them.
    """
    if not pools or not layers:
        raise ConfigError(f"--{flag if pools else 'pool'}: empty; allowed: see --help")
    out: dict[str, Reading] = {}
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
    model: Model,
    source: Readable,
    wanted: Sequence[Reading],
    batch_size: int,
    threads: int = 8,
) -> Iterator[Rows]:
    """Yield features of all images in order, a batch at a time.

    Args:
      source: the images; those that turn out to be unreadable are left out.

    Raises:
      ConfigError: --batch_size below 1.
    """
    if batch_size < 1:
        raise ConfigError(f"--batch_size: {batch_size}; allowed: 1 or more")
    size = min(batch_size, len(source))
    batches = eval_batches(
        source, {"image": model.view}, size, None, 0, augment=model.reader.augment, threads=threads
    )
    with batches:
        for batch in progress.track(batches, "features", -(-len(source) // size), "batch"):
            places = batch["index"]
            kept = (batch["weight"] > 0) & ~np.isin(places, list(source.bad))
            if kept.any():
                values = model.read(batch["image"], wanted)
                features = {name: x[kept] for name, x in values.items()}
                labels = batch["label"][kept].astype(np.int64)
                yield Rows(places[kept], labels, batch["image"][kept], features)


def say_bad(source: Readable) -> list[str]:
    """Return lines that describe the folder and name the files that were left out.

    Raises:
      ConfigError: no file could be read.
    """
    notes = [f"images: {note}" for note in notes_of(source.source)]
    return notes + named([source.bad[i] for i in sorted(source.bad)], len(source))


def label_names(subset: Subset) -> list[str] | None:
    """Return the names of the labels; None = the source has numbers alone."""
    names = class_names(subset.source)
    return None if names is None else list(names)


# ------------------------------------------------------------------ of a run, for probes
class Splits(NamedTuple):
    """The same features of both splits, float32 [n d] each."""

    train: np.ndarray
    test: np.ndarray


class FeatureBank:
    """Features that all probes of an evaluation share, extracted once.

    Attributes:
      labels: of both splits, int64 [n]; without those of images that have none or could not be
        read, which is known after the first `read`.
      readers: number of probes that read each row; its features are freed after the last one.
    """

    def __init__(self, bench: Bench, readers: int = 2):
        self.bench, self.readers = bench, readers
        self.labels = self._all_labels = Splits(bench.train.labels(), bench.test.labels())
        self._weights = bench.jit(lambda weight: weight)
        self._encode = bench.jit(self._encode_images)
        self._flatten = bench.jit(
            lambda x: {"all pixels": x.reshape(len(x), -1).astype(jnp.float32) / 255}
        )
        self._kept: dict[str, tuple[Any, int, dict[str, Splits]]] = {}

    def read(self, row: str, state: TrainState) -> dict[str, Splits]:
        """Return the candidates of one row of ROWS by name."""
        # By identity: the probes of one evaluation share the work, a later state does not.
        encoder = pretraining(self.bench.task).evaluated(state)
        known, left, features = self._kept.pop(row, (None, 0, {}))
        if known is not encoder:
            left, features = self.readers, self._make(row, encoder)
        if left > 1:
            self._kept[row] = encoder, left - 1, features
        return features

    def _make(self, row: str, encoder: Student) -> dict[str, Splits]:
        if row == "raw_pixels":
            return self._both(self._flatten)
        if row == "untrained":
            encoder = self._untrained(like=encoder)
        return self._both(lambda images: self._encode(encoder, images))

    def _untrained(self, like: Any) -> Any:
        """Return the encoder's parameters at step 0, laid out as those of `like`."""
        key = step_key(self.bench.seed, "init", 0)
        init = lambda: self.bench.task.init(key)[0]["encoder"]
        return jax.jit(init, out_shardings=jax.tree.map(lambda x: x.sharding, like))()

    def _encode_images(self, encoder, images):
        task = pretraining(self.bench.task)
        return candidates(encode_images(task.encoder, encoder, images, task.mean, task.std))

    def _both(self, fn) -> dict[str, Splits]:
        train, test = (self._extract(fn, s) for s in (self.bench.train, self.bench.test))
        kept = train.pop("kept"), test.pop("kept")
        self.labels = Splits(*(y[k] for y, k in zip(self._all_labels, kept)))
        return {name: Splits(train[name], test[name]) for name in train}

    def _extract(self, fn, split: Subset) -> dict[str, np.ndarray]:
        """Return features of the labeled images that could be read, and which these are.

        Returns:
          float32 [n d] by name; "kept", bool [all images of the split].
        """
        views = {"image": self.bench.task.views["image"]}  # no tokenizer's second view, no masks
        outputs, weights = [], []
        for batch in self.bench.batches(split, views):
            outputs.append(jax.device_get(fn(batch["image"])))
            weights.append(jax.device_get(self._weights(batch["weight"])))
        kept = (np.concatenate(weights)[: len(split)] > 0) & (split.labels() >= 0)
        join = lambda name: np.concatenate([o[name] for o in outputs])[: len(split)][kept]
        return {name: join(name) for name in outputs[0]} | {"kept": kept}
