"""`mimjax.load`: the model of a run or of a published file.

What the caller says of a file must hold in the model that is made of it: an argument is taken or it
is an error. For a file neither checkpoints nor data pipelines are imported.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import jax
import jax.numpy as jnp

from mimjax import patches, schema, values
from mimjax.data.augment import Augment
from mimjax.data.decoding import Decoding
from mimjax.data.in_memory import Reader
from mimjax.errors import ConfigError
from mimjax.inference import (
    classifier,
    encoders,
    own_files,
    pixels,
    precision,
    published,
    teachers,
)
from mimjax.inference.model import Model
from mimjax.inference.reconstruction import Reconstructor
from mimjax.rng import step_key
from mimjax.task import Pretraining, TrainState, initial, pretraining
from mimjax.torch_io.read import files
from mimjax.torch_io.read.sizes import FileTensors

if TYPE_CHECKING:
    from mimjax.inference.workdir import SavedRun

# what a caller may say of a file
SAID = {
    "heads": values.Count,
    "decoder_heads": values.Count,
    "image_size": values.Size,
    "mean": values.Mean,
    "std": values.Std,
}


def load(
    path: str | os.PathLike,
    heads: int | None = None,
    decoder_heads: int | None = None,
    *,
    step: int | None = None,
    ema: bool | None = None,
    layout: str = "auto",
    image_size: int | tuple[int, int] | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    teacher: str | Mapping[str, str] = "",
    pixel_norm: patches.PatchNorm | None = None,
    head_pool: Literal["token", "avg"] | None = None,
    dtype: Any = "float32",
) -> Model:
    """Return a model from a workdir of this project or from a published checkpoint file.

    Args:
      path: workdir, .safetensors or .pth (weights-only loading).
      heads, decoder_heads: numbers of heads of a file's encoder and of the networks behind it,
        where no tensor shows them and the size is no published one.
      step: step of a workdir's checkpoint; None = the newest.
      ema: whether to read the encoder's moving average instead of the encoder; None = of a workdir
        what its evaluators read, of a file the encoder.
      layout: layout of a file, a name of `mimjax/torch_io/read/detect.py`.
      image_size: (height, width), or one number for a square, where a file's patches fill no
        square or its positions are to be resized.
      mean, std: statistics of a file's images, where they are not its method's.
      pixel_norm: normalization of the pixels that a file's decoder predicts, where only its
        training knows it (mae_visualize files: "none"; the official pretraining command: "patch").
      head_pool: what the classifier of a timm file reads where no config.json beside it says so,
        in timm's words: the class "token", or "avg", the mean of the patch tokens.
      teacher: file or workdir of the tokenizer or teacher that a file's method reconstructs with;
        for several of them one by the target's field, {"mimic_target.first": FILE, ...}.
      dtype: "float32", with full products on every device, or "bfloat16" for speed (features differ
        by about 1 %). Parameters stay float32.

    Raises:
      ConfigError: what is wrong, in one line. An argument about files is wrong with a workdir,
        whose run knows all of that.
    """
    path, dtype = os.fspath(path), precision.name_of(dtype)
    said = {"heads": heads, "decoder_heads": decoder_heads, "image_size": image_size}
    said = fitted(said | {"mean": mean, "std": std})
    if not files.is_weights(path):
        from mimjax.inference import workdir  # orbax and grain, which no file needs

        more = {"layout": layout, "teacher": teacher, "pixel_norm": pixel_norm}
        refuse(path, said | more | {"head_pool": head_pool})
        return of_run(workdir.read_run(path, step, dtype, "path"), path, ema)
    if step is not None:
        raise ConfigError(f"step: {step} with {path}, a file of one; allowed: with a workdir")
    check_both(said)
    file = open_weights(path, layout, ema)
    if head_pool is not None:
        file.beside = classifier.pooling(path, file, head_pool)
    model = _of_file(path, file, said, teacher, pixel_norm, dtype)
    check_taken(path, said, model)
    return model


def open_weights(path: str, layout: str, ema: bool | None) -> FileTensors:
    """Return the tensors of a file, of its moving average where that is asked for.

    Raises:
      ConfigError: it cannot be read, or holds no moving average.
    """
    file, average = published.open_file(path, layout, "path")
    if not ema:
        return file
    if not average:
        raise ConfigError(f"ema: True, but {path} holds no moving average; allowed: False")
    return type(file)(average, file.layout, file.where, beside=file.beside)


def refuse(path: str, said: Mapping[str, Any]) -> None:
    """Refuse what is said of a workdir.

    Args:
      said: values of arguments about files; defaults say nothing.

    Raises:
      ConfigError: one is given.
    """
    for name, value in said.items():
        if value != {"layout": "auto", "teacher": ""}.get(name):
            raise ConfigError(
                f"{name}: {value!r} with {path}, a workdir whose run knows it; allowed: with a "
                "published file"
            )


def fitted(said: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the caller says of a file, without what is None.

    Args:
      said: values of the arguments in SAID; NumPy's arrays and numbers will do.

    Raises:
      ConfigError: a value that no file can have.
    """
    plain = lambda x: x.tolist() if hasattr(x, "tolist") else x
    return {k: values.fit(SAID[k], plain(x), k) for k, x in said.items() if x is not None}


def check_both(said: Mapping[str, Any]) -> None:
    """Refuse a mean without a standard deviation, and the other way round.

    Raises:
      ConfigError: one of them is given.
    """
    for name, other in (("mean", "std"), ("std", "mean")):
        if name in said and other not in said:
            raise ConfigError(f"{other}: None with {name} {said[name]}; allowed: both, or none")


