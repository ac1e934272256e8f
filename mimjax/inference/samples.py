"""A fixed sample of both splits as global batches on the mesh, which every evaluator reads.

Crops are centered and masks are fixed, so that values of different steps and restarts can be
compared. Each process makes its own rows only; results are read through replicated outputs.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from mimjax import progress, sharding, stopping
from mimjax.data.augment import Augment
from mimjax.data.bad_files import BadFiles
from mimjax.data.decoding import BadImage
from mimjax.data.images import fingerprint
from mimjax.data.pipeline import eval_batches
from mimjax.data.sources import Source
from mimjax.inference import precision
from mimjax.task import Sampler, Task, View


@dataclasses.dataclass
class Subset:
    """At most `limit` images of a source, drawn without replacement, the same at every start.

    The first images would not do, since a folder is sorted by class; neither would evenly spaced
    images, since labels may be periodic.

    Attributes:
      indices: the places of the images in the source, int [n], increasing.
    """

    source: Source
    limit: int

    def __post_init__(self):
        order = np.random.default_rng(0).permutation(len(self.source))
        self.indices = np.sort(order[: self.limit])
        self.name = self.source.name
        self.num_classes = self.source.num_classes
        self.label_name = self.source.label_name

    @property
    def fingerprint(self) -> str:
        """Return a text that is equal for equal samples."""
        return fingerprint([self.source.fingerprint, self.limit])

    def __len__(self) -> int:
        return len(self.indices)

    def image(self, index: int) -> Any:
        """Return an image as the source gives it."""
        return self.source.image(int(self.indices[index]))

    def label(self, index: int) -> int:
        """Return the label of an image, -1 where it has none."""
        return self.source.label(int(self.indices[index]))

    def labels(self) -> np.ndarray:
        """Return all labels, int64 [n]; every process reads them all."""
        return np.asarray([self.label(i) for i in range(len(self))], np.int64)


def readable_part(split: Subset, count: int) -> tuple[Subset, list[tuple[str, str]]]:
    """Return `Subset(split, count)` with other images in place of those that cannot be read.

    Returns:
      The images, and the path and the error of each file that could not be read, in order.
    """
    good: list[int] = []
    bad: dict[int, tuple[str, str]] = {}
    for place in np.random.default_rng(0).permutation(len(split)).tolist():
        if len(good) == count:
            break
        try:
            split.image(place)
            good.append(place)
        except BadImage as error:
            bad[place] = error.path, error.reason
    part = Subset(split, count)
    part.indices = np.sort(np.asarray(good, np.int64))
    return part, [bad[place] for place in sorted(bad)]


def discard(*_: Any) -> None:
    """Ignore the arguments."""


@dataclasses.dataclass
class Bench:
    """The images of a run's evaluators, the way to the devices, and where results are written.

    Attributes:
      task: the run's task, all of whose networks compute in `dtype`, whatever the run trains in.
      train, test: at most max_images of each split.
      seed: the seed of the run; it fixes the masks and the untrained weights.
      batch_size: rows of a global batch; rounded up to a multiple of the devices, and no larger
        than the splits need.
      augment: how images are cropped; only its `eval_crop` is read.
      threads: the number of threads that make batches.
      bad_files: lists files that cannot be read and puts other images, of weight 0, in their place.
      dtype: "float32", or "bfloat16" for speed.
      write: (file name, PNG bytes) -> None, writes into the workdir's pictures/; a name ends with
        "_" and the step, "what_0001000.png". To be called in process 0 only.
      keep: (file name, text) -> None, writes "what_0001000.json" into the workdir's tables/. To be
        called in process 0 only.
      warn: (step, text) -> None, says what a reader of the curves must know.
    """

    task: Task
    mesh: Mesh
    train: Subset
    test: Subset
    seed: int = 0
    batch_size: int = 256
    augment: Augment = Augment()
    threads: int = 8
    bad_files: BadFiles = dataclasses.field(default_factory=BadFiles)
    dtype: str = "float32"
    write: Callable[[str, bytes], None] = discard
    keep: Callable[[str, str], None] = discard
    warn: Callable[[int, str], None] = discard

    def __post_init__(self):
        self.task = precision.computing(self.task, self.dtype)
        devices, needed = self.mesh.size, max(len(self.train), len(self.test))
        self.batch_size = -(-min(self.batch_size, needed) // devices) * devices

    def batches(
        self,
        split: Subset,
        views: dict[str, View] | None = None,
        sample: Sampler | None = None,
        batch_size: int | None = None,
    ) -> Iterator[dict[str, jax.Array]]:
        """Yield global batches in which every image of `split` stands once.

        Args:
          split: the sample to read.
          views: the images of a row, uint8 [b h w c] by name; None = those of the task.
          sample: makes the masks or ids of a row, `task.sample`; None = there are none.
          batch_size: rows, a multiple of the devices; None = `self.batch_size`.

        Yields:
          The views' images, "label", "index" and "weight" [b], and what `sample` makes. `weight` is
          0 for rows that only fill the last batch or replace a bad file.
        """
        size = batch_size or self.batch_size
        rows = sharding.local_rows(self.mesh, size)
        views = self.task.views if views is None else views
        batches = eval_batches(
            split,
            views,
            size,
            sample,
            self.seed,
            augment=self.augment,
            rows=rows,
            threads=self.threads,
            bad_files=self.bad_files,
        )
        total, quiet = -(-len(split) // size), jax.process_index() > 0
        with batches:
            for batch in progress.track(batches, "evaluation", total, "batch", quiet):
                stopping.sync()
                yield sharding.to_global(self.mesh, batch)

    def jit(self, fn: Any):
        """Return `fn` compiled, with full products and outputs that every process can read."""
        return jax.jit(precision.precise(fn), out_shardings=sharding.replicated(self.mesh))
