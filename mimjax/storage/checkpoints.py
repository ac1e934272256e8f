"""Checkpoints as named items, read with a proof of what was written. The one user of orbax.

Items: `params` (alone, so that others can read weights without the rest), `rest` (step, model
state, EMA, optimizer), `data` (step, fingerprint, length, batches left out) and `meta` (config,
versions, digests of all items). Restoring goes into an abstract tree with today's shardings, so the
number of devices may change. Nothing here decides where a run starts: `survey` says what each
checkpoint is, and only `set_aside` moves one.
"""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Callable, Iterator
from typing import Any, Literal, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from mimjax.errors import ConfigError, RunError
from mimjax.storage import config_version, digests
from mimjax.storage.files import Workdir
from mimjax.storage.verdicts import (
    PROBLEMS,
    Damaged,
    Newer,
    Outcome,
    Unfit,
    by_path,
    compare,
    first_line,
    in_words,
    problem_of,
)
from mimjax.task import TrainState

PyTree = Any
FOLDER = "checkpoints"
MARGIN = 2**20  # bytes: what a checkpoint and a run's other files take besides the arrays
ITEMS = ("params", "rest", "data", "meta")
Say = Callable[[str], None]


class Restored(NamedTuple):
    """A checkpoint that was read whole: the state, and its `data` and `meta` items."""

    state: TrainState
    data: dict[str, Any]
    meta: dict[str, Any]


class Preserved(ocp.checkpoint_managers.PreservationPolicy):
    """Which checkpoints stay: the last `keep`, and multiples of `keep_every` (None = none)."""

    def __init__(self, keep: int, keep_every: int | None):
        self.keep, self.keep_every = keep, keep_every

    def should_preserve(self, checkpoints, *, context) -> list[bool]:
        last = {c.step for c in checkpoints[-self.keep :]}
        due = lambda step: self.keep_every and step and step % self.keep_every == 0
        return [bool(c.step in last or due(c.step)) for c in checkpoints]


