"""Make a run from a config and a workdir: the one border where settings become objects.

`make_run` checks every setting before it writes anything. It reads the config, frozen networks and
the workdir's checkpoints, and gives the loop plain objects (`train.run.Run`). Where a run starts is
decided in `run.restore`, what may have changed in `run.changes`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import os
from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from mimjax.data import value_range
from mimjax.data.augment import Augment
from mimjax.data.configured import make_data, make_split, sample_images, source_config
from mimjax.data.index import INDEX_FILE, Index
from mimjax.data.pipeline import Pipeline
from mimjax.data.sources import Source, short_name
from mimjax.errors import ConfigError
from mimjax.evaluators import make_evaluators
from mimjax.inference import teachers, weights
from mimjax.inference.samples import Bench, Subset
from mimjax.run import agreement, changes, messages, report, restore
from mimjax.run.sections import Boards, Eval, Settings
from mimjax.schema import Config, build, make_task
from mimjax.sharding import make_mesh
from mimjax.storage import settings
from mimjax.storage.checkpoints import Checkpoints, versions
from mimjax.storage.files import Workdir
from mimjax.storage.lock import RunLock
from mimjax.task import Clock
from mimjax.train import optimizers
from mimjax.train.boards import open_boards
from mimjax.train.metrics import Log
from mimjax.train.program import Program, make_program
from mimjax.train.run import Evaluation, Length, Run


def make_index(c: Config, workdir: str) -> tuple[Index, Index | None]:
    """Return an index for this start, and that of the workdir's last start or None.

    Raises:
      ConfigError: a list is to be trusted for a source that has none.
    """
    source = source_config(c)
    if c.data.trust_index and "trust_index" not in source.READS:
        raise ConfigError(
            f"data.trust_index: True, but source {short_name(source)!r} lists no files; "
            "allowed: False"
        )
    place = Workdir(workdir, writer=False).file(INDEX_FILE)
    kept = Index.from_bytes(place.read_bytes()) if place.exists() else None
    if kept is None and place.exists():
        print(f"{place} is damaged: all files are listed anew", flush=True)
    return Index(kept if c.data.trust_index else None), kept


def make_clock(c: Config, steps_per_epoch: int) -> Clock:
    """Return the run's length from `steps`, or else from `epochs`."""
    total = c.steps or round(c.epochs * steps_per_epoch)
    if total < 1:
        raise ConfigError(f"epochs: {c.epochs} gives {total} steps; allowed: at least one step")
    return Clock(steps_per_epoch, total)


def check_batch(c: Config, devices: int) -> None:
    """Check that devices and accumulation steps divide the batch."""
    if c.batch_size % (devices * c.accum):
        raise ConfigError(
            f"batch_size: {c.batch_size} is not divisible by devices {devices} x accum {c.accum}; "
            f"allowed: multiples of {devices * c.accum}"
        )


def make_tx(c: Config, params: Any, clock: Clock):
    """Return the optimizer, and the learning rate by step."""
    cfg = build(optimizers.OptimizerConfig, c.optimizer, "optimizer")
    lr = optimizers.learning_rate(cfg, clock, c.batch_size)
    return optimizers.make_optimizer(cfg, params, lr, optimizers.weight_decay(cfg, clock)), lr


def make_length(c: Config, mesh: Mesh, clock: Clock) -> tuple[Program, optimizers.ByStep]:
    """Return the program and the learning rate by step of a run of this length."""
    task = make_task(c, clock)
    params = jax.eval_shape(task.init, jax.random.key(0))[0]
    tx, lr = make_tx(c, params, clock)
    program = make_program(
        task, tx, mesh, c.sharding, batch_size=c.batch_size, seed=c.seed, accum=c.accum
    )
    return program, lr


def check_choices(c: Config) -> None:
    """Check every setting but the method's own, which `make_task` checks.

    Raises:
      ConfigError: a value that its annotation in `mimjax.run.sections` does not allow.
    """
    for name in c:
        teachers.check_old(c, name)
    checked = build(Settings, {k: v for k, v in c.items() if k != "method"}, "")
    for name, board in checked.boards.by_name.items():
        board.check(f"boards.{name}")


