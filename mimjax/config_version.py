"""The version of the settings in `config.json`, and how those of an older version are read.

A run is continued by code of the same version, or by a translation that stands here, or refused.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from mimjax.errors import ConfigError

KEY = "config_version"
VERSION = 2  # raise it, and add a translation, when a setting changes its name or its values

Settings = dict[str, Any]


def from_1(settings: Settings) -> Settings:
    """Translate version 1, which stood in no file: sentinels (0, -1, "") became None."""
    return settings


TRANSLATIONS: dict[int, Callable[[Settings], Settings]] = {1: from_1}


def upgrade(settings: Settings, where: str) -> Settings:
    """Return the settings of a `config.json` as this version writes them, without the version.

    Args:
      settings: nested, as read; not changed.
      where: names the file in errors.

    Raises:
      ConfigError: a newer version, or one that no translation reads.
    """
    settings = dict(settings)
    found = settings.pop(KEY, 1)
    if found in TRANSLATIONS or found == VERSION:
        for version in range(found, VERSION):
            settings = TRANSLATIONS[version](settings)
        return settings
    raise ConfigError(
        f"{where}: {KEY} {found!r}; allowed: 1 to {VERSION} (a newer mimjax wrote this file; use "
        "that version, or another --workdir)"
    )
