"""The report: whole, self-contained, escaped, and true to metrics.jsonl."""

import base64
import dataclasses
import html.parser
import io
import json
import re
import subprocess
import sys

import helpers
import numpy as np
import pytest
from PIL import Image

from mimjax.errors import ConfigError
from mimjax.plots import reconstructions
from mimjax.run import comparison, report
from mimjax.storage import lock
from mimjax.storage.classes import Classes
from mimjax.storage.confusions import Confusion, Mistake
from mimjax.storage.files import Workdir

pytestmark = pytest.mark.usefixtures("charts")

VOID = {"meta", "img", "br"}


class Page(html.parser.HTMLParser):
    """A parser that collects text, tags and addresses, and checks that tags are closed in order."""

    def __init__(self, text):
        super().__init__()
        self.open, self.text, self.tags, self.links, self.ids = [], [], [], [], []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.links += [v for k, v in attrs if k in ("src", "href") and not v.startswith("#")]
        self.ids += [v for k, v in attrs if k == "id"]
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
    assert not re.search(r"https?://|@import|url\(", text.replace("url(#", ""))
    assert len(page.ids) == len(set(page.ids))  # of all charts together
    for part in ("Training loss", "Held-out masked error", "RankMe", "Gradient norm", "ema_decay"):
        assert part in words, part
    assert "a <script>alert(1)</script> target" in words  # as text,
    assert "script" not in page.tags  # not as a tag
    order = ("Pictures", "Table", "Loss", "Configuration", "Start", "Versions")
    places = [words.index(f" {part} ") for part in order]
    assert places == sorted(places)
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


# ------------------------------------------------------------------ read from the files alone
LOG = """mimjax 0.1.0  mimjax.methods.mae:MAE  (jax 0.10.1, compute auto)
  batch  8
weights: random
mimjax 0.1.0  mimjax.methods.mae:MAE  (jax 0.10.2, compute auto)
  batch  16
weights: continued

What is predicted: the <pixels>.
"""


def make_run(folder, task="mimjax.methods.mae:MAE", seed=0, loss=1.0, about=(), **metrics):
    """A workdir as a run of version 4 leaves it, without checkpoints."""
    w = Workdir(str(folder))
    settings = {"config_version": 4, "task": task, "seed": seed, "data": {"source": "digits"}}
    w.write_text("config.json", json.dumps(settings | dict(about)))
    rows = [{"step": s, "loss/total": loss / s, **metrics} for s in (1, 2, 4)]
    w.write_text("metrics.jsonl", "".join(json.dumps(r) + "\n" for r in rows))
    w.write_text("train.log", LOG)
    w.write_text("table.md", f"| a |\n| - |\n| {loss} |\n")
    w.write_bytes("pictures/reconstruction_0000004.png", b"\x89PNG")
    return w


NAMES = ('<b>&"', "a name of " + "very " * 20 + "many letters", "folder \udcff")


def classified(folder, cells, names=NAMES, mistakes=()):
    """A workdir of a run that learned labels, with its last evaluation at step 4."""
    run = make_run(folder)
    found = Confusion("accuracy", 4, len(names), cells, mistakes)
    run.write_text(f"tables/{found.file}", found.to_json())
    Classes(len(names), names).write(run)
    return run, found


def run_program(*words):
    helpers.program("report", *map(str, words))


