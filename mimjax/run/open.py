"""Open a workdir for a run: lock, log, restore or first weights, settings written.

Where a run starts is decided in `run.restore`, what may have changed in `run.changes`. Until all of
that is decided a wrong setting leaves the workdir as it was.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
from collections.abc import Callable, Iterator
from typing import Any

import jax
from ml_collections import ConfigDict

from mimjax import stopping
from mimjax.data import value_range
from mimjax.data.configured import sample_images
from mimjax.data.index import INDEX_FILE, Index
from mimjax.data.sources import class_names
from mimjax.inference import weights
from mimjax.run import agreement, changes, messages, report, restore
from mimjax.run.sections import Boards
from mimjax.run.setup import make_clock, make_length
from mimjax.schema import Config, build
from mimjax.storage import compile_cache, settings
from mimjax.storage.checkpoints import Checkpoints, versions
from mimjax.storage.classes import Classes
from mimjax.storage.files import Workdir
from mimjax.storage.lock import RunLock
from mimjax.train import optimizers
from mimjax.train.boards import open_boards
from mimjax.train.metrics import Log
from mimjax.train.run import Length, Run, Setup


def kept_index(workdir: str) -> Index | None:
    """Return the list of files of a workdir's last start; None where there is none."""
    place = Workdir(workdir, writer=False).file(INDEX_FILE)
    kept = Index.from_bytes(place.read_bytes()) if place.exists() else None
    if kept is None and place.exists():
        print(f"{place} is damaged: all files are listed anew", flush=True)
    return kept


@contextlib.contextmanager
def open_run(
    setup: Setup,
    workdir: str,
    recipe: tuple[str, dict[str, Any]] | None = None,
    quiet: bool = False,
) -> Iterator[Run]:
    """Open a workdir for a run, and close log, checkpoints and lock on every exit.

    The start block is printed. A signal that arrives in the body is recorded in the run's log.

    Args:
      recipe: the config file's name and its `resolved` settings before any was overridden; the
        report shows what differs.
      quiet: write lines to train.log alone, but for warnings.

    Yields:
      A run that can begin.

    Raises:
      ConfigError: a setting that does not fit the workdir, or a workdir that another run uses; then
        nothing was written.
    """
    agreement.check(setup.config, setup.data, workdir)
    there = os.path.exists(workdir)
    place = Workdir(workdir, writer=jax.process_index() == 0)
    log, lock = Log(place, deferred=True, quiet=quiet), RunLock(place)
    with contextlib.ExitStack() as leaving:
        leaving.callback(_remove_empty, place, there)
        leaving.callback(lock.release)
        leaving.callback(log.close)
        lock.acquire(log.say)
        run = _begin(setup, log, lock, recipe)
        leaving.callback(run.checkpoints.close)
        leaving.enter_context(stopping.SIGNALS.recorded(log.record))
        stopping.SIGNALS.saved = run.checkpoints.manager.latest_step() is not None
        yield run


def _remove_empty(workdir: Workdir, there: bool) -> None:
    """Remove a folder that this start made and wrote nothing into."""
    if not there and workdir.writer and workdir.is_local:
        with contextlib.suppress(OSError):
            os.rmdir(workdir.path)


def _begin(setup: Setup, log: Log, lock: RunLock, recipe: tuple[str, dict[str, Any]] | None) -> Run:
    """Read where the run starts, check what depends on it, and only then write."""
    c, program, workdir, say = setup.config, setup.program, log.workdir, log.say
    reader, block = Checkpoints(workdir, read_only=True), messages.start_block(setup)
    settings_before = settings.own_settings(workdir, reader, say)
    changed = changes.check_workdir(c, workdir, settings_before, say)
    say(block)
    compile_cache.enable(c.compile_cache_dir, say)
    say_files(setup, kept_index(str(workdir.path)), say)
    decided, restored = restore.own_start(workdir, reader, program.abstract_state, c, say)
    meta = restored.meta if restored else {}
    sample = functools.partial(sample_images, c, setup.data)
    frozen, sources = weights.make_frozen(
        c, setup.task, program.abstract_frozen, workdir, sample, say, meta
    )
    begin = restore.first_state(
        decided, restored, c, program, setup.data.fingerprint, say, setup.model
    )
    classes = _classes(setup, workdir, decided.kind, say)
    if decided.kind == "continue":
        say_length(setup, begin, settings_before, changed, say)
    checkpoints = Checkpoints(workdir, keep=c.keep_checkpoints, keep_every=c.keep_every)
    checkpoints.check_space(program.abstract_state)
    # only now: until here a wrong setting leaves the workdir as it was
    restore.set_aside(decided, workdir, checkpoints, say)
    log.begin()
    log.truncate(int(begin.state.step) or -1)  # a fresh start keeps nothing
    _write_settings(setup, workdir, sources, recipe[0] if recipe else "")
    if classes:
        classes.write(workdir)
    number = jax.process_index()
    name = f"bad_files_{number}.txt" if number else "bad_files.txt"
    setup.data.bad_files.open(Workdir(str(workdir.path)), name, say)
    wanted = build(Boards, c.boards, "boards").by_name.values()
    log.boards = open_boards(wanted, workdir, c.to_dict(), begin.state.step)
    if setup.bench:
        setup.bench.write, setup.bench.keep, setup.bench.warn = log.picture, log.table, log.warn
    config = json.loads(settings.config_json(c))
    known = versions(), settings.resolved(c), recipe, setup.task.story
    return Run(
        setup=setup,
        log=log,
        lock=lock,
        checkpoints=checkpoints,
        frozen=frozen,
        state=begin.state,
        skipped=begin.skipped,
        meta={"config": config, "versions": versions(), "teacher": sources},
        publish=report.Publisher(workdir, setup.evaluators, block, *known),
    )


