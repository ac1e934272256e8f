"""Export of a run's parameters: the tensors and settings of a file, and writing them.

Which encoder goes into which format is in `formats.py`. A written file is verified in
`torch_io/verify.py`.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import os
from typing import Any

import jax
import numpy as np

from mimjax import plugs
from mimjax.errors import ConfigError
from mimjax.losses import LN_EPS
from mimjax.models.heads import Classifier
from mimjax.rules import paths
from mimjax.task import Classified, Encoder, Pretraining, Task, TrainState, pretraining
from mimjax.torch_io.read import detect
from mimjax.torch_io.read.load import to_torch
from mimjax.torch_io.write import classifier, files, formats, tensors
from mimjax.torch_io.write import settings as json_settings
from mimjax.torch_io.write.classifier import Learned

PyTree = Any


def kind_of(task: Task) -> formats.Kind | None:
    """Return the properties of a task's encoder; None = it has none, or one that is no ViT."""
    return formats.kind_of(task.encoder if isinstance(task, Pretraining) else None)


def formats_of(classified: Classified, state: TrainState) -> list[str]:
    """Return the names of the formats that take a head with its encoder; [] = none does.

    Args:
      state: the run's, or its shapes.
    """
    try:
        params, stats = classifier.zeros(state.params), classifier.zeros(state.model_state)
        head = classifier.head_of(classified, params, stats)
    except ConfigError:
        return []
    return list(formats.places_of(formats.kind_of(classified.reader.network), head.network))


