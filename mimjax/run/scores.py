"""The table of an evaluation as Markdown, for the screen and for evaluation.md."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from mimjax.evaluators.table import markdown as table
from mimjax.run.cells import Results
from mimjax.run.evaluate import Evaluation
from mimjax.run.published_numbers import BOARD, is_imagenet
from mimjax.run.rows import ROWS


def markdown(evaluation: Evaluation, results: Results) -> str:
    """Return the tables of an evaluation: accuracies, and what was chosen for each."""
    about = evaluation.about
    tested = next(iter(results.values()))["tested"]
    lines = [
        f"# {about['title']}",
        "",
        f"Top-1 accuracy in percent on {tested:,} test images of {about['images']}, "
        f"{len(evaluation.names)} classes ({about['label']}).",
        "",
    ]
    for labels in evaluation.labels:
        header = [words(labels), *(x.title for x in evaluation.chosen.values())]
        body = []
        for row in evaluation.rows:
            found = [[r["top1"] for r in of(results, row.name, name, labels)]
                     for name in evaluation.chosen]  # fmt: skip
            body.append([ROWS[row.name], *map(spread, found)])
        if labels == "all":
            body += published(evaluation)
        lines += [*table(header, body), ""]
    lines += ["What was chosen:", "", *table(*choices(evaluation, results)), ""]
    lines += notes(evaluation, results)
    return "\n".join(lines)


def published(evaluation: Evaluation) -> list[list[str]]:
    """Return the rows of published encoders, where the images are ImageNet-1k's; else none."""
    if not is_imagenet(evaluation.names, len(evaluation.test)):
        return []
    paper = evaluation.about.get("published", {})
    shown = lambda name: f"{paper[name]['top1']:.2f}" if name in paper else ""
    rows = [["published for this method", *map(shown, evaluation.chosen)]] if paper else []
    for other in BOARD:
        number = lambda name, other=other: getattr(other, name, None)
        cells = [f"{x:.2f}" if (x := number(name)) else "" for name in evaluation.chosen]
        rows.append([f"{other.name}, {other.pretraining} (EP board)", *cells])
    return rows


def words(labels: str) -> str:
    """Return which labels a table is about, as the head of its first column."""
    if labels == "all":
        return "all labels"
    return f"{labels} of the labels" if labels.endswith("%") else f"{labels} images per class"


def of(results: Results, row: str, protocol: str, labels: str) -> list[dict[str, Any]]:
    """Return the results of one entry of a table, a seed each."""
    return [r for c, r in results.items() if c[:3] == (row, protocol, labels)]


def spread(values: Sequence[float]) -> str:
    """Return the mean, and with several seeds their standard deviation: "70.5 ± 0.3".

    "-" = a row that the protocol has no number for.
    """
    if not values:
        return "-"
    if len(values) < 2:
        return f"{values[0]:.2f}"
    return f"{np.mean(values):.2f} ± {np.std(values, ddof=1):.2f}"


def choices(evaluation: Evaluation, results: Results) -> tuple[list[str], list[list[str]]]:
    """Return header and rows of the table of settings, those of the first seed."""
    header = ["features", "labels", "protocol", "chosen", "left out, %", "top-5, %", "learned from"]
    body = []
    for row in evaluation.rows:
        for labels in evaluation.labels:
            for name, protocol in evaluation.chosen.items():
                if not (found := of(results, row.name, name, labels)):
                    continue
                one = found[0]
                body.append([
                    ROWS[row.name], labels, protocol.title, one["setting"],
                    f"{one['validation']:.2f}", f"{one['top5']:.2f}", f"{one['learned']:,}",
                ])  # fmt: skip
    return header, body


def notes(evaluation: Evaluation, results: Results) -> list[str]:
    """Return sentences on how the numbers were made."""
    seeds = ", ".join(map(str, evaluation.seeds))
    lines = [
        "Settings were chosen on a tenth of the training images of each class, which nothing is "
        "learned from (the database of k-NN holds them at the end); test images chose nothing.",
    ]
    if evaluation.about.get("begun"):
        lines.append("The checkpoint is that of step 0: the weights that the run began with.")
    if len(evaluation.seeds) > 1:
        lines.append(f"Seeds {seeds}: mean ± standard deviation of the training.")
    for name, protocol in evaluation.chosen.items():
        own = {c: r for c, r in results.items() if c.protocol == name}
        lines += protocol.notes(evaluation, own) if own else []
    return [f"- {line}" for line in lines]
