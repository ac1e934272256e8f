"""The trained model that --model names, and the images that a program reads."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any, NamedTuple

from absl import flags

from mimjax.errors import ConfigError
from mimjax.programs import cli

if TYPE_CHECKING:
    from mimjax.inference.model import Model
    from mimjax.inference.samples import Subset
    from mimjax.inference.workdir import SavedRun
    from mimjax.storage.files import Workdir

OF_FILE = ("heads", "decoder_heads", "image_size", "mean", "std", "layout", "pixel_norm")


def define_model_flags() -> None:
    """Define --model, which of its weights, and what a published file may not say."""
    flags.DEFINE_string("model", None, "Workdir of a run, or published file.")
    define_weights_flag()
    flags.DEFINE_integer("step", None, "Which checkpoint of a run; without it the newest.")
    define_file_flags()
    flags.DEFINE_enum(
        "pixel_norm",
        None,
        ["none", "patch", "channel"],
        "Of the pixels that a file's decoder predicts, where only its training knows it.",
    )
    flags.DEFINE_list("mean", None, "Of a file's images, per channel, if not its method's.")
    flags.DEFINE_list("std", None, "Likewise.")


def define_weights_flag() -> None:
    """Define --weights."""
    text = "ema = the moving average of the encoder; default: what the run's evaluators read."
    flags.DEFINE_enum("weights", None, ["online", "ema"], text)


def asked_average() -> bool | None:
    """Return whether --weights asks for the moving average; None = it says nothing."""
    weights = flags.FLAGS.weights
    return None if weights is None else weights == "ema"


def define_file_flags() -> None:
    """Define what only the user can know of a published file; see `file_sizes`."""
    flags.DEFINE_integer("heads", None, "Of a file's encoder, where no tensor shows them.")
    flags.DEFINE_integer("decoder_heads", None, "Of the networks behind it, likewise.")
    flags.DEFINE_list("image_size", None, "height,width; needed where patches fill no square.")
    flags.DEFINE_string("layout", "auto", "Of a file; auto, or see torch_io/read/detect.py.")


def define_dtype_flag() -> None:
    """Define --dtype."""
    text = "In which networks compute: bfloat16 is faster and about 1 % off."
    flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16"], text)


def define_look_flags() -> None:
    """Define the flags of programs that draw a trained model's images, in one process."""
    define_model_flags()
    cli.define_base_flags()
    flags.DEFINE_string("images", None, "Folder or file; without it the run's own test images.")
    flags.DEFINE_integer("count", 8, "At most that many images, drawn from all of them.")
    flags.DEFINE_string("output", None, "The PNG file; without it one in WORKDIR/pictures.")


def define_encode_flags() -> None:
    """Define the flags of programs that encode images, in one process."""
    define_model_flags()
    define_dtype_flag()
    cli.define_base_flags()
    flags.DEFINE_string("images", None, "Folder or file; without it the run's own images.")
    flags.DEFINE_enum("split", None, ["train", "test"], "Of the run's own images; default: test.")
    flags.DEFINE_integer("batch_size", 64, "Images at once.")
    flags.DEFINE_integer("threads", 8, "That decode images.", lower_bound=1)


def file_sizes() -> tuple[int | None, int | None, tuple[int, int] | None]:
    """Return --heads, --decoder_heads and --image_size of a published file; None = not given.

    Raises:
      ConfigError: numbers below 1, or more than two sides.
    """
    f = flags.FLAGS
    for name in ("heads", "decoder_heads"):
        value = f[name].value
        if value is not None and value < 1:
            raise ConfigError(f"--{name}: {value}; allowed: 1 or more")
    size = cli.integers("image_size", f.image_size, 1, 1 << 16) if f.image_size else []
    if len(size) > 2:
        raise ConfigError(f"--image_size: {f.image_size}; allowed: height,width in pixels")
    return f.heads, f.decoder_heads, (size[0], size[-1]) if size else None


def statistics(name: str) -> tuple[float, ...] | None:
    """Return --mean or --std of a published file; None = not given.

    Raises:
      ConfigError: something that is no number.
    """
    texts = flags.FLAGS[name].value
    try:
        return tuple(map(float, texts)) if texts else None
    except ValueError:
        raise ConfigError(f"--{name}: {texts}; allowed: a number per channel") from None


class Opened(NamedTuple):
    """A model and how to speak of it.

    Attributes:
      title: "MAE, step 1,500".
      about: method, step, model, weights, mean, std and image size, as text.
      workdir, run: None for a file.
    """

    model: Model
    title: str
    about: dict[str, str]
    workdir: Workdir | None
    run: SavedRun | None


def is_file(path: str) -> bool:
    """Return whether --model is a published file, or a folder of one, and no workdir."""
    from mimjax.torch_io.read.files import is_weights

    return is_weights(path)


def workdir_of(path: str) -> str | None:
    """Return --model where it is a workdir, None where it is a file."""
    return None if is_file(path) else path


def open_model(teacher: str = "") -> Opened:
    """Open what --model names.

    Args:
      teacher: file of the frozen network that a file's method reconstructs with.

    Raises:
      ConfigError: it is nothing that encodes images; the line names the flag.
    """
    f = flags.FLAGS
    try:
        return _of_file(f, teacher) if is_file(f.model) else _of_workdir(f)
    except ConfigError as error:
        text = str(error)
        if text.startswith(f"{f.model}: "):
            raise ConfigError(f"--model: {text}") from None
        name, colon, rest = text.partition(":")
        if name == "ema":
            text = text.replace("ema: True", "ema", 1).replace("allowed: False", "allowed: online")
            raise ConfigError(f"--weights: {text}") from None
        known = {"path": "model", "--workdir": "model"}
        known |= {name: name for name in (*OF_FILE, "teacher")}
        if name not in known:
            raise
        raise ConfigError(f"--{known[name]}{colon}{rest}") from None