def make_run(c: Config, workdir_path: str, recipe: tuple[str, dict] | None = None) -> Run:
    """Return a run that can begin; its start block is printed.

    Args:
      recipe: the config file's name and its `resolved` settings before any was overridden; the
        report shows what differs.

    Raises:
      ConfigError: any wrong setting, or a workdir that refuses it; then nothing was written.
    """
    check_choices(c)
    check_batch(c, jax.device_count())
    c = teachers.fill(c)  # from here on it is what config.json will hold
    mesh = make_mesh(c.mesh.data, c.mesh.fsdp)
    index, kept = make_index(c, workdir_path)
    data = make_data(c, make_task(c, Clock(1, 1)), "train", index)
    clock = make_clock(c, data.steps_per_epoch)
    program, lr = make_length(c, mesh, clock)
    agreement.check(c, data, workdir_path)
    there = os.path.exists(workdir_path)
    workdir = Workdir(workdir_path, writer=jax.process_index() == 0)
    log, lock = Log(workdir, deferred=True), RunLock(workdir)
    try:
        lock.acquire(log.say)
        run = Run(
            program=program,
            state=None,  # pyright: ignore[reportArgumentType]  # `open_run` reads it
            frozen=None,
            data=data,
            clock=clock,
            lr=lr,
            log=log,
            lock=lock,
            checkpoints=Checkpoints(workdir, read_only=True),
            workdir=workdir,
            **options(c),
        )
        return open_run(c, run, index, kept, recipe)
    except BaseException:
        log.close()
        lock.release()
        if not there and workdir.writer and workdir.is_local:
            with contextlib.suppress(OSError):
                os.rmdir(workdir.path)  # only if it is empty
        raise


def open_run(
    c: Config, run: Run, index: Index, kept: Index | None, recipe: tuple[str, dict] | None
) -> Run:
    """Read where `run` starts, check the rest of the settings, and only then write.

    Args:
      run: without state and frozen networks; its workdir is locked.
      index, kept: of the files, now and at the last start.
    """
    workdir, program, log, say = run.workdir, run.program, run.log, run.log.say
    reader, block = run.checkpoints, messages.start_block(c, run.program, run.data, run.clock)
    settings_before = settings.own_settings(workdir, reader, say)
    changed = changes.check_workdir(c, workdir, settings_before, say)
    say(block)
    say_files(c, run.data.source, index, kept, say)
    decided, restored = restore.own_start(
        workdir,
        reader,
        program.abstract_state,
        say,
        restart=c.restart,
        resume=c.resume,
        init_from=c.init_from,
    )
    meta = restored.meta if restored else {}
    sample = functools.partial(sample_images, c, run.data)
    run.frozen, sources = weights.make_frozen(
        c, program.task, program.abstract_frozen, workdir, sample, say, meta
    )
    begin = restore.first_state(decided, restored, c, program, run.data.fingerprint, say)
    run.state, run.data = begin.state, dataclasses.replace(run.data, skip=begin.skipped)
    if decided.kind == "continue":
        say_length(c, run, begin, settings_before, changed)
    run.evaluators = make_evals(c, program, run.data, index, log)
    run.checkpoints = Checkpoints(workdir, keep=c.keep_checkpoints, keep_every=c.keep_every)
    run.checkpoints.check_space(program.abstract_state)
    # only now: until here a wrong setting leaves the workdir as it was
    restore.set_aside(decided, workdir, run.checkpoints, say)
    log.begin()
    log.truncate(int(run.state.step) or -1)  # a fresh start keeps nothing
    write_settings(c, program, workdir, sources)
    number = jax.process_index()
    name = f"bad_files_{number}.txt" if number else "bad_files.txt"
    run.data.bad_files.open(Workdir(str(workdir.path)), name, say)
    wanted = build(Boards, c.boards, "boards").by_name.values()
    log.boards = open_boards(wanted, workdir, c.to_dict(), run.state.step)
    if workdir.writer and index.listings:
        workdir.write_bytes(INDEX_FILE, index.to_bytes())
    config = json.loads(settings.config_json(c))
    run.meta = {"config": config, "versions": versions(), "teacher": sources}
    known = versions(), resolved(c), recipe, program.task.story
    run.publish = functools.partial(report.publish, workdir, run.evaluators, block, *known)
    return run


