"""report.html: curves, pictures, table, warnings, settings and versions of a run in one file.

It is made from the files of the workdir, at every evaluation and at the end, and opens without any
other file or network. Nothing is measured here, and no program reads the report. Its head and style
stand in `plots/report.html`, its charts in `plots.curves`.
"""

from __future__ import annotations

import base64
import datetime
import html
import importlib.resources
import string
from collections.abc import Callable, Sequence
from typing import Any

from mimjax.evaluators.table import render
from mimjax.plots.curves import Series, chart
from mimjax.storage.files import Workdir

FILE = "report.html"
# head and style, light and dark; no font, script or picture from elsewhere
TEMPLATE = importlib.resources.files("mimjax.plots").joinpath("report.html")
STRIP = 5  # earlier pictures that are shown
WARNINGS = 20  # that are shown, the last ones

# of each chart: title, unit, whether logarithmic, and the metric or (with a slash) prefix it draws
SECTIONS: dict[str, list[tuple[str, str, bool, str]]] = {
    "Loss": [("Training loss", "loss", True, "loss/")],
    "Evaluation": [
        ("Held-out masked error", "error", False, "eval/error/"),
        ("k-NN accuracy", "percent", False, "eval/knn/"),
        ("Linear probe", "percent", False, "eval/linear/"),
    ],
    "Health": [
        ("Feature standard deviation", "std", False, "eval/health/feature_std"),
        ("RankMe of the encoder's output", "directions", False, "eval/health/rankme"),
        ("Variance of the run's own targets", "share", True, "eval/health/target_variance/"),
        ("Gradient norm", "norm", True, "grad_norm"),
        ("Share of clipped steps", "share", False, "clip_share"),
    ],
    "Optimization": [
        ("Learning rate", "rate", False, "lr"),
        ("Parameter norm", "norm", False, "param_norm"),
    ],
    "Speed": [
        ("Images per second, all devices", "images / s", False, "img_per_sec"),
        ("Waiting for data", "share of time", False, "data_wait"),
        ("Model FLOPs utilization", "share of peak", False, "mfu"),
    ],
}
SHOWN_ELSEWHERE = {"step", "epoch", "eta_s", "img_per_sec_per_device", "warning", "nonfinite"}


def publish(
    workdir: Workdir,
    evaluators: Sequence[Any],
    start: str,
    versions: dict[str, str],
    settings: dict[str, Any],
    recipe: tuple[str, dict[str, Any]] | None = None,
    story: str = "",
) -> None:
    """Write report.html into the workdir; process 0 only.

    Args:
      evaluators: the table is made of their last values.
      start: the start block (`messages.start_block`).
      versions: of packages, by name.
      settings: the resolved config by dotted name.
      recipe: name of the config file, and its settings before any was overridden.
      story: the sentence about what is predicted.
    """
    if not workdir.writer:
        return
    table = render(evaluators) or workdir.read_text("table.md")
    parts = [
        section("What is predicted", f"<p>{html.escape(story)}</p>" * bool(story)),
        curves(rows := workdir.read_lines("metrics.jsonl")[0]),
        section("Pictures", pictures(workdir)),
        section("Table", markdown(table)),
        section("Configuration", configuration(settings, recipe)),
        section("Start", f"<pre>{html.escape(start)}</pre>"),
        section("Versions", grid(["package", "version"], list(versions.items()))),
    ]
    name = workdir.path.name
    body = f"{header(name, rows, settings)}{''.join(parts)}"
    template = string.Template(TEMPLATE.read_text(encoding="utf-8"))
    workdir.write_text(FILE, template.substitute(title=html.escape(name), body=body))


def section(title: str, body: str) -> str:
    """Return a titled section in HTML; "" where the body is empty."""
    return f"<section><h2>{html.escape(title)}</h2>{body}</section>" if body else ""


def header(name: str, rows: list[dict[str, Any]], settings: dict[str, Any]) -> str:
    """Return the head of the report in HTML: name, task, latest numbers and warnings."""
    now = datetime.datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z")
    task = str(settings.get("task", "")).rpartition(":")[2]
    last: dict[str, Any] = {}
    for row in rows:
        last |= row
    tiles = [("step", f"{last['step']:,}")] if "step" in last else []
    formats: dict[str, Callable[[float], str]] = {
        "epoch": lambda v: f"{v:,.1f}",
        "loss/total": lambda v: f"{v:.4f}",
        "img_per_sec": lambda v: f"{v:,.0f}",
        "data_wait": lambda v: f"{100 * v:.0f} %",
        "mfu": lambda v: f"{100 * v:.1f} %",
        "eta_s": lambda v: str(datetime.timedelta(seconds=round(v))),
    }
    titles = ("epoch", "loss", "images / s", "waiting for data", "MFU", "to go")
    for title, (key, words) in zip(titles, formats.items(), strict=True):
        if last.get(key) is not None:
            tiles.append((title, words(last[key])))
    boxes = "".join(f"<div><b>{html.escape(v)}</b>{k}</div>" for k, v in tiles)
    texts = [(r["step"], r["warning"]) for r in rows if "warning" in r]
    items = "".join(
        f"<li>step {step:,}: {html.escape(text)}</li>" for step, text in texts[-WARNINGS:]
    )
    more = f" (the last {WARNINGS} of {len(texts)})" if len(texts) > WARNINGS else ""
    warnings = (
        f'<div class="warning"><h2>Warnings{more}</h2><ul>{items}</ul></div>' if texts else ""
    )
    return (
        f"<header><h1>{html.escape(name)}</h1><p>{html.escape(task)} · written {now}</p></header>"
        f'<div class="tiles">{boxes}</div>{warnings}'
    )


