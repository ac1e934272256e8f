"""Curves over steps, drawn by matplotlib as SVG for a page of HTML.

Colors are placeholders of `curves.mplstyle` that become CSS variables of `report.html`, so that a
dark page has dark charts; text stays text. matplotlib is imported when a chart is drawn. This
module reads no other file; `run.report` chooses what is drawn.
"""

from __future__ import annotations

import html
import importlib.resources
import io
import re
from collections.abc import Sequence
from typing import Any, NamedTuple
from xml.etree import ElementTree

import numpy as np

STYLE = importlib.resources.files("mimjax.plots").joinpath("curves.mplstyle")
WIDTH, HEIGHT, LEGEND_LINE = 400, 215, 15  # units of the SVG; a legend's lines come below
LEFT, RIGHT, TOP, BOTTOM = 58, 14, 14, 40  # margins around the axes
SHORT = 21  # letters of a legend's texts, values included, up to which two stand in a line
DOTTED = 40  # points up to which each is a dot that tells its value
COLORS, DASHES = 6, ("-", "--", ":")
OTHERS = {"10": "faint", "11": "rule", "12": "axis"}  # placeholders beside those of lines


class Series(NamedTuple):
    """One line of a chart.

    Attributes:
      name: in the legend, with the last value; "" = not in the legend.
      steps, values: the points, of equal number; a value of None (not finite) leaves a gap.
      color: its number, which also gives dashes from COLORS on; None = the line's number.
      pale: whether the line stands behind others.
    """

    name: str
    steps: Sequence[float]
    values: Sequence[float | None]
    color: int | None = None
    pale: bool = False

    @property
    def last(self) -> str:
        """The last known value, as a chart shows it."""
        return f"{next(v for v in reversed(self.values) if v is not None):.4g}"

    @property
    def label(self) -> str:
        """Its text in the legend."""
        return f"{self.name}: {self.last}"


