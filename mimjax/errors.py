"""The one exception for wrong settings."""


class ConfigError(ValueError):
    """A wrong setting. The message names the config key or file, what was found, what is allowed.

    Programs print it as one line without a traceback and exit with a code other than 0.
    """
