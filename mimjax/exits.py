"""The exit codes of every program, in one table, and which error ends with which.

Schedulers act on them: a job that ended with STOPPED is started again and continues, one that
ended with REFUSED would be refused again.
"""

from __future__ import annotations

import enum

from mimjax.errors import ConfigError, PeerError


class Exit(enum.IntEnum):
    """What a program's exit code says."""

    DONE = 0  # finished
    ERROR = 1  # any other error, in one line; also numbers that are not finite
    REFUSED = 2  # a flag or setting is wrong, or the workdir refuses it; nothing was written
    STOPPED = 75  # SIGTERM or SIGUSR1, after saving: the same command continues
    NO_ANSWER = 76  # another process, or a step, did not answer in time
    INTERRUPTED = 130  # Ctrl-C; a run has saved
    ENDED = 143  # SIGTERM or SIGUSR1 where there was nothing to save


SIGNALS = (Exit.STOPPED, Exit.INTERRUPTED, Exit.ENDED)


def code_of(error: BaseException) -> Exit:
    """The exit code of an error; signals have their own, see `stopping.Stopped`."""
    if isinstance(error, ConfigError):
        return Exit.REFUSED
    return Exit.NO_ANSWER if isinstance(error, PeerError) else Exit.ERROR