def check_taken(path: str, said: Mapping[str, Any], model: Model) -> None:
    """Check that the model is what the caller says that it is.

    Raises:
      ConfigError: the file knows better, or has nothing that an argument is about.
    """
    mean, std = model.statistics
    heads = getattr(model.module, "num_heads", model.module.heads)
    found = {"heads": heads, "image_size": model.image_size, "mean": mean, "std": std}
    if "decoder_heads" in said:
        rest: list[Any] = [x for name, x in model.config.method.items() if name != "encoder"]
        behind = [x for x in rest if schema.is_section(x) and x.get("depth")]
        given: Any = [x.get("heads") for x in behind]  # None: as many as the encoder
        others = {int(number or heads) for number in given}
        if said["decoder_heads"] not in others:
            raise ConfigError(
                f"decoder_heads: {said['decoder_heads']}, but {path} has "
                f"{f'{sorted(others)}' if others else 'no network with heads behind the encoder'}"
                "; allowed: what the file shows, or None"
            )
    for name, value in found.items():
        if name in said and said[name] != value:
            raise ConfigError(
                f"{name}: {said[name]}, but {path} is read with {value}; allowed: that, or None"
            )


def reader_of(network: encoders.Network, file: FileTensors) -> Reader:
    """Return the reader of images for a file, which crops as the file or what is beside it says."""
    crop = float(file.about.get("eval_crop") or file.beside.crop or 1.0)
    return Reader(Augment(eval_crop=crop), Decoding(channels=len(network.mean)))


def of_run(run: SavedRun, path: str, ema: bool | None = None) -> Model:
    """Return the model of a run that is open already, at `path`.

    Args:
      ema: see `load`.

    Raises:
      ConfigError: it has no encoder of images, or no average of it.
    """
    from mimjax.inference import tuned  # what no file needs

    c, task = run.config, run.task
    if task.classified is None and not isinstance(task, Pretraining):
        raise ConfigError(f"path: {path} is a run of {c.task}, which has no encoder of images")
    averaged = run.takes_average(ema)
    reconstruct: Any = f"{path} is a run of {c.task}, which predicts no patches"
    if task.classified is not None:
        state = run.state()
        params = state.ema if averaged else state.params
        weights = tuned.Weights(params, state.model_state, run.frozen() if task.frozen else {})
        resample = task.views["image"].resample
        network, params = tuned.network(task.classified, resample, weights, run.workdir)
    else:
        network, params = encoders.Network.of(pretraining(task)), {"encoder": run.encoder(ema)}
        reconstruct = Reconstructor(pretraining(task), run.state, run.frozen, c.seed)
    augment = schema.build(Augment, c.data.augment, "data.augment")
    reader = Reader(augment, run.decoding, c.data.threads)
    line = f"from {path}: {run.title}" + (", moving average" if averaged else "")
    return Model(c, network, params, [line], reader, reconstruct, run.dtype)


def _of_file(
    path: str,
    file: FileTensors,
    said: Mapping[str, Any],
    teacher: str | Mapping[str, str],
    pixel_norm: patches.PatchNorm | None,
    dtype: str,
) -> Model:
    """Return the model of an open file; see `load`."""
    sizes = [said.get(name) for name in ("heads", "decoder_heads", "image_size")]
    choice = published.Choice(*sizes, published=True)
    mean, std = said.get("mean"), said.get("std")
    c, why = own_files.method_config(file)
    if c is not None:
        pixels.refuse(pixel_norm, f"{path} says it itself")
        c.method.update({k: v for k, v in (("mean", mean), ("std", std)) if v is not None})
        teachers.name_paths(c, teacher)
        return _of_method(path, own_files.read(c, file, choice), dtype)
    if not file.about and published.method_of(file):
        c = published.method_config(file, path, mean, std)
        known = pixels.say(c, file, pixel_norm)
        teachers.name_paths(c, teacher)
        given = said.keys() & {"mean", "std"}
        made = published.fit(teachers.fill(c), file, None, choice, given)
        made.report.extend(encoders.guessed(encoders.Network.of(made.task), file, given))
        return _of_method(path, made, dtype, known)
    pixels.refuse(pixel_norm, f"{path} holds no decoder")
    if teacher:
        raise ConfigError(f"teacher: {teacher!r}, but {why}; allowed: with a file that has one")
    network, params, config, report = encoders.read(file, choice, mean, std)
    network = dataclasses.replace(network, module=precision.computing(network.module, dtype))
    return Model(config, network, params, report, reader_of(network, file), why, dtype)


def _of_method(path: str, made: published.Imported, dtype: str, known: bool = True) -> Model:
    """Return the model of a file as the weights of a task; `known`: see `pixels.say`."""
    task = precision.computing(made.task, dtype)
    params = made.params
    if made.absent:  # else no random weights are made, which takes seconds for a large network
        params = published.complete(params, initial(task)(step_key(0, "init", 0))[0])
    params = jax.tree.map(jnp.asarray, params)
    network = encoders.resized_as(encoders.Network.of(task), made.file)
    lacking = [k for k in made.absent if "/" not in k]
    reconstruct: Any = f"{path} holds no {', '.join(lacking)}"
    if not lacking and not known:
        reconstruct = pixels.question(path)
    elif not lacking:
        state = lambda: TrainState(jnp.zeros((), jnp.int32), params, {}, task.init_ema(params), ())
        reconstruct = Reconstructor(task, state, lambda: teachers.read_named(task))
    reader = reader_of(network, made.file)
    return Model(made.config, network, params, made.report, reader, reconstruct, dtype)
