"""Draw what a trained model reconstructs: a picture, and the masked error of each image.

  mimjax reconstruct --model=WORKDIR [--images=FOLDER|FILE] [--output=PNG]
  mimjax reconstruct --model=FILE --images=FOLDER|FILE --output=PNG [--teacher=FILE]

Crops, masks and columns are those of the run's own pictures, with any images; the weights of frozen
networks that the run's config names are read again. Files that cannot be read are left out and
named; others are shown in their places.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from absl import flags

from mimjax.errors import ConfigError
from mimjax.programs import opening

if TYPE_CHECKING:
    from mimjax.inference.reconstruction import Sheet

REQUIRED = ("model",)
NAME = "reconstruct.png"


def define_flags() -> None:
    """Define all flags of the program."""
    opening.define_look_flags()
    opening.define_dtype_flag()
    flags.DEFINE_integer("seed", None, "Fixes the masks; without it the run's own seed.")
    flags.DEFINE_string("teacher", None, "Of a file that reconstructs with one: its own file.")


def main() -> None:
    """Draw the picture and print the errors."""
    from mimjax.data.index import shown
    from mimjax.inference import workdir

    f = flags.FLAGS
    opening.check_look(NAME)
    look = of_file if opening.is_file(f.model) else of_run
    opened, sheet, images, notes, error_name = look(f)
    place = workdir.save(opened, NAME, f.output, sheet.png())
    print("".join(line + "\n" for line in notes), end="")
    if sheet.error is not None:
        print(f"{opened.title}: error is {error_name}")
        names = [*map(shown, workdir.image_names(images)), "mean"]
        rows = list(zip(names, [*sheet.error, sheet.error.mean()], strict=True))
        width = max(map(len, names))
        for name, error in rows:
            print(f"  {name:{width}}  {error:.4f}")
    print(f"picture: {place}")


def of_run(f: Any) -> tuple[Any, Sheet, Any, list[str], str]:
    """Return a run, its picture of images, these, what is to be said, and the error's name.

    Raises:
      ConfigError: the method makes no picture, or no image can be read.
    """
    from mimjax.evaluators.pictures import Pictures
    from mimjax.inference.presentation import error_name

    if f.weights == "ema":
        raise ConfigError("--weights: ema; a run reconstructs with what it trains; allowed: online")
    if f.teacher is not None:
        raise ConfigError("--teacher: with a workdir, whose config names it; allowed: with a file")
    run = opening.read_run()
    bench, notes = run.look(f.images, f.count, f.seed)
    pictures = Pictures(count=f.count).make(bench)
    sheet = pictures.sheet(run.state(), run.frozen())
    if sheet is None:
        raise ConfigError(
            f"--model: {run.config.task} with this target predicts no pixels, it makes no "
            "picture; allowed: runs that write pictures while they train"
        )
    return run, sheet, pictures.images, notes, error_name(run.task)


def of_file(f: Any) -> tuple[Any, Sheet, Any, list[str], str]:
    """Return the same of a published file.

    Raises:
      ConfigError: the file has no decoder, its method no picture, or no image can be read.
    """
    from mimjax.inference.presentation import error_name

    opened = opening.open_model(f.teacher or "")
    part, notes = opening.readable(opened, f.images, f.count)
    images = [part.image(i) for i in range(len(part))]
    try:
        sheet = opened.model.reconstruct(images, seed=f.seed)
    except ConfigError as error:
        text = str(error).replace("reconstruct: ", "--model: ", 1)
        text = text.replace("mimjax.load(..., teacher=FILE)", "--teacher=FILE")
        text = f"--{text}" if text.startswith("teacher: ") else text
        raise ConfigError(text) from None
    return opened, sheet, part, notes, error_name(opened.model.task)
