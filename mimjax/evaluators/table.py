"""The table of a run as Markdown: what the pretrained encoder achieves beside naive rivals.

Every number stands beside that of a rival that needs no pretraining, and the text says so where the
model is no better.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from mimjax.evaluators.error import ErrorMeasure
from mimjax.evaluators.probes import Probe
from mimjax.inference.features import ROWS
from mimjax.inference.presentation import error_name
from mimjax.train.run import Evaluation

TITLES = dict(zip(ROWS, ("raw pixels", "untrained encoder", "pretrained encoder")))
METHODS = {"knn": "k-NN", "linear": "linear"}
PREDICTORS = {
    "masked_error": "the model",
    "mean_image_error": "mean training image",
    "visible_mean_error": "mean of the image's visible patches",
}
CODE_PREDICTORS = PREDICTORS | {
    "mean_image_error": "frequencies at the place in training images",
    "visible_mean_error": "frequencies in the image's visible patches",
}


def render(evaluators: Sequence[Evaluation]) -> str:
    """Return Markdown with the results of the evaluators' last call, "" where there are none."""
    measures = [e.measure for e in evaluators]
    probes: dict[int, list[Probe]] = {}  # those of one section have their features in common
    for probe in measures:
        if isinstance(probe, Probe) and probe.scores:
            probes.setdefault(id(probe.bank), []).append(probe)
    parts = [accuracies(group) for group in probes.values()]
    parts += [masked_error(e) for e in measures if isinstance(e, ErrorMeasure) and e.values]
    return "\n".join(parts)


def accuracies(probes: Sequence[Probe]) -> str:
    """Return the table of k-NN and linear accuracies, how they were chosen, and a verdict on each.

    Args:
      probes: the classifiers of one section.
    """
    bench = probes[0].bank.bench
    train, test = map(len, probes[0].bank.labels)  # without images that have no label
    header = ["features"]
    for p in probes:
        header += [f"{METHODS[p.kind]}, %", "chosen"]
    cells = lambda s: (f"{s.accuracy:.2f}", f"{s.features}, {s.setting}")
    body = [[TITLES[row], *(x for p in probes for x in cells(p.scores[row]))] for row in ROWS]
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


def verdict(probe: Probe, test: int) -> str:
    """Return a sentence that compares the pretrained encoder with the rows without training.

    Args:
      test: the number of test images.
    """
    ours, parts = probe.scores["pretrained"].accuracy, []
    for row, name in (("untrained", "the untrained encoder"), ("raw_pixels", "raw pixels")):
        other = probe.scores[row].accuracy
        # Two standard errors of the difference, as if the two were scored on different images.
        chance = 200 * math.sqrt(sum(p * (1 - p) for p in (ours / 100, other / 100)) / test)
        gain = ours - other
        points = f"{gain:+.2f} points"
        if math.isnan(gain):
            parts.append(f"not comparable with {name} (features that are not finite)")
        elif not gain > 0:
            parts.append(f"no better than {name} ({points})")
        elif gain < chance:
            parts.append(
                f"not clearly better than {name} ({points}; two standard errors: {chance:.1f})"
            )
        else:
            parts.append(f"better than {name} ({points})")
    return f"- {METHODS[probe.kind]}: the pretrained encoder is {' and '.join(parts)}."


def masked_error(measure: ErrorMeasure) -> str:
    """Return the table of the held-out error and both naive predictors, with a verdict."""
    values, bench = measure.values, measure.bench
    names = CODE_PREDICTORS if measure.codes else PREDICTORS
    body = [[names[name], f"{value:.4f}"] for name, value in values.items()]
    lines = [
        f"Held-out error: {error_name(bench.task)}, {len(bench.test):,} test images.",
        "",
        *markdown(["predictor", "error"], body),
        "",
    ]
    naive = {name: value for name, value in values.items() if name != "masked_error"}
    if naive:
        ours, best = values["masked_error"], min(naive, key=lambda name: naive[name])
        if ours < naive[best]:  # False where one of them is NaN
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
    """Return the lines of a table with aligned columns, which reads well as plain text too."""
    widths = [max(len(row[i]) for row in [header, *body]) for i in range(len(header))]
    line = lambda row: "| " + " | ".join(c.ljust(w) for c, w in zip(row, widths)) + " |"
    return [line(header), line(["-" * w for w in widths]), *map(line, body)]
