"""Curves as inline SVG: a title, one or more lines over steps, and axes with labels.

No plotting library is used: a report must open anywhere, years later. Colors are CSS variables that
`plots/report.html` defines, so that a dark page has dark charts. This module reads no file;
`run.report` chooses what is drawn.
"""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from typing import NamedTuple

WIDTH, HEIGHT = 400, 230
LEFT, RIGHT, TOP, BOTTOM = 58, 14, 12, 40
COLORS = 6  # --c0 to --c5 of report.html
POINTS = 300  # points of a line that are drawn; the eye cannot tell more apart
MAX_TICKS = 7  # of a logarithmic axis
DOTTED = 40  # points up to which each is drawn as a dot with its value


Point = tuple[float, float | None]


class Series(NamedTuple):
    """One line of a chart.

    Attributes:
      name: in the legend.
      steps, values: the points, of equal number; a value of None (not finite) leaves a gap.
    """

    name: str
    steps: Sequence[float]
    values: Sequence[float | None]


def chart(title: str, series: Sequence[Series], unit: str = "", log: bool = False) -> str:
    """Return a chart as an HTML <figure>; "" where no series has a value.

    Args:
      title: caption of the figure, plain text.
      unit: label of the vertical axis.
      log: whether the vertical axis is logarithmic; it stays linear where a value is 0 or less.
    """
    series = [s for s in series if any(v is not None for v in s.values)]
    if not series:
        return ""
    values = [v for s in series for v in s.values if v is not None]
    log = log and min(values) > 0
    x = Axis([t for s in series for t in s.steps], LEFT, WIDTH - RIGHT)
    y = Axis(values, HEIGHT - BOTTOM, TOP, log)
    parts = [*_grid(x, y, unit)]
    for i, s in enumerate(series):
        parts += _line(s, x, y, f"var(--c{i % COLORS})")
    body = "".join(parts)
    return (
        f"<figure><figcaption>{html.escape(title)}</figcaption>{_legend(series)}"
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{html.escape(title)}">'
        f"{body}</svg></figure>"
    )