class Checkpoints:
    """The checkpoints of one workdir."""

    def __init__(
        self,
        workdir: Workdir,
        keep: int = 2,
        keep_every: int | None = None,
        read_only: bool = False,
    ):
        """Keeps the last `keep`, and for good those whose step `keep_every` divides (None = none).

        The start of a run (step 0) is kept like any other, not for good.

        Raises:
          ConfigError: a number below 1.
        """
        if keep < 1:
            raise ConfigError(f"keep_checkpoints: {keep}; allowed: 1 or more")
        if keep_every is not None and keep_every < 1:
            raise ConfigError(f"keep_every: {keep_every}; allowed: 1 or more; None")
        logging.getLogger("absl").setLevel(logging.ERROR)  # orbax logs every file at INFO
        self.workdir = workdir
        if not read_only:
            self._remove_partial()
        self.manager = ocp.CheckpointManager(
            workdir.file(FOLDER),
            options=ocp.CheckpointManagerOptions(
                preservation_policy=Preserved(keep, keep_every),
                create=not read_only,
                read_only=read_only,
            ),
            item_names=ITEMS,
        )

    def _remove_partial(self) -> None:
        """Delete the temporary folders of saves that a kill ended; no checkpoint was made of them.

        On a store that cannot rename, such a folder has the name of a step and lacks the file that
        marks its end; orbax does not list it, and writes it anew.
        """
        folder = self.workdir.file(FOLDER)
        if self.workdir.writer and folder.exists():
            for entry in folder.iterdir():
                if "orbax-checkpoint-tmp" in entry.name:
                    entry.rmtree()

    def save(self, state: TrainState, data: dict[str, Any], meta: dict[str, Any]) -> None:
        """Starts saving in the background; a save of the same step is left as it is.

        Digests of every item go into `meta`, see `mimjax.storage.digests`.

        Raises:
          RunError: no space is left, or this save or the one before it failed.
        """
        step = int(state.step)
        if step in self.manager.all_steps():
            return
        params, rest = _split(state)
        with self._writing():
            self.manager.wait_until_finished()  # of the save before
            self.check_space(state, RunError)
            sealed = digests.sealed(meta, data, params=params, rest=rest)
            self.manager.save(
                step,
                args=ocp.args.Composite(
                    params=ocp.args.StandardSave(params),
                    rest=ocp.args.StandardSave(rest),
                    data=ocp.args.JsonSave(data),
                    meta=ocp.args.JsonSave(sealed),
                ),
            )

    def wait(self) -> None:
        """Waits for a save in progress.

        Raises:
          RunError: it failed.
        """
        with self._writing():
            self.manager.wait_until_finished()

    def check_space(self, state: TrainState, kind: type[Exception] = ConfigError) -> None:
        """Before a save begins, and before a run does: a full disk would leave half a checkpoint.

        Args:
          state: its arrays, or their shapes.
          kind: what is raised; a run that has begun raises no ConfigError.

        Raises:
          ConfigError: the disk has less space left than one checkpoint takes.
        """
        if not self.workdir.writer:
            return
        need = MARGIN + sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state))
        if self.workdir.free() < need:
            raise kind(
                f"--workdir: {self.workdir.path}: {self.workdir.free() / 2**20:,.1f} MiB are free, "
                f"but a checkpoint takes {need / 2**20:,.1f}; allowed: a disk with more space "
                "(or a smaller keep_checkpoints, keep_every=None)"
            )

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """Failures of a save, which orbax and tensorstore raise as many kinds, in one line."""
        try:
            yield
        except (ConfigError, RunError):
            raise
        except (OSError, ValueError, RuntimeError) as error:
            raise RunError(
                f"--workdir: {self.workdir.file(FOLDER)}: a checkpoint cannot be written "
                f"({first_line(error)}); those before it are kept"
            ) from error

    def steps(self) -> list[int]:
        """Return the steps of all checkpoints that are complete by their names, newest first."""
        return sorted(self.manager.all_steps(), reverse=True)

    def survey(self, like: TrainState, say: Say) -> tuple[list[Outcome], Restored | None]:
        """Read checkpoints from the newest on, until one is not proven to be damaged.

        Args:
          like: abstract state with today's shardings.
          say: gets a line where arrays are stored in another type than they are read in.

        Returns:
          What each is, newest first; and the last of them if it was read. Nothing is moved.
        """
        self.manager.wait_until_finished()
        outcomes: list[Outcome] = []
        for step in self.steps():
            outcome, restored = self._attempt(step, like, say)
            outcomes.append(outcome)
            if outcome.problem != "damaged":
                return outcomes, restored
        return outcomes, None

    def newest(self, like: TrainState, say: Say) -> Restored | None:
        """Return the newest checkpoint that can be read; set damaged ones before it aside.

        Raises:
          ConfigError: one cannot be read, and is not proven to be damaged.
        """
        outcomes, restored = self.survey(like, say)
        if outcomes and outcomes[-1].problem not in ("", "damaged"):
            raise ConfigError(f"{self.workdir.path}: checkpoint {in_words(outcomes[-1])}")
        if restored is not None:
            for outcome in outcomes[:-1]:
                say(f"WARNING: checkpoint {in_words(outcome)}")
            self.set_aside(outcomes[:-1], say)
        return restored

    def _attempt(self, step: int, like: TrainState, say: Say) -> tuple[Outcome, Restored | None]:
        """Read one checkpoint; all processes come to the same outcome."""
        restored = None
        try:
            restored = self._restore(step, like, say)
            outcome = Outcome(step)
        except Exception as error:  # orbax and tensorstore raise many kinds for broken files
            outcome = Outcome(step, *problem_of(error, self._exists(step)))
        if jax.process_count() > 1:
            code = np.asarray(PROBLEMS.index(outcome.problem))
            worst = int(multihost_utils.process_allgather(code).max())
            if worst != int(code):
                outcome = Outcome(step, PROBLEMS[worst], "found by another process")
        return outcome, restored if not outcome.problem else None

    def _restore(self, step: int, like: TrainState, say: Say) -> Restored:
        """The whole checkpoint, with its digests checked.

        Raises:
          Damaged, Unfit, Newer: as they say; anything else that reading raises.
        """
        meta = self.read_json(step, "meta")
        found = meta.get("config", {}).get(config_version.KEY, 1)
        if not isinstance(found, int) or found > config_version.VERSION:
            raise Newer(
                f"its {config_version.KEY} is {found}, and this mimjax reads up to "
                f"{config_version.VERSION}"
            )
        params, rest = _split(like)
        self._check_fit(step, {"params": params, "rest": rest}, say)
        out = self.manager.restore(
            step,
            args=ocp.args.Composite(
                params=ocp.args.StandardRestore(params),
                rest=ocp.args.StandardRestore(rest),
                data=ocp.args.JsonRestore(),
            ),
        )
        digests.check(meta, out["data"], params=out["params"], rest=out["rest"])
        state = TrainState(params=out["params"], **out["rest"])
        if int(state.step) != step:
            raise Damaged(f"holds step {int(state.step)}")
        return Restored(state, out["data"], meta)

    def read_json(self, step: int, item: Literal["data", "meta"]) -> dict[str, Any]:
        """Return a JSON item; `meta` with its own checksum checked.

        Raises:
          Damaged: it is missing, no JSON, or altered.
        """
        file = self.workdir.file(f"{FOLDER}/{step}/{item}/metadata")
        try:
            found = json.loads(file.read_text())
        except (json.JSONDecodeError, UnicodeDecodeError, FileNotFoundError) as error:
            raise Damaged(f"{item}: {first_line(error)}") from None
        if item == "meta":
            digests.check_meta(found)
        return found

    def _check_fit(self, step: int, wanted: dict[str, PyTree], say: Say) -> None:
        """Compare names and shapes of the stored arrays with those of this run.

        Raises:
          Unfit: they differ. Damaged: an item is missing.
        """
        for item, like in wanted.items():
            held, mine = self._held(step, item), by_path(like)
            compare(held, mine, "" if item == "params" else f"{item}: ")
            cast = [k for k, x in mine.items() if held[k].dtype not in (None, x.dtype)]
            if cast:
                k = cast[0]
                say(
                    f"checkpoint {step}: {len(cast)} arrays of {item} are stored in another type "
                    f"than they are read in ({k}: {held[k].dtype} read as {mine[k].dtype})"
                )

    def _held(self, step: int, item: str) -> dict[str, Any]:
        """Names of an item's arrays, with what is known of each without reading it."""
        place = self.workdir.file(f"{FOLDER}/{step}/{item}")
        if not place.exists():
            raise Damaged(f"{item} is missing")
        # not by a Checkpointer, which hides what goes wrong
        return by_path(ocp.PyTreeCheckpointHandler().metadata(place).tree)

    def _exists(self, step: int) -> bool:
        return self.workdir.file(f"{FOLDER}/{step}").exists()

    def set_aside(self, outcomes: list[Outcome], say: Say) -> None:
        """Move damaged checkpoints to `broken/`, under names that are free; nothing is deleted."""
        if not outcomes:
            return
        self.manager.wait_until_finished()
        for outcome in outcomes:
            if outcome.problem != "damaged":
                raise ValueError(f"checkpoint {outcome.step} is not proven to be damaged")
            name = self.workdir.move_aside(f"{FOLDER}/{outcome.step}", f"broken/{outcome.step}")
            say(f"checkpoint {outcome.step}: damaged, and moved to {name}")
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices("mimjax: damaged checkpoints set aside")
        self.manager.reload()

    def params(self, like: PyTree, step: int | None = None) -> PyTree:
        """Parameters of `step` (None = the newest), or those subtrees of them that `like` has.

        Raises:
          ConfigError: no checkpoint, or parameters of another structure.
        """
        step = self.manager.latest_step() if step is None else step
        if step is None:
            raise ConfigError(f"{self.workdir.path}: no checkpoint in this workdir")
        return self._read(step, "params", like)

    def weights(self, like: TrainState, step: int) -> TrainState:
        """The state of `step` for those who do not train it: without the optimizer's slots.

        Args:
          like: abstract state; its opt_state is not read.

        Raises:
          ConfigError: a checkpoint of another structure, or one that cannot be read.
        """
        params, rest = _split(like)
        wanted = {k: v for k, v in rest.items() if k != "opt_state" and jax.tree.leaves(v)}
        found = rest | {"opt_state": ()} | self._read(step, "rest", wanted)
        return TrainState(params=self.params(params, step), **found)

    def _read(self, step: int, item_name: str, like: PyTree) -> PyTree:
        """Those subtrees of one item that `like` has, under its shardings."""
        where = f"{self.workdir.path}: checkpoint {step}"
        try:
            meta = self.read_json(step, "meta")
            compare(self._held(step, item_name), by_path(like), "", part=True)
            with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
                tree = reader.restore(
                    self.workdir.file(f"{FOLDER}/{step}/{item_name}"),
                    ocp.args.PyTreeRestore(
                        like,
                        partial_restore=True,
                        restore_args=ocp.checkpoint_utils.construct_restore_args(like),
                    ),
                )
            digests.check(meta, **{item_name: tree})
        except Unfit as error:
            raise ConfigError(
                f"{where}: its parameters do not fit this model: {error}; allowed: a run of the "
                "same method and sizes"
            ) from None
        except Exception as error:  # see `_attempt`
            reason = problem_of(error, self._exists(step))[1]
            raise ConfigError(f"{where}: its files cannot be read: {reason}") from error
        return tree

    def close(self) -> None:
        """Waits for a save in progress."""
        with self._writing():
            self.manager.wait_until_finished()
            self.manager.close()


def _split(state: TrainState) -> tuple[PyTree, PyTree]:
    rest = {
        "step": state.step,
        "model_state": state.model_state,
        "ema": state.ema,
        "opt_state": state.opt_state,
    }
    return state.params, rest


def versions() -> dict[str, str]:
    """Versions of what decides a run's numbers."""
    import flax
    import numpy
    import optax

    import mimjax

    modules = {"jax": jax, "flax": flax, "optax": optax, "orbax": ocp, "numpy": numpy}
    found = {name: getattr(m, "__version__", "?") for name, m in modules.items()}
    return {"mimjax": mimjax.__version__, **found}
