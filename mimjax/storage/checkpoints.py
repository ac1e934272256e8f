"""Save and restore checkpoints of a workdir through orbax, checked by digests.

A checkpoint has four items: `params`, apart so that other programs can read the weights alone;
`rest` (step, model state, EMA, optimizer state); `data` (step, fingerprint, length, skipped
batches); `meta` (config, versions, digests of all items). Arrays are restored into an abstract tree
with today's shardings, so the number of devices may change. Only this file imports orbax.
"""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Callable, Iterator
from typing import Any, Literal, NamedTuple

import flax
import jax
import numpy as np
import optax
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

import mimjax
from mimjax.errors import ConfigError, RunError
from mimjax.storage import config_version, digests, paths_from_3, verdicts
from mimjax.storage.files import Workdir
from mimjax.storage.verdicts import Damaged, Newer, Outcome, Unfit
from mimjax.task import TrainState

PyTree = Any
FOLDER = "checkpoints"
MARGIN = 2**20  # bytes for a checkpoint's metadata and the run's other files, besides the arrays
SLICED = 1 << 20  # bytes of a slice, from which on every device writes its own
ITEMS = ("params", "rest", "data", "meta")
Say = Callable[[str], None]


class Restored(NamedTuple):
    """A complete checkpoint: the training state and the items `data` and `meta`."""

    state: TrainState
    data: dict[str, Any]
    meta: dict[str, Any]


def write_small_arrays_whole() -> None:
    """Let one device write an array that has few bytes, instead of a slice from every device.

    orbax slices arrays that all devices hold, one operation per slice and array: for a network of
    small arrays on 8 devices that is most of the time of a save.
    """
    handler = ocp.type_handlers.get_type_handler(jax.Array)
    if isinstance(handler, ocp.type_handlers.ArrayHandler):
        handler._min_slice_bytes_for_replica_parallel = SLICED  # it has no setter


class Preserved(ocp.checkpoint_managers.PreservationPolicy):
    """Keep the last `keep` checkpoints and those at multiples of `keep_every` (None = none)."""

    def __init__(self, keep: int, keep_every: int | None):
        self.keep, self.keep_every = keep, keep_every

    def should_preserve(self, checkpoints, *, context) -> list[bool]:
        last = {c.step for c in checkpoints[-self.keep :]}
        due = lambda step: self.keep_every and step and step % self.keep_every == 0
        return [bool(c.step in last or due(c.step)) for c in checkpoints]


