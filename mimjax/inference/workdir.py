"""A run read back from its workdir, for programs that look at what it learned.

It takes one process and one device. Neither the optimizer nor the training data is needed, except
for targets that are estimated from the data. Only `save` writes into the workdir.
"""

from __future__ import annotations

import dataclasses
import functools
import os
from typing import Any

import jax
import optax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from mimjax import schema
from mimjax.data import configured, value_range
from mimjax.data.augment import Augment
from mimjax.data.bad_files import BadFiles, named
from mimjax.data.decoding import Decoding
from mimjax.data.files import Files
from mimjax.data.sources import Source
from mimjax.errors import ConfigError
from mimjax.inference import places, precision, weights
from mimjax.inference.samples import Bench, Subset, readable_part
from mimjax.rng import step_key
from mimjax.schema import Config
from mimjax.sharding import make_mesh, replicated
from mimjax.storage import outputs, settings
from mimjax.storage.checkpoints import Checkpoints
from mimjax.storage.files import Workdir
from mimjax.task import Clock, Pretraining, Task, TrainState, init_state

PyTree = Any


@dataclasses.dataclass(frozen=True)
class SavedRun:
    """A workdir with its task, and the step of one of its checkpoints.

    Attributes:
      config: the settings as resolved when the run was started last.
      task: the run's task, all of whose networks compute in `dtype`.
      dtype: "float32" or "bfloat16", whatever the run was trained in.
    """

    config: Config
    workdir: Workdir
    checkpoints: Checkpoints
    task: Task
    step: int
    dtype: str = "float32"

    @functools.cached_property
    def mesh(self) -> Mesh:
        """One device."""
        return make_mesh(devices=jax.devices()[:1])

    @functools.cached_property
    def abstract_state(self) -> TrainState:
        """Shapes of the state on that device, with an optimizer that has no state."""
        init = functools.partial(
            init_state, step_key(self.config.seed, "init", 0), task=self.task, tx=optax.identity()
        )
        return self._placed(jax.eval_shape(init))

    @functools.cached_property
    def abstract_frozen(self) -> PyTree:
        """Shapes of the frozen networks on that device."""
        return self._placed(jax.eval_shape(self.task.init_frozen, jax.random.key(0)))

    def _placed(self, shapes: PyTree) -> PyTree:
        """Return abstract arrays with their place."""
        here = replicated(self.mesh)
        place = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here)
        return jax.tree.map(place, shapes)

    @property
    def decoding(self) -> Decoding:
        """How the run decodes images."""
        return configured.decoding(self.config)

    @property
    def title(self) -> str:
        return f"{type(self.task).__name__}, step {self.step:,}"

    def state(self) -> TrainState:
        """Read the state without the optimizer's slots."""
        return self.checkpoints.weights(self.abstract_state, self.step)

    def frozen(self) -> PyTree:
        """Read the frozen networks, each from the path in its target's section of the config."""
        c, task = self.config, self.task
        sample = lambda n: configured.sample_images(c, configured.make_data(c, task, "train"), n)
        say = functools.partial(print, flush=True)
        return weights.make_frozen(c, task, self.abstract_frozen, self.workdir, sample, say)[0]

    @property
    def abstract_encoder(self) -> PyTree:
        return self.abstract_state.params["encoder"]

    def takes_average(self, ema: bool | None = None) -> bool:
        """Return whether the encoder's moving average is read instead of its weights.

        Args:
          ema: what is asked for; None = what the run's own evaluators read.

        Raises:
          ConfigError: it is asked for, and there is none.
        """
        task, state = self.task, self.abstract_state
        average = state.ema.get("encoder")
        if ema and average is None:
            raise ConfigError(
                f"ema: True, but {self.config.task} in {self.workdir.path} averages no encoder; "
                "allowed: False"
            )
        if ema is None and average is not None and isinstance(task, Pretraining):
            return task.evaluated(state) is average
        return bool(ema)

    def encoder(self, ema: bool | None = None) -> PyTree:
        """Read the encoder's parameters alone, or its moving average; see `takes_average`."""
        if self.takes_average(ema):
            params = self.state().ema["encoder"]
        else:
            like = {"encoder": self.abstract_encoder}
            params = self.checkpoints.params(like, self.step)["encoder"]
        head = self.task.classified
        return head.complete(params) if head else params

    def bench(self, path: str | None, seed: int | None = None) -> Bench:
        """Return the images at `path`, or of the run's test split, as its evaluators crop them.

        Args:
          path: folder or file; None = the run's own source.
          seed: seed of the masks; None = the run's.

        Raises:
          ConfigError: no images.
        """
        c = self.config
        source: Source = (
            Files(path, how=self.decoding) if path else configured.make_split(c, "test")
        )
        limited = Subset(source, c.eval.max_images)
        return Bench(
            self.task,
            self.mesh,
            limited,
            limited,
            seed=c.seed if seed is None else seed,
            augment=schema.build(Augment, c.data.augment, "data.augment"),
            threads=c.data.threads,
            # images that somebody names are all shown or refused; the run's own as by the run
            bad_files=BadFiles() if path else configured.make_bad_files(c),
            dtype=self.dtype,
        )

    def look(
        self, path: str | None, count: int, seed: int | None = None
    ) -> tuple[Bench, list[str]]:
        """Return `bench` with at most `count` images that can be read, and lines about them.

        Raises:
          ConfigError: no images, or none that can be read.
        """
        bench = self.bench(path, seed)
        part, bad = readable_part(bench.test, count)
        lines = [f"images: {note}" for note in notes_of(bench.test)]
        lines += named(bad, len(part) + len(bad))
        return dataclasses.replace(bench, train=part, test=part), lines


