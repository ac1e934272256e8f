"""Score a classifier on other images of its classes: ImageNet-A, -R, -Sketch, -V2 and -C.

  mimjax robustness --model=WORKDIR|FILE --images=FOLDER[,FOLDER ...] [--output=FILE.json]

Each FOLDER holds class folders whose names are among those of the model, or numbers of its
outputs. Only the classes that a folder has compete; --all_classes lets all of them. A folder that
holds corruptions (FOLDER/gaussian_noise/1/CLASS/...), as ImageNet-C does, gives their errors and
the mean corruption error, relative to AlexNet's.
"""

from __future__ import annotations

import json
import pathlib
from typing import Any

from absl import flags

from mimjax.errors import ConfigError
from mimjax.programs import cli, opening

REQUIRED = ("model", "images")


def define_flags() -> None:
    """Define all flags of the program."""
    opening.define_model_flags()
    opening.define_dtype_flag()
    cli.define_base_flags()
    flags.DEFINE_list("images", None, "Folders of class folders, or of corruptions.")
    flags.DEFINE_bool("all_classes", False, "All classes of the model compete, not the folder's.")
    flags.DEFINE_string("output", None, "JSON file of the results.")
    flags.DEFINE_integer("batch_size", 64, "Images at once.")


def main() -> None:
    """Score every folder, print a table and write it."""
    from mimjax.evaluators.table import markdown
    from mimjax.inference import robustness
    from mimjax.storage import outputs

    f = flags.FLAGS
    if f.batch_size < 1:
        raise ConfigError(f"--batch_size: {f.batch_size}; allowed: 1 or more")
    if not f.images:
        raise ConfigError("--images: empty; allowed: one folder or more")
    if f.output is not None:
        outputs.check(f.output)
    opened = opening.open_model()
    if not opened.model.num_classes:
        why = opened.model.network.no_head or "it has no classifier"
        raise ConfigError(f"--model: {f.model}: {why}; allowed: a fine-tuned or probed model")
    results: dict[str, Any] = {}
    rows, tables = [], []
    for folder in f.images:
        if robustness.corruptions(folder):
            found = robustness.corruption_errors(opened.model, folder, f.batch_size)
            results[folder] = [one._asdict() for one in found]
            tables += corruption_table(folder, found)
            continue
        one = robustness.accuracy(opened.model, folder, f.batch_size, f.all_classes)
        results[folder] = one._asdict()
        rows.append(
            [folder, f"{one.top1:.2f}", f"{one.top5:.2f}", f"{one.images:,}", str(one.classes)]
        )
        for path, reason in one.left_out:
            print(f"left out: {path}: {reason}")
    lines = [f"{opened.title}, classifier of {opened.model.num_classes} classes", ""]
    if rows:
        header = ["folder", "top-1, %", "top-5, %", "images", "classes"]
        lines += [*markdown(header, rows), ""]
    print("\n".join([*lines, *tables]))
    if f.output is not None:
        content = {"model": opened.about, "results": results}
        with outputs.staged(f.output) as place:
            pathlib.Path(place).write_text(json.dumps(content, indent=2) + "\n")
        print(f"results: {f.output}")


def corruption_table(folder: str, found: list[Any]) -> list[str]:
    """Return the lines of a folder of corruptions: errors by severity, relative errors, means."""
    from mimjax.evaluators.table import markdown
    from mimjax.inference.robustness import ALEXNET, SEVERITIES

    mean = lambda xs: sum(xs) / len(xs)
    header = ["corruption", *(f"severity {i + 1}" for i in range(SEVERITIES)), "of AlexNet's, %"]
    body = [[x.name, *(f"{e:.1f}" for e in x.errors), f"{x.relative:.1f}"] for x in found]
    lines = [f"{folder}: errors in percent", "", *markdown(header, body), ""]
    value = f"{mean([x.relative for x in found]):.1f} %"
    if len(found) == len(ALEXNET):
        return [*lines, f"Mean corruption error: {value}", ""]
    return [*lines, f"Mean over {len(found)} of {len(ALEXNET)} corruptions, no mCE: {value}", ""]
