"""The settings of a run on disk: `config.json` of a workdir, written, read and translated."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from typing import Any

from mimjax.errors import ConfigError
from mimjax.schema import Config
from mimjax.storage import config_version
from mimjax.storage.checkpoints import Checkpoints
from mimjax.storage.files import Workdir
from mimjax.storage.verdicts import Damaged

Say = Callable[[str], None]


def flatten(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings as {"a.b.c": value}."""
    out = {}
    for key, value in config.items():
        if isinstance(value, dict):
            out |= flatten(value, f"{prefix}{key}.")
        else:
            out[prefix + key] = value
    return out


def to_json(c: Config) -> str:
    """The resolved config as indented JSON."""
    return json.dumps(c.to_dict(), indent=2, sort_keys=True) + "\n"


def config_json(c: Config) -> str:
    """Return what `config.json` holds: the resolved config and its version."""
    whole = {config_version.KEY: config_version.VERSION} | c.to_dict()
    return json.dumps(whole, indent=2, sort_keys=True) + "\n"


def own_settings(workdir: Workdir, checkpoints: Checkpoints, say: Say) -> dict[str, Any]:
    """Return the settings that a workdir's checkpoints were made with, {} if there are none.

    They stand in `config.json` and, should that be gone or damaged, in each checkpoint.

    Raises:
      ConfigError: they cannot be read anywhere, or a newer mimjax wrote them.
    """
    steps, problem, found = checkpoints.steps(), "is missing", {}
    try:
        found = workdir.read_json("config.json")
    except ConfigError:
        if not steps:
            raise
        problem = "is damaged"
    if not steps:
        check_no_user_s(workdir, found)
        found = {}  # nothing to continue from
    elif not found:
        for step in steps:
            with contextlib.suppress(Damaged):
                if found := checkpoints.read_json(step, "meta").get("config", {}):
                    say(f"config.json {problem}: the settings are read from checkpoint {step}")
                    break
    if steps and not found:
        raise ConfigError(
            f"--workdir: {workdir.file('config.json')} {problem}, and no checkpoint holds the "
            "settings; allowed: the file as a run wrote it (restore it from a copy)"
        )
    return config_version.upgrade(found, str(workdir.file("config.json"))) if found else {}


def check_no_user_s(workdir: Workdir, settings: dict[str, Any]) -> None:
    """Refuse a folder that has files of a run's names and is no run's: they are somebody's.

    Args:
      settings: what its `config.json` holds, {} if it has none.

    Raises:
      ConfigError: a run would replace such a file.
    """
    if "task" in settings:
        return
    names = ("config.json", "report.html", "table.md", "parameters.txt")
    there = [name for name in names if workdir.file(name).exists()]
    if there:
        raise ConfigError(
            f"--workdir: {workdir.path} holds {', '.join(there)}, and no run made it; allowed: an "
            "empty or new folder, or the workdir of a run"
        )