def read_run(
    path: str, step: int | None = None, dtype: str = "float32", key: str = "--workdir"
) -> SavedRun:
    """Open the run of a workdir at its newest checkpoint or at that of `step`.

    Args:
      dtype: in which its networks compute; see `precision`.
      key: flag or argument that names the path, for errors.

    Raises:
      ConfigError: no workdir, no config, no such checkpoint.
    """
    workdir = places.existing(path, key)
    checkpoints = Checkpoints(workdir, read_only=True)
    steps = sorted(checkpoints.steps())
    if not steps:
        raise places.nothing_in(workdir, path, key)
    own = settings.own_settings(workdir, checkpoints, functools.partial(print, flush=True))
    if step is not None and step not in steps:
        raise ConfigError(f"--step: {step}; allowed: {', '.join(map(str, steps))}")
    c: Config = ConfigDict(own)
    # The length of an epoch is known to the training data alone. It decides weights of losses
    # and decays of averages, and no prediction.
    task = precision.computing(schema.make_task(c, Clock(1, c.steps or 1)), dtype)
    return SavedRun(c, workdir, checkpoints, task, steps[-1] if step is None else step, dtype)


def notes_of(source: Any) -> list[str]:
    """Return remarks on a source's folder and pixel values, also for a subset of it."""
    while isinstance(source, Subset):
        source = source.source
    text = value_range.advise(source)
    return [*getattr(source, "notes", ()), *[f"WARNING: {text}"] * bool(text)]


def image_names(subset: Subset) -> list[str]:
    """Return a name for each image: its relative path, or the source and the number in it."""
    return [_image_name(subset, i) for i in range(len(subset))]


def _image_name(source: Any, index: int) -> str:
    if isinstance(source, Subset):
        return _image_name(source.source, int(source.indices[index]))
    if hasattr(source, "relative_path"):
        return source.relative_path(index)
    return f"{source.name} {index}"


def check_flags(count: int, output: str | None, workdir: str | None = None, name: str = "") -> None:
    """Check the flags of a picture before any work is done.

    Args:
      count: number of images; output: the picture's file.
      workdir, name: where the picture goes without an output, see `save`; None = nowhere.

    Raises:
      ConfigError: a count below 1, an output that is no .png, or one that may not be replaced.
    """
    if count < 1:
        raise ConfigError(f"--count: {count}; allowed: 1 or more")
    if output is not None and not output.lower().endswith(".png"):
        raise ConfigError(f"--output: {output!r}; allowed: a file name that ends in .png")
    if output or workdir:
        outputs.check_bytes(output or os.path.join(workdir or "", "pictures", name))


def save(run: Any, name: str, output: str | None, data: bytes) -> str:
    """Write a picture to `output`, or else as `pictures/<name>` of the workdir.

    Args:
      run: an object with a `workdir`, which is read only without an output.

    Returns:
      The path of the picture.

    Raises:
      ConfigError: it cannot be written, or would replace a file that mimjax did not write.
    """
    path = os.path.expanduser(output) if output else os.fspath(run.workdir.path / "pictures" / name)
    outputs.write_bytes(path, data)
    return path
