"""Checkpoints as named items, and the order in which a run finds its start. The one user of orbax.

Items: `params` (alone, so that others can read weights without the rest), `rest` (step, model
state, EMA, optimizer), `data` (step, fingerprint, batches left out) and `meta` (config, versions).
Restoring goes into an abstract tree with today's shardings, so the number of devices may change.
"""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Callable, Iterator
from typing import Any

import jax
import orbax.checkpoint as ocp

from mimjax.errors import ConfigError
from mimjax.files import Workdir
from mimjax.rules import paths
from mimjax.train.state import TrainState

PyTree = Any
FOLDER = "checkpoints"
MARGIN = 2**20  # bytes: what a checkpoint and a run's other files take besides the arrays
ITEMS = ("params", "rest", "data", "meta")
Say = Callable[[str], None]


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
                max_to_keep=keep,
                keep_period=keep_every,
                create=not read_only,
                read_only=read_only,
            ),
            item_names=ITEMS,
        )

    def _remove_partial(self) -> None:
        """Folders that a kill left in the middle of a save."""
        folder = self.workdir.file(FOLDER)
        if self.workdir.writer and folder.exists():
            for entry in folder.iterdir():
                if "orbax-checkpoint-tmp" in entry.name:
                    entry.rmtree()

    def save(self, state: TrainState, data: dict[str, Any], meta: dict[str, Any]) -> None:
        """Starts saving in the background; a save of the same step is left as it is.

        Raises:
          ConfigError: no space is left, or this save or the one before it failed.
        """
        step = int(state.step)
        if step in self.manager.all_steps():
            return
        params, rest = _split(state)
        with self._writing():
            self.manager.wait_until_finished()  # of the save before
            self.check_space(state)
            self.manager.save(
                step,
                args=ocp.args.Composite(
                    params=ocp.args.StandardSave(params),
                    rest=ocp.args.StandardSave(rest),
                    data=ocp.args.JsonSave(data),
                    meta=ocp.args.JsonSave(meta),
                ),
            )

    def check_space(self, state: TrainState) -> None:
        """Before a save begins, and before a run does: a full disk would leave half a checkpoint.

        Args:
          state: its arrays, or their shapes.

        Raises:
          ConfigError: the disk has less space left than one checkpoint takes.
        """
        if not self.workdir.writer:
            return
        need = MARGIN + sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state))
        if self.workdir.free() < need:
            raise ConfigError(
                f"--workdir: {self.workdir.path}: {self.workdir.free() / 2**20:,.1f} MiB are free, "
                f"but a checkpoint takes {need / 2**20:,.1f}; allowed: a disk with more space "
                "(or a smaller keep_checkpoints, keep_every=None)"
            )

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """Failures of a save, which orbax and tensorstore raise as many kinds, in one line."""
        try:
            yield
        except ConfigError:
            raise
        except (OSError, ValueError, RuntimeError) as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0][:300]
            raise ConfigError(
                f"--workdir: {self.workdir.file(FOLDER)}: a checkpoint cannot be written "
                f"({reason}); those before it are kept"
            ) from error

    def restore(self, like: TrainState, say: Say) -> tuple[TrainState, dict[str, Any]] | None:
        """The newest checkpoint that can be read, and its `data` item; None if there is none.

        A broken one is moved to `broken/` and the one before it is tried.

        Args:
          like: abstract state with today's shardings.
          say: gets one line for each checkpoint that cannot be read.
        """
        self.manager.wait_until_finished()
        params, rest = _split(like)
        for step in sorted(self.manager.all_steps(), reverse=True):
            try:
                out = self.manager.restore(
                    step,
                    args=ocp.args.Composite(
                        params=ocp.args.StandardRestore(params),
                        rest=ocp.args.StandardRestore(rest),
                        data=ocp.args.JsonRestore(),
                    ),
                )
                state = TrainState(params=out["params"], **out["rest"])
                if int(state.step) != step:
                    raise ValueError(f"holds step {int(state.step)}")
                return state, out["data"]
            except Exception as error:  # orbax and tensorstore raise many kinds for broken files
                reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
                say(f"checkpoint {step} cannot be read ({reason}); trying the one before it")
                self.set_aside(step)
        return None

    def set_aside(self, step: int) -> None:
        """Moves a checkpoint out of the way, so that the step can be saved again."""
        self.manager.wait_until_finished()
        self.workdir.move_aside(f"{FOLDER}/{step}", f"broken/{step}")
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
        where = self.workdir.path
        item = self.workdir.file(f"{FOLDER}/{step}/{item_name}")
        try:
            with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
                tree = reader.restore(
                    item,
                    ocp.args.PyTreeRestore(
                        like,
                        partial_restore=True,
                        restore_args=ocp.checkpoint_utils.construct_restore_args(like),
                    ),
                )
        except (ValueError, KeyError, OSError) as error:
            reason = str(error).strip().splitlines()[0][:300]
            broken = (
                isinstance(error, OSError | json.JSONDecodeError) or "OCDBT database" in reason
            )  # missing or cut short
            problem = (
                "its files cannot be read" if broken else "its parameters do not fit this model"
            )
            raise ConfigError(f"{where}: checkpoint {step}: {problem}: {reason}") from None
        # what a partial restore does not find stays abstract
        lacks = [
            name
            for name, x in zip(paths(tree), jax.tree.leaves(tree), strict=True)
            if isinstance(x, jax.ShapeDtypeStruct)
        ]
        if lacks:
            raise ConfigError(
                f"{where}: checkpoint {step}: its parameters do not fit this model: it holds no "
                f"{lacks[0]} ({len(lacks)} are missing in all); allowed: a run of the same method "
                "and sizes"
            )
        return tree

    def reached_preemption(self, step: int) -> bool:
        """Whether the cluster asked all processes to stop (multi-process runs)."""
        return self.manager.reached_preemption(step)

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
