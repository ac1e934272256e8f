"""Errors that programs print as one line, the exit codes, and checks of settings that rooms share.

Schedulers act on the exit codes: a job that ended with STOPPED is started again and continues; one
that ended with REFUSED would be refused again. What a single setting may be is said by its
annotation (`values`); the checks here concern several settings of one network.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator


class ConfigError(ValueError):
    """A wrong setting. The message names the config key or file, its value, and what is allowed.

    Programs print it as one line without a traceback and exit with code 2; nothing was written.
    """


class RunError(RuntimeError):
    """A failure that no setting caused: a full disk, a lock that was taken over, a dead worker.

    The message names the file or setting and what can be done. Programs print it as one line and
    exit with code 1.
    """


class PeerError(RuntimeError):
    """A process of the run, or a step, that did not answer in time; programs exit with code 76."""


class UserCodeError(Exception):
    """A user's module failed when it was imported; programs show the traceback of its cause."""


class Exit(enum.IntEnum):
    """The exit codes of every program."""

    DONE = 0  # finished
    ERROR = 1  # any other error, in one line; also numbers that are not finite
    REFUSED = 2  # a flag or setting is wrong, or the workdir refuses it; nothing was written
    STOPPED = 75  # SIGTERM or SIGUSR1, after saving: the same command continues
    NO_ANSWER = 76  # another process, or a step, did not answer in time
    INTERRUPTED = 130  # Ctrl-C; a run has saved
    UNREAD = 141  # the program that read stdout has ended, as `head` does
    ENDED = 143  # SIGTERM or SIGUSR1 where there was nothing to save


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """Yield the error and those that it was raised from."""
    while error is not None:
        yield error
        error = error.__cause__


def first_line(error: BaseException) -> str:
    """Return the first line of a library's message; where it says nothing, the error's class."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


SIGNALS = (Exit.STOPPED, Exit.INTERRUPTED, Exit.ENDED)


def code_of(error: BaseException) -> Exit:
    """Return the exit code of an error; those of signals come from `stopping.Stopped`."""
    if isinstance(error, ConfigError):
        return Exit.REFUSED
    return Exit.NO_ANSWER if isinstance(error, PeerError) else Exit.ERROR


# ------------------------------------------------------------------ checks of settings
def statistics(key: str, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
    """Check that there are a mean and a standard deviation for every channel.

    Args:
      key: names the section in errors, as in all checks below.

    Raises:
      ConfigError: one is missing.
    """
    if not mean or len(mean) != len(std):
        raise ConfigError(
            f"{key}.mean, {key}.std: {mean}, {std}; allowed: one number per channel in each "
            "(mimjax stats computes them)"
        )


def sine_cosine(key: str, net) -> None:
    """Check that 4 divides the width where positions are sines and cosines of two coordinates.

    Raises:
      ConfigError: it is not.
    """
    if net.width % 4 and net.positions:
        raise ConfigError(
            f"{key}.width: {net.width}; allowed: multiples of 4 (sine-cosine positions)"
        )


def patches(key: str, vit) -> None:
    """Check that the side of a patch divides both sides of the images.

    Raises:
      ConfigError: it does not.
    """
    for name, side in zip(("height", "width"), vit.image_size, strict=True):
        if side % vit.patch:
            raise ConfigError(
                f"{key}.image_size: {name} {side} is not divisible by {key}.patch {vit.patch}; "
                f"allowed: multiples of {vit.patch}"
            )


def encoder(key: str, vit) -> None:
    """Check that the sizes of an encoder fit: image and patch, width and heads, block indices.

    Raises:
      ConfigError: two of them do not.
    """
    patches(key, vit)
    sine_cosine(key, vit)
    if not vit.fuse_layers:
        raise ConfigError(f"{key}.fuse_layers: empty; allowed: one block or more, (-1,) = the last")
    for index in vit.fuse_layers:
        block_index(f"{key}.fuse_layers", index, vit.depth)
    heads(key, vit)


def heads(key: str, net, floor: bool = False) -> None:
    """Check that the number of heads divides the width.

    Args:
      floor: heads have width // heads channels, so that at least one channel each suffices.

    Raises:
      ConfigError: it does not.
    """
    if net.width < net.heads or (net.width % net.heads and not floor):
        raise ConfigError(
            f"{key}.heads: {net.heads} does not divide {key}.width {net.width}; "
            f"allowed: divisors of {net.width}"
        )


def block_index(key: str, index: int, depth: int) -> None:
    """Check that an encoder has the block `index`, counted from 0 or, if negative, from the end.

    Raises:
      ConfigError: it does not.
    """
    if not -depth <= index < depth:
        raise ConfigError(f"{key}: {index}; allowed: {-depth} to {depth - 1}")
