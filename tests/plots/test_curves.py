"""Charts: where values are drawn, gaps, spikes, ticks, dots that tell their values, legends."""

import re
from xml.etree import ElementTree

import pytest

from mimjax.plots.curves import LEFT, RIGHT, WIDTH, Series, chart


def paths(picture, color=0):
    """The points of each piece of a line, in units of the picture."""
    d = re.search(rf'<path d="([^"]+)" style="fill: none; stroke: var\(--c{color}\)', picture)[1]
    pieces = [re.findall(r"(-?[\d.]+) (-?[\d.]+)", piece) for piece in d.split("M")[1:]]
    return [[(float(x), float(y)) for x, y in piece] for piece in pieces]


def texts(picture):
    return re.findall(r"<text[^>]*>([^<]*)</text>", picture)


def test_a_curve_is_drawn_where_its_values_are():
    picture = chart("t", [Series("a", [0, 10, 20, 30], [1.0, None, 2.0, 3.0])], "loss")
    (first, *_), (second, third) = paths(picture)  # the gap lifts the pen
    assert second[0] - first[0] == pytest.approx(2 * (third[0] - second[0]), abs=0.2)
    assert first[1] - second[1] == pytest.approx(second[1] - third[1], abs=0.2)
    assert LEFT < first[0] < third[0] < WIDTH - RIGHT
    assert {"0", "10", "20", "30", "step", "loss"} <= set(texts(picture))
    titles = re.findall("<title>([^<]*)</title>", picture)  # a lone point is a dot too
    assert titles == ["a, step 0: 1", "a, step 20: 2", "a, step 30: 3"]
    assert chart("t", [Series("a", [1], [None])]) == ""


def test_it_stands_in_a_page():
    """Names are text, colors the page's, fonts too; nothing holds for the rest of the page."""
    series = [Series("<b>", [1, 2], [1.0, 2.0]), Series("_$\\&$", [1, 2], [3.0, None])]
    picture = chart("<i>", series, "<u>")
    assert ElementTree.fromstring(picture).find("svg/g") is not None
    assert {"&lt;b&gt;: 2", "_$\\&amp;$: 3", "&lt;u&gt;"} <= set(texts(picture))
    assert set(re.findall(r"var\(--(\w+)\)", picture)) == {"c0", "c1", "faint", "rule", "axis"}
    assert not re.search(r"#0|<style|font-family|xmlns|clip", picture)
    ids = lambda text: set(re.findall(r'id="([^"]+)"', text))
    assert ids(picture)
    assert not ids(picture) & ids(chart("another", series))


@pytest.mark.parametrize("log", [False, True])
def test_a_long_curve_is_thinned_and_keeps_its_spike_and_lone_points(log):
    steps, values = range(20_000), [1.0 + 0.3 * (i * 7919 % 13) / 13 for i in range(20_000)]
    values[12_345] = 50.0
    values[15_000:15_003] = [None, 1.0, None]
    picture = chart("t", [Series("a", steps, values)], log=log)
    before, *_, after = paths(picture)
    assert len(before) + len(after) < 3000
    highest = min(before, key=lambda p: p[1])
    width = WIDTH - LEFT - RIGHT
    assert highest[0] == pytest.approx(LEFT + width * (0.01 + 0.98 * 12_345 / 20_000), abs=1)
    assert highest[1] < min(p[1] for p in after) - 50
    assert picture.count("<use") == 1


@pytest.mark.parametrize(
    ("values", "log"),
    [
        ([0.0, 97.3], False),
        ([5.0, 5.0], False),
        ([0.0], False),
        ([-3e-7, 2e-7], False),
        ([54.0801, 54.0802], False),
        ([3e-5, 4e3], True),
        ([0.9, 1.1], True),
        ([0.98, 6.0], True),
        ([0.98, 60.0], True),
        ([2.0], True),
        ([0.0, 1.0], True),  # stays linear
    ],
)
def test_ticks_are_few_and_can_be_told_apart(values, log):
    picture = chart("t", [Series("a", range(len(values)), values)], log=log)
    ticks = re.findall(r"text-anchor: end[^>]*>([^<]*)<", picture)
    assert 2 <= len(ticks) <= 11
    assert len(set(ticks)) == len(ticks)
    assert all(len(tick) <= 9 for tick in ticks)
    assert "tspan" not in picture  # one form of numbers
    assert all(14 - 1 <= y <= 176 for piece in paths(picture) for _, y in piece)


def test_many_lines_have_a_legend_below():
    lines = [Series(f"run {i}", [1, 2], [i, i + 1.0]) for i in range(8)]
    lines.append(Series("", [1, 2], [0.0, 1.0], 0, pale=True))
    picture = chart("t", lines)
    assert [t for t in texts(picture) if t.startswith("run")] == [
        f"run {i}: {i + 1}" for i in range(8)
    ]
    height = float(re.search(r'viewBox="0 0 400 ([\d.]+)"', picture)[1])
    assert height == 215 + 4 * 15
    assert "stroke-dasharray" in picture  # the seventh has the color of the first
    assert picture.count("opacity: 0.4") >= 1


@pytest.mark.parametrize("name", ["visible mean error", "train", "weight/feature_decoder"])
def test_a_legend_is_not_cut_off(name):
    """A text ends inside of the picture; letters of an 11 pixel font are at most 7 wide."""
    picture = chart("t", [Series(n, [1, 2], [0, 1.19456]) for n in ("mean image error", name)])
    found = re.findall(rf'x="([\d.]+)" y="[\d.]+"[^>]*>({name}: [^<]*)<', picture)
    assert [text for _, text in found] == [f"{name}: 1.195"]
    assert float(found[0][0]) + 7 * len(found[0][1]) <= 400
