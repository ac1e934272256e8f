"""report.html: pictures, table, curves, warnings, settings and versions of a run in one file.

It is made from the files of the workdir, at every evaluation and at the end, and by `mimjax
report`; it opens without any other file or network. Nothing is measured here, and no program reads
the report. Pages of several runs are made in `run.comparison`, pieces of HTML in `plots.page`,
charts in `plots.curves`.
"""

from __future__ import annotations

import datetime
import math
import re
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from mimjax.errors import ConfigError
from mimjax.evaluators.table import render
from mimjax.plots import page
from mimjax.plots.curves import Series, chart
from mimjax.run import mistakes
from mimjax.storage import config_version, lock
from mimjax.storage.files import Workdir
from mimjax.storage.settings import flatten

FILE = "report.html"
EVERY = 30.0  # seconds between two pages of a run that trains
STRIP = 5  # earlier pictures that are shown
START = re.compile(r"^mimjax .*(?:\n  .*)*", re.MULTILINE)  # a start block in train.log
STORY = re.compile(r"^What is predicted: (.*)$", re.MULTILINE)
VERSION = re.compile(r"\b(mimjax|jax) (\d[^\s,)]*)")  # in a start block


class Plot(NamedTuple):
    """A chart of a page: its title, unit, whether it is logarithmic, and what it draws.

    Attributes:
      key: a metric, or (with a slash) the beginning of several.
    """

    title: str
    unit: str
    log: bool
    key: str

    def takes(self, name: str) -> bool:
        """Return whether a metric is drawn here."""
        return name == self.key or (self.key.endswith("/") and name.startswith(self.key))


SECTIONS = {
    "Loss": [Plot("Training loss", "loss", True, "loss/")],
    "Evaluation": [
        Plot("Accuracy on the test images", "percent", False, "eval/accuracy/"),
        Plot("Held-out masked error", "error", False, "eval/error/"),
        Plot("k-NN accuracy", "percent", False, "eval/knn/"),
        Plot("Linear probe", "percent", False, "eval/linear/"),
    ],
    "Health": [
        Plot("Feature standard deviation", "std", False, "eval/health/feature_std"),
        Plot("RankMe of the encoder's output", "directions", False, "eval/health/rankme"),
        Plot("Variance of the run's own targets", "share", True, "eval/health/target_variance/"),
        Plot("Gradient norm", "norm", True, "grad_norm"),
        Plot("Share of clipped steps", "share", False, "clip_share"),
    ],
    "Optimization": [
        Plot("Learning rate", "rate", False, "lr"),
        Plot("Parameter norm", "norm", False, "param_norm"),
    ],
    "Speed": [
        Plot("Images per second, all devices", "images / s", False, "img_per_sec"),
        Plot("Waiting for data", "share of time", False, "data_wait"),
        Plot("Model FLOPs utilization", "share of peak", False, "mfu"),
    ],
}
REST = "Optimization"  # here stand a method's own schedules and numbers too
SHOWN_ELSEWHERE = {"step", "epoch", "eta_s", "img_per_sec_per_device", "warning", "nonfinite"}


class Record(NamedTuple):
    """What the files of a run say.

    Attributes:
      name: of the run, on pages.
      config: what --config named; "" = a run of an older version, or made by code.
      rows: the lines of metrics.jsonl.
      settings: the resolved config by dotted name.
      table: Markdown.
      start: the start block (`messages.start_block`).
      story: the sentence about what is predicted.
      versions: of packages, by name.
      notes: what a reader of the numbers must know.
    """

    name: str
    config: str
    workdir: Workdir
    rows: list[dict[str, Any]]
    settings: dict[str, Any]
    table: str
    start: str
    story: str
    versions: dict[str, str]
    notes: list[str]

    @property
    def task(self) -> str:
        """The name of the method's class."""
        return str(self.settings.get("task", "")).rpartition(":")[2]

    @property
    def warnings(self) -> list[str]:
        """The notes, and the warnings of the run with their steps."""
        said = [f"step {r['step']:,}: {r['warning']}" for r in self.rows if "warning" in r]
        return [*self.notes, *said]


Recipe = tuple[str, dict[str, Any]]


