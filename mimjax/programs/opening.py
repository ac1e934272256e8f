"""What programs open: the model that flags name, and the images it is to encode."""

from __future__ import annotations

import json
import os
from typing import Any, NamedTuple

from absl import flags

from mimjax.data import configured
from mimjax.data.files import Files
from mimjax.data.sources import Source
from mimjax.errors import ConfigError
from mimjax.inference.model import Model, load, of_run
from mimjax.inference.samples import Subset
from mimjax.inference.workdir import open_run
from mimjax.programs import cli
from mimjax.storage.files import Workdir
from mimjax.torch_io.read import load as torch_load


class Opened(NamedTuple):
    """A model and how to speak of it.

    Attributes:
      title: "MAE, step 1,500".
      about: method, step, weights, mean, std and image size, as text.
      workdir: None for a file.
    """

    model: Model
    title: str
    about: dict[str, str]
    workdir: Workdir | None


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
    run = open_run(f.workdir, f.step)
    model = of_run(run, f.workdir, f.ema)
    method = type(run.program.task).__name__
    return Opened(model, run.title, _about(model, method, str(run.step), f), run.workdir)


def _of_file(f: Any) -> Opened:
    if f.step is not None:
        raise ConfigError("--step: with --weights, a file has none; allowed: --workdir")
    if not f.weights.endswith(torch_load.SUFFIXES):
        allowed = ", ".join(torch_load.SUFFIXES)
        raise ConfigError(f"--weights: {f.weights!r}; allowed: files that end in {allowed}")
    heads, decoder_heads, size = cli.file_sizes()
    model = load(f.weights, heads, decoder_heads, ema=f.ema, image_size=size)
    method = model.config.task.rpartition(":")[2] or "an encoder"
    title = f"{method} of {os.path.basename(f.weights)}"
    return Opened(model, title, _about(model, method, "", f), None)


def _about(model: Model, method: str, step: str, f: Any) -> dict[str, str]:
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
