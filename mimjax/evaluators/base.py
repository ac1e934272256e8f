"""The contract of an evaluator, which measures something beside training.

An evaluator is a frozen dataclass. Its fields are the settings of a section of `config.eval`; its
method `make` returns the function that the training loop calls. The run makes one evaluator from
every section of `config.eval` that is not None. A user's own evaluator may stand in any file:

    # norms.py
    import dataclasses
    from typing import Literal

    import jax
    import jax.numpy as jnp
    import numpy as np

    from mimjax.evaluators.base import Bench, Evaluator
    from mimjax.inference.encoders import encode_images

    @dataclasses.dataclass(frozen=True)
    class FeatureNorm(Evaluator):
        \"\"\"Measure the mean length of the encoder's output on test images.\"\"\"

        pool: Literal["mean", "cls"] = "mean"

        def make(self, bench: Bench):
            task = bench.task

            @bench.jit
            def lengths(encoder, images, weight):
                features = encode_images(task.encoder, encoder, images, task.mean, task.std)
                norms = jnp.linalg.norm(features.read(self.pool), axis=-1)
                return jnp.stack([(norms * weight).sum(), weight.sum()])

            def measure(state, frozen):
                encoder = task.evaluated(state)
                batches = bench.batches(bench.test, {"image": task.views["image"]})
                sums = [lengths(encoder, b["image"], b["weight"]) for b in batches]
                total, count = np.sum(jax.device_get(sums), axis=0)
                yield "length", total / count

            return measure

It is chosen by `--config.eval.norm=norms.py:FeatureNorm --config.eval.norm.pool=cls`, and its value
is logged as "eval/norm/length". Any other name of the section serves as well, and several sections
may name one class. A config file writes the same as
`c.eval.norm = section(find_plug(Evaluator, "norms.py:FeatureNorm", "eval.norm"), pool="cls")`, or
`section(FeatureNorm(pool="cls"))` where the class can be imported (`mimjax.schema.section`,
`mimjax.plugs.find_plug`).

`make` is called once, after every other setting was checked and before the run writes anything. It
raises `ConfigError` where its settings do not suit the task or the data. Its argument is a `Bench`
(`mimjax/inference/samples.py`), which offers:
  - `task`, `mesh`, `seed`: those of the run, but the task's networks compute in float32;
    `task.encoder`, `task.mean`, `task.std` and `task.evaluated(state)`, the encoder's parameters
    that are measured (a moving average where the method says so), exist in every pretraining task.
  - `train`, `test`: at most `eval.max_images` images of each split, the same at every step and
    restart, with `labels()` where the source has labels.
  - `batches(split, views, sample)`: global batches on the mesh. Each view, as a rule those of
    `task.views`, is an entry of uint8 images [b h w c]; `sample=task.sample` adds the masks of
    methods that make them on the host; `weight` [b] is 0 for rows that must not count.
  - `jit(fn)`: compiles a function, with full products of float32 and outputs that every process
    can read.
  - `write(name, png)`: writes a picture into the workdir's pictures/.
  - `keep(name, text)`: writes a text file into the workdir's tables/.
  - `warn(step, text)`: tells the reader of the curves and of the report what they must know.

The function that `make` returns is called at the first step, every `every` steps and at the last.
Its arguments are the state (`params`, `ema`, `step`, ...) and the frozen networks' parameters; it
returns or yields pairs of a metric's name and a number. The next update donates the state's
buffers, so the function keeps nothing of the state. In a run of several processes each process
calls it, and all must run the same computations. An exception ends the run and names the evaluator.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import ClassVar

from mimjax.errors import ConfigError
from mimjax.inference.samples import Bench
from mimjax.plugs import class_path
from mimjax.train.run import Evaluation, Measure
from mimjax.values import Whole

__all__ = ["Bench", "Evaluation", "Evaluator", "Measure", "make_evaluators"]


@dataclasses.dataclass(frozen=True)
class Evaluator:
    """The base class of evaluators: a section of `config.eval`.

    Attributes:
      every: steps between two calls, 0 = at the first and the last step only; None = `eval.every`.
      UNLABELED: whether it measures what a task learns without labels, and no other.
    """

    UNLABELED: ClassVar[bool] = False
    PLUGGABLE: ClassVar[bool] = True  # the config section names the class
    HOME: ClassVar[tuple[str, ...]] = tuple(
        f"mimjax.evaluators.{name}"
        for name in ("error", "health", "probes", "pictures", "accuracy")
    )

    every: Whole | None = None

    def make(self, bench: Bench) -> Measure:
        """Return the function that measures.

        Raises:
          ConfigError: the settings do not suit the task or the data.
        """
        raise NotImplementedError(type(self).__name__)

    def parts(self, name: str, bench: Bench) -> dict[str, Measure]:
        """Return the functions that measure, by the names under which their values are logged.

        Most evaluators have one, named like their section; only one that shares work between
        several measurements overrides this method instead of `make`.

        Args:
          name: the section's name, "mine" of `eval.mine`.
        """
        return {name: self.make(bench)}


def make_evaluators(
    sections: Mapping[str, Evaluator], bench: Bench, every: int = 0
) -> list[Evaluation]:
    """Make a run's evaluators.

    Args:
      sections: the evaluators by section name, in the order in which they are to run.
      every: steps between two calls, for evaluators that have no interval of their own.

    Raises:
      ConfigError: an evaluator does not suit the data or the task, has no `make`, or logs its
        values under the name of another.
    """
    out: dict[str, Evaluation] = {}
    for key, evaluator in sections.items():
        cls = type(evaluator)
        if cls.make is Evaluator.make and cls.parts is Evaluator.parts:
            raise ConfigError(
                f"eval.{key}.type: {class_path(cls)!r} has no method 'make'; allowed: a class that "
                "overrides Evaluator.make"
            )
        if cls.UNLABELED and bench.task.learns_labels:
            raise ConfigError(
                f"eval.{key}: on, but {class_path(type(bench.task))} learns classes and pretrains "
                "nothing; allowed: None (eval.accuracy measures it)"
            )
        interval = every if evaluator.every is None else evaluator.every
        for name, measure in evaluator.parts(key, bench).items():
            if name in out:
                raise ConfigError(
                    f"eval.{key}: another section logs its values as eval/{name}/; allowed: "
                    "another name of the section"
                )
            out[name] = Evaluation(name, measure, interval)
    return list(out.values())