class Axis:
    """An axis: called with a value it returns the pixel; its `ticks` are round numbers.

    Attributes:
      low, high: ends of the axis in the unit of the values (their log10 where `log`).
      start, stop: pixels of the two ends; start > stop for a vertical axis.
    """

    def __init__(self, values: Sequence[float], start: float, stop: float, log: bool = False):
        self.start, self.stop, self.log = start, stop, log
        low, high = self._scale(min(values)), self._scale(max(values))
        if high - low < 1e-12 * max(abs(high), 1e-300):  # a constant gets room on both sides
            pad = abs(high) * 0.1 or 1.0
            low, high = low - pad, high + pad
        self.low, self.high = low, high
        self.ticks = self._log_ticks() if log else ticks(low, high)
        if self.ticks and not log:  # the frame ends at round numbers
            gap = self.ticks[1] - self.ticks[0] if len(self.ticks) > 1 else high - low
            self.low = min(low, self.ticks[0])
            if high > self.ticks[-1] + 1e-9 * gap and start > stop:
                self.ticks.append(self.ticks[-1] + gap)
                self.high = self.ticks[-1]

    def __call__(self, value: float) -> float:
        share = (self._scale(value) - self.low) / (self.high - self.low)
        return self.start + share * (self.stop - self.start)

    def _scale(self, value: float) -> float:
        return math.log10(value) if self.log else float(value)

    def _log_ticks(self) -> list[float]:
        """Return ticks at 1, 2 or 5 times powers of ten, or at powers of ten where those are many.

        The ends of the axis move out to the ticks around them.
        """
        powers = range(math.floor(self.low) - 1, math.ceil(self.high) + 1)
        fine = [m * 10.0**d for d in powers for m in (1, 2, 5)]
        below = [v for v in fine if math.log10(v) <= self.low + 1e-9][-1]
        above = next((v for v in fine if math.log10(v) >= self.high - 1e-9), fine[-1])
        self.low, self.high = math.log10(below), math.log10(above)
        inside = [v for v in fine if below <= v <= above]
        if len(inside) > MAX_TICKS:
            # log10 of a power of ten may miss the whole number by a rounding on either side
            inside = [v for v in inside if not 1e-9 <= math.log10(v) % 1 <= 1 - 1e-9]
        while len(inside) > MAX_TICKS:
            inside = inside[::2]
        return inside


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Return about `count` multiples of 1, 2 or 5 times a power of ten; the first is <= `low`."""
    raw = (high - low) / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= raw * (1 - 1e-9))
    first = math.floor(low / step + 1e-9)
    out = []
    while (first + len(out)) * step <= high + 1e-9 * step:
        out.append((first + len(out)) * step)
    return out


def numbers(values: Sequence[float]) -> list[str]:
    """Return the labels of ticks, with as many digits as tell them apart."""
    out: list[str] = []
    for digits in range(4, 10):
        out = [number(value, digits) for value in values]
        if len(set(out)) == len(values):
            break
    return out


def number(value: float, digits: int = 4) -> str:
    """Return a number as an axis shows it: "12k", "0.05", "3.0e-5".

    Args:
      digits: significant digits.
    """
    if value == 0:
        return "0"
    size = abs(value)
    for limit, letter in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if size >= limit:
            return f"{value / (1e3 if letter == 'k' else limit):.{digits}g}{letter}"
    if size < 1e-3:
        return f"{value:.{digits - 3}e}".replace("e-0", "e-")
    return f"{value:.{digits}g}"


def thin(steps: Sequence[float], values: Sequence[float | None]) -> list[Point]:
    """Return at most about POINTS points of a line.

    Of each bin of steps the lowest and the highest value stay, so that no spike is lost, and one
    gap, if the bin has any.
    """
    points = list(zip(steps, values, strict=True))
    if len(points) <= POINTS:
        return points
    size, out = -(-2 * len(points) // POINTS), []
    for i in range(0, len(points), size):
        part = points[i : i + size]
        known = [p for p in part if p[1] is not None]
        ends = {min(known, key=_value), max(known, key=_value)} if known else {part[0]}
        if len(known) < len(part) and known:
            ends.add(next(p for p in part if p[1] is None))
        out += sorted(ends, key=lambda p: p[0])
    return out if out[-1] == points[-1] else [*out, points[-1]]


def _value(point: Point) -> float:
    """Return the value of a point, for sorting; points without a value are left out before."""
    return 0.0 if point[1] is None else point[1]


def _grid(x: Axis, y: Axis, unit: str) -> list[str]:
    """Return the SVG elements of grid lines, ticks and labels."""
    bottom, right = HEIGHT - BOTTOM, WIDTH - RIGHT
    parts = []
    for value, text in zip(y.ticks, numbers(y.ticks), strict=True):
        at = f"{y(value):.1f}"
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{right}" y1="{at}" y2="{at}"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{at}" dy=".32em" class="end">{text}</text>')
    for value in x.ticks:
        if x.low <= value <= x.high:
            parts.append(
                f'<text x="{x(value):.1f}" y="{bottom + 15}" class="mid">{number(value)}</text>'
            )
    parts.append(f'<line class="axis" x1="{LEFT}" x2="{right}" y1="{bottom}" y2="{bottom}"/>')
    middle = (LEFT + right) / 2
    parts.append(f'<text x="{middle}" y="{HEIGHT - 8}" class="mid label">step</text>')
    if unit:
        where = (TOP + bottom) / 2
        parts.append(
            f'<text transform="translate(13 {where}) rotate(-90)" class="mid label">'
            f"{html.escape(unit)}</text>"
        )
    return parts


def _line(s: Series, x: Axis, y: Axis, color: str) -> list[str]:
    """Return the SVG path of one line, and dots with their values where points are few."""
    points = thin(s.steps, s.values)
    path, pen, dots = [], "M", []
    for step, value in points:
        if value is None:
            pen = "M"
            continue
        place = f"{x(step):.1f} {y(value):.1f}"
        path.append(pen + place)
        pen = "L"
        if len(points) <= DOTTED:
            note = html.escape(f"{s.name}, step {step:,.0f}: {value:.5g}")
            cx, cy = place.split()
            dots.append(
                f'<circle cx="{cx}" cy="{cy}" r="2.5" style="fill:{color}"><title>{note}</title>'
                "</circle>"
            )
    return [f'<path d="{"".join(path)}" style="stroke:{color}"/>', *dots]


def _legend(series: Sequence[Series]) -> str:
    """Return the legend: each line's name and last value, or "last" where there is one line."""
    items = []
    for i, s in enumerate(series):
        last = next(v for v in reversed(s.values) if v is not None)
        name = html.escape(s.name) if len(series) > 1 else "last"
        mark = f'<i style="background:var(--c{i % COLORS})"></i>' if len(series) > 1 else ""
        items.append(f"<span>{mark}{name} <b>{last:.4g}</b></span>")
    return f'<div class="legend">{"".join(items)}</div>'