def read_run() -> SavedRun:
    """Open the run of --model, for programs that read no published file.

    Raises:
      ConfigError: it is a file, or no run; the line names the flag.
    """
    from mimjax.inference import workdir

    f = flags.FLAGS
    if is_file(f.model):
        raise ConfigError(
            f"--model: {f.model} is a file; allowed: a workdir (mimjax convert makes one of a file)"
        )
    if "layout" in f:  # the program reads files, too
        refuse_file_flags()
    try:
        return workdir.read_run(f.model, f.step, dtype_of(f))
    except ConfigError as error:
        raise ConfigError(str(error).replace("--workdir: ", "--model: ", 1)) from None


def dtype_of(f: Any) -> str:
    """Return --dtype; float32 where a program has no such flag."""
    return f.dtype if "dtype" in f else "float32"


def refuse_file_flags() -> None:
    """Refuse flags that say of a published file what a run knows.

    Raises:
      ConfigError: one is given.
    """
    for name in OF_FILE:
        if name in flags.FLAGS and flags.FLAGS[name].present:
            raise ConfigError(
                f"--{name}: with a workdir, whose run knows it; allowed: with a published file"
            )


def _of_workdir(f: Any) -> Opened:
    from mimjax.inference import loading as api

    run = read_run()
    model = api.of_run(run, f.model, asked_average())
    averaged, method = run.takes_average(asked_average()), type(run.task).__name__
    title = f"{run.title}, moving average" if averaged else run.title
    about = _about(model, method, str(run.step), averaged, f)
    return Opened(model, title, about, run.workdir, run)


def _of_file(f: Any, teacher: str) -> Opened:
    from mimjax.inference import loading as api

    if f.step is not None:
        raise ConfigError("--step: with a file, which has one; allowed: with a workdir")
    heads, decoder_heads, size = file_sizes()
    model = api.load(
        f.model,
        heads,
        decoder_heads,
        ema=asked_average(),
        layout=f.layout,
        image_size=size,
        mean=statistics("mean"),
        std=statistics("std"),
        teacher=teacher,
        pixel_norm=f.pixel_norm,
        dtype=dtype_of(f),
    )
    for line in model.report:  # what was read, and what was taken that the file does not say
        print(f"model: {line}")
    method = model.config.task.rpartition(":")[2] or "an encoder"
    title = f"{method} of {os.path.basename(f.model)}"
    about = _about(model, method, "", bool(asked_average()), f)
    return Opened(model, title, about, None, None)


def _about(model: Model, method: str, step: str, averaged: bool, f: Any) -> dict[str, str]:
    mean, std = model.statistics
    return {
        "method": method,
        "step": step,
        "model": f.model,
        "weights": "ema" if averaged else "online",
        "mean": json.dumps(mean),
        "std": json.dumps(std),
        "image_size": json.dumps(model.image_size),
    }


def check_look(name: str) -> None:
    """Check --count and --output before any work is done.

    Args:
      name: of the picture in a workdir.

    Raises:
      ConfigError: one cannot be used, or a published file is given without images or an output.
    """
    from mimjax.inference import workdir

    f = flags.FLAGS
    workdir.check_flags(f.count, f.output, workdir_of(f.model), name)
    if is_file(f.model):
        for flag in ("images", "output"):
            if f[flag].value is None:
                raise ConfigError(f"--{flag}: missing; it may be left out with a workdir alone")


def readable(opened: Opened, images: str, count: int) -> tuple[Subset, list[str]]:
    """Return at most `count` images of a path that can be read, and what is to be said of them.

    Raises:
      ConfigError: there are none.
    """
    from mimjax.data.bad_files import named
    from mimjax.data.files import Files
    from mimjax.inference.samples import Subset, readable_part
    from mimjax.inference.workdir import notes_of

    files: Any = Files(images, how=opened.model.reader.how)
    part, bad = readable_part(Subset(files, len(files)), count)
    notes = [f"images: {note}" for note in notes_of(files)]
    return part, [*notes, *named(bad, len(part) + len(bad))]


def open_source(opened: Opened, images: str | None, split: str | None, count: int) -> Subset:
    """Open the images at a path, or those of a split of the run.

    Args:
      split: "train", "test"; None = not said, "test".
      count: at most so many, drawn from all of them; 0 = all.

    Raises:
      ConfigError: there are none, or a path and a split.
    """
    from mimjax.data import configured
    from mimjax.data.files import Files
    from mimjax.inference.samples import Subset

    if count < 0:
        raise ConfigError(f"--count: {count}; allowed: 0 (all) or more")
    if images is not None and split is not None:
        raise ConfigError("--split: with --images; allowed: splits of the run's own images")
    if images is None and opened.workdir is None:
        raise ConfigError("--images: missing, a published file has none; allowed: a folder or file")
    if images is not None:
        source: Any = Files(images, how=opened.model.reader.how)
    else:
        source = configured.make_split(opened.model.config, split or "test")
    return Subset(source, count or len(source))