def say_length(
    c: Config,
    run: Run,
    begin: restore.Begin,
    settings_before: dict[str, Any],
    changed: dict[str, tuple[Any, Any]],
) -> None:
    """Say what became of the length and the learning rate of a run that is continued.

    Raises:
      ConfigError: the run is longer already than it is to be.
    """
    before: Config = ConfigDict(settings_before)
    old = Length.from_json(begin.data.get("length"))
    if old is None:  # a checkpoint of an older version: today's data, with the settings of then
        count = len(run.data.source)
        clock = make_clock(before, max(count // before.batch_size, 1))
        old = Length(*clock, before.batch_size, count)
    if begin.same_data:
        changed = {k: v for k, v in changed.items() if k != "data.path"}  # a folder was renamed
    cfg = build(optimizers.OptimizerConfig, before.optimizer, "optimizer")
    changes.explain(
        int(run.state.step),
        changes.Version(old, optimizers.learning_rate(cfg, old.clock, old.batch_size)),
        changes.Version(run.length, run.lr, run.program),
        functools.partial(make_length, c, run.program.mesh),
        changed,
        run.log.say,
    )


def options(c: Config) -> dict[str, Any]:
    """Return the plain numbers of a `Run`; a clip_norm of 0 clips nothing."""
    return {
        "workers": c.data.workers,
        "threads": c.data.threads,
        "log_every": c.log_every,
        "checkpoint_every": c.checkpoint_every,
        "eval_every": c.eval.every,
        "clip_norm": c.optimizer.clip_norm or 0.0,
        "rollbacks": c.on_nonfinite_retries if c.on_nonfinite == "rollback" else 0,
    }


def resolved(c: Config) -> dict[str, Any]:
    """Return the resolved config by dotted name, with values as config.json has them."""
    return settings.flatten(json.loads(settings.to_json(c)))


def write_settings(c: Config, program: Program, workdir: Workdir, sources: weights.Sources) -> None:
    """Write config.json, parameters.txt and the checksums of frozen networks."""
    workdir.write_text("config.json", settings.config_json(c))
    workdir.write_text("parameters.txt", messages.parameter_table(c, program))
    if sources:
        workdir.write_text(weights.TEACHER_FILE, json.dumps(sources, indent=2) + "\n")


def say_files(
    c: Config, source: Source, index: Index, kept: Index | None, say: Callable[[str], None]
) -> None:
    """Say what the folders mean, what is odd, and which files changed since the last start."""
    for note in getattr(source, "notes", ()):
        say(f"data: {note}")
    if jax.process_index() == 0 and (text := value_range.advise(source)):
        say(f"WARNING: {text}")
    if kept is not None and c.data.trust_index and index.listings.keys() <= kept.listings.keys():
        say(f"data.trust_index: the files are those of {INDEX_FILE}; none was looked at")
    elif kept is not None and (changes := index.changes(kept)):
        say(f"files changed since the last start: {changes}")


def make_evals(
    c: Config, program: Program, data: Pipeline, index: Index, log: Log
) -> list[Evaluation]:
    """Return the configured evaluators; the test split is opened only if there is one.

    Raises:
      ConfigError: an evaluator does not suit the data.
    """
    e = build(Eval, c.eval, "eval")
    if not e.evaluators:
        return []
    test = make_split(c, "test", index)
    said = getattr(data.source, "notes", ())
    for note in getattr(test, "notes", ()):
        if note not in said:
            log.say(f"test data: {note}")
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
        write=log.picture,
        warn=log.warn,
    )
    return make_evaluators(e.evaluators, bench, e.every)
