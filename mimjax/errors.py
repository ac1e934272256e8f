"""The errors that programs answer with one line; `exits.py` says with which exit code."""


class ConfigError(ValueError):
    """A wrong setting. The message names the config key or file, what was found, what is allowed.

    Programs print it as one line without a traceback and exit with code 2; nothing was written.
    """


class RunError(RuntimeError):
    """A failure that is no wrong setting: a full disk, a lock that was taken over, a dead worker.

    The message names the file or setting and what can be done. Programs print it as one line and
    exit with code 1.
    """


class PeerError(RuntimeError):
    """Another process of the run, or a step, did not answer in time: exit code 76."""
