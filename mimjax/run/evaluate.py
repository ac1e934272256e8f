"""Score an encoder by several protocols: cells of a table, each computed once and kept.

A cell is (row, protocol, labels, seed). What decides it is chosen on images of the training split
that are left out, a tenth of each class; the test split is read once, after the choice. Cells are
written as they come, so that a killed evaluation continues.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import pathlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from mimjax import progress, sharding
from mimjax.data.augment import Augment
from mimjax.data.pipeline import Pipeline, eval_batches
from mimjax.errors import ConfigError, RunError
from mimjax.inference import precision
from mimjax.inference.feature_cache import Cache, Features, digest
from mimjax.inference.model import Model
from mimjax.inference.samples import Subset
from mimjax.run.cells import Cell, Protocol, batch_of
from mimjax.run.labeled import Places, draw, hold_out, label_share
from mimjax.run.protocols import Trained
from mimjax.run.rows import ROWS, Row
from mimjax.run.scoring import Feed, Grid, cached_batches
from mimjax.storage.files import Workdir
from mimjax.task import View
from mimjax.transfer.head import Reading
from mimjax.transfer.probing import feature_name

PyTree = Any
FILE = "evaluation.json"
MANY = 1024  # images whose logits are computed at once


def crops(augment: Augment) -> Augment:
    """Return how training images are cropped under --augment: MAE's linear probe, main_linprobe.py.

    One random crop of 8 to 100 % of the image, sides 3:4 to 4:3, and a mirror image half the time.
    """
    return dataclasses.replace(
        augment, scale=(0.08, 1.0), flip=0.5, color_jitter=0.0, rand_augment=None
    )


@dataclasses.dataclass(frozen=True)
class Splits:
    """Cached features of one row.

    Attributes:
      train, test: of the labeled images that could be read.
    """

    train: Features
    test: Features


@dataclasses.dataclass
class Evaluation:
    """An evaluation of one model on one data set.

    Attributes:
      place: where results and features are kept.
      rows: the encoder and its rivals.
      train, test: images with labels.
      names: of the classes.
      view, augment: how images are brought to the encoder's size; `crop` is how training images
        are cropped where they are augmented, None = they are not.
      chosen: the protocols by name, with the settings of this evaluation.
      labels, seeds: see `Cell`.
      about: what is said of model and data, written with the results.
      model: the one that is evaluated, of whose encoder rows are; None = nothing asks for it.
      say: receives lines.
    """

    place: Workdir
    rows: Sequence[Row]
    train: Subset
    test: Subset
    names: tuple[str, ...]
    view: View
    augment: Augment
    chosen: Mapping[str, Protocol]
    labels: Sequence[str] = ("all",)
    seeds: Sequence[int] = (0,)
    crop: Augment | None = None
    about: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    batch_size: int = 64
    threads: int = 8
    model: Model | None = None
    say: Callable[[str], None] = progress.say

    def __post_init__(self):
        self.mesh = sharding.make_mesh()
        self._splits: dict[str, Splits] = {}
        self._digests = {row.name: self._digest(row) for row in self.rows}

    def _digest(self, row: Row) -> str:
        """Return the digest of a row's features, the images aside."""
        return digest([*row.parts, self.view, self.augment.eval_crop], row.params)

    def check(self) -> None:
        """Check every protocol's settings before anything is computed or written.

        Raises:
          ConfigError: they do not suit the data or the encoder.
        """
        for protocol in self.chosen.values():
            protocol.check(self)
        if not self.cells():
            titles = ", ".join(x.title for x in self.chosen.values())
            raise ConfigError(f"--rows: {titles} has a number for none; allowed: other rows")

    def cells(self) -> list[Cell]:
        """Return the cells of the table in the order in which they are computed."""
        out = []
        for row in self.rows:
            for labels in self.labels:
                for name, protocol in self.chosen.items():
                    seeded = protocol.seeded(label_share(labels) == 1.0)
                    seeds = self.seeds if seeded else self.seeds[:1]
                    seeds = seeds if protocol.has(row) else ()
                    out += [Cell(row.name, name, labels, seed) for seed in seeds]
        return out

    def key(self, cell: Cell) -> str:
        """Return a digest of all that decides a cell; a kept result counts if it is the same."""
        protocol = self.chosen[cell.protocol]
        parts = [
            self._digests[cell.row],
            self.train.fingerprint,
            self.test.fingerprint,
            protocol,
            self.crop if self.crops(cell) else None,
            *cell,
            *protocol.identity(self, cell),
        ]
        return hashlib.sha256(json.dumps([str(x) for x in parts]).encode()).hexdigest()[:16]

    def crops(self, cell: Cell) -> bool:
        """Return whether the cell's training images are cropped anew in every epoch."""
        return self.crop is not None and self.chosen[cell.protocol].crops(self.row(cell.row))

    def run(self) -> dict[Cell, dict[str, Any]]:
        """Compute what no earlier call computed, and return all cells' results.

        Raises:
          ConfigError: a label fraction that leaves a class nearly empty.
          RunError: a full disk.
        """
        kept, others = self._kept()
        cells = self.cells()
        keys = {cell: self.key(cell) for cell in cells}
        results = {cell: kept[key] for cell, key in keys.items() if key in kept}
        if results:
            self.say(f"{len(results)} of {len(cells)} results are kept from an earlier start")
        spent: dict[tuple[str, str], list[float]] = {}
        todo = [cell for cell in cells if cell not in results]
        if todo:
            images = f"{len(self.train):,} training and {len(self.test):,} test images"
            self.say(f"computing {len(todo)} results from {images}; the first one encodes them")
            self.say("the same command continues a stopped evaluation")
        for done, cell in enumerate(todo, 1):
            begin = time.perf_counter()
            result = self.chosen[cell.protocol].score(self, cell)
            seconds = time.perf_counter() - begin
            spent.setdefault((cell.protocol, cell.labels), []).append(seconds)
            results[cell] = {
                **cell._asdict(), **result._asdict(), "seconds": round(seconds, 1),
                "key": keys[cell],
            }  # fmt: skip
            ordered = {c: results[c] for c in cells if c in results}
            self._write(ordered, others)
            self.say(
                f"[{len(cells) - len(todo) + done}/{len(cells)}] {self.words(cell)}: "
                f"{result.top1:.2f} % ({result.setting}; {seconds:.0f} s"
                f"{left(todo[done:], spent)})"
            )
        return {c: results[c] for c in cells}

    def words(self, cell: Cell) -> str:
        """Return a cell in words."""
        labels = "" if cell.labels == "all" else f", {cell.labels} labels"
        return f"{self.chosen[cell.protocol].title}, {ROWS[cell.row]}{labels}, seed {cell.seed}"

    def _kept(self) -> tuple[dict[str, dict[str, Any]], list[dict[str, Any]]]:
        """Return the results of earlier calls by key, and those as a list."""
        found = self.place.read_json(FILE)
        cells = [*found.get("cells", []), *found.get("earlier", [])]
        return {cell["key"]: cell for cell in cells}, cells

    def _write(self, results: Mapping[Cell, dict[str, Any]], others: list[dict[str, Any]]) -> None:
        """Write the results, and beside them those that belong to other settings."""
        mine = {x["key"] for x in results.values()}
        content = {
            **self.about,
            "cells": list(results.values()),
            "earlier": [x for x in others if x["key"] not in mine],
        }
        self.place.write_text(FILE, json.dumps(content, indent=2) + "\n")

    # ---------------------------------------------------------------- one cell
    def features(
        self, cell: Cell, readings: Sequence[Reading]
    ) -> tuple[Features, tuple[np.ndarray, np.ndarray], Features]:
        """Return cached features: of the labeled images that a cell may use, and of the test split.

        Returns:
          The labeled ones, the places in them to learn from and to choose on, and the test split.
        """
        splits = self.splits(self.row(cell.row), readings)
        drawn = splits.train.take(draw(splits.train.labels, cell.labels, cell.seed, self.names))
        return drawn, hold_out(drawn.labels, cell.seed), splits.test

    def places(self, cell: Cell) -> tuple[np.ndarray, np.ndarray]:
        """Return the places of the training images to learn from and to choose on."""
        labels = self.train.labels()
        good = np.flatnonzero(labels >= 0)
        drawn = good[draw(labels[good], cell.labels, cell.seed, self.names)]
        fit, held = hold_out(labels[drawn], cell.seed)
        return drawn[fit], drawn[held]

    def cached(self, cell: Cell, protocol: Trained) -> tuple[Grid, Feed]:
        """Return heads that learn from cached features, and these."""
        row = self.row(cell.row)
        readings = protocol.readings(row.space)
        drawn, cut, test = self.features(cell, readings)
        fit, held = (drawn.take(places) for places in cut)
        shapes = {r: test.arrays[r].shape[1:] for r in readings}
        grid = self.grid(row, protocol, shapes, len(fit))

        def batches(epoch: int) -> Iterator[dict[str, np.ndarray]]:
            order = np.random.default_rng([cell.seed, 2, epoch]).permutation(len(fit))
            return cached_batches(fit, readings, grid.size, order)

        many = max(grid.size, MANY // grid.mesh.size * grid.mesh.size)
        once = lambda part: lambda: cached_batches(part, readings, many)
        return grid, Feed(batches, once(held), once(test), len(fit), len(held))

    def mesh_for(self, images: int) -> Mesh:
        """Return the devices that share so many images: no more of them than images."""
        devices = jax.devices()[: max(min(self.mesh.size, images), 1)]
        return self.mesh if len(devices) == self.mesh.size else sharding.make_mesh(devices=devices)

    def grid(self, row: Row, protocol: Trained, shapes: Any, images: int, **more: Any) -> Grid:
        """Return the heads that learn from so many images.

        Args:
          shapes: of one image's features by reading.
        """
        mesh = self.mesh_for(images)
        size = batch_of(images, mesh.size)
        kinds = tuple(shapes.items())
        classes, per_epoch = len(self.names), max(images // size, 1)
        return Grid(protocol, row.space, classes, kinds, size, per_epoch, mesh, **more)

    def row(self, name: str) -> Row:
        """Return the row of this name."""
        return next(row for row in self.rows if row.name == name)

    def splits(self, row: Row, readings: Sequence[Reading]) -> Splits:
        """Return cached features of both splits, computing those that are not on disk."""
        held = self._splits.get(row.name)
        if held is None or set(readings) - held.test.arrays.keys():
            known = tuple(held.test.arrays) if held else ()
            self._splits.clear()  # the maps of a row before are not needed again
            wanted = tuple(dict.fromkeys((*known, *readings)))
            parts = (self._features(row, wanted, s) for s in (self.train, self.test))
            self._splits[row.name] = Splits(*parts)
        return self._splits[row.name]

    def _features(self, row: Row, readings: Sequence[Reading], subset: Subset) -> Features:
        split = "train" if subset is self.train else "test"
        name = digest([self._digests[row.name], subset.fingerprint, split], {})
        cache = Cache(
            pathlib.Path(str(self.place.path)) / "features" / name,
            self.encoding(row, readings),
            row.shapes(self.view, readings),
            self.view,
            self.augment,
            self.mesh,
            self.view.channels,
            -(-self.batch_size // self.mesh.size) * self.mesh.size,
            self.threads,
        )
        need, free = cache.missing(readings, len(subset)), self.place.free()
        if need > free:
            raise RunError(
                f"--output: {self.place.path} has {free / 1e9:.3g} GB left, and the features of "
                f"{len(subset):,} images take {need / 1e9:.3g} GB; allowed: another disk, fewer "
                "images (--count), or --augment (keeps no features)"
            )
        about = {"row": row.name, "split": split, "images": subset.name, **self.about}
        out = cache.read(subset, readings, about, f"features, {ROWS[row.name]}, {split}")
        for path, reason in out.bad:
            self.say(f"left out: {path}: {reason}")
        return out

    def encoding(self, row: Row, readings: Sequence[Reading]) -> Any:
        """Return the compiled function from images on the mesh to features."""
        params = jax.device_put(row.params, sharding.replicated(self.mesh))
        compute = lambda q, x: {feature_name(r): row.features(q, x, r) for r in readings}
        compiled = jax.jit(precision.precise(compute), out_shardings=sharding.replicated(self.mesh))
        return lambda images: compiled(params, images)

    def augmented(self, cell: Cell, protocol: Trained) -> tuple[Grid, Feed]:
        """Return heads that learn from images which are cropped anew in every epoch, and these."""
        row, (fit, held) = self.row(cell.row), self.places(cell)
        shapes = row.shapes(self.view, protocol.readings(row.space))
        grid = self.grid(row, protocol, shapes, len(fit), encode=row.features)
        assert self.crop is not None
        views, source = {"image": self.view}, Places(self.train, fit)
        pipeline = Pipeline(source, views, self.crop, None, grid.size, seed=cell.seed)
        per_epoch = pipeline.steps_per_epoch

        def batches(epoch: int) -> Iterator[dict[str, np.ndarray]]:
            first = epoch * per_epoch
            with pipeline.iterate(first, first + per_epoch, threads=self.threads) as made:
                for batch in made:
                    yield {"image": batch["image"], "label": batch["label"]}

        once = lambda source: lambda: self.images(source, self.view, self.augment, grid.mesh)
        held_out, tests = once(Places(self.train, held)), once(self.test)
        frozen = jax.device_put(row.params, sharding.replicated(grid.mesh))
        return grid, Feed(batches, held_out, tests, len(fit), len(held), frozen)

    def images(
        self, source: Any, view: View, augment: Augment, mesh: Mesh
    ) -> Iterator[dict[str, np.ndarray]]:
        """Yield batches of images, each once; `weight` is 0 for what only fills the last one."""
        many, views = -(-self.batch_size // mesh.size) * mesh.size, {"image": view}
        how = {"augment": augment, "threads": self.threads}
        with eval_batches(source, views, many, None, 0, **how) as made:
            for batch in made:
                yield {k: batch[k] for k in ("image", "label", "weight")}


def left(todo: Sequence[Cell], spent: Mapping[tuple[str, str], list[float]]) -> str:
    """Return words on the time that the other cells will take; "" where nothing is known."""
    if not todo:
        return ""
    every = [x for xs in spent.values() for x in xs]
    mean = lambda xs: sum(xs) / len(xs)
    total = sum(mean(spent.get((c.protocol, c.labels), every)) for c in todo)
    return f"; about {total:.0f} s left" if total < 90 else f"; about {total / 60:.0f} min left"
