"""What runs beside training: held-out masked error, health, k-NN and linear probes, pictures.

An evaluator trains nothing through the trainer and knows no method: it reads `preds`, the prepared
batch and the encoder's `Features`. Each jits its functions once.
"""

from __future__ import annotations

from collections.abc import Callable

from jax.sharding import Mesh

from mimjax.data.augment import Augment
from mimjax.data.bad_files import BadFiles
from mimjax.data.sources import Source
from mimjax.errors import ConfigError
from mimjax.evaluators.error import MaskedError
from mimjax.evaluators.health import Health
from mimjax.evaluators.pictures import Pictures
from mimjax.evaluators.probes import KNN, LinearProbe
from mimjax.evaluators.table import render
from mimjax.inference.features import FeatureBank
from mimjax.inference.samples import Bench, Subset
from mimjax.task import Task
from mimjax.train.run import Evaluator

__all__ = ["Evaluator", "make_evaluators", "render"]


def make_evaluators(
    task: Task,
    mesh: Mesh,
    train: Source,
    test: Source,
    *,
    write: Callable[[str, bytes], None],
    seed: int = 0,
    warn: Callable[[int, str], None] = lambda step, text: None,
    error: bool = True,
    health: bool = False,
    probes: bool = False,
    pictures: int = 8,
    batch_size: int = 256,
    max_images: int = 2000,
    augment: Augment | None = None,
    threads: int = 8,
    bad_files: BadFiles | None = None,
) -> list[Evaluator]:
    """The evaluators of a run.

    Args:
      train, test: splits; naive predictors and probes learn from the first, the second is scored.
      write: (file name, PNG bytes) -> None, called by process 0 for every picture.
      seed: the run's; it fixes the masks and the untrained encoder.
      warn: (step, text) -> None, for what a reader of the curves must know.
      error, health, probes: whether the held-out masked error, the monitors without labels, k-NN
        and linear probe are wanted.
      pictures: images in a reconstruction picture; 0 = none.
      batch_size: rows of a global batch; rounded up to a multiple of the devices.
      max_images: at most that many of each split, drawn once.
      augment: its `eval_crop` is used.
      threads: that make batches.
      bad_files: lists files that cannot be read; None = the first one is an error.

    Raises:
      ConfigError: probes without labels, or a limit that leaves nothing.
    """
    check(train, test, probes, max_images, batch_size, pictures)
    limited = Subset(train, max_images), Subset(test, max_images)
    options = seed, batch_size, augment or Augment(), threads, bad_files or BadFiles()
    bench = Bench(task, mesh, *limited, *options)
    evaluators: list[Evaluator] = []
    if error:
        evaluators.append(MaskedError(bench))
    if health:
        evaluators.append(Health(bench, warn))
    if probes:
        bank = FeatureBank(bench)
        evaluators += [KNN(bank), LinearProbe(bank)]
    if pictures:
        evaluators.append(Pictures(bench, pictures, write))
    return evaluators


def check(
    train: Source, test: Source, probes: bool, max_images: int, batch_size: int, pictures: int
) -> None:
    """Raises the ConfigErrors of `make_evaluators`."""
    for key, value, least in (
        ("max_images", max_images, 2),
        ("batch_size", batch_size, 1),
        ("pictures", pictures, 0),
    ):
        if value < least:
            raise ConfigError(f"eval.{key}: {value}; allowed: {least} or more")
    if probes and not (train.num_classes and test.num_classes):
        raise ConfigError(
            f"eval.probes: True, but the source {train.name!r} has no labels; "
            "allowed: False, or a labeled source"
        )
