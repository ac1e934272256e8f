"""Write the report of a run anew, or one page that lays several runs side by side.

  mimjax report RUN [--output=PAGE.html]
  mimjax report RUN RUN [RUN ...] [--output=PAGE.html]
  mimjax report FOLDER

A RUN is a workdir, or the FOLDER of `mimjax train --seeds`, of which mean and spread are shown. The
page of one run is RUN/report.html, that of a folder FOLDER/report.html, that of several report.html
in the current folder. Only files of the runs, and the config that made a run, are read; runs that
train now may be shown too.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from absl import flags

from mimjax.errors import ConfigError, UserCodeError
from mimjax.programs import cli

if TYPE_CHECKING:
    from mimjax.run.comparison import Group
    from mimjax.run.report import Recipe, Record

REQUIRED = ("runs",)
POSITIONAL = "runs"  # the flag that the first words without dashes are the values of


def define_flags() -> None:
    """Define all flags of the program."""
    flags.DEFINE_multi_string("runs", None, "A workdir; again for each further one.")
    flags.DEFINE_string("output", None, "The page; see above where it lies without this flag.")
    cli.define_base_flags()


def main() -> None:
    """Read the runs and write the page."""
    from mimjax.run import comparison, report
    from mimjax.storage import outputs
    from mimjax.storage.files import Workdir

    groups, output = comparison.find(flags.FLAGS.runs), flags.FLAGS.output
    alone = len(groups) == 1 and not groups[0].seeded
    place, record = output or default(groups), groups[0].runs[0]
    real = lambda path: os.path.realpath(os.path.expanduser(path))
    own = alone and real(place) == real(default(groups))  # training writes this file too
    if not own:
        outputs.check_bytes(place)
    text = report.page_of(record, recipe_of(record)) if alone else comparison.page_of(groups)
    try:
        if own:
            Workdir(str(record.workdir.path), key="--runs").write_text(report.FILE, text)
        else:
            outputs.write_bytes(place, text.encode())
    except OSError as error:
        reason = error.strerror or error
        raise ConfigError(
            f"--output: cannot write {place} ({reason}); allowed: a file elsewhere"
        ) from None
    print(f"report: {place}")


def default(groups: list[Group]) -> str:
    """Return where the page lies without --output."""
    from mimjax.run import report

    return str(groups[0].folder.file(report.FILE)) if len(groups) == 1 else report.FILE


def recipe_of(record: Record) -> Recipe | None:
    """Return the config that a run was made with, as it reads today.

    Where the run's files do not name it, or it is gone: the shipped config of the same task that
    has the fewest other settings.
    """
    from mimjax.run import config_files

    if record.config and (made := original(record.config, record)):
        return record.config, made
    texts = [text for name in config_files.shipped() for text in (name, f"{name}:demo")]
    found = [(text, settings) for text in texts if (settings := original(text, record))]
    others = lambda pair: sum(pair[1].get(k) != v for k, v in record.settings.items())
    text, settings = min(found, key=others, default=("", None))
    return (f"{text}, the nearest of the shipped configs", settings) if settings else None


def original(text: str, record: Record) -> dict[str, Any] | None:
    """Return the settings of a config by dotted name; None = it is not one of the run's task."""
    from mimjax.run import config_files
    from mimjax.storage.settings import resolved

    try:
        settings = resolved(config_files.load(text))
    except (ConfigError, UserCodeError):
        return None  # it is gone, needs arguments, or has no demo
    return settings if settings.get("task") == record.settings["task"] else None
