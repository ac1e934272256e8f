"""Every method under one budget on shifted digits: `python -m benchmarks.scoreboard --output=DIR`.

Each cell pretrains a method with one seed (equal optimizer steps and batch, the settings of its
demo) and scores the encoder with `mimjax evaluate`; tokenizers and teachers are cells of their own,
whose time is listed. Cells run in `--jobs` processes of one core each and are written as they come:
the same command continues, and trains or evaluates nothing twice.

The table ranks no method for ImageNet: thousands of small images and minutes of training do not
tell what hundreds of epochs do.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import pathlib
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from mimjax.evaluators.table import markdown
from mimjax.run.demos import DEMOS

DATA = "shifted_digits"
METHODS = ("mae", "bootmae", "beit", "cae", "caev2", "mcmae", "mrmae")
FIRST = {"beit": "dvae", "cae": "dvae", "caev2": "mae", "mrmae": "mae"}  # as in the Makefile
# folder -> protocols; the heads on tokens cost most, and have settings of the scoreboard's own
PROTOCOLS = {"vectors": "knn,linear", "attentive": "attentive", "ep": "ep"}
TITLES = {"knn": "k-NN", "linear": "linear", "attentive": "attentive", "ep": "EP"}
NAMES = {
    "mae": "MAE",
    "bootmae": "BootMAE",
    "beit": "BEiT",
    "cae": "CAE",
    "caev2": "CAE v2",
    "mcmae": "MCMAE",
    "mrmae": "MR-MAE",
}
RAW = "raw_pixels"
CLAIM = (
    "The table ranks no method for ImageNet: it says what a few minutes of training give on "
    "7,800 images of shifted digits, with the settings of each method's demo."
)


class Cell(NamedTuple):
    """A method, or a tokenizer, with one seed."""

    method: str
    seed: int

    @property
    def name(self) -> str:
        """The name of its workdir."""
        return f"{self.method}_{self.seed}"

    @property
    def first(self) -> Cell | None:
        """The cell whose workdir its targets are read from."""
        return Cell(FIRST[self.method], self.seed) if self.method in FIRST else None


class Work:
    """The processes of a cell, one after the other: training, then evaluation."""

    def __init__(self, cell: Cell, args: argparse.Namespace, core: int | None):
        self.cell, self.args, self.core = cell, args, core
        self.place = args.output / cell.name
        self.steps = [self.train()]
        rows = "pretrained,untrained" + (f",{RAW}" if cell.method == METHODS[0] else "")
        if cell.method in METHODS:  # raw pixels depend on no method
            self.steps += [self.evaluate(rows, kind) for kind in PROTOCOLS]
        known = self.record().get("done", [])
        self.steps = [words for words in self.steps if words not in known]
        self.process: subprocess.Popen[bytes] | None = None

    def train(self) -> list[str]:
        """Return the command that pretrains, or continues."""
        path = f",path={self.args.output / self.cell.first.name}" if self.cell.first else ""
        return [
            "train",
            f"--config=configs/{self.cell.method}.py:demo,data={DATA}{path}",
            f"--workdir={self.place}",
            f"--config.seed={self.cell.seed}",
            "--config.data.source.part=b",  # settings of the demos were chosen on part a
            f"--config.steps={self.args.steps}",
            "--config.eval.every=0",
            "--config.eval.probes=None",
        ]

    def evaluate(self, rows: str, kind: str) -> list[str]:
        """Return the command that scores rows by the protocols of a kind."""
        words = [
            "evaluate",
            f"--model={self.place}",
            f"--output={self.place / kind}",
            f"--rows={rows}",
            f"--protocols={PROTOCOLS[kind]}",
            f"--labels={self.args.labels}",
            f"--seeds={self.cell.seed}",
            "--batch_size=256",
        ]
        if kind != "vectors":
            rates = getattr(self.args, f"{kind}_rates")
            words += [f"--epochs={self.args.epochs}", f"--rates={rates}"]
        return words

    def done(self) -> bool:
        """Return whether all has run; start what is next."""
        if self.process is not None:
            ended, status, used = os.wait4(self.process.pid, os.WNOHANG)
            if not ended:
                return False
            self.process.returncode = os.waitstatus_to_exitcode(status)
            if self.process.returncode:
                raise SystemExit(f"{self.cell.name}: failed; see {self.place}.log")
            self.note(self.steps.pop(0), used.ru_utime + used.ru_stime)
            for kind in PROTOCOLS:  # hundreds of megabytes that no later step reads
                shutil.rmtree(self.place / kind / "features", ignore_errors=True)
        if not self.steps:
            return True
        words = [sys.executable, "-m", "mimjax", *self.steps[0]]
        with open(f"{self.place}.log", "ab") as log:
            self.process = subprocess.Popen(words, stdout=log, stderr=log, preexec_fn=self.pin)
        return False

    def pin(self) -> None:
        """Keep the process on its core."""
        if self.core is not None:
            os.sched_setaffinity(0, {self.core})

    def record(self) -> dict[str, Any]:
        """Return what is known of the cell: CPU seconds by program, and the commands that ran."""
        file = pathlib.Path(f"{self.place}.seconds.json")
        return json.loads(file.read_text()) if file.exists() else {}

    def note(self, words: list[str], seconds: float) -> None:
        """Add a command that ran, and its CPU seconds; those of killed ones are lost."""
        known = self.record()
        known[words[0]] = round(known.get(words[0], 0) + seconds, 1)
        known["done"] = [*known.get("done", []), words]
        pathlib.Path(f"{self.place}.seconds.json").write_text(json.dumps(known) + "\n")


def run(cells: list[Cell], args: argparse.Namespace) -> None:
    """Run the cells, a cell as soon as that of its tokenizer or teacher is done."""
    cores: Sequence[int | None] = [None]
    if args.jobs > 1:
        cores = sorted(os.sched_getaffinity(0))[: args.jobs]
    waiting, done, running = list(cells), set(), {}
    while waiting or running:
        for core, work in list(running.items()):
            if work.done():
                done.add(work.cell)
                del running[core]
                print(f"{datetime.datetime.now():%H:%M:%S} {work.cell.name} is done", flush=True)
                write(args)
        for core in cores:
            ready = [c for c in waiting if c.first is None or c.first in done]
            if core not in running and ready:
                waiting.remove(ready[0])
                running[core] = Work(ready[0], args, core)
                running[core].done()
        time.sleep(0.2)


# ------------------------------------------------------------------ the table
def scores(args: argparse.Namespace, cell: Cell, row: str) -> dict[str, float]:
    """Return the accuracies of a cell's row by protocol; {} = not there yet."""
    out = {}
    for kind in PROTOCOLS:
        file = args.output / cell.name / kind / "evaluation.json"
        found = json.loads(file.read_text())["cells"] if file.exists() else []
        out |= {c["protocol"]: c["top1"] for c in found if c["row"] == row}
    return out