def test_what_is_confused_and_the_mistakes_are_shown(tmp_path):
    mistakes = (Mistake(7, 0, 1, 0.99999, (0, 0, 4, 2)), Mistake(8, 2, 0, 0.5, (4, 2, 8, 4)))
    cells = ((0, 0, 1200), (0, 1, 1), (2, 0, 1), (2, 2, 3))
    run, found = classified(tmp_path / "run", cells, mistakes=mistakes)
    pixels = np.arange(96, dtype=np.uint8).reshape(4, 8, 3)
    run.write_bytes(f"pictures/{found.picture}", reconstructions.png(Image.fromarray(pixels)))
    run.write_text("tables/other_0000002.json", "{")
    run_program(run.path)
    text = run.read_text("report.html")
    page = Page(text)
    words = " ".join(page.text)
    assert '<b>&"' in words  # as text,
    assert "<b>&&quot;" not in text  # not as a tag
    assert 'title="a name of very' in text
    assert "At step 4, 2 of 1,205 test images are wrong." in words
    assert "tables/other_0000002.json is damaged and left out." in words
    body = text[text.index("<tbody>", text.index("Rows: the true class")) :]
    rows = [re.findall(r"<td[^>]*>(.*?)</td>", row) for row in body.split("</tr>")[:4]]
    assert rows == [
        ["1,200", "1", "0", "1,201", "99.9"],
        ["0", "0", "0", "0", "–"],
        ["1", "0", "3", "4", "75.0"],
        ["1,201", "1", "3", "1,205", "99.8"],
    ]
    shown = text[text.index("Most confident mistakes") :]
    assert shown.index("over 99.9 %") < shown.index("50.0 %")
    assert "of class folder ?, predicted &lt;b&gt;&amp;&quot;" in shown
    images = page.links[-2:]  # behind the reconstruction
    tiles = [np.asarray(Image.open(io.BytesIO(base64.b64decode(x[22:])))) for x in images]
    np.testing.assert_array_equal(tiles[0], pixels[:2, :4])
    np.testing.assert_array_equal(tiles[1], pixels[2:, 4:])
    run.write_bytes(f"pictures/{found.picture}", b"no picture")
    run_program(run.path)
    assert "The images are gone: pictures/mistakes_accuracy_0000004.png" in run.read_text(
        "report.html"
    )


def test_nothing_is_drawn_where_no_image_is_wrong(tmp_path):
    run, _ = classified(tmp_path / "right", ((0, 0, 5), (1, 1, 6)))
    run_program(run.path)
    text = run.read_text("report.html")
    assert "At step 4 none of 11 test images is wrong." in text
    assert "Most confident mistakes" not in text
    old, found = classified(tmp_path / "old", ((0, 0, 5),))
    later = dataclasses.replace(found, step=5, name="later")  # the run went back from there
    old.write_text(f"tables/{later.file}", later.to_json())
    run_program(old.path)
    assert "At step 5" not in old.read_text("report.html")


def test_of_many_classes_the_most_confused_pairs_are_shown(tmp_path):
    names = tuple(f"class {i}" for i in range(30))
    cells = tuple((i, i, 8) for i in range(30)) + tuple((i, 0, 1 + i % 2) for i in range(1, 30))
    run, _ = classified(tmp_path, cells, names)
    run_program(run.path)
    text = run.read_text("report.html")
    assert "The 20 most frequent of 29 pairs" in text
    rows = re.findall(r"<tr><td>(class \d+)</td><td>class 0</td><td>(\d)</td><td>(.*?)</td>", text)
    assert rows[0] == ("class 1", "2", "20.0 % of 10")
    assert [r[1] for r in rows] == ["2"] * 15 + ["1"] * 5
    assert "Rows: the true class" not in text


def test_the_files_of_a_run_are_enough(tmp_path):
    run = make_run(tmp_path / "a")
    run.append("metrics.jsonl", '{"step": 5, "loss/total": NaN, "lr": "text", "warning": 3}')
    run.append("metrics.jsonl", "damaged {")
    run.write_text(lock.FILE, "{}")
    run_program(run.path)
    words = " ".join(Page(run.read_text("report.html")).text)
    for part in ("the <pixels>.", "batch  16", "0.10.2", "damaged lines are left out (1)"):
        assert part in words, part
    assert "run.lock is there: this run trains now, or it was killed." in words  # it names nobody
    assert re.search("Changed against mae.*, the nearest of the shipped configs", words)
    assert "batch  8" not in words
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a"]
    assert not list((tmp_path / "a").glob(".*"))
    run.write_text("report.html", "old")
    run_program(run.path, f"--output={run.path}/report.html")  # the page that training writes too
    assert "batch  16" in run.read_text("report.html")
    assert not list((tmp_path / "a").glob(".*"))


def test_the_page_compares_with_the_config_that_made_the_run(tmp_path):
    """The nearest config is not taken; one that is gone or of another method is not compared."""
    for name, said in (
        ("mae:size=l", "Changed against mae:size=l</h3>"),
        ("gone/mine.py", ", the nearest of the shipped configs"),
        ("cae", ", the nearest of the shipped configs"),
    ):
        run = make_run(tmp_path / name.replace("/", "_"), about={"config_file": name})
        run_program(run.path)
        assert said in run.read_text("report.html"), name


def test_an_older_run_is_translated(tmp_path):
    run = make_run(tmp_path)
    old = {"task": "mine:Mine", "steps": 0, "data": {"path": ""}}
    run.write_text("config.json", json.dumps(old))
    assert report.read(run, "x").settings["data.path"] is None


