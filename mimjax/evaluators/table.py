"""The honest table of a run as Markdown: what pretraining is worth beside what needs none.

Every number stands beside its naive rival, and a model that is no better is said to be no better.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from mimjax.evaluators.error import MaskedError
from mimjax.evaluators.probes import Probe, Score
from mimjax.inference.features import ROWS

TITLES = dict(zip(ROWS, ("raw pixels", "untrained encoder", "pretrained encoder")))
METHODS = {"knn": "k-NN", "linear": "linear"}
PREDICTORS = {
    "masked_error": "the model",
    "mean_image_error": "mean training image",
    "visible_mean_error": "mean of the image's visible patches",
}
CODE_PREDICTORS = {
    "masked_error": "the model",
    "mean_image_error": "frequencies at the place in training images",
    "visible_mean_error": "frequencies in the image's visible patches",
}


def render(evaluators: Sequence[Any]) -> str:
    """Markdown of what the evaluators found at their last call; "" if there is nothing to tell."""
    probes = [e for e in evaluators if isinstance(e, Probe) and e.scores]
    errors = [e for e in evaluators if isinstance(e, MaskedError) and e.values]
    parts = [accuracies(probes)] if probes else []
    parts += [masked_error(e) for e in errors]
    return "\n".join(parts)


def accuracies(probes: Sequence[Probe]) -> str:
    """The table of k-NN and linear accuracies, how they were chosen, and a verdict on each."""
    bench = probes[0].bank.bench
    train, test = map(len, probes[0].bank.labels)  # without images that have no label
    header = ["features"]
    for p in probes:
        header += [f"{METHODS[p.name]}, %", "chosen"]
    body = [
        [TITLES[row]] + [cell for p in probes for cell in _cells(p.scores[row])] for row in ROWS
    ]
    lines = [
        f"Accuracy on {test:,} test images, learned from {train:,} training images. "
        f"Label: {bench.test.label_name}.",
        "",
        *markdown(header, body),
        "",
        "Features, standardization and k or alpha were chosen on 20 % of the training images, "
        "in the same way in every row; test images chose nothing.",
        "",
        *[verdict(p, test) for p in probes],
        "",
    ]
    return "\n".join(lines)


def _cells(score: Score) -> list[str]:
    return [f"{score.accuracy:.2f}", f"{score.features}, {score.setting}"]


def verdict(probe: Probe, test: int) -> str:
    """One sentence: the pretrained encoder against both rows that needed no training."""
    ours, parts = probe.scores["pretrained"].accuracy, []
    for row, name in (("untrained", "the untrained encoder"), ("raw_pixels", "raw pixels")):
        other = probe.scores[row].accuracy
        # Two standard errors of the difference, as if the two were scored on different images.
        chance = 200 * math.sqrt(sum(p * (1 - p) for p in (ours / 100, other / 100)) / test)
        gain = ours - other
        points = f"{gain:+.2f} points"
        if not gain > 0:  # NaN too
            parts.append(f"no better than {name} ({points})")
        elif gain < chance:
            parts.append(
                f"not clearly better than {name} ({points}; two standard errors: {chance:.1f})"
            )
        else:
            parts.append(f"better than {name} ({points})")
    return f"- {METHODS[probe.name]}: the pretrained encoder is {' and '.join(parts)}."


def masked_error(evaluator: MaskedError) -> str:
    """The held-out error beside both naive predictors, with a verdict."""
    values, bench = evaluator.values, evaluator.bench
    names = CODE_PREDICTORS if evaluator.codes else PREDICTORS
    body = [[names[name], f"{value:.4f}"] for name, value in values.items()]
    lines = [
        f"Held-out error: {bench.task.error_name}, {len(bench.test):,} test images.",
        "",
        *markdown(["predictor", "error"], body),
        "",
    ]
    naive = {name: value for name, value in values.items() if name != "masked_error"}
    if naive:
        ours, best = values["masked_error"], min(naive, key=lambda name: naive[name])
        if ours < naive[best]:  # False for NaN too
            share = 100 * (1 - ours / naive[best])
            lines += [f"- The model's error is {share:.0f} % below that of the {names[best]}."]
        else:
            lines += [
                f"- The model is no better than the {names[best]} "
                f"({ours:.4f} against {naive[best]:.4f})."
            ]
        lines.append("")
    return "\n".join(lines)


def markdown(header: list[str], body: list[list[str]]) -> list[str]:
    """Lines of a table whose columns are aligned, so that it reads as plain text too."""
    widths = [max(len(row[i]) for row in [header, *body]) for i in range(len(header))]
    line = lambda row: "| " + " | ".join(c.ljust(w) for c, w in zip(row, widths)) + " |"
    return [line(header), line(["-" * w for w in widths]), *map(line, body)]
