"""Settings of a run on disk: the text of `config.json`, and reading the settings of a workdir.

Settings that an older version wrote are translated by `storage/config_version.py`. Which settings
may change in a workdir is decided in `mimjax.run`.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from mimjax.errors import ConfigError
from mimjax.schema import Config
from mimjax.storage import config_version
from mimjax.storage.files import Workdir
from mimjax.storage.verdicts import Damaged

if TYPE_CHECKING:
    from mimjax.storage.checkpoints import Checkpoints

Say = Callable[[str], None]


def flatten(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested settings as {"a.b.c": value}; `prefix` stands before every name."""
    out = {}
    for key, value in config.items():
        if isinstance(value, dict):
            out |= flatten(value, f"{prefix}{key}.")
        else:
            out[prefix + key] = value
    return out


def to_json(c: Config) -> str:
    """Return the resolved config as indented JSON, without its version."""
    return json.dumps(c.to_dict(), indent=2, sort_keys=True) + "\n"


def resolved(c: Config) -> dict[str, Any]:
    """Return the resolved config by dotted name, with values as config.json has them."""
    return flatten(json.loads(to_json(c)))


def config_json(c: Config, file: str = "") -> str:
    """Return the text of `config.json`: the resolved config and its version.

    Args:
      file: what --config named, "mae:size=l"; "" = the config was made by code.
    """
    about = {config_version.KEY: config_version.VERSION}
    about |= {config_version.FILE_KEY: file} if file else {}
    return json.dumps(about | c.to_dict(), indent=2, sort_keys=True) + "\n"


def own_settings(workdir: Workdir, checkpoints: Checkpoints, say: Say) -> dict[str, Any]:
    """Return the settings of the run that made a workdir's checkpoints, {} without checkpoints.

    They are read from `config.json` or, if that is missing or damaged, from a checkpoint.

    Args:
      workdir: the run's folder.
      checkpoints: the checkpoints in it.
      say: receives a line if the settings are read from a checkpoint.

    Raises:
      ConfigError: the settings cannot be read anywhere, or a newer mimjax wrote them.
    """
    steps, problem, settings = checkpoints.steps(), "is missing", {}
    try:
        settings = workdir.read_json("config.json")
    except ConfigError:
        if not steps:
            raise
        problem = "is damaged"
    if not steps:
        check_no_user_files(workdir, settings)
        settings = {}  # nothing to continue from
    elif not settings:
        for step in steps:
            with contextlib.suppress(Damaged):
                if settings := checkpoints.read_json(step, "meta").get("config", {}):
                    say(f"config.json {problem}: the settings are read from checkpoint {step}")
                    break
    if steps and not settings:
        raise ConfigError(
            f"{workdir.key}: {workdir.file('config.json')} {problem}, and no checkpoint holds the "
            "settings; allowed: the file as a run wrote it (restore it from a copy)"
        )
    return config_version.upgrade(settings, str(workdir.file("config.json"))) if settings else {}


def check_no_user_files(workdir: Workdir, settings: dict[str, Any]) -> None:
    """Refuse a folder with files that a run would replace although no run wrote them.

    Args:
      workdir: the folder.
      settings: content of its `config.json`, {} without that file. Settings of a run have "task".

    Raises:
      ConfigError: there is such a file.
    """
    if "task" in settings:
        return
    names = ("config.json", "report.html", "table.md", "parameters.txt", "classes.json")
    there = [name for name in names if workdir.file(name).exists()]
    if there:
        raise ConfigError(
            f"--workdir: {workdir.path} holds {', '.join(there)}, and no run made it; allowed: an "
            "empty or new folder, or the workdir of a run"
        )
