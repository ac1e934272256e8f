"""Write the report of a run anew, or one page that lays several runs side by side.

  mimjax report RUN [--output=PAGE.html]
  mimjax report RUN RUN [RUN ...] [--output=PAGE.html]
  mimjax report FOLDER

A RUN is a workdir, or the FOLDER of `mimjax train --seeds`, of which mean and spread are shown. The
page of one run is RUN/report.html, that of a folder FOLDER/report.html, that of several report.html
in the current folder. Only the files of the runs are read; runs that train now may be shown too.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from absl import flags

from mimjax.errors import ConfigError
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
    place = output or default(groups)
    own = alone and output is None  # a file of the run, which training writes too
    if not own:
        outputs.check_bytes(place)
    record = groups[0].runs[0]
    text = report.page_of(record, nearest(record)) if alone else comparison.page_of(groups)
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


def nearest(record: Record) -> Recipe | None:
    """Return the shipped config of the same task that has the fewest other settings than a run.

    The files of a run do not name the config that it was made with.
    """
    from mimjax.run import config_files
    from mimjax.run.setup import resolved

    found: list[tuple[int, Recipe]] = []
    for name in config_files.shipped():
        for text in (name, f"{name}:demo"):
            try:
                original = resolved(config_files.load(text))
            except ConfigError:
                continue  # it needs arguments, or has no demo
            if original.get("task") == record.settings["task"]:
                other = sum(original.get(k) != v for k, v in record.settings.items())
                found.append((other, (f"{text}, the nearest of the shipped configs", original)))
    return min(found, key=lambda pair: pair[0])[1] if found else None
