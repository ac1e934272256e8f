"""One page that lays several runs side by side: what differs in them, and what came of it.

Runs of one setting with several seeds are a group, of which mean and spread are shown. A page is
made of the files of the workdirs (`run.report` reads them); nothing is measured here.
"""

from __future__ import annotations

import os
import re
import statistics
from collections.abc import Sequence
from typing import NamedTuple

from mimjax.errors import ConfigError
from mimjax.plots import page
from mimjax.plots.curves import Series, chart
from mimjax.run import report
from mimjax.run.report import Plot, Record
from mimjax.storage.files import RUNS, Workdir, reachable_path

SEED = re.compile(r"seed_(\d+)$")
ABSENT = "–"


class Group(NamedTuple):
    """Runs that differ in their seed alone, or one run.

    Attributes:
      folder: the workdir, or the folder in which those of the seeds lie.
      seeded: whether it is a folder of seeds.
    """

    name: str
    folder: Workdir
    runs: list[Record]
    seeded: bool = False

    def finals(self, metric: str) -> list[float | None]:
        """Return the last value of a metric in each run that has it; None = not finite."""
        found = [[*report.points(run.rows, metric).values()] for run in self.runs]
        return [values[-1] for values in found if values]


# ------------------------------------------------------------------ from folders to groups


def find(paths: Sequence[str]) -> list[Group]:
    """Return what the folders hold, each as a group.

    Raises:
      ConfigError: a folder that is not there, that holds no run, or that is given twice.
    """
    folders = [
        Workdir(reachable_path(p, "--runs", RUNS), writer=False, key="--runs") for p in paths
    ]
    found = [_runs_in(folder) for folder in folders]
    seen: set[str] = set()
    for runs in found:
        for place in (os.path.realpath(r.path) if r.is_local else str(r.path) for r in runs):
            if place in seen:
                raise ConfigError(f"--runs: {place} is given twice; allowed: each run once")
            seen.add(place)
    groups = []
    for name, folder, runs in zip(_names(folders), folders, found, strict=True):
        seeded = len(runs) > 1 or runs[0] is not folder
        inner = [f"{name}/{r.path.name}" if len(found) > 1 else r.path.name for r in runs]
        records = [report.read(r, n if seeded else name) for r, n in zip(runs, inner, strict=True)]
        groups.append(Group(name, folder, records, seeded))
    return groups


def _runs_in(folder: Workdir) -> list[Workdir]:
    """Return the run of a workdir, or the runs in its folders seed_0, seed_1, ..., by seed.

    Raises:
      ConfigError: there is no such folder, or no run in it.
    """
    if not folder.path.exists() or not folder.path.is_dir():
        raise ConfigError(f"--runs: {folder.path}: no such folder; allowed: workdirs of runs")
    if folder.file("config.json").exists():
        return [folder]
    seeds = {int(m[1]): p for p in folder.path.iterdir() if (m := SEED.match(p.name))}
    runs = [Workdir(str(seeds[n]), writer=False, key="--runs") for n in sorted(seeds)]
    if runs := [r for r in runs if r.file("config.json").exists()]:
        return runs
    raise ConfigError(
        f"--runs: {folder.path} holds no run (no config.json, and none in seed_N); allowed: "
        "workdirs of runs, or a folder of --seeds"
    )


def _names(folders: Sequence[Workdir]) -> list[str]:
    """Return the shortest ends of the folders' paths that tell them apart."""
    parts = [str(folder.path).strip("/").split("/") for folder in folders]
    for count in range(1, max(map(len, parts)) + 1):
        names = ["/".join(p[-count:]) for p in parts]
        if len(set(names)) == len(names):
            return names
    return ["/".join(p) for p in parts]


# ------------------------------------------------------------------ from groups to a page


def page_of(groups: Sequence[Group]) -> str:
    """Return the page of several runs in HTML."""
    runs = [run for group in groups for run in group.runs]
    title = ", ".join(group.name for group in groups)
    methods = list(dict.fromkeys(run.task for run in runs))
    count = f"{len(runs)} runs" if len(runs) > 1 else "1 run"
    line = f"{count} of {', '.join(methods)} · written {report.now()}"
    notes = [f"{run.name}: {text}" for run in runs for text in run.warnings]
    names = _common(groups) if len(methods) > 1 else _all(runs)
    if len(methods) > 1:
        only = "only numbers that all of them have are compared"
        notes.insert(0, f"The runs are of different methods ({', '.join(methods)}): {only}.")
    beside = lambda parts: page.several(parts, "beside")
    tables = [_titled(run, page.markdown(run.table)) for run in runs if run.table]
    starts = [page.folded(run.name, page.lines(run.start)) for run in runs if run.start]
    return page.page(
        title,
        header=page.header(title, line, story=_story(runs)) + page.warnings(notes),
        pictures=page.section("Pictures", page.several(map(_newest, runs), "strip")),
        table=page.section("Final values", finals(groups, names))
        + page.section("Tables", beside(tables)),
        curves=report.curves(names, lambda plot, found: _charts(groups, plot, found)),
        settings=page.section("Settings that differ", differences(runs)),
        start=page.section("Start", "".join(starts)),
        versions=page.section("Versions", _versions(runs)),
    )