def publish(
    workdir: Workdir,
    evaluators: Sequence[Any],
    start: str,
    versions: dict[str, str],
    settings: dict[str, Any],
    recipe: Recipe | None = None,
    story: str = "",
) -> None:
    """Write report.html into the workdir; process 0 only.

    Args:
      evaluators: the table is made of their last values.
      start, versions, settings, story: see `Record`.
      recipe: name of the config file, and its settings before any was overridden.
    """
    if not workdir.writer:
        return
    table = render(evaluators) or workdir.read_text("table.md")
    rows, notes = lines(workdir)
    name, config = workdir.path.name, recipe[0] if recipe else ""
    record = Record(name, config, workdir, rows, settings, table, start, story, versions, notes)
    workdir.write_text(FILE, page_of(record, recipe))


class Publisher:
    """A writer of the page of a run that trains; it takes the arguments of `publish`.

    Drawing takes about a second. A run that evaluates every few seconds writes the page at its end,
    and every EVERY seconds until then.
    """

    def __init__(self, *args: Any):
        self.args, self.last = args, time.monotonic()

    def __call__(self, at_once: bool = True) -> None:
        if at_once or time.monotonic() - self.last >= EVERY:
            publish(*self.args)
            self.last = time.monotonic()


def read(workdir: Workdir, name: str) -> Record:
    """Return what the files of a run say; settings of older versions are translated.

    Args:
      name: of the run, on pages.

    Raises:
      ConfigError: config.json is damaged, is of a newer version or holds no run.
    """
    place = workdir.file("config.json")
    try:
        stored = workdir.read_json("config.json")
        settings = flatten(config_version.upgrade(stored, str(place)))
    except ConfigError as error:
        raise ConfigError(str(error).replace("--workdir:", "--runs:", 1)) from None
    if "task" not in settings:
        raise ConfigError(f"--runs: {place} names no task; allowed: workdirs of runs")
    rows, notes = lines(workdir)
    if said := lock.in_words(workdir):
        notes = [said, *notes]
    log = workdir.read_text("train.log")
    last = lambda found: found[-1] if found else ""
    start = last(START.findall(log))
    versions = dict(VERSION.findall(start.partition("\n")[0]))
    story = last(STORY.findall(log))
    table = workdir.read_text("table.md")
    config = str(stored.get(config_version.FILE_KEY, ""))
    return Record(name, config, workdir, rows, settings, table, start, story, versions, notes)


def lines(workdir: Workdir) -> tuple[list[dict[str, Any]], list[str]]:
    """Return the lines of metrics.jsonl, and a note about those that are damaged."""
    rows, bad = workdir.read_lines("metrics.jsonl")
    kept = [{k: v for k, v in row.items() if _is_fact(k, v)} for row in rows]
    return kept, [f"metrics.jsonl: damaged lines are left out ({bad:,})."] if bad else []


def _is_fact(key: str, value: Any) -> bool:
    """Return whether a value of a line is a number, None (not finite) or the text of a warning."""
    if key == "warning":
        return isinstance(value, str)
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return value is None or number


def page_of(record: Record, recipe: Recipe | None = None) -> str:
    """Return the report of one run in HTML; see `publish`."""
    line = f"{record.task} · written {now()}"
    head = page.header(record.name, line, tiles(record.rows), record.story)
    last = max((row["step"] for row in record.rows), default=-1)
    draw = lambda plot, names: [
        chart(plot.title, [_series(record.rows, n, plot) for n in names], plot.unit, plot.log)
    ]
    return page.page(
        record.name,
        header=head + page.warnings(record.warnings),
        pictures=page.section("Pictures", pictures(record.workdir)),
        table=page.section("Table", page.markdown(record.table)),
        mistakes=mistakes.sections(record.workdir, last),
        curves=curves(metrics(record.rows), draw),
        settings=page.section("Configuration", configuration(record.settings, recipe)),
        start=page.section("Start", page.lines(record.start)),
        versions=page.section("Versions", versions(record.versions)),
    )


def now() -> str:
    """Return the time, for readers."""
    return datetime.datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z")


def versions(found: dict[str, str]) -> str:
    """Return the table of packages; "" where none is known."""
    return page.grid(["package", "version"], list(found.items())) if found else ""