class Checkpoints:
    """Reader and writer of the checkpoints in one workdir."""

    def __init__(
        self,
        workdir: Workdir,
        keep: int = 2,
        keep_every: int | None = None,
        read_only: bool = False,
    ):
        """Open the checkpoints of `workdir`, removing what interrupted saves left there.

        Args:
          keep: number of newest checkpoints that stay.
          keep_every: steps divisible by it stay forever, except step 0; None = none.
          read_only: whether nothing is written or removed.

        Raises:
          ConfigError: `keep` or `keep_every` is below 1.
        """
        if keep < 1:
            raise ConfigError(f"keep_checkpoints: {keep}; allowed: 1 or more")
        if keep_every is not None and keep_every < 1:
            raise ConfigError(f"keep_every: {keep_every}; allowed: 1 or more; None")
        logging.getLogger("absl").setLevel(logging.ERROR)  # orbax logs every file at INFO
        write_small_arrays_whole()
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
        """Delete the temporary folders of saves that were killed before they became checkpoints.

        On a store without renames an unfinished save has the step's own name and no end marker;
        orbax does not list it and overwrites it.
        """
        folder = self.workdir.file(FOLDER)
        if self.workdir.writer and folder.exists():
            for entry in folder.iterdir():
                if "orbax-checkpoint-tmp" in entry.name:
                    entry.rmtree()

    def save(self, state: TrainState, data: dict[str, Any], meta: dict[str, Any]) -> None:
        """Start saving in the background, unless a checkpoint of this step exists.

        The digests of all items are added to `meta` (see `mimjax.storage.digests`).

        Raises:
          RunError: the disk has too little space, or this save or the previous one failed.
        """
        step = int(state.step)
        if step in self.manager.all_steps():
            return
        params, rest = _split(state)
        with self._writing():
            self.manager.wait_until_finished()  # errors of the previous save are raised here
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
        """Wait for the save in progress.

        Raises:
          RunError: the save failed.
        """
        with self._writing():
            self.manager.wait_until_finished()

    def check_space(self, state: TrainState, kind: type[Exception] = ConfigError) -> None:
        """Check that the disk has space for one checkpoint, before a run or a save begins.

        Raises:
          kind: the disk has less free space than one checkpoint takes (a run that has begun
            raises RunError, not ConfigError).
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
        """Turn every error of a save by orbax or tensorstore into a RunError of one line."""
        try:
            yield
        except (ConfigError, RunError):
            raise
        except (OSError, ValueError, RuntimeError) as error:
            raise RunError(
                f"--workdir: {self.workdir.file(FOLDER)}: a checkpoint cannot be written "
                f"({verdicts.first_line(error)}); those before it are kept"
            ) from error

    def steps(self) -> list[int]:
        """Return the steps of all checkpoints that were saved to the end, newest first."""
        return sorted(self.manager.all_steps(), reverse=True)

    def survey(self, like: TrainState, say: Say) -> tuple[list[Outcome], Restored | None]:
        """Read checkpoints, newest first, up to the first that is not proven to be damaged.

        Args:
          like: abstract state with today's shardings.
          say: receives a line where stored and restored dtypes differ.

        Returns:
          Outcomes, newest first, and the last checkpoint if it was read. No file is moved.
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
        """Return the newest readable checkpoint, and set newer ones that are damaged aside.

        Raises:
          ConfigError: a checkpoint cannot be read and is not proven to be damaged.
        """
        outcomes, restored = self.survey(like, say)
        if outcomes and outcomes[-1].problem not in ("", "damaged"):
            raise ConfigError(f"{self.workdir.path}: checkpoint {verdicts.in_words(outcomes[-1])}")
        if restored is not None:
            for outcome in outcomes[:-1]:
                say(f"WARNING: checkpoint {verdicts.in_words(outcome)}")
            self.set_aside(outcomes[:-1], say)
        return restored

    def _attempt(self, step: int, like: TrainState, say: Say) -> tuple[Outcome, Restored | None]:
        """Read one checkpoint; all processes agree on the worst outcome of any of them."""
        restored = None
        try:
            restored = self._restore(step, like, say)
            outcome = Outcome(step)
        except Exception as error:  # orbax and tensorstore raise many kinds for broken files
            outcome = Outcome(step, *verdicts.problem_of(error, self._exists(step)))
        if jax.process_count() > 1:
            code = np.asarray(verdicts.PROBLEMS.index(outcome.problem))
            worst = int(multihost_utils.process_allgather(code).max())
            if worst != int(code):
                outcome = Outcome(step, verdicts.PROBLEMS[worst], "found by another process")
        return outcome, restored if not outcome.problem else None

    def _restore(self, step: int, like: TrainState, say: Say) -> Restored:
        """Return a whole checkpoint after checking its digests.

        Raises:
          Damaged, Unfit, Newer: see these classes. Errors of orbax and of the disk pass through.
        """
        meta = self.read_json(step, "meta")
        version = paths_from_3.version_of(meta)
        if not isinstance(version, int) or version > config_version.VERSION:
            raise Newer(
                f"its {config_version.KEY} is {version}, and this mimjax reads up to "
                f"{config_version.VERSION}"
            )
        params, rest = _split(like)
        stored = {"params": params, "rest": rest}
        stored = {item: paths_from_3.as_stored(tree, meta) for item, tree in stored.items()}
        self._check_fit(step, stored, say)
        args = {item: ocp.args.StandardRestore(tree) for item, tree in stored.items()}
        args = ocp.args.Composite(data=ocp.args.JsonRestore(), **args)
        out = self.manager.restore(step, args=args)
        digests.check(meta, out["data"], params=out["params"], rest=out["rest"])
        params = paths_from_3.as_today(out["params"], params, None, meta)
        state = TrainState(params=params, **paths_from_3.as_today(out["rest"], rest, params, meta))
        if int(state.step) != step:
            raise Damaged(f"holds step {int(state.step)}")
        return Restored(state, out["data"], meta)

    def read_json(self, step: int, item: Literal["data", "meta"]) -> dict[str, Any]:
        """Return a JSON item; for `meta` its own checksum is checked.

        Raises:
          Damaged: the item is missing, is not JSON, or was altered.
        """
        file = self.workdir.file(f"{FOLDER}/{step}/{item}/metadata")
        try:
            content = json.loads(file.read_text())
        except (json.JSONDecodeError, UnicodeDecodeError, FileNotFoundError) as error:
            raise Damaged(f"{item}: {verdicts.first_line(error)}") from None
        if item == "meta":
            digests.check_meta(content)
        return content

    def _check_fit(self, step: int, wanted: dict[str, PyTree], say: Say) -> None:
        """Compare names and shapes of the stored arrays with those of this run.

        Raises:
          Unfit: names or shapes differ. Damaged: an item is missing.
        """
        for item, like in wanted.items():
            stored, mine = self._stored(step, item), verdicts.by_path(like)
            verdicts.compare(stored, mine, "" if item == "params" else f"{item}: ")
            cast = [k for k, x in mine.items() if stored[k].dtype not in (None, x.dtype)]
            if cast:
                k = cast[0]
                say(
                    f"checkpoint {step}: {len(cast)} arrays of {item} are stored in another type "
                    f"than they are read in ({k}: {stored[k].dtype} read as {mine[k].dtype})"
                )

    def _stored(self, step: int, item: str) -> dict[str, Any]:
        """Return {path: shape and dtype} of an item's arrays without reading them."""
        folder = self.workdir.file(f"{FOLDER}/{step}/{item}")
        if not folder.exists():
            raise Damaged(f"{item} is missing")
        # a Checkpointer would hide errors of reading
        return verdicts.by_path(ocp.PyTreeCheckpointHandler().metadata(folder).tree)

    def _exists(self, step: int) -> bool:
        return self.workdir.file(f"{FOLDER}/{step}").exists()

    def set_aside(self, outcomes: list[Outcome], say: Say) -> None:
        """Move damaged checkpoints to `broken/` under unused names; nothing is deleted."""
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
        """Return the parameters of `step` (None = the newest), limited to the subtrees of `like`.

        Raises:
          ConfigError: there is no checkpoint, or its parameters have another structure.
        """
        step = self.manager.latest_step() if step is None else step
        if step is None:
            raise ConfigError(f"{self.workdir.path}: no checkpoint in this workdir")
        return self._read(step, "params", like)

    def weights(self, like: TrainState, step: int) -> TrainState:
        """Return the state of `step` for inference, without the optimizer state.

        Args:
          like: abstract state; its opt_state is ignored.

        Raises:
          ConfigError: the checkpoint has another structure or cannot be read.
        """
        like_params, rest = _split(like)
        wanted = {k: v for k, v in rest.items() if k != "opt_state" and jax.tree.leaves(v)}
        params = self.params(like_params, step)
        restored = rest | {"opt_state": ()} | self._read(step, "rest", wanted, params)
        return TrainState(params=params, **restored)

    def _read(self, step: int, item_name: str, today: PyTree, params: PyTree = None) -> PyTree:
        """Return the subtrees of one item that `today` has; `rest` needs this step's `params`."""
        where = f"{self.workdir.path}: checkpoint {step}"
        try:
            meta = self.read_json(step, "meta")
            like = paths_from_3.as_stored(today, meta)
            verdicts.compare(self._stored(step, item_name), verdicts.by_path(like), "", part=True)
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
            reason = verdicts.problem_of(error, self._exists(step))[1]
            raise ConfigError(f"{where}: its files cannot be read: {reason}") from error
        return paths_from_3.as_today(tree, today, params, meta)

    def close(self) -> None:
        """Wait for the save in progress, then close orbax's manager."""
        with self._writing():
            self.manager.wait_until_finished()
            self.manager.close()


def _split(state: TrainState) -> tuple[PyTree, PyTree]:
    """Return the items `params` and `rest` of a state."""
    rest = {
        "step": state.step,
        "model_state": state.model_state,
        "ema": state.ema,
        "opt_state": state.opt_state,
    }
    return state.params, rest


def versions() -> dict[str, str]:
    """Return {package: version} of the packages that decide a run's numbers."""
    modules = {"mimjax": mimjax, "jax": jax, "flax": flax, "optax": optax, "orbax": ocp}
    return {name: getattr(m, "__version__", "?") for name, m in (modules | {"numpy": np}).items()}