def seconds(args: argparse.Namespace, cell: Cell) -> dict[str, float]:
    """Return the seconds of a cell's programs."""
    file = pathlib.Path(f"{args.output / cell.name}.seconds.json")
    return json.loads(file.read_text()) if file.exists() else {}


def mean_of(values: Sequence[float], sign: bool = False, error: bool = False) -> str:
    """Return a mean and its spread, "70.5 ± 0.3"; "" for no values.

    Args:
      error: the standard error of the mean instead of the standard deviation.
    """
    if not values:
        return ""
    mean = f"{np.mean(values):+.1f}" if sign else f"{np.mean(values):.1f}"
    if len(values) < 2:
        return mean
    spread = np.std(values, ddof=1) / (np.sqrt(len(values)) if error else 1)
    return f"{mean} ± {spread:.1f}"


def rows_of(args: argparse.Namespace, method: str) -> list[list[str]]:
    """Return a method's lines: pretrained, untrained, and their difference of equal seeds."""
    cells = [Cell(method, seed) for seed in args.seeds]
    by_row = {row: [scores(args, c, row) for c in cells] for row in ("pretrained", "untrained")}
    lines = []
    took = [found["train"] for c in cells if "train" in (found := seconds(args, c))]
    for row, found in by_row.items():
        numbers = [mean_of([x[p] for x in found if p in x]) for p in TITLES]
        time_ = f"{np.mean(took):.0f}" if row == "pretrained" and took else ""
        title = NAMES[method] if row == "pretrained" else "  untrained"
        lines.append([title, *numbers, time_])
    pairs = list(zip(by_row["pretrained"], by_row["untrained"], strict=True))
    gains = [[a[p] - b[p] for a, b in pairs if p in a and p in b] for p in TITLES]
    lines.append(["  difference", *(mean_of(x, sign=True, error=True) for x in gains), ""])
    return lines