def _classes(
    setup: Setup, workdir: Workdir, kind: str, say: Callable[[str], None]
) -> Classes | None:
    """Return the classes of the data, compared with those of the run that is continued.

    Args:
      kind: how the run starts, see `restore.Start`.

    Returns:
      None where there are no labels.

    Raises:
      ConfigError: see `changes.check_classes`, or the workdir's file is not one that a run wrote.
    """
    source, before = setup.data.source, Classes.read(workdir)
    if not source.num_classes:
        return None
    now = Classes(source.num_classes, class_names(source), source.label_name)
    if kind == "resume":
        before = Classes.read(Workdir(setup.config.resume, writer=False))
    if before and kind in ("continue", "resume"):
        changes.check_classes(setup.task, before, now, say)
    return now


def say_length(
    setup: Setup,
    begin: restore.Begin,
    settings_before: dict[str, Any],
    changed: dict[str, tuple[Any, Any]],
    say: Callable[[str], None],
) -> None:
    """Say what became of the length and the learning rate of a run that is continued.

    Raises:
      ConfigError: the run is longer already than it is to be.
    """
    before: Config = ConfigDict(settings_before)
    old = Length.from_json(begin.data.get("length"))
    if old is None:  # a checkpoint of an older version: today's data, with the settings of then
        count = len(setup.data.source)
        clock = make_clock(before, max(count // before.batch_size, 1))
        old = Length(*clock, before.batch_size, count)
    if begin.same_data:
        changed = {k: v for k, v in changed.items() if k != "data.path"}  # a folder was renamed
    cfg = build(optimizers.OptimizerConfig, before.optimizer, "optimizer")
    changes.explain(
        int(begin.state.step),
        changes.Version(old, optimizers.learning_rate(cfg, old.clock, old.batch_size)),
        changes.Version(setup.length, setup.lr, setup.program),
        functools.partial(make_length, setup.config, setup.program.mesh),
        changed,
        say,
    )


def _write_settings(setup: Setup, workdir: Workdir, sources: weights.Sources, file: str) -> None:
    """Write config.json, parameters.txt, the list of files and the checksums of frozen networks."""
    workdir.write_text("config.json", settings.config_json(setup.config, file))
    workdir.write_text("parameters.txt", messages.parameter_table(setup.config, setup.program))
    if sources:
        workdir.write_text(weights.TEACHER_FILE, json.dumps(sources, indent=2) + "\n")
    if setup.index and workdir.writer and setup.index.listings:
        workdir.write_bytes(INDEX_FILE, setup.index.to_bytes())


def say_files(setup: Setup, kept: Index | None, say: Callable[[str], None]) -> None:
    """Say what the folders mean, what is odd, and which files changed since the last start."""
    source, index = setup.data.source, setup.index
    notes = getattr(source, "notes", ())
    for note in notes:
        say(f"data: {note}")
    if jax.process_index() == 0 and (text := value_range.advise(source)):
        say(f"WARNING: {text}")
    if setup.bench:
        for note in getattr(setup.bench.test.source, "notes", ()):
            if note not in notes:
                say(f"test data: {note}")
    if kept is None or index is None:
        return
    if setup.config.data.trust_index and index.listings.keys() <= kept.listings.keys():
        say(f"data.trust_index: the files are those of {INDEX_FILE}; none was looked at")
    elif changed := index.changes(kept):
        say(f"files changed since the last start: {changed}")