def curves(rows: list[dict[str, Any]]) -> str:
    """Return sections with charts of every number that was logged."""
    names = [k for k in dict.fromkeys(k for r in rows for k in r) if k not in SHOWN_ELSEWHERE]
    # where the loss has one term, its curve is that of the total
    terms = [k for k in names if k.startswith("loss/") and k != "loss/total"]
    names = [k for k in names if k not in (terms if len(terms) == 1 else ())]
    left, out = list(names), []
    for title, charts in SECTIONS.items():
        drawn = []
        for name, unit, log, key in charts:
            mine = [k for k in names if k == key or (key.endswith("/") and k.startswith(key))]
            left = [k for k in left if k not in mine]
            drawn.append(chart(name, [line(rows, k, key) for k in mine], unit, log))
        if title == "Optimization":  # here stand a method's own schedules and numbers too
            rest = [k for k in left if not any(k in key for key in _keys())]
            drawn += [chart(k, [line(rows, k, "")], k.rpartition("/")[2]) for k in rest]
        out.append(section(title, f'<div class="charts">{"".join(drawn)}</div>' * any(drawn)))
    return "".join(out)


def _keys() -> list[str]:
    """Return the metrics and prefixes that the sections draw."""
    return [key for charts in SECTIONS.values() for *_, key in charts]


def line(rows: list[dict[str, Any]], key: str, prefix: str) -> Series:
    """Return one curve; a number that was not finite is null in the file and a gap here."""
    points = [(r["step"], r[key]) for r in rows if key in r]
    name = (key.removeprefix(prefix) or key).replace("_", " ")
    return Series(name, [s for s, _ in points], [v for _, v in points])


def pictures(workdir: Workdir) -> str:
    """Return the latest reconstructions, and some earlier ones in a strip."""
    folder = workdir.file("pictures")
    names = sorted(p.name for p in folder.iterdir()) if folder.exists() else []
    names = [n for n in names if n.startswith("reconstruction_") and n.endswith(".png")]
    if not names:
        return ""
    *earlier, latest = names
    count = min(STRIP, len(earlier))
    chosen = [earlier[round(i * (len(earlier) - 1) / max(count - 1, 1))] for i in range(count)]
    strip = "".join(f"<figure>{image(workdir, n)}</figure>" for n in chosen)
    return (
        f"<figure>{image(workdir, latest)}</figure>"
        + f'<h3>Before</h3><div class="strip">{strip}</div>' * bool(strip)
    )


def image(workdir: Workdir, name: str) -> str:
    """Return a picture with its step; the bytes stand in the HTML itself."""
    data = base64.b64encode(workdir.file(f"pictures/{name}").read_bytes()).decode()
    step = int("".join(c for c in name if c.isdigit()) or 0)
    return (
        f"<figcaption>step {step:,}</figcaption>"
        f'<img alt="reconstructions at step {step}" src="data:image/png;base64,{data}">'
    )


def configuration(settings: dict[str, Any], recipe: tuple[str, dict[str, Any]] | None) -> str:
    """Return a table of settings that differ from the config file, and one of all settings."""
    changed = ""
    if recipe is not None:
        name, original = recipe
        rows = [
            (k, repr(original.get(k)), repr(v))
            for k, v in sorted(settings.items())
            if original.get(k) != v
        ]
        body = grid(["setting", "in the file", "in this run"], rows) if rows else "<p>Nothing.</p>"
        changed = f"<h3>Changed against {html.escape(name)}</h3>{body}"
    full = grid(["setting", "value"], [(k, repr(v)) for k, v in sorted(settings.items())])
    return f"{changed}<details><summary>All {len(settings)} settings</summary>{full}</details>"


def grid(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Return an HTML table with a row of headings."""
    cells = lambda row, tag: "".join(f"<{tag}>{html.escape(str(c))}</{tag}>" for c in row)
    body = "".join(f"<tr>{cells(row, 'td')}</tr>" for row in rows)
    return f"<table><thead><tr>{cells(head, 'th')}</tr></thead><tbody>{body}</tbody></table>"


def markdown(text: str) -> str:
    """Return the HTML of Markdown as `evaluators.table.render` writes it.

    It knows tables, lists and paragraphs.
    """
    out, table, items = [], [], []
    for raw in [*text.splitlines(), ""]:
        if raw.startswith("|"):
            table.append([cell.strip() for cell in raw.strip("|").split("|")])
            continue
        if table:
            out.append(grid(table[0], table[2:]))
            table = []
        if raw.startswith("- "):
            items.append(f"<li>{html.escape(raw[2:])}</li>")
            continue
        if items:
            out.append(f"<ul>{''.join(items)}</ul>")
            items = []
        if raw.strip():
            out.append(f"<p>{html.escape(raw)}</p>")
    return "".join(out)
