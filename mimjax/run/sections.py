"""The settings of a run that no method owns: the top of every config, as dataclasses.

`configs/common.py` writes them out as a ConfigDict, `build.check_settings` holds a config against
them. What a task reads stands in `config.method`, whose schema is the class that `task` names.
"""

from __future__ import annotations

import dataclasses
from typing import Annotated, Literal

from mimjax.data.augment import Augment
from mimjax.data.decoding import MAX_PIXELS, Decoding
from mimjax.data.sources import Folder, SourceConfig
from mimjax.train.boards import Board, shipped_boards
from mimjax.train.optimizers import OptimizerConfig
from mimjax.values import Count, Number, Positive, Range, Rate, Text, Whole

# jax keeps 32 bits of a seed: a larger one would begin with the weights of a smaller one
Seed = Annotated[int, Range(0, 2**32 - 1)]
Weights = Annotated[str, Text("a workdir, .safetensors, .pth")]


@dataclasses.dataclass(frozen=True)
class Mesh:
    """How many devices hold other images, and how many other parts of the parameters.

    Attributes:
      data: None = all that `fsdp` leaves.
    """

    data: Count | None = None
    fsdp: Count = 1


@dataclasses.dataclass(frozen=True)
class Teacher:
    """Frozen weights that a method reads.

    Attributes:
      path: of several networks, separated by commas.
    """

    path: Weights | None = None


@dataclasses.dataclass(frozen=True)
class Data:
    """Where images come from.

    Attributes:
      source: its class and settings, see `mimjax/data/sources.py`.
      splits: "auto" = folders as train/ and val/ below `path` are splits; "none" = classes like
        others.
      channels: others than 3 need `method.mean` and `std` of as many numbers, see
        `mimjax/programs/stats.py`.
      value_range, max_pixels: see `decoding.Decoding`.
      max_bad_fraction: files that may be skipped; 0 = the first bad one is an error.
      trust_index: True = the workdir's list of files is taken, none is looked at.
      workers: processes that decode; 0 = threads in this one.
    """

    source: SourceConfig = Folder()
    path: Annotated[str, Text("a folder, local or gs://")] | None = None
    splits: Literal["auto", "none"] = "auto"
    channels: Count = Decoding.channels
    value_range: tuple[Number, Number] | None = Decoding.value_range
    max_pixels: Count = MAX_PIXELS
    max_bad_fraction: Rate = 0.01
    trust_index: bool = False
    augment: Augment = Augment()
    workers: Whole = 0
    threads: Count = 8


@dataclasses.dataclass(frozen=True)
class Eval:
    """What is measured beside training.

    Attributes:
      every: steps; 0 = at the end only (5000 are 16 epochs of ImageNet at batch 4096).
      probes: k-NN and linear probe, for a labeled source.
      error: held-out masked error beside naive predictors.
      health: spread and rank of features, variance of the run's own targets.
      pictures: images in a reconstruction picture; 0 = none.
      batch_size: None = batch_size / accum, what a step has in memory at once.
      max_images: per split, for each evaluator.
    """

    every: Whole = 5000
    probes: bool = False
    error: bool = True
    health: bool = True
    pictures: Whole = 8
    batch_size: Count | None = None
    max_images: Count = 2000


@dataclasses.dataclass(frozen=True)
class Settings:
    """Everything but the task's own settings.

    Attributes:
      task: the class whose settings `method` holds.
      dtype: of computation; "auto" = bfloat16 on accelerators, float32 on CPU.
      batch_size: effective: over all devices and accumulation steps.
      accum: micro-batches per update.
      epochs, steps: the run's length; the steps win unless they are None.
      init_from: weights only; `resume`: a whole state, another workdir's.
      restart: True = begin anew where a workdir's checkpoints are lost; what is there is kept.
      sharding: rules (regex, "fsdp" or "replicate"); what they mean is decided by `mesh.fsdp`; 1 =
        all is replicated.
      log_every, checkpoint_every: steps; 0 = never.
      keep_checkpoints: the last ones.
      keep_every: steps; also every checkpoint whose step it divides is kept, for good.
      on_nonfinite: "rollback" = to the last good checkpoint, without the batch.
      on_nonfinite_retries: rollbacks in the whole run.
      boards: where curves and pictures are shown besides the workdir's own files, by name.
    """

    task: Annotated[str, Text("module:Class of a task")] = ""
    seed: Seed = 0
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    batch_size: Count = 4096
    accum: Count = 1
    epochs: Positive = 800.0
    steps: Count | None = None
    init_from: Weights | None = None
    resume: Annotated[str, Text("a workdir of an earlier run")] | None = None
    restart: bool = False
    teacher: Teacher = Teacher()
    optimizer: OptimizerConfig = OptimizerConfig()
    mesh: Mesh = Mesh()
    sharding: tuple[
        tuple[Annotated[str, Text("a regular expression")], Literal["fsdp", "replicate"]], ...
    ] = ((".*", "fsdp"),)
    data: Data = Data()
    log_every: Whole = 50
    checkpoint_every: Whole = 2000
    keep_checkpoints: Count = 2
    keep_every: Count | None = None
    on_nonfinite: Literal["stop", "rollback"] = "stop"
    on_nonfinite_retries: Count = 3
    boards: dict[str, Board] = dataclasses.field(default_factory=shipped_boards)
    eval: Eval = Eval()