def chart(title: str, series: Sequence[Series], unit: str = "", log: bool = False) -> str:
    """Return a chart as an HTML <figure>; "" where no series has a value.

    Args:
      title: caption of the figure, plain text; once on a page, as ids are made of it.
      unit: label of the vertical axis.
      log: whether the vertical axis is logarithmic; it stays linear where a value is 0 or less.
    """
    series = [s for s in series if any(v is not None for v in s.values)]
    if not series:
        return ""
    # imported here: slow, and most programs draw nothing
    import matplotlib
    from matplotlib.figure import Figure

    named = [s.label for s in series if s.name] if len(series) > 1 else []
    columns = 2 if max(map(len, named), default=0) <= SHORT else 1
    height = HEIGHT + LEGEND_LINE * -(-len(named) // columns)
    below = (height - HEIGHT + BOTTOM) / height
    out = io.StringIO()
    with matplotlib.rc_context(fname=str(STYLE)):
        matplotlib.rcParams["svg.hashsalt"] = title
        figure = Figure(figsize=(WIDTH / 72, height / 72))
        width = 1 - (LEFT + RIGHT) / WIDTH
        axes = figure.add_axes((LEFT / WIDTH, below, width, 1 - TOP / height - below))
        lines = [_line(axes, s, i) for i, s in enumerate(series)]
        _scale(axes, log and min(v for s in series for v in s.values if v is not None) > 0)
        axes.set(xlabel="step", ylabel=unit)
        axes.yaxis.set_label_coords(-(LEFT - 10) / width / WIDTH, 0.5)
        if named:
            handles = [line for line, s in zip(lines, series, strict=True) if s.name]
            place = {"loc": "lower left", "bbox_to_anchor": (LEFT / WIDTH, 0)}
            figure.legend(handles=handles, ncols=columns, **place)
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(out, format="svg", metadata=nothing)
    last = "" if named else f" <b>{series[-1].last}</b>"
    picture = _inline(out.getvalue(), title, {f"line{i}": _notes(s) for i, s in enumerate(series)})
    return f"<figure><figcaption>{html.escape(title)}{last}</figcaption>{picture}</figure>"


def _line(axes: Any, s: Series, number: int) -> Any:
    """Draw one line, with dots where points are few or stand alone."""
    values = np.array([np.nan if v is None else v for v in s.values], float)
    known = np.pad(np.isfinite(values), 1)
    alone = np.flatnonzero(known[1:-1] & ~known[:-2] & ~known[2:]).tolist()
    color = number if s.color is None else s.color
    look = {"linewidth": 1, "alpha": 0.4, "markersize": 3} if s.pale else {}
    look |= {"color": f"C{color}", "linestyle": DASHES[color // COLORS % len(DASHES)]}
    look |= {"markevery": None if len(values) <= DOTTED else alone, "gid": f"line{number}"}
    return axes.plot(s.steps, values, label=s.label, clip_on=False, **look)[0]


def _scale(axes: Any, log: bool) -> None:
    """Set the scale of the vertical axis, and the ticks of both."""
    from matplotlib import ticker

    round_steps = ticker.MaxNLocator(6, steps=[1, 2, 5, 10], integer=True, min_n_ticks=1)
    axes.xaxis.set(major_locator=round_steps, major_formatter=ticker.EngFormatter(sep=""))
    axes.yaxis.set_major_locator(ticker.MaxNLocator(5))
    if log:
        axes.set_yscale("log")
        axes.yaxis.set_minor_locator(ticker.NullLocator())
        low, high = axes.get_ylim()
        fine = ticker.LogLocator(subs=(1, 2, 5) if high < 100 * low else (1,))
        axes.yaxis.set_major_locator(ticker.MaxNLocator(5) if high < 8 * low else fine)
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:.10g}")


def _notes(s: Series) -> list[str]:
    """Return what the dots of a line tell; [] where points are many."""
    points = zip(s.steps, s.values, strict=True) if len(s.values) <= DOTTED else ()
    name = f"{s.name}, " * bool(s.name)
    return [f"{name}step {t:,.0f}: {v:.5g}" for t, v in points if v is not None]


def _inline(svg: str, title: str, notes: dict[str, list[str]]) -> str:
    """Return matplotlib's SVG as an element of an HTML page.

    Args:
      title: what the picture shows.
      notes: id of a line -> texts of its dots.
    """
    root = ElementTree.fromstring(svg)
    local = lambda name: name.rpartition("}")[2]
    linked = {v[1:] for e in root.iter() for k, v in e.items() if local(k) == "href"}
    for parent in list(root.iter()):
        for child in list(parent):
            # a style sheet would hold for the whole page; nothing is cut off
            if local(child.tag) in ("style", "clipPath", "metadata"):
                parent.remove(child)
        dots = [e for e in parent.iter() if local(e.tag) == "use"] if parent.get("id") else []
        for dot, text in zip(dots, notes.get(parent.get("id", ""), ())):
            ElementTree.SubElement(dot, "title").text = text
    for element in root.iter():
        element.tag = local(element.tag)
        element.text, element.tail = (element.text or "").strip() or None, None
        found = {local(k): _short(v) for k, v in element.items() if k != "clip-path"}
        element.attrib = {k: v for k, v in found.items() if k != "id" or v in linked}
    root.attrib = {"viewBox": root.attrib["viewBox"], "role": "img", "aria-label": title}
    text = ElementTree.tostring(root, encoding="unicode")
    name = lambda m: OTHERS.get(m[1], f"c{int(m[1])}")
    return re.sub(r"#0101(\d\d)", lambda m: f"var(--{name(m)})", text)


def _short(value: str) -> str:
    """Return an attribute's value with one decimal, and without a font: the page has its own."""
    value = re.sub(r"font(-family)?: [^;]*(; |$)", "", " ".join(value.split()))
    return re.sub(r"-?\d+\.\d+", lambda m: f"{float(m[0]):.1f}", value)
