"""Make the objects of a run from a config: the one border where settings become objects.

`setup` is used by training, planning, converting, benchmarks and tests. It checks every setting,
reads the data's files and the workdirs of teachers, and writes nothing; `run.open` opens a workdir
for what it returns.
"""

from __future__ import annotations

import copy

import jax
from jax.sharding import Mesh

from mimjax import schema, sharding, values
from mimjax.data.augment import Augment
from mimjax.data.configured import make_data, make_split, source_config
from mimjax.data.index import Index
from mimjax.data.pipeline import Pipeline
from mimjax.data.sources import Source, check_classes, class_names, short_name
from mimjax.errors import ConfigError
from mimjax.evaluators import make_evaluators
from mimjax.inference import adoption, resolution, teachers
from mimjax.inference.model import Model
from mimjax.inference.samples import Bench, Subset
from mimjax.run.sections import Eval, Settings
from mimjax.schema import Config, build
from mimjax.task import Clock, Task, initial
from mimjax.train import optimizers, profiling
from mimjax.train.program import Program, make_program
from mimjax.train.run import Evaluation, Setup
from mimjax.transfer.fine_tune import FineTune

ASSUMED = 1000  # classes where no data are opened: those of ImageNet-1k


def setup(
    config: Config,
    *,
    mesh: Mesh | None = None,
    images: int | None = None,
    kept: Index | None = None,
    small: int = sharding.SMALL,
    source: Source | None = None,
    model: Model | None = None,
) -> Setup:
    """Return a config as objects; nothing is computed or written.

    Args:
      mesh: the devices; None = all, laid out as `config.mesh` says.
      images: number of training images that is assumed. Then no data are opened, no evaluators are
        made and the workdirs of teachers are not read. None = the configured data are opened.
      kept: list of files of an earlier start, taken as it is where `data.trust_index` says so.
      small: tensors with fewer elements are replicated.
      source: training images in place of those that `config.data` names.
      model: what `config.init_from` names, where it is open already.

    Raises:
      ConfigError: any wrong setting; the line names it.
    """
    check_settings(config)
    mesh = mesh or sharding.make_mesh(config.mesh.data, config.mesh.fsdp)
    check_batch(config, mesh.size)
    c = teachers.fill(config, read=images is None)
    c = adoption.fill(c, needed=images is None)
    c = resolution.fill(c) if images is None else c
    index, data = None, None
    if images is None:
        index = make_index(c, kept)
        data = make_data(c, schema.make_task(c, Clock(1, 1)), "train", index, source)
    if schema.find_class(c.task, "task").learns_labels:
        if data:
            check_labels(c, data)
        said = c.method.get("classes") or ASSUMED
        c = with_classes(c, data.source.num_classes if data else said)
    per_epoch = data.steps_per_epoch if data else max((images or 0) // c.batch_size, 1)
    clock = make_clock(c, per_epoch)
    profiling.parse(c.profile.steps, clock.total_steps)
    program, lr = make_length(c, mesh, clock, small)
    if c.attention == "dot_product":
        program.trace()  # the shapes of a step decide whether a kernel takes them
    if isinstance(program.task, FineTune):
        program.task.check_batch(c.batch_size)
    bench, evaluators = make_evals(c, program, data, index) if data else (None, ())
    return Setup(
        config=c,
        task=program.task,
        program=program,
        clock=clock,
        lr=lr,
        pipeline=data,
        evaluators=evaluators,
        index=index,
        bench=bench,
        model=model,
    )


def check_settings(c: Config) -> None:
    """Check every setting but the method's own, which `schema.make_task` checks.

    Raises:
      ConfigError: a value that its annotation in `mimjax.run.sections` does not allow.
    """
    for name in c:
        teachers.check_old(c, name)
    checked = build(Settings, {k: v for k, v in c.items() if k != "method"}, "")
    for name, board in checked.boards.by_name.items():
        board.check(f"boards.{name}")


def check_batch(c: Config, devices: int) -> None:
    """Check that devices and accumulation steps divide the batch."""
    if c.batch_size % (devices * c.accum):
        raise ConfigError(
            f"batch_size: {c.batch_size} is not divisible by devices {devices} x accum {c.accum}; "
            f"allowed: multiples of {devices * c.accum}"
        )


def make_index(c: Config, kept: Index | None) -> Index:
    """Return the list of files of this start; see `setup` for `kept`.

    Raises:
      ConfigError: a list is to be trusted for a source that has none.
    """
    source = source_config(c)
    if c.data.trust_index and "trust_index" not in source.READS:
        raise ConfigError(
            f"data.trust_index: True, but source {short_name(source)!r} lists no files; "
            "allowed: False"
        )
    return Index(kept if c.data.trust_index else None)


def check_labels(c: Config, data: Pipeline) -> None:
    """Check that a task can learn from the labels of its data.

    Raises:
      ConfigError: there are none or they are all the same, or the splits have different classes.
    """
    name, count = data.source.name, data.source.num_classes
    if count < 2:
        has = "has none" if not count else "has one class"
        raise ConfigError(
            f"task: {c.task} learns from labels, but the source {name!r} {has}; allowed: a labeled "
            "source (a folder of class folders) of two classes or more"
        )
    check_classes(data.source)
    if empty := getattr(data.source, "empty", ""):
        raise ConfigError(f"data.path: {empty}; allowed: one image or more in each, or no folder")


def with_classes(c: Config, count: int) -> Config:
    """Return the config with the number of classes, where its task has a setting for them.

    Raises:
      ConfigError: the config says another number.
    """
    if "classes" not in values.fields(schema.find_class(c.task, "task")):
        return c
    if c.method.classes is not None:
        if c.method.classes != count:
            raise ConfigError(
                f"method.classes: {c.method.classes}, but the data have {count}; allowed: that, or "
                "None"
            )
        return c
    locked = getattr(c, "is_locked", False)
    c = copy.deepcopy(c).unlock()
    c.method.classes = count
    return c.lock() if locked else c


def check_test(train: Source, test: Source) -> None:
    """Check that the test images of a task that learns from labels have the same classes.

    Raises:
      ConfigError: they have no labels, or classes of other names.
    """
    if not test.num_classes:
        raise ConfigError(
            f"data.source: the test images of {test.name!r} have no labels; allowed: labeled images"
        )
    known, tested = class_names(train), class_names(test)
    if known and tested and (new := sorted({*tested} - {*known})):
        raise ConfigError(
            f"data.source: class {new[0]!r} of the test images is none of the training images; "
            f"allowed: {', '.join(known[:5])}{' ...' if len(known) > 5 else ''}"
        )
    if known != tested or train.num_classes != test.num_classes:
        raise ConfigError(
            f"data.source: {train.num_classes} classes in training and {test.num_classes} in the "
            "test images; allowed: the same, in one order"
        )


def make_clock(c: Config, steps_per_epoch: int) -> Clock:
    """Return the run's length from `steps`, or else from `epochs`."""
    total = c.steps or round(c.epochs * steps_per_epoch)
    if total < 1:
        raise ConfigError(f"epochs: {c.epochs} gives {total} steps; allowed: at least one step")
    return Clock(steps_per_epoch, total)


def make_length(
    c: Config, mesh: Mesh, clock: Clock, small: int = sharding.SMALL
) -> tuple[Program, optimizers.ByStep]:
    """Return the program and the learning rate by step of a run of this length."""
    task = schema.make_task(c, clock)
    tx, lr = make_tx(c, task, clock)
    program = make_program(
        task,
        tx,
        mesh,
        c.sharding,
        batch_size=c.batch_size,
        seed=c.seed,
        accum=c.accum,
        small=small,
    )
    return program, lr


def make_tx(c: Config, task: Task, clock: Clock):
    """Return the optimizer, and the learning rate by step."""
    params = jax.eval_shape(initial(task), jax.random.key(0))[0]
    cfg = build(optimizers.OptimizerConfig, c.optimizer, "optimizer")
    lr = optimizers.learning_rate(cfg, clock, c.batch_size)
    decay = optimizers.weight_decay(cfg, clock)
    return optimizers.make_optimizer(cfg, params, lr, decay, task), lr


def make_evals(
    c: Config, program: Program, data: Pipeline, index: Index | None
) -> tuple[Bench | None, tuple[Evaluation, ...]]:
    """Return the configured evaluators; the test split is opened only if there is one.

    Raises:
      ConfigError: an evaluator does not suit the data.
    """
    e = build(Eval, c.eval, "eval")
    if not e.by_name:
        return None, ()
    test = make_split(c, "test", index)
    if program.task.learns_labels:
        check_test(data.source, test)
    bench = Bench(
        program.task,
        program.mesh,
        Subset(data.source, e.max_images),
        Subset(test, e.max_images),
        seed=c.seed,
        batch_size=e.batch_size or c.batch_size // c.accum,
        augment=build(Augment, c.data.augment, "data.augment"),
        threads=c.data.threads,
        bad_files=data.bad_files,
    )
    return bench, tuple(make_evaluators(e.by_name, bench, e.every))