def tiles(rows: list[dict[str, Any]]) -> list[tuple[str, str]]:
    """Return the latest numbers of a run, each with what it is."""
    last: dict[str, Any] = {}
    for row in rows:
        last |= row
    formats: dict[str, tuple[str, Callable[[Any], str]]] = {
        "step": ("step", lambda v: f"{v:,}"),
        "epoch": ("epoch", lambda v: f"{v:,.1f}"),
        "loss/total": ("loss", lambda v: f"{v:.4f}"),
        "eval/accuracy/top1": ("accuracy", lambda v: f"{v:.1f} %"),
        "img_per_sec": ("images / s", lambda v: f"{v:,.0f}"),
        "data_wait": ("waiting for data", lambda v: f"{100 * v:.0f} %"),
        "mfu": ("MFU", lambda v: f"{100 * v:.1f} %"),
        "eta_s": ("to go", lambda v: str(datetime.timedelta(seconds=round(v)))),
    }
    known = {k: last[k] for k in formats if last.get(k) is not None and math.isfinite(last[k])}
    return [(formats[k][0], formats[k][1](v)) for k, v in known.items()]


def metrics(rows: list[dict[str, Any]]) -> list[str]:
    """Return the names of all numbers that are drawn; a term that is the whole loss is left out."""
    names = [k for k in dict.fromkeys(k for r in rows for k in r) if k not in SHOWN_ELSEWHERE]
    terms = [k for k in names if k.startswith("loss/") and k != "loss/total"]
    return [k for k in names if len(terms) != 1 or k not in terms]


def curves(names: list[str], draw: Callable[[Plot, list[str]], list[str]]) -> str:
    """Return sections with charts of every metric.

    Args:
      names: of the metrics.
      draw: returns the charts of a `Plot`, given the metrics that it takes.
    """
    taken = [plot for plots in SECTIONS.values() for plot in plots]
    rest = [n for n in names if not any(plot.takes(n) for plot in taken)]
    out = []
    for title, plots in SECTIONS.items():
        own = [Plot(n, n.rpartition("/")[2], False, n) for n in rest if title == REST]
        mine = [(plot, list(filter(plot.takes, names))) for plot in [*plots, *own]]
        drawn = [text for plot, found in mine for text in draw(plot, found)]
        out.append(page.section(title, page.several(drawn, "charts")))
    return "".join(out)


def points(rows: list[dict[str, Any]], name: str) -> dict[int, float | None]:
    """Return the values of a metric by step; one that was not finite is None."""
    found = {r["step"]: r[name] for r in rows if name in r}
    return {s: v if v is not None and math.isfinite(v) else None for s, v in found.items()}


def _series(rows: list[dict[str, Any]], name: str, plot: Plot) -> Series:
    """Return one curve of a run."""
    found = points(rows, name)
    short = (name.removeprefix(plot.key) or name).replace("_", " ")
    return Series(short, list(found), list(found.values()))


def pictures(workdir: Workdir) -> str:
    """Return the latest reconstructions, and some earlier ones in a strip."""
    *earlier, latest = [*reconstructions(workdir)] or [""]
    if not latest:
        return ""
    count = min(STRIP, len(earlier))
    chosen = [earlier[round(i * (len(earlier) - 1) / max(count - 1, 1))] for i in range(count)]
    strip = page.several([picture(workdir, n) for n in chosen], "strip")
    return picture(workdir, latest) + f"<h3>Before</h3>{strip}" * bool(strip)


def reconstructions(workdir: Workdir) -> list[str]:
    """Return the names of the run's own pictures, the latest last."""
    folder = workdir.file("pictures")
    names = sorted(p.name for p in folder.iterdir()) if folder.exists() else []
    return [n for n in names if n.startswith("reconstruction_") and n.endswith(".png")]


def picture(workdir: Workdir, name: str, of: str = "") -> str:
    """Return a picture with its step.

    Args:
      of: the run, where a page shows several.
    """
    step = int("".join(c for c in name if c.isdigit()) or 0)
    caption = ", ".join(filter(None, [of, f"step {step:,}"]))
    data = workdir.file(f"pictures/{name}").read_bytes()
    return page.image(data, caption, f"reconstructions at step {step}")


def configuration(settings: dict[str, Any], recipe: Recipe | None) -> str:
    """Return a table of settings that differ from the config file, and one of all settings."""
    changed = ""
    if recipe is not None:
        name, original = recipe
        rows = [
            (k, repr(original.get(k)), repr(v))
            for k, v in sorted(settings.items())
            if original.get(k) != v
        ]
        head = ["setting", "in the file", "in this run"]
        body = page.grid(head, rows) if rows else "<p>Nothing.</p>"
        changed = f"<h3>Changed against {page.text(name)}</h3>{body}"
    full = page.grid(["setting", "value"], [(k, repr(v)) for k, v in sorted(settings.items())])
    return changed + page.folded(f"All {len(settings)} settings", full)
