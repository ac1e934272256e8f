"""Batches for training and evaluation, as pure functions of (seed, step, data).

There is no iterator state, so a restart needs only the number of the step, and any number of hosts
or workers gives the same global batch: row r of step s is a fixed example with a fixed augmentation
and mask. Batches are NumPy arrays on the host; the trainer puts them on devices. Threads and worker
processes are in `prefetch.py`.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Iterator
from typing import Any

import numpy as np

from mimjax.data.augment import Augment
from mimjax.data.bad_files import KEY, BadFiles, readable
from mimjax.data.images import fingerprint
from mimjax.data.prefetch import NumpyBatch, Prefetched, prefetched
from mimjax.data.sources import Source
from mimjax.rng import example_seed
from mimjax.task import ConfigError, Sampler, View

# replacements that are tried for one bad file; even if half of all files are bad, a good one is
# found in practice (the probability of none is 2^-50)
STAND_INS = 50


@dataclasses.dataclass
class Pipeline:
    """Shuffled, augmented batches of a source.

    Attributes:
      source: the images and labels.
      views: {name in the batch: size and filter}.
      augment: crop, flip and color jitter.
      sample: makes masks or ids of one example on the host, see `mimjax.task.Sampler`; it is called
        with the epoch. None = there are none.
      batch_size: rows of the global batch, over all hosts.
      seed: seed of the run.
      train: False = images in the order of the source, center crops.
      bad_files: whether bad files are replaced, and the list of them.
      skip: positions in the endless sequence of batches that are left out; later batches move up.
      repeats: how often an image stands in a batch of training, with another augmentation and mask
        each time (Hoffer et al. 2020, https://arxiv.org/abs/1901.09335). As with DeiT's sampler,
        which timm has too, an epoch has as many batches as without, and so sees a part of the
        images; where `repeats` does not divide the batch, the last image's repeats go on in the
        next one.
    """

    source: Source
    views: dict[str, View]
    augment: Augment
    sample: Sampler | None
    batch_size: int
    seed: int
    train: bool = True
    bad_files: BadFiles = dataclasses.field(default_factory=BadFiles)
    skip: tuple[int, ...] = ()
    repeats: int = 1

    def __post_init__(self):
        if self.batch_size < 1:
            raise ConfigError(f"batch_size: found {self.batch_size}; allowed: 1 or more")
        if not 1 <= self.repeats <= self.batch_size:
            raise ConfigError(
                f"data.repeats: {self.repeats} with batch_size {self.batch_size}; allowed: 1 to "
                f"{self.batch_size}"
            )
        self._orders: dict[int, np.ndarray] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_orders": {}}  # workers make their own permutations

    @property
    def steps_per_epoch(self) -> int:
        """Number of full batches per epoch; the dropped remainder differs from epoch to epoch.

        Raises:
          ConfigError: the source has fewer images than one batch.
        """
        if len(self.source) < self.batch_size:
            raise ConfigError(
                f"batch_size: found {self.batch_size}, but source {self.source.name!r} has "
                f"{len(self.source)} images; allowed: 1 to {len(self.source)}"
            )
        return len(self.source) // self.batch_size

    @property
    def fingerprint(self) -> str:
        """16 hex digits that change if a step would have other data (`seed` and `skip` aside)."""
        views = sorted(_traits(name, view) for name, view in self.views.items())
        parts = [self.source.fingerprint, views, self.augment, self.batch_size, self.train]
        parts += [*self.augment.traits, *([f"repeats {self.repeats}"] if self.repeats > 1 else [])]
        return fingerprint(parts)

    def batch(self, step: int, rows: slice | None = None) -> NumpyBatch:
        """Return rows of the global batch of `step`, made in the calling thread.

        Args:
          step: number of the step, from 0 without end.
          rows: rows of the global batch (a host's share); None = all.

        Returns:
          Every view, uint8 [b h w c]; `label` int32 [b], -1 = none; `index` int32 [b], the position
          in the source; what `sample` makes, as a rule `mask` bool [b n]. Label and index of a bad
          file's replacement are its own.
        """
        batch = self._make(step, rows)
        batch.pop(KEY, None)
        return batch

    def _make(self, step: int, rows: slice | None) -> NumpyBatch:
        """Return `batch(step, rows)`, with the bad files under KEY if they are skipped."""
        epoch = self.place(step) // self.steps_per_epoch
        start, stop = self._bounds(rows)
        drawn = zip(*(x[start:stop].tolist() for x in self._drawn(step)), strict=True)
        examples = [self._example(epoch, index, repeat) for index, repeat in drawn]
        return _stack(examples, self.bad_files.skip)

    def place(self, step: int) -> int:
        """Return the position of a step's batch in the endless sequence, `skip` included."""
        for left_out in sorted(self.skip):
            step += left_out <= step
        return step

    def indices(self, step: int) -> np.ndarray:
        """Return the positions in the source of a step's examples, int [b]."""
        return self._drawn(step)[0]

    def _drawn(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the examples of a step: positions in the source, and which repeat each is.

        The first of all images stand before the second ones, so that hosts and devices have
        different images, as the processes of DeiT's sampler.
        """
        epoch, within = divmod(self.place(step), self.steps_per_epoch)
        repeats = self.repeats if self.train else 1
        entries = within * self.batch_size + np.arange(self.batch_size)
        entries = entries[np.argsort(entries % repeats, kind="stable")]
        return self._order(epoch)[entries // repeats], entries % repeats

    def iterate(
        self,
        start_step: int,
        stop_step: int,
        *,
        rows: slice | None = None,
        workers: int = 0,
        threads: int | None = None,
    ) -> Prefetched:
        """Return an iterator over `batch(step, rows)` for start_step <= step < stop_step.

        The batches are made ahead of time. They do not depend on `workers` and `threads`, for which
        see `prefetch.prefetched`. The caller closes the iterator.
        """
        self.steps_per_epoch  # noqa: B018  raises its error here and not in a worker
        return prefetched(
            self._make,
            range(start_step, stop_step),
            slice(*self._bounds(rows)),
            workers=workers,
            threads=threads,
            check=self.bad_files.checker(len(self.source)),
        )

    def _bounds(self, rows: slice | None) -> tuple[int, int]:
        """Return the first row and the row after the last of a slice."""
        start, stop, stride = (rows or slice(None)).indices(self.batch_size)
        if stride != 1 or stop <= start:
            raise ValueError(f"rows {rows}: a non-empty slice of {self.batch_size} rows, stride 1")
        return start, stop

    def _order(self, epoch: int) -> np.ndarray:
        """Return the order of the source in an epoch, int [number of images]."""
        if not self.train:
            return np.arange(len(self.source))
        order = self._orders.get(epoch)
        if order is None:
            bits = np.random.Philox(np.random.SeedSequence([self.seed, epoch]))
            order = np.random.Generator(bits).permutation(len(self.source))
            # Threads around the end of an epoch need two orders, so two are stored. The dict is
            # replaced and not updated, since other threads may be reading it.
            kept = {e: o for e, o in self._orders.items() if abs(e - epoch) == 1}
            self._orders = {**kept, epoch: order}
        return order

    def _example(self, epoch: int, index: int, repeat: int = 0) -> dict[str, Any]:
        """Return one example of a batch, with rows of bad files under KEY."""
        again = f" {repeat}" if repeat else ""
        seed = lambda use: example_seed(self.seed, epoch, index, use + again)
        rng = np.random.default_rng(seed("augment"))
        made = _sampled(self.sample, seed("mask"), epoch)
        image, place, bad = readable(self.source, self._places(epoch, index), self.bad_files.skip)
        example = self.augment(image, self.views, rng, self.train)
        return _finish(example, self.source, place, made) | {KEY: bad}

    def _places(self, epoch: int, index: int) -> Iterator[int]:
        """Yield the example's own position in the source, then those of its replacements."""
        yield index
        for number in range(STAND_INS):
            name = f"stand-in {number}"
            yield example_seed(self.seed, epoch, index, name) % len(self.source)


def eval_batches(
    source: Source,
    views: dict[str, View],
    batch_size: int,
    sample: Sampler | None,
    seed: int,
    *,
    augment: Augment | None = None,
    rows: slice | None = None,
    workers: int = 0,
    threads: int | None = None,
    bad_files: BadFiles | None = None,
) -> Prefetched:
    """Return an iterator over every image of a source once, center-cropped, equal at every call.

    Args:
      source: the images and labels.
      views: {name in the batch: size and filter}.
      batch_size: rows of the global batch; the last batch is filled with copies of the last image.
      sample: makes the fixed masks or ids of each example, see `mimjax.task.Sampler`; it is called
        with epoch 0. None = there are none.
      seed: seed of the run, read by `sample` only.
      augment: its `eval_crop` is used; None = 1.
      rows: rows of each global batch (a host's share); None = all.
      workers, threads: see `prefetch.prefetched`.
      bad_files: whether bad files are replaced, and the list of them; None = the first bad file is
        an error.

    Returns:
      Iterator of batches like those of `Pipeline.batch`, plus `weight` float32 [b]: 0 for rows that
      fill the last batch and for replacements of bad files (the next readable image), otherwise 1.
      The caller closes it unless it is read to the end.
    """
    bad_files = bad_files or BadFiles()
    if batch_size < 1:
        raise ConfigError(f"eval batch_size: found {batch_size}; allowed: 1 or more")
    start, stop, _ = (rows or slice(None)).indices(batch_size)
    augment = augment or Augment()
    maker = _EvalMaker(source, views, batch_size, sample, seed, augment, bad_files.skip)
    num_steps = -(-len(source) // batch_size)
    return prefetched(
        maker,
        range(num_steps),
        slice(start, stop),
        workers=workers,
        threads=threads,
        check=bad_files.checker(len(source)),
    )


@dataclasses.dataclass(frozen=True)
class _EvalMaker:
    """Function (step, rows) -> batch; a class, since closures cannot be pickled for workers."""

    source: Source
    views: dict[str, View]
    batch_size: int
    sample: Sampler | None
    seed: int
    augment: Augment
    skip: bool

    def __call__(self, step: int, rows: slice) -> NumpyBatch:
        return _stack(list(self._examples(step, rows)), self.skip)

    def _examples(self, step: int, rows: slice) -> Iterator[dict[str, Any]]:
        """Yield the examples of some rows, with rows of bad files under KEY."""
        unused = np.random.default_rng(0)
        last, count = len(self.source) - 1, len(self.source)
        for row in range(rows.start, rows.stop):
            number = step * self.batch_size + row
            index = min(number, last)
            places = ((index + i) % count for i in range(min(count, 1 + STAND_INS)))
            image, place, bad = readable(self.source, places, self.skip)
            example = self.augment(image, self.views, unused, train=False)
            made = _sampled(self.sample, example_seed(self.seed, 0, index, "eval_mask"), 0)
            example = _finish(example, self.source, place, made)
            weight = np.asarray(number <= last and not bad, np.float32)
            yield {**example, "weight": weight, KEY: bad}


def _traits(name: str, view: View) -> tuple[Any, ...]:
    """Return what of a view decides its pixels, in the form of the fingerprints in checkpoints."""
    # A view's name decides nothing. Checkpoints were made when every view but the student's had
    # the name "target_image", and all were of one crop.
    called = name if name == "image" else "target_image"
    crop = () if view.crop == "image" else (view.crop,)
    return (called, tuple(view.size), view.resample, *crop)


def _sampled(sample: Sampler | None, seed: int, epoch: int) -> NumpyBatch:
    """Return the masks or ids of one example."""
    if sample is None:
        return {}
    return {name: np.asarray(x) for name, x in sample(random.Random(seed), epoch).items()}


def _finish(example: NumpyBatch, source: Source, index: int, made: NumpyBatch) -> NumpyBatch:
    """Return the views of one example with label, index, and the masks or ids.

    Raises:
      ConfigError: two of them have one name.
    """
    example["label"] = np.asarray(source.label(index), np.int32)
    example["index"] = np.asarray(index, np.int32)
    if twice := sorted(made.keys() & {*example, "weight"}):
        raise ConfigError(
            f"sample: it makes {', '.join(twice)}, and the batch has an image or a number of that "
            "name; allowed: other names"
        )
    return example | made


def _stack(examples: list[dict[str, Any]], skip: bool) -> NumpyBatch:
    """Return the batch of some examples, with all rows of bad files under KEY if `skip`."""
    bad = [row for example in examples for row in example.pop(KEY)]
    # sorted keys, as batches from worker processes have
    batch = {key: np.stack([example[key] for example in examples]) for key in sorted(examples[0])}
    return batch | {KEY: np.asarray(bad, object).reshape(-1, 2)} if skip else batch
