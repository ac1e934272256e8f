"""Score an encoder by k-NN, by probes of its frozen features, and by fine-tuning.

  mimjax evaluate --model=WORKDIR [--protocols=knn,linear,attentive,ep] [--labels=all,10%]
  mimjax evaluate --model=WORKDIR --protocols=fine_tune [--fine_tune=method.drop_path=0.2]
  mimjax evaluate --model=FILE --images=FOLDER --output=DIR     FOLDER holds train/ and val/
  mimjax evaluate --model=FILE --source=digits --output=DIR

Beside the encoder stand the same network without training, and raw pixels. Every setting (layer,
pooling, learning rate, k) is chosen on a tenth of the training images; test images choose nothing.
Results lie in WORKDIR/evaluation or DIR. The same command again continues an evaluation.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from absl import flags

from mimjax.errors import ConfigError
from mimjax.programs import cli, opening

if TYPE_CHECKING:
    from mimjax.inference.samples import Subset

REQUIRED = ("model",)
# settings of protocols that flags may set; see `mimjax.run.protocols`
SETTINGS = ("epochs", "rates", "decays", "ks", "temperatures", "queries", "fine_tune")


def define_flags() -> None:
    """Define all flags of the program."""
    opening.define_model_flags()
    opening.define_dtype_flag()
    cli.define_base_flags()
    flags.DEFINE_list("protocols", ["knn", "linear", "attentive", "ep"], "Which, in this order.")
    flags.DEFINE_string("images", None, "Folder with train/ and val/; default: the run's images.")
    flags.DEFINE_string("source", None, "Data source instead, as digits; see mimjax config.")
    flags.DEFINE_list("labels", ["all"], "all, a share (10%), or a number of images per class.")
    flags.DEFINE_list("seeds", ["0"], "Of heads, order and drawn labels; several give a spread.")
    flags.DEFINE_list("rows", ["pretrained", "untrained", "raw_pixels"], "Rows of the table.")
    flags.DEFINE_list(
        "layers", None, "Layers that are tried: norm, blocks; default: norm and last."
    )
    flags.DEFINE_integer("epochs", None, "Of every training; default: the protocol's, 90.")
    flags.DEFINE_list("rates", None, "Factors of the protocol's learning rate that are tried.")
    flags.DEFINE_list("decays", None, "Weight decays that are tried.")
    flags.DEFINE_list("ks", None, "Numbers of neighbors that are tried.")
    flags.DEFINE_list("temperatures", None, "Temperatures of their votes that are tried.")
    flags.DEFINE_integer("queries", None, "Of efficient probing; default 32.")
    flags.DEFINE_multi_string(
        "fine_tune",
        None,
        "A setting of fine-tuning's recipe, KEY=VALUE as behind --config. of mimjax train; each "
        "with a flag of its own.",
    )
    flags.DEFINE_bool("augment", False, "Crop and flip training images anew in every epoch.")
    flags.DEFINE_integer("count", 0, "At most that many images of each split; 0 = all.")
    flags.DEFINE_string("output", None, "Folder of results; default: WORKDIR/evaluation.")
    flags.DEFINE_integer("batch_size", 64, "Images that are encoded at once.")
    flags.DEFINE_integer("threads", 8, "That decode images.", lower_bound=1)


def main() -> None:
    """Evaluate, print the table and write it."""
    from mimjax.run import labeled, scores
    from mimjax.run.evaluate import Evaluation, crops
    from mimjax.run.rows import make_rows
    from mimjax.storage.files import Workdir

    f = flags.FLAGS
    chosen, where = protocols(f), place(f)
    seeds = cli.integers("seeds", f.seeds, 0, 2**32 - 1)
    labels = tuple(dict.fromkeys(text.strip() for text in f.labels))
    for text in labels:
        labeled.label_share(text)
    if f.batch_size < 1:
        raise ConfigError(f"--batch_size: {f.batch_size}; allowed: 1 or more")
    opened = opening.open_model()
    check_statistics(f.model, opened)
    model, (train, test) = opened.model, splits(f, opened)
    names = labeled.check_labels(train, test)
    labeled.check_draws(train, labels, seeds, names)
    rows = make_rows(model, opened.run, f.rows, f.layers)
    evaluation = Evaluation(
        Workdir(where, writer=False, key="--output"),  # until all settings are checked
        rows,
        train,
        test,
        names,
        model.view,
        model.reader.augment,
        chosen,
        labels,
        seeds,
        crops(model.reader.augment) if f.augment else None,
        about(opened, train, test, names),
        f.batch_size,
        f.threads,
        model,
    )
    evaluation.check()
    with locked(where):
        evaluation.place = Workdir(where, key="--output")
        text = scores.markdown(evaluation, evaluation.run())
        evaluation.place.write_text("evaluation.md", text)
    print(f"\n{text}\nevaluation: {where} holds evaluation.md and evaluation.json")


def check_statistics(path: str, opened: opening.Opened) -> None:
    """Refuse a file of which nobody says how its images are normalized.

    Raises:
      ConfigError: neither the file nor one beside it says mean and std, nor do flags.
    """
    network = opened.model.network
    if network.guessed:
        raise ConfigError(
            f"--mean, --std: neither {path} nor a file beside it says them, and accuracies hang on "
            f"them; allowed: both ({list(network.mean)} and {list(network.std)} are those of the "
            "code that has such files)"
        )


def about(
    opened: opening.Opened, train: Subset, test: Subset, names: tuple[str, ...]
) -> dict[str, Any]:
    """Return what is written of model and data beside the results."""
    from mimjax.run import published_numbers

    model = opened.model
    # the papers' numbers are of ImageNet-1k alone
    imagenet = published_numbers.is_imagenet(names, len(test))
    found = published_numbers.of_method(model.config.task, model.module.width) if imagenet else {}
    return {
        **opened.about,
        "title": opened.title,
        "begun": opened.run is not None and opened.run.step == 0,
        "images": train.name,
        "train_images": len(train),
        "test_images": len(test),
        "label": train.label_name,
        "classes": list(names),
        "augmented": bool(flags.FLAGS.augment),
        "published": {name: number._asdict() for name, number in found.items()},
    }


@contextlib.contextmanager
def locked(where: str) -> Iterator[None]:
    """Keep other evaluations out of a folder.

    Raises:
      ConfigError: another one writes there, or the folder cannot be made.
    """
    from mimjax.storage.files import Workdir
    from mimjax.storage.lock import RunLock

    lock = RunLock(Workdir(where, key="--output"))
    try:
        lock.acquire(print)
    except ConfigError as error:
        raise ConfigError(str(error).replace("--workdir", "--output", 1)) from None
    try:
        yield
    finally:
        lock.release()


def place(f: Any) -> str:
    """Return the folder of the results.

    Raises:
      ConfigError: a published file without --output.
    """
    workdir = opening.workdir_of(f.model)
    if f.output is None and workdir is None:
        raise ConfigError("--output: missing; it may be left out with a workdir alone")
    out = f.output or os.path.join(workdir or "", "evaluation")
    if "://" in out:
        raise ConfigError(f"--output: {out!r}; allowed: a path on this machine")
    return out


def protocols(f: Any) -> dict[str, Any]:
    """Return the protocols that are asked for, with the settings of the flags.

    Raises:
      ConfigError: one that does not exist, or a setting that none of them has.
    """
    from mimjax.run import protocols as p

    names = list(dict.fromkeys(name.strip() for name in f.protocols))
    for name in names:
        if name not in p.PROTOCOLS:
            raise ConfigError(f"--protocols: {name!r}; allowed: {', '.join(p.PROTOCOLS)}")
    if not names:
        raise ConfigError(f"--protocols: empty; allowed: {', '.join(p.PROTOCOLS)}")
    given = {name: f[name].value for name in SETTINGS}
    for name in ("epochs", "queries"):
        if given[name] is not None and given[name] < 1:
            raise ConfigError(f"--{name}: {given[name]}; allowed: 1 or more")
    for name, low in (("rates", 0.0), ("decays", -1.0), ("temperatures", 0.0)):
        given[name] = numbers(name, given[name], low)
    if given["fine_tune"] is not None:
        given["fine_tune"] = tuple(given["fine_tune"])
    if given["ks"] is not None:
        given["ks"] = tuple(sorted(cli.integers("ks", given["ks"], 1, 1 << 30)))
    for name in p.unknown_settings(names, given):
        raise ConfigError(
            f"--{name}: no protocol of {', '.join(names)} reads it; allowed: leave out"
        )
    return {name: p.changed(p.PROTOCOLS[name], given) for name in names}


def numbers(name: str, texts: list[str] | None, above: float) -> tuple[float, ...] | None:
    """Return a list flag's numbers, each once; None = not given.

    Raises:
      ConfigError: something that is no number, or one that is not above the bound.
    """
    if texts is None:
        return None
    bound = f"above {above:g}" if above >= 0 else "0 or more"
    out = []
    for text in texts:
        try:
            value = float(text)
        except ValueError:
            value = float("nan")
        if not (above < value < float("inf") and value >= 0):
            raise ConfigError(f"--{name}: {text!r}; allowed: numbers {bound}")
        out.append(value)
    if not out:
        raise ConfigError(f"--{name}: empty; allowed: numbers {bound}")
    return tuple(dict.fromkeys(out))


def splits(f: Any, opened: opening.Opened) -> tuple[Subset, Subset]:
    """Return the images of both splits: of --images, of --source, or of the run.

    Raises:
      ConfigError: there are none, or two of these.
    """
    from mimjax.data import configured, sources
    from mimjax.inference.samples import Subset

    if f.count < 0:
        raise ConfigError(f"--count: {f.count}; allowed: 0 (all) or more")
    if f.images is not None and f.source is not None:
        raise ConfigError("--source: with --images; allowed: one of the two")
    if f.images is None and f.source is None and opened.run is None:
        raise ConfigError(
            "--images: missing, a published file has none; allowed: a folder with train/ and val/, "
            "or --source"
        )
    out = []
    for split in ("train", "test"):
        if f.images is None and f.source is None:
            source: Any = configured.make_split(opened.model.config, split)
        else:
            kind = sources.Folder if f.source is None else sources.find_source(f.source)
            files = sources.Files(f.images, how=opened.model.reader.how)
            source = sources.open_source(kind(), split, files)
        out.append(Subset(source, f.count or len(source)))
    return out[0], out[1]
