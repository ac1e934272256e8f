"""A TensorFlow Datasets data set stored as ArrayRecord files, read without TensorFlow.

Only random access works here: data sets in TFRecord files must be converted first
(`tfds build --file_format=array_record`). Nothing is downloaded or built.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import numpy as np
from PIL import Image

from mimjax.data.decoding import MAX_PIXELS, Decoding, decode
from mimjax.data.images import Lazy, fingerprint
from mimjax.errors import ConfigError, first_line


@dataclasses.dataclass
class RecordsSplit(Lazy):
    """One split of a TFDS data set with a feature `image` and perhaps `label`.

    "test" is the split `validation` where it exists (ImageNet's `test` has no labels), else
    `test`, else the last 10 % of `train`, which `train` then leaves out.

    Attributes:
      dataset: the name, "imagenet2012" or "my_set/config:1.0.0".
      data_dir: the folder that holds it; None = TFDS' default.
      max_pixels: see `decoding.Decoding`.
    """

    split: str
    dataset: str
    data_dir: str | None = None
    max_pixels: int = MAX_PIXELS
    num_classes: int = dataclasses.field(init=False, default=0)
    class_names: tuple[str, ...] | None = dataclasses.field(init=False, default=None)
    fingerprint: str = dataclasses.field(init=False, default="")
    _tfds_split: str = dataclasses.field(init=False, default="")
    _length: int = dataclasses.field(init=False, default=0)

    name = "tfds"
    label_name = "class"

    def __post_init__(self):
        builder = self._builder
        sizes = {name: info.num_examples for name, info in builder.info.splits.items()}
        features = builder.info.features or {}
        if "image" not in features:
            raise ConfigError(
                f"data.source.dataset: {self.dataset!r} has the features {', '.join(features)}; "
                "allowed: data sets with a feature 'image'"
            )
        self._tfds_split = self._find_split(sizes)
        self._length = builder.info.splits[self._tfds_split].num_examples
        if "label" in features:
            self.num_classes = int(getattr(features["label"], "num_classes", 0) or 0)
        names = getattr(features["label"], "names", None) if self.num_classes else None
        self.class_names = tuple(map(str, names)) if names else None
        version = builder.info.full_name
        shards = builder.info.splits[self._tfds_split].shard_lengths
        self.fingerprint = fingerprint([self.name, version, self._tfds_split, self._length, shards])

    def _find_split(self, sizes: dict[str, int]) -> str:
        held_out = [name for name in ("validation", "test") if sizes.get(name)]
        if not sizes.get("train") and not (held_out and self.split == "test"):
            raise ConfigError(
                f"data.source.dataset: {self.dataset!r} has the splits {', '.join(sizes) or '-'}; "
                "allowed: data sets with a non-empty split 'train'"
            )
        if self.split == "test":
            return held_out[0] if held_out else "train[90%:]"
        return "train" if held_out else "train[:90%]"

    @functools.cached_property
    def _builder(self) -> Any:
        import tensorflow_datasets as tfds  # seconds to import, and only this source needs it

        try:
            return tfds.builder(self.dataset, data_dir=self.data_dir)
        except Exception as err:  # tfds raises many kinds, some with pages of suggestions
            raise ConfigError(
                f"data.source.dataset: cannot open {self.dataset!r} in "
                f"{self.data_dir or 'the default data_dir'} "
                f"({type(err).__name__}: {first_line(err)})"
            ) from err

    @functools.cached_property
    def _records(self) -> Any:
        import tensorflow_datasets as tfds

        # Raw bytes: decoding is ours, so that all sources give the same pixels for the same file.
        decoders = {"image": tfds.decode.SkipDecoding()}
        try:
            return self._builder.as_data_source(split=self._tfds_split, decoders=decoders)
        except Exception as err:
            raise ConfigError(
                f"data.source.dataset: {self.dataset!r} is not readable by index "
                f"({first_line(err)}); allowed: data sets stored as array_record, with the "
                "array_record package"
            ) from err

    def __len__(self) -> int:
        return self._length

    def image(self, index: int) -> Image.Image:
        value = self._records[index]["image"]
        if isinstance(value, bytes):
            name = f"{self.dataset} {self._tfds_split}[{index}]"
            image = decode(value, name, "data.source.dataset", Decoding(max_pixels=self.max_pixels))
            assert isinstance(image, Image.Image)  # three channels
            return image
        array = np.asarray(value)
        return Image.fromarray(array[..., 0] if array.shape[-1] == 1 else array).convert("RGB")

    def label(self, index: int) -> int:
        return int(self._records[index]["label"]) if self.num_classes else -1
