"""Prefetching: batches made ahead of time by Grain, in threads or worker processes.

Grain only counts and calls a pure function of (step, rows); it has no randomness and no state of
the data, so the batches do not depend on workers, threads or buffers. A batch is made in pieces of
PIECE_ROWS rows, so that all workers share the work of the first batch too, and one thread in the
background joins the pieces. Only this file imports Grain.
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
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from absl import flags

from mimjax import stopping
from mimjax.data.bad_files import Checker
from mimjax.errors import RunError
from mimjax.plugs import import_files, user_files

if TYPE_CHECKING:
    import grain

NumpyBatch = dict[str, np.ndarray]
SHM, SHM_MIN_FREE = "/dev/shm", 1 << 20  # bytes
SHM_ADVICE = f"0 (threads), fewer workers, or a larger {SHM} (docker run --shm-size=8g)"
# likely causes of the signals that end worker processes
CAUSES = {
    "SIGBUS": f": {SHM}, through which batches are passed, is full",
    "SIGKILL": ", as the system does where memory is full",
}
PIECE_ROWS = 32  # small enough to share a batch among many workers, large enough to hide overheads


class Prefetched(Iterator[NumpyBatch]):
    """Iterator over finished batches, {name: array [b ...]}.

    The caller closes it, or uses it in a `with` block.

    Raises:
      RunError: a worker process died.
    """

    def __init__(self, iterator: grain.DatasetIterator, check: Checker | None = None):
        self._check, self._started = check, False
        # Only this list refers to Grain's iterator. The finalizer can thus close and delete it when
        # this object is deleted or the interpreter ends, before the modules that the iterator's
        # `__del__` needs are gone.
        self._iterators = [iterator]
        self._finalizer = weakref.finalize(self, _close_all, self._iterators)

    def __iter__(self) -> Prefetched:
        return self

    def __next__(self) -> NumpyBatch:
        if not self._iterators:
            raise StopIteration
        try:
            # the first call starts the workers
            with contextlib.nullcontext() if self._started else stopping.spared():
                batch = next(self._iterators[0])
            self._started = True
            return self._check(batch) if self._check else batch
        except BaseException as error:
            # StopIteration and Ctrl-C included: no worker may outlive the iteration
            self.close()
            if reason := death(error):
                raise RunError(reason) from None
            raise

    def close(self) -> None:
        """End all threads and worker processes; a second call does nothing."""
        self._finalizer()
        if self._check:
            self._check.close()
            self._check = None

    def __enter__(self) -> Prefetched:
        return self

    def __exit__(self, *_) -> None:
        self.close()


def death(error: BaseException) -> str:
    """Return one line about a worker process that died; "" if Grain's error says nothing of it."""
    match = re.search(r"Worker process was terminated .* exit code (-?\d+)", str(error))
    if not match or not isinstance(error, RuntimeError):
        return ""
    number = -int(match[1])  # the exit code of a process that a signal ended is its negative number
    name = signal.Signals(number).name if number in set(signal.Signals) else f"exit code {-number}"
    cause = CAUSES.get(name, "")
    return f"data.workers: a worker process died of {name}{cause}; allowed: {SHM_ADVICE}"


def check_shm(workers: int) -> None:
    """Check that /dev/shm, through which worker processes pass batches and locks, has space.

    Raises:
      RunError: fewer than SHM_MIN_FREE bytes are free.
    """
    if os.path.isdir(SHM) and shutil.disk_usage(SHM).free < SHM_MIN_FREE:
        raise RunError(
            f"data.workers: {workers} worker processes pass batches through {SHM}, which is full; "
            f"allowed: {SHM_ADVICE}"
        )


def _close_all(iterators: list[grain.DatasetIterator]) -> None:
    """Close the iterators, and empty the list."""
    while iterators:
        iterators.pop().close()


class _Pieces:
    """Function from the number of a piece to its rows of a batch.

    Piece p of step s has the number s * pieces + p. It is a class, since closures cannot be pickled
    for workers.
    """

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
    """Return the batch of some pieces."""
    # the copy outlives Grain's shared memory, in which the pieces lie
    keys = sorted(parts[0])
    return {key: np.concatenate([np.asarray(part[key]) for part in parts]) for key in keys}


def _start_worker(worker: int, num_workers: int) -> None:
    """Prepare a worker process; Grain calls it once in each."""
    del worker, num_workers
    # a worker that used the accelerator would take it away from the trainer
    jax.config.update("jax_platforms", "cpu")
    # Ctrl-C and preemption signal the whole process group, but the parent decides when to stop: it
    # may need more batches while it saves
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    # a parent that is killed with SIGKILL cannot end its workers, which would wait forever
    threading.Thread(target=_exit_with_parent, daemon=True).start()


def _exit_with_parent() -> None:
    """Wait for the end of the parent process, then end this process."""
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
    check: Checker | None = None,
) -> Prefetched:
    """Return an iterator over `make(step, rows)` for all `steps`, in order, made ahead of time.

    Args:
      make: pure function (step, rows) -> {name: array with one entry per row}; it is pickled for
        worker processes.
      steps: consecutive steps.
      rows: rows of each batch that this process makes.
      workers: number of worker processes; 0 = threads of this process. Worker processes import
        the main module again, which therefore must have an `if __name__ == "__main__"` guard.
      threads: number of threads if `workers` is 0; None = one per core, at most 16.
      prefetch: number of batches that are made ahead.
      check: applied to each batch in this process when it is taken; None = nothing.

    Raises:
      RunError: worker processes cannot pass batches, see `check_shm`.
    """
    import grain  # it takes a second, and not all that reads images makes batches

    threads = threads or min(16, os.cpu_count() or 1)
    prefetch = max(1, prefetch)
    pieces = max(1, -(-(rows.stop - rows.start) // PIECE_ROWS))
    ahead = prefetch * pieces
    data = grain.MapDataset.range(steps.start * pieces, steps.stop * pieces)
    data = data.map(_Pieces(make, rows, pieces))
    if workers:
        check_shm(workers)
        if not flags.FLAGS.is_parsed():
            flags.FLAGS.mark_as_parsed()  # Grain reads flags of its own; their defaults are right
        data = data.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=1))
        options = grain.MultiprocessingOptions(workers, max(1, -(-ahead // workers)))
        data = data.mp_prefetch(options, worker_init_fn=_start_worker)
    else:
        data = data.to_iter_dataset(grain.ReadOptions(threads, max(threads, ahead)))
    data = data.batch(pieces, drop_remainder=True, batch_fn=_concatenate)
    data = grain.experimental.ThreadPrefetchIterDataset(data, prefetch_buffer_size=1)
    with stopping.spared():
        return Prefetched(iter(data), check)
