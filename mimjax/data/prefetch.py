"""Batches made ahead of time, in threads or worker processes: the only user of Grain.

Grain counts pieces of steps and calls a pure function for each; no randomness and no state of the
data lie in it, so the stream does not depend on workers, threads or buffers. A batch is made in
pieces so that all workers share the work of the first batch too, and put together by one thread
in the background.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import re
import shutil
import signal
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from multiprocessing import connection
from typing import Any, Protocol

import grain
import jax
import numpy as np
from absl import flags

from mimjax import stopping
from mimjax.errors import RunError
from mimjax.plugs import import_files, user_files

NumpyBatch = dict[str, np.ndarray]
SHM, SHM_LEAST = "/dev/shm", 1 << 20  # bytes
SHM_WAYS = f"0 (threads), fewer workers, or a larger {SHM} (docker run --shm-size=8g)"
WHY = {
    "SIGBUS": f": {SHM}, through which batches are passed, is full",
    "SIGKILL": ", as the system does where memory is full",
}
PIECE_ROWS = 32  # small enough to share a batch among many workers, large enough to hide overheads


class Check(Protocol):
    """What the process that reads batches does to each, and when there are no more."""

    def __call__(self, batch: NumpyBatch) -> NumpyBatch: ...

    def close(self) -> None: ...


class Prefetched(Iterator[NumpyBatch]):
    """Iterator over finished batches; `close` it, or use it in a `with` block."""

    def __init__(self, iterator: grain.DatasetIterator, check: Check | None = None):
        self._check, self._started = check, False
        # The list is the only holder of Grain's iterator. So it can be closed and dropped when this
        # object goes or the interpreter ends, before the modules that its `__del__` needs are gone.
        self._holder = [iterator]
        self._finalizer = weakref.finalize(self, _close_held, self._holder)

    def __iter__(self) -> Prefetched:
        return self

    def __next__(self) -> NumpyBatch:
        if not self._holder:
            raise StopIteration
        try:
            # the first call starts the workers
            with contextlib.nullcontext() if self._started else stopping.spared():
                batch = next(self._holder[0])
            self._started = True
            return self._check(batch) if self._check else batch
        except BaseException as error:
            # Also at the end and after Ctrl-C: no worker may outlive the iteration.
            self.close()
            if reason := death(error):
                raise RunError(reason) from None
            raise

    def close(self) -> None:
        """Ends threads and worker processes; may be called twice."""
        self._finalizer()
        if self._check:
            self._check.close()
            self._check = None

    def __enter__(self) -> Prefetched:
        return self

    def __exit__(self, *_) -> None:
        self.close()


def death(error: BaseException) -> str:
    """One line about a worker process that died, by the error that Grain raises; else ""."""
    found = re.search(r"Worker process was terminated .* exit code (-?\d+)", str(error))
    if not found or not isinstance(error, RuntimeError):
        return ""
    number = -int(found[1])
    name = signal.Signals(number).name if number in set(signal.Signals) else f"exit code {-number}"
    return f"data.workers: a worker process died of {name}{WHY.get(name, '')}; allowed: {SHM_WAYS}"


def check_shm(workers: int) -> None:
    """Worker processes pass batches, and even their locks, through /dev/shm.

    Raises:
      RunError: there is next to no space left in it.
    """
    if os.path.isdir(SHM) and shutil.disk_usage(SHM).free < SHM_LEAST:
        raise RunError(
            f"data.workers: {workers} worker processes pass batches through {SHM}, which is full; "
            f"allowed: {SHM_WAYS}"
        )


def _close_held(holder: list[grain.DatasetIterator]) -> None:
    while holder:
        holder.pop().close()


class _Pieces:
    """Piece number -> its part of a step's batch. A class, so that it pickles by reference."""

    def __init__(self, make: Callable[[int, slice], NumpyBatch], rows: slice, pieces: int):
        self.make, self.rows, self.pieces = make, rows, pieces

    def __reduce__(self) -> tuple[Any, ...]:
        # a worker process imports users' files before it reads the state, which may need them
        return _without_state, (user_files(),), self.__dict__

    def __call__(self, number: int) -> NumpyBatch:
        step, piece = divmod(int(number), self.pieces)
        size = self.rows.stop - self.rows.start
        start = self.rows.start + piece * size // self.pieces
        stop = self.rows.start + (piece + 1) * size // self.pieces
        return self.make(step, slice(start, stop))


def _without_state(files: tuple[str, ...]) -> _Pieces:
    """Return an empty object to unpickle into, once the users' files are imported."""
    import_files(files)
    return _Pieces.__new__(_Pieces)


def _concatenate(parts: Sequence[NumpyBatch]) -> NumpyBatch:
    # `asarray` turns Grain's shared memory arrays, which live as long as the block, into copies.
    keys = sorted(parts[0])
    return {key: np.concatenate([np.asarray(part[key]) for part in parts]) for key in keys}


def _start_worker(worker: int, num_workers: int) -> None:
    """Runs once in each worker process."""
    del worker, num_workers
    # A worker that grabbed the accelerator by accident would take it away from the trainer.
    jax.config.update("jax_platforms", "cpu")
    # Ctrl-C and preemption reach the whole process group, but the parent decides when to stop: it
    # may need more batches while it saves.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    # A parent killed with -9 ends nobody; without this its workers would wait forever.
    threading.Thread(target=_exit_with_parent, daemon=True).start()


def _exit_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        connection.wait([parent.sentinel])
        os._exit(1)


def prefetched(
    make: Callable[[int, slice], NumpyBatch],
    steps: range,
    rows: slice,
    *,
    workers: int = 0,
    threads: int | None = None,
    prefetch: int = 2,
    check: Check | None = None,
) -> Prefetched:
    """The batches `make(step, rows)` for all `steps`, in order, made ahead of time.

    Args:
      make: pure function (step, rows) -> arrays with one entry per row; pickled for workers.
      steps: consecutive steps.
      rows: which rows of a batch are made here.
      workers: number of worker processes; 0 = threads of this process. Worker processes import
        the main module again, which therefore must have an `if __name__ == "__main__"` guard.
      threads: threads where `workers` is 0; None = one per core, at most 16.
      prefetch: how many batches are made ahead.
      check: applied to each batch when it is taken, in this process and in order.
    """
    threads = threads or min(16, os.cpu_count() or 1)
    prefetch = max(1, prefetch)
    pieces = max(1, -(-(rows.stop - rows.start) // PIECE_ROWS))
    ahead = prefetch * pieces
    data = grain.MapDataset.range(steps.start * pieces, steps.stop * pieces)
    data = data.map(_Pieces(make, rows, pieces))
    if workers:
        check_shm(workers)
        if not flags.FLAGS.is_parsed():
            flags.FLAGS.mark_as_parsed()  # Grain reads its own flags, and defaults will do
        data = data.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=1))
        options = grain.MultiprocessingOptions(workers, max(1, -(-ahead // workers)))
        data = data.mp_prefetch(options, worker_init_fn=_start_worker)
    else:
        data = data.to_iter_dataset(grain.ReadOptions(threads, max(threads, ahead)))
    data = data.batch(pieces, drop_remainder=True, batch_fn=_concatenate)
    data = grain.experimental.ThreadPrefetchIterDataset(data, prefetch_buffer_size=1)
    with stopping.spared():
        return Prefetched(iter(data), check)
