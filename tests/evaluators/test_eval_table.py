"""The honest table: its cells, and verdicts that do not flatter."""

import pytest
from evaluators.evaluator_runs import made, started

from mimjax.evaluators import render
from mimjax.evaluators.error import MaskedError
from mimjax.evaluators.probes import Probes, Score
from mimjax.evaluators.table import markdown


def filled(pretrained=(95.0, 97.0), error=0.3):
    """Evaluators with results that no run has made."""
    task, mesh, _ = started()
    ready = made(task, mesh, {"error": MaskedError(), "probes": Probes()})
    by_name = {e.name: e.measure for e in ready}
    for name, ours in zip(("knn", "linear"), pretrained):
        scores = {"raw_pixels": 90.0, "untrained": 80.0, "pretrained": ours}
        by_name[name].scores = {
            row: Score(value, value - 1, "mean of norm", f"standardized, {name} setting")
            for row, value in scores.items()
        }
    by_name["error"].values = {
        "masked_error": error,
        "mean_image_error": 0.5,
        "visible_mean_error": 0.9,
    }
    return ready


def test_table_shows_every_number_and_choice():
    text = render(filled())
    rows = {line.split("|")[1].strip(): line for line in text.splitlines() if line[:1] == "|"}
    assert list(rows)[2:5] == ["raw pixels", "untrained encoder", "pretrained encoder"]
    assert "| 95.00 " in rows["pretrained encoder"]
    assert "| mean of norm, standardized, linear setting" in rows["pretrained encoder"]
    assert "60 test images, learned from 60 training images. Label: digit." in text
    assert "| 0.3000 |" in rows["the model"]
    assert "error is 40 % below that of the mean training image." in text


def test_verdicts_are_honest():
    text = render(filled(pretrained=(90.0, 91.0), error=0.6))
    assert "better than the untrained encoder" in text
    assert "no better than raw pixels (+0.00 points)" in text
    assert "not clearly better than raw pixels (+1.00 points" in text
    assert "The model is no better than the mean training image (0.6000 against 0.5000)." in text
    assert "no better than the untrained encoder (-40.00 points)" in render(filled((40.0, 95.0)))
    assert "no better than" in render(filled(error=float("nan")))


def test_nothing_to_tell():
    task, mesh, _ = started()
    assert render(made(task, mesh, {"error": MaskedError(), "probes": Probes()})) == ""
    assert render([]) == ""


def test_columns_are_aligned():
    lines = markdown(["a", "long title"], [["first", "1"], ["b", "22"]])
    assert len({len(line) for line in lines}) == 1
    assert lines[1] == "| ----- | ---------- |"


@pytest.mark.parametrize("name", ["error", "knn"])
def test_parts_alone(name):
    text = render([e for e in filled() if e.name == name])
    assert ("Held-out" in text) == (name == "error")
