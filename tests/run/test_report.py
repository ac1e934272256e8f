"""The report: whole, self-contained, escaped, and true to metrics.jsonl."""

import html.parser
import json
import re

import pytest

from mimjax.plots import curves
from mimjax.plots.curves import Axis, Series
from mimjax.run import report
from mimjax.storage.files import Workdir

VOID = {"meta", "img", "line", "circle"}


class Page(html.parser.HTMLParser):
    """Collects text, tags and addresses; checks that every tag is closed in order."""

    def __init__(self, text):
        super().__init__()
        self.open, self.text, self.tags, self.links = [], [], [], []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.links += [v for k, v in attrs if k in ("src", "href", "xlink:href")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


@pytest.fixture
def workdir(tmp_path):
    """What a run leaves behind, with names that no browser may read as markup."""
    w = Workdir(str(tmp_path / "run <b>"))
    rows = [
        {
            "step": s,
            "epoch": s / 10,
            "loss/pixel": 1 / s,
            "loss/feature": None if s == 30 else 2 / s,
            "loss/total": 3 / s,
            "lr": 1e-3,
            "grad_norm": float(s),
            "img_per_sec": 99.0,
            "ema_decay": 0.99,
        }
        for s in range(1, 61)
    ]
    rows += [{"step": 60, "eval/error/masked_error": 0.25, "eval/health/rankme": 7.5}]
    rows += [{"step": 60, "warning": "a <script>alert(1)</script> target"}]
    w.write_text("metrics.jsonl", "".join(json.dumps(r) + "\n" for r in rows))
    w.write_text("table.md", "Words.\n\n| a | b |\n| - | - |\n| 1 | <i> |\n\n- said & done\n")
    for step in (0, 20, 40, 60):
        w.write_bytes(f"pictures/reconstruction_{step:07d}.png", b"\x89PNG" + bytes([step]))
    return w


def published(workdir, recipe=None):
    settings = {"task": "mimjax.methods.mae:MAE", "epochs": 3.0, "data.path": "<&>"}
    report.publish(workdir, [], "start <block>", {"jax": "0.0"}, settings, recipe)
    text = workdir.read_text("report.html")
    return text, Page(text)


def test_it_holds_everything_and_needs_nothing(workdir):
    text, page = published(workdir, ("configs/mae.py", {"epochs": 2.0, "data.path": "<&>"}))
    words = " ".join(page.text)
    assert len(page.links) == 4
    assert all(link.startswith("data:image/png;base64,") for link in page.links)
    assert not re.search(r"https?://|@import|url\(", text)
    for part in ("Training loss", "Held-out masked error", "RankMe", "Gradient norm", "ema_decay"):
        assert part in words, part
    assert "a <script>alert(1)</script> target" in words  # as text,
    assert "script" not in page.tags  # not as a tag
    for part in ("run <b>", "start <block>", "<i>", "said & done", "'<&>'"):
        assert part in words, part
    assert words.index("step 60") < words.index("Before") < words.index("step 20")
    # changed against the file: epochs and the task that it did not name, not the path
    changed = text[text.index("Changed against") : text.index("<details>")]
    assert "<td>2.0</td><td>3.0</td>" in changed
    assert "data.path" not in changed


def test_only_the_writer_writes_and_an_empty_run_has_a_report(tmp_path):
    published(Workdir(str(tmp_path / "new")))
    report.publish(Workdir(str(tmp_path / "other"), writer=False), [], "", {}, {})
    assert not (tmp_path / "other").exists()


def test_a_curve_is_drawn_where_its_values_are():
    picture = curves.chart("t", [Series("a", [0, 10, 20], [1.0, None, 3.0])])
    path = re.search(r'<path d="([^"]+)"', picture).group(1)
    (x0, y0), (x2, y2) = re.findall(r"M([\d.]+) ([\d.]+)", path)  # the gap lifts the pen
    assert (float(x0), float(x2)) == (curves.LEFT, curves.WIDTH - curves.RIGHT)
    assert float(y0) == curves.HEIGHT - curves.BOTTOM  # 1 is the lowest tick, and 3 the highest
    assert float(y2) == curves.TOP
    assert curves.chart("t", [Series("a", [1], [None])]) == ""


def test_no_spike_is_lost_in_a_long_curve():
    values = [1.0] * 20_000
    values[12_345] = 50.0
    points = curves.thin(range(20_000), values)
    assert (12_345, 50.0) in points
    assert points[-1][0] == 19_999
    assert len(points) <= 2 * curves.POINTS


@pytest.mark.parametrize(
    ("values", "log"),
    [
        ([0.0, 97.3], False),
        ([5.0, 5.0], False),
        ([-3e-7, 2e-7], False),
        ([3e-5, 4e3], True),
        ([0.9, 1.1], True),
        ([2.0], True),
    ],
)
def test_ticks_are_round_and_values_inside_the_frame(values, log):
    axis = Axis(values, 100.0, 0.0, log)
    assert 2 <= len(axis.ticks) <= 8
    assert all(-1e-6 <= axis(v) <= 100 + 1e-6 for v in [*values, *axis.ticks])
    for tick in axis.ticks:
        assert re.fullmatch(r"-?[\d.]+(e-?\d+|[kMG])?", curves.number(tick))


def test_ticks_can_be_told_apart():
    assert curves.numbers([0.0, 0.5, 1.0]) == ["0", "0.5", "1"]
    assert curves.numbers([54.0801, 54.0802]) == ["54.0801", "54.0802"]
    assert curves.numbers([0.00052, 0.00054]) == ["5.2e-4", "5.4e-4"]
    assert len(set(curves.numbers([1_000_100.0, 1_000_200.0]))) == 2