def table(args: argparse.Namespace) -> str:
    """Return the scoreboard as Markdown, with what is there."""
    header = ["top-1, %", *TITLES.values(), "training, s"]
    body = [line for method in args.methods for line in rows_of(args, method)]
    raw = [scores(args, Cell(METHODS[0], seed), RAW) for seed in args.seeds]
    body.append(["raw pixels", *(mean_of([x[p] for x in raw if p in x]) for p in TITLES), ""])
    teachers = {Cell(FIRST[m], s) for m in args.methods for s in args.seeds if m in FIRST}
    tokenizers = [seconds(args, c) for c in teachers if c.method not in METHODS]
    took = [found["train"] for found in tokenizers if "train" in found]
    lines = [
        f"`{' '.join(['python -m benchmarks.scoreboard', *args.words])}`, {datetime.date.today()}.",
        "",
        *markdown(header, body),
        "",
        f"- {args.steps:,} updates of {DEMOS[DATA].batch_size} images for every method; seeds "
        f"{', '.join(map(str, args.seeds))}: mean ± standard deviation. The difference is that of "
        "equal seeds, ± its standard error.",
        f"- Linear probes are trained for 90 epochs, attentive and EP for {args.epochs}, on "
        f"{args.labels} labels; learning rates are chosen on a tenth of the training images. The "
        "996 test images are part b, on which nothing was chosen.",
        "- CPU seconds of training, start and compilation included. BEiT and CAE read a "
        f"discrete VAE ({mean_of(took) or 'not run'} s of training more), CAE v2 and MR-MAE the "
        "MAE above.",
        f"- {CLAIM}",
    ]
    return "\n".join(lines) + "\n"


def write(args: argparse.Namespace) -> None:
    """Write the table beside the cells."""
    (args.output / "scoreboard.md").write_text(table(args))


def main() -> None:
    """Run what is missing, and write the table after every cell."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--output", type=pathlib.Path, required=True)
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--steps", type=int, help="default: those of the demos")
    parser.add_argument("--epochs", type=int, default=10, help="of attentive and EP heads")
    for kind, rates in (("attentive", "10"), ("ep", "300")):
        parser.add_argument(f"--{kind}_rates", default=rates, help="factors of its learning rates")
    parser.add_argument("--labels", default="all")
    parser.add_argument("--jobs", type=int, default=2, help="processes, of one core each")
    args: Any = parser.parse_args()
    args.words = sys.argv[1:]
    args.methods = args.methods.split(",")
    args.seeds = [int(x) for x in args.seeds.split(",")]
    args.steps = args.steps or DEMOS[DATA].steps
    if wrong := set(args.methods) - set(METHODS):
        parser.error(f"--methods: {', '.join(wrong)}; allowed: {', '.join(METHODS)}")
    args.output = args.output.absolute()
    args.output.mkdir(parents=True, exist_ok=True)
    cells = [Cell(method, seed) for seed in args.seeds for method in args.methods]
    cells += [c.first for c in list(cells) if c.first]
    order = ["dvae", *METHODS]
    run(sorted(set(cells), key=lambda c: (c.seed, order.index(c.method))), args)
    write(args)
    print(table(args))


if __name__ == "__main__":
    main()
