"""The scoreboard's table: what is there, seed by seed, and the order of its cells."""

import argparse
import json

from benchmarks import scoreboard
from benchmarks.scoreboard import Cell


def place(args, cell, row, folder, **scores):
    file = args.output / cell.name / folder / "evaluation.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    known = json.loads(file.read_text())["cells"] if file.exists() else []
    cells = [{"row": row, "protocol": k, "top1": v} for k, v in scores.items()]
    file.write_text(json.dumps({"cells": known + cells}))


def test_the_table_pairs_seeds_and_says_what_is_missing(tmp_path):
    args = argparse.Namespace(
        output=tmp_path, methods=["mae", "bootmae"], seeds=[0, 1, 2], steps=10, epochs=3,
        labels="all", words=["--steps=10"],
    )  # fmt: skip
    for seed, (ours, theirs) in enumerate(((50, 40), (60, 48), (70, 62))):
        cell = Cell("mae", seed)
        place(args, cell, "pretrained", "vectors", knn=ours, linear=80.0)
        place(args, cell, "untrained", "vectors", knn=theirs)
        (tmp_path / f"{cell.name}.seconds.json").write_text(json.dumps({"train": 100 + seed}))
    place(args, Cell("mae", 0), "raw_pixels", "vectors", knn=85.0)
    text = scoreboard.table(args)
    rows = {}
    for line in text.splitlines():
        cells = [x.strip() for x in line.strip("|").split("|")]
        if line.startswith("|"):
            rows.setdefault(cells[0], cells[1:])
    assert rows["MAE"] == ["60.0 ± 10.0", "80.0 ± 0.0", "", "", "101"]
    assert rows["untrained"][:2] == ["50.0 ± 11.1", ""]
    assert rows["difference"][:2] == ["+10.0 ± 1.2", ""]  # of the pairs, not of the means
    assert rows["raw pixels"][0] == "85.0"
    assert rows["BootMAE"] == [""] * 5
    assert scoreboard.CLAIM in text


def test_cells_wait_for_what_they_read():
    assert Cell("beit", 1).first == Cell("dvae", 1)
    assert Cell("mrmae", 2).first == Cell("mae", 2)
    assert Cell("mae", 0).first is None
    assert set(scoreboard.NAMES) == set(scoreboard.METHODS)