@dataclasses.dataclass(frozen=True)
class Export:
    """Content of one exported file or folder.

    Attributes:
      task: the run's.
      params: as trained, {"encoder": ..., ...}, float32 numpy; what is not asked for may be absent.
      format, pool, decoder, image_size: the flags; pool is "token" or "avg", image_size None = the
        run's own.
      about: metadata of the run: step, weights, config hash, and with a decoder the settings of
        its method.
      eval_crop: side of the center crop relative to the resized image, in evaluation.
      head: the classifier of a fine-tuned run; None = it has none.
    """

    task: Task
    params: PyTree
    format: str
    pool: str = "token"
    decoder: bool = False
    image_size: tuple[int, int] | None = None
    about: dict[str, str] = dataclasses.field(default_factory=dict)
    eval_crop: float = 1.0
    head: Learned | None = None

    def __post_init__(self):
        if self.image_size and (self.decoder or not self.is_encoder):
            raise ConfigError(
                "--image_size: resizes an encoder's positions; allowed: without --decoder, for "
                "methods with an encoder of images"
            )
        _ = self.layout  # raises where the format has no place for the encoder

    @property
    def method(self) -> str:
        """The method's name, as the file says it."""
        return self.about.get("method", type(self.task).__name__.lower())

    @property
    def is_encoder(self) -> bool:
        """Whether the run pretrains an encoder, whose features can be compared."""
        return isinstance(self.task, Pretraining)

    @property
    def encoder(self) -> Encoder:
        """The run's encoder; only where `is_encoder`."""
        return pretraining(self.task).encoder

    @functools.cached_property
    def layout(self) -> str:
        held = paths(self.params) if self.decoder else ()
        flags = self.format, self.pool, self.decoder
        return formats.choose_layout(kind_of(self.task), *flags, held, self.classifier)

    @property
    def classifier(self) -> Classifier | None:
        """The classifier as files have it, without parameters; None = there is none."""
        return self.head.network if self.head else None

    @property
    def place(self) -> formats.Place:
        """The place of the format that is taken."""
        return formats.find_place(kind_of(self.task), self.format, self.classifier)

    @property
    def kind(self) -> formats.Format:
        return formats.FORMATS[self.format]

    @property
    def channels(self) -> int:
        return self.task.views["image"].channels

    def network(self, name: str) -> Any:
        """Return a network of the task that stands behind its encoder, with all its sizes."""
        method: Any = self.task
        return method.network(name)

    @functools.cached_property
    def plain(self) -> tuple[Any, PyTree]:
        """Encoder and parameters without what only pretraining needs, at `image_size`."""
        encoder, params = tensors.plain(self.encoder, self.params["encoder"])
        if self.head and self.head.norm:
            params = params | {"norm": self.head.norm}
        if self.image_size and self.image_size != tuple(encoder.image_size):
            return tensors.resized(encoder, params, self.image_size)
        return encoder, params

    @functools.cached_property
    def written(self) -> tuple[Any, PyTree]:
        """Encoder and parameters as they are in the file."""
        encoder, params = self.plain
        if self.decoder:  # all that was trained
            encoder, params = self.encoder, self.params["encoder"]
        if self.layout != detect.OWN:  # ours computes fixed positions itself
            encoder, params = tensors.with_table(encoder, params)
        for step in self.place.steps:
            encoder, params = tensors.STEPS[step](encoder, params)
        absent = (
            "cls_token" if self.format == "detectron2" else "",
            "norm" if not self.kind.final_norm or (self.head and self.head.network.pooled) else "",
        )
        return encoder, {k: v for k, v in params.items() if k not in absent}

    @property
    def trees(self) -> PyTree:
        """Parameters of all networks in the file, {"encoder": ..., ...}."""
        if not self.is_encoder:
            return self.params
        others = {k: v for k, v in self.params.items() if k != "encoder"} if self.decoder else {}
        others |= {"classifier": self.head.tree} if self.head else {}
        return {"encoder": self.written[1], **others}

    @functools.cached_property
    def tensors(self) -> files.Tensors:
        """Tensors of the file, {key of the layout: float32 array}."""
        trees = jax.tree.map(lambda x: np.asarray(x, np.float32), self.trees)
        out = to_torch(trees, self.layout, self.channels)
        if self.layout == detect.OWN:
            return out
        for key, root in detect.TABLES[self.layout][1].items():
            if root in trees and root != "encoder":
                out[key] = tensors.fixed_table(self.network(root), self.encoder)
        if not self.decoder:  # timm takes a file with a mask token for DINO v2
            assert not [k for k in out if "mask_token" in k or "decoder" in k], sorted(out)
        return out

    @property
    def metadata(self) -> dict[str, str]:
        """Metadata of the file, {name: text}; safetensors allows text only."""
        text = lambda values: ",".join(map(str, values))
        out = {"method": self.method, "layout": self.layout, **self.about}
        out |= self.head.about if self.head else {}
        if self.is_encoder:
            encoder, task = self.written[0], pretraining(self.task)
            out |= {
                "heads": str(encoder.heads),
                "patch": str(encoder.patch),
                "image_size": text(encoder.image_size),
                "mean": text(task.mean),
                "std": text(task.std),
                "resample": self.images.resample,
                "eval_crop": str(self.eval_crop),
                "pool": self.pool,
                "layer_norm_eps": str(LN_EPS),
                "encoder": json.dumps(tensors.settings(encoder)),
                "encoder_class": plugs.class_path(type(encoder)).rpartition("/")[2],
            }
        return out

    @property
    def images(self) -> json_settings.Images:
        """How the run brings images to its encoder."""
        task = pretraining(self.task)
        resample = task.views["image"].resample
        return json_settings.Images(tuple(task.mean), tuple(task.std), resample, self.eval_crop)

    @property
    def timm(self) -> tuple[str, json_settings.Settings]:
        """Name of the timm model that reads the file, and its settings."""
        beit = self.layout.startswith("beit")
        name, args = json_settings.timm_model(self.written[0], beit, self.pool, self.channels)
        return name, args | (json_settings.timm_head(self.head, beit) if self.head else {})

    def settings(self) -> dict[str, json_settings.Settings]:
        """Return the JSON files of a folder, {file name: settings}."""
        encoder, task = self.written[0], pretraining(self.task)
        if self.format == "timm":
            return {"config.json": json_settings.timm_config(*self.timm, self.images, self.head)}
        config = json_settings.hf_config(encoder, self.layout, self.channels)
        method: Any = task
        if self.head:
            config |= json_settings.hf_head(self.head, self.layout)
        elif self.layout == "vitmae_transformers":
            config |= json_settings.hf_mae(method)
        elif self.layout == "beit_transformers":
            config |= json_settings.hf_pretraining_beit(method)
        processor = json_settings.hf_processor(encoder, self.images)
        return {"config.json": config, "preprocessor_config.json": processor}

    def check(self) -> None:
        """Check that the format has a place for everything, which takes no values.

        Raises:
          ConfigError: a parameter of the encoder, or a setting, has none.
        """
        detect.rows_for(self.layout, paths(self.trees))
        if self.kind.folder:
            self.settings()

    def write(self, path: str) -> None:
        """Write the file or the folder at `path`, where nothing may exist.

        Raises:
          OSError: it cannot be written.
        """
        if formats.check_output(self.format, path):
            files.write_folder(path, self.tensors, self.metadata, self.settings())
        else:
            files.write_tensors(path, self.tensors, self.kind.wrapper, self.metadata)

    def weights_file(self, path: str) -> str:
        """Return the file of tensors that `write(path)` made."""
        return os.path.join(path, "model.safetensors") if os.path.isdir(path) else path
