"""The settings of a run that no method owns: the top of every config, as dataclasses.

`configs/common.py` writes them out as a ConfigDict, `build.check_settings` holds a config against
them. What a task reads stands in `config.method`, whose schema is the class that `task` names.
"""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any, ClassVar, Literal

from mimjax.data.augment import Augment
from mimjax.data.decoding import MAX_PIXELS, Decoding
from mimjax.evaluators.base import Evaluator
from mimjax.evaluators.error import MaskedError
from mimjax.evaluators.health import Health
from mimjax.evaluators.pictures import Pictures
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
      splits: "auto" = folders as train/ and val/ below `path` are splits; "none" = classes like
        others.
      options: of the source, see `mimjax/data/sources.py`.
      channels: others than 3 need `method.mean` and `std` of as many numbers, see
        `mimjax/programs/stats.py`.
      value_range, max_pixels: see `decoding.Decoding`.
      max_bad_fraction: files that may be skipped; 0 = the first bad one is an error.
      trust_index: True = the workdir's list of files is taken, none is looked at.
      workers: processes that decode; 0 = threads in this one.
    """

    source: Literal["digits", "folder", "photos", "synthetic", "tfds"] = "folder"
    path: Annotated[str, Text("a folder, local or gs://")] | None = None
    splits: Literal["auto", "none"] = "auto"
    options: dict[str, Any] = dataclasses.field(default_factory=dict)
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
    """What is measured beside training: one section per evaluator, None = it is off.

    A section of any other name holds an evaluator of the user's own; `mimjax/evaluators/base.py`
    describes how one is written.

    Attributes:
      every: steps between two evaluations; 0 = at the first and the last step only (5000 steps are
        16 epochs of ImageNet at batch 4096).
      batch_size: images at once; None = batch_size / accum, what a step has in memory at once.
      max_images: images that are read of each split, drawn once.
      error: held-out masked error beside naive predictors.
      health: spread and rank of the features, variance of the run's own targets.
      probes: k-NN and a linear probe, for a labeled source.
      pictures: reconstructions of a few images.
      extra: the evaluators of sections of other names, by name.
    """

    EXTRA: ClassVar[type] = Evaluator  # what a section of another name may hold
    DERIVED: ClassVar[tuple[str, ...]] = ("extra",)

    every: Whole = 5000
    batch_size: Count | None = None
    max_images: Annotated[int, Range(2)] = 2000
    error: Evaluator | None = MaskedError()
    health: Evaluator | None = Health()
    probes: Evaluator | None = None
    pictures: Evaluator | None = Pictures()
    extra: dict[str, Evaluator] = dataclasses.field(default_factory=dict)

    @property
    def evaluators(self) -> dict[str, Evaluator]:
        """The evaluators that are on by section name, in the order in which they run."""
        names = ("error", "health", "probes", "pictures")
        shipped = {name: getattr(self, name) for name in names}
        return {name: e for name, e in (shipped | self.extra).items() if e is not None}


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
      wandb: "offline" = files in the workdir; it and "online" need mimjax[wandb].
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
    wandb: Literal["off", "offline", "online"] = "off"
    wandb_project: Annotated[str, Text("a name")] = "mimjax"
    eval: Eval = Eval()