def test_runs_stand_side_by_side(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, seed in (("a", 1), ("b", 2)):
        make_run(tmp_path / name / "run", seed=seed, loss=float(seed), lr=0.1)
    run_program("a/run", "b/run")
    text = (tmp_path / "report.html").read_text()
    page, words = Page(text), " ".join(Page(text).text)
    assert "<tr><td>seed</td><td>1</td><td>2</td></tr>" in text
    assert "<td>data.source</td>" not in text  # the same in both
    assert "<tr><td>loss/total</td><td>0.25</td><td>0.5</td></tr>" in text
    for part in ("a/run: 0.25", "b/run: 0.5", "a/run, step 4"):  # legend, pictures
        assert part in words, part
    assert words.count("Training loss: total") == 1
    assert len(page.links) == 2
    assert len(page.ids) == len(set(page.ids))
    (tmp_path / "report.html").write_text("a user's")
    with pytest.raises(ConfigError, match=r"report.html was changed after mimjax wrote it"):
        run_program("a/run", "b/run")
    assert (tmp_path / "report.html").read_text() == "a user's"
    run_program("a/run", "b/run", f"--output={tmp_path}/page.html")
    assert (tmp_path / "page.html").exists()


def test_seeds_have_a_mean_and_a_spread(tmp_path):
    for seed, loss in ((0, 4.0), (1, 8.0), (10, None)):
        run = make_run(tmp_path / f"seed_{seed}", seed=seed, loss=loss or 1.0)
        if loss is None:
            run.append("metrics.jsonl", '{"step": 4, "loss/total": null}')
    run_program(tmp_path)
    text = (tmp_path / "report.html").read_text()
    assert "<tr><td>loss/total</td><td>1.5 ± 0.71 (2, 1 not finite)</td></tr>" in text
    assert "<tr><td>seed</td><td>0</td><td>1</td><td>10</td></tr>" in text
    assert text.count("opacity: 0.4") >= 3
    mean = comparison._series(comparison.find([str(tmp_path)])[0], "loss/total", 0)[-1]
    assert mean.name == f"{tmp_path.name}, mean of 3"
    assert mean.values == [pytest.approx(13 / 3), pytest.approx(13 / 6), None]


def test_of_different_methods_common_numbers_alone_are_compared(tmp_path):
    make_run(tmp_path / "a", lr=0.1)
    make_run(tmp_path / "b", task="mimjax.methods.cae:CAE", grad_norm=1.0)
    text = comparison.page_of(comparison.find([str(tmp_path / "a"), str(tmp_path / "b")]))
    words = " ".join(Page(text).text)
    assert "The runs are of different methods (MAE, CAE)" in words
    assert "Training loss: total" in words
    assert "Learning rate" not in words
    assert "Gradient norm" not in words


def test_many_runs_of_one_name():
    folders = [Workdir(p, writer=False) for p in ("/x/1/run", "/x/2/run", "/y/2/run")]
    assert comparison._names(folders) == ["x/1/run", "x/2/run", "y/2/run"]


def test_wrong_runs_are_one_line_and_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = make_run(tmp_path / "a")
    (tmp_path / "empty").mkdir()
    make_run(tmp_path / "damaged").write_text("config.json", "{")
    make_run(tmp_path / "other").write_text("config.json", "{}")
    before = sorted(tmp_path.rglob("*"))
    for words, said in (
        (["none"], "--runs: .*/none: no such folder; allowed: workdirs"),
        (["a", "empty"], "--runs: .*/empty holds no run"),
        (["a", f"{tmp_path}/a/"], "--runs: .*/a is given twice"),
        (["damaged"], "--runs: .*config.json is damaged"),
        (["other"], "config.json names no task"),
        (
            ["a", "--output=a/config.json"],
            "--output: .*config.json exists, and mimjax has no record",
        ),
        (["s3://a/b"], "--runs: 's3://a/b'"),
    ):
        with pytest.raises(ConfigError, match=said):
            run_program(*words)

    def refuse(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Workdir, "write_text", refuse)  # root may write anywhere
    with pytest.raises(ConfigError, match=f"--output: cannot write {run.path}/report.html .Perm"):
        run_program("a")
    assert sorted(tmp_path.rglob("*")) == before


def test_matplotlib_is_imported_when_a_chart_is_drawn():
    code = "import mimjax.main, mimjax.run.open, mimjax.run.comparison, mimjax.programs.map, sys"
    code += "; sys.exit('matplotlib' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=helpers.ROOT)
