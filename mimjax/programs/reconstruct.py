"""Shows what a trained run reconstructs: a picture, and the masked error of each image.

  mimjax reconstruct --workdir=DIR [--images=FOLDER|FILE] [--output=PNG]

Crops, masks and columns are those of the run's own pictures, with any images; for BEiT and CAE
with a tokenizer, the weights that `teacher.path` of the run's config names are read again. Files
that cannot be read are left out and named; others are shown in their places.
"""

from __future__ import annotations

from absl import flags

from mimjax.programs import cli


def main() -> None:
    from mimjax.data.index import shown
    from mimjax.errors import ConfigError
    from mimjax.evaluators.pictures import Pictures
    from mimjax.inference import workdir

    f = flags.FLAGS
    workdir.check_flags(f.count, f.output, f.workdir, "reconstruct.png")
    run = workdir.open_run(f.workdir, f.step)
    bench, notes = run.look(f.images, f.count, f.seed)
    pictures = Pictures(count=f.count).make(bench)
    sheet = pictures.sheet(run.state(), run.frozen())
    if sheet is None:
        raise ConfigError(
            f"--workdir: {run.config.task} with this target predicts no pixels, it makes no "
            "picture; allowed: runs that write pictures while they train"
        )
    place = workdir.save(run, "reconstruct.png", f.output, sheet.png())
    print("".join(line + "\n" for line in notes), end="")
    if sheet.error is not None:
        print(f"{run.title}: error is {run.program.task.error_name}")
        names = [*map(shown, workdir.image_names(pictures.images)), "mean"]
        rows = list(zip(names, [*sheet.error, sheet.error.mean()], strict=True))
        width = max(map(len, names))
        for name, error in rows:
            print(f"  {name:{width}}  {error:.4f}")
    print(f"picture: {place}")


if __name__ == "__main__":
    cli.define_look_flags()
    flags.adopt_module_key_flags(cli)
    flags.DEFINE_integer("seed", None, "Fixes the masks; without it the run's own seed.")
    cli.run(main, required=("workdir",))