def finals(groups: Sequence[Group], names: Sequence[str]) -> str:
    """Return the table of the last value of every metric; of seeds mean, spread and number."""
    rows = [[name, *(_spread(group.finals(name)) for group in groups)] for name in names]
    head = ["metric", *(group.name for group in groups)]
    said = "<p>Of seeds: mean ± standard deviation (number of runs).</p>"
    return page.grid(head, rows) + said * any(len(group.runs) > 1 for group in groups)


def _spread(values: Sequence[float | None]) -> str:
    """Return the mean of values, and their standard deviation where there are several."""
    known = [v for v in values if v is not None]
    if not values:
        return ABSENT
    if not known:
        return "not finite"
    if len(values) == 1:
        return f"{known[0]:.5g}"
    spread = f" ± {statistics.stdev(known):.2g}" if len(known) > 1 else ""
    lost = f", {len(values) - len(known)} not finite" if len(known) < len(values) else ""
    return f"{statistics.fmean(known):.5g}{spread} ({len(known)}{lost})"


def differences(runs: Sequence[Record]) -> str:
    """Return the table of the settings in which runs differ, a run per column."""
    keys = sorted({key for run in runs for key in run.settings})
    cell = lambda run, key: repr(run.settings[key]) if key in run.settings else ABSENT
    rows = [[key, *(cell(run, key) for run in runs)] for key in keys]
    rows = [row for row in rows if len(set(row[1:])) > 1]
    return page.grid(["setting", *(run.name for run in runs)], rows) if rows else "<p>None.</p>"


def _charts(groups: Sequence[Group], plot: Plot, names: Sequence[str]) -> list[str]:
    """Return a chart for each metric of a plot, with a line for each group."""
    out = []
    for name in names:
        short = name.removeprefix(plot.key).replace("_", " ") if name != plot.key else ""
        title = f"{plot.title}: {short}" if short else plot.title
        lines = [s for i, group in enumerate(groups) for s in _series(group, name, i)]
        out.append(chart(title, lines, plot.unit, plot.log))
    return out


def _series(group: Group, name: str, color: int) -> list[Series]:
    """Return the line of a run, or pale lines of all seeds and the line of their mean."""
    found = [p for run in group.runs if (p := report.points(run.rows, name))]
    line = lambda label, values, pale: Series(
        label, list(values), list(values.values()), color, pale
    )
    if len(found) < 2:
        return [line(group.name, values, False) for values in found]
    common = [step for step in found[0] if all(step in values for values in found)]
    mean = {step: _mean([values[step] for values in found]) for step in common}
    label = f"{group.name}, mean of {len(found)}"
    return [*(line("", values, True) for values in found), line(label, mean, False)]


def _mean(values: Sequence[float | None]) -> float | None:
    """Return the mean; None where one value is not finite."""
    known = [v for v in values if v is not None]
    return statistics.fmean(known) if len(known) == len(values) else None


def _all(runs: Sequence[Record]) -> list[str]:
    """Return the metrics that any run has."""
    return list(dict.fromkeys(name for run in runs for name in report.metrics(run.rows)))


def _common(groups: Sequence[Group]) -> list[str]:
    """Return the metrics that every group has."""
    sets = [_all(group.runs) for group in groups]
    return [name for name in sets[0] if all(name in names for names in sets)]


def _titled(run: Record, body: str) -> str:
    """Return a piece of a page below the name of its run."""
    return f"<div><h3>{page.text(run.name)}</h3>{body}</div>"


def _newest(run: Record) -> str:
    """Return the latest picture of a run; "" where it has none."""
    names = report.reconstructions(run.workdir)
    return report.picture(run.workdir, names[-1], run.name) if names else ""


def _story(runs: Sequence[Record]) -> str:
    """Return the sentence about what is predicted; "" where runs predict different things."""
    stories = {run.story for run in runs}
    return stories.pop() if len(stories) == 1 else ""


def _versions(runs: Sequence[Record]) -> str:
    """Return the table of packages, with all versions that the runs had."""
    found: dict[str, list[str]] = {}
    for run in runs:
        for package, version in run.versions.items():
            found.setdefault(package, []).append(version)
    return report.versions({k: ", ".join(dict.fromkeys(v)) for k, v in found.items()})
