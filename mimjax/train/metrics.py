"""The records of a run: metrics.jsonl, train.log, boards and the progress line.

One device_get is made per logged step. Losses and norms are those of that step alone, so a
restarted run writes the same lines; rates and shares are those since the line before. What a run
says once, at its start and end, stands in `run.messages`; the boards themselves in `train.boards`.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import math
import time
from collections.abc import Iterator
from typing import Any

import jax

from mimjax import progress as bars
from mimjax.storage.files import Workdir
from mimjax.train.boards import Board

# dense bfloat16 FLOP/s of one chip, from the makers' data sheets
PEAK_FLOPS = {
    "H200": 989e12,
    "H100": 989e12,
    "A100": 312e12,
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5e": 197e12,
    "TPU v5p": 459e12,
    "TPU v5": 459e12,
    "TPU v6": 918e12,
}


class NonFiniteError(RuntimeError):
    """A loss or norm became NaN or infinite; the message names the steps.

    Attributes:
      names: names of the metrics that are not finite.
      last: number of the update whose metrics were fetched.
    """

    def __init__(self, message: str, names: list[str], last: int):
        super().__init__(message)
        self.names, self.last = names, last


def peak_flops(kind: str) -> float | None:
    """Return the bfloat16 FLOP/s of a chip; None where they are not known (CPUs).

    Args:
      kind: name of the chip, as `jax.Device.device_kind` has it.
    """
    return next((v for k, v in PEAK_FLOPS.items() if k.lower() in kind.lower()), None)


class Log:
    """Writer of a run's screen, train.log, metrics.jsonl, pictures and boards; process 0 only.

    Attributes:
      boards: receive the numbers of every line of metrics.jsonl too.
      pending: lines that wait for `begin` before they are written to train.log; None = none wait,
        each line is written at once.
    """

    def __init__(self, workdir: Workdir, deferred: bool = False, quiet: bool = False):
        """Make a log of `workdir`.

        Args:
          deferred: write no file before `begin`.
          quiet: of the lines that `say` gets, show warnings alone on the screen.
        """
        self.workdir, self.quiet = workdir, quiet
        self.boards: list[Board] = []
        self.pending: list[str] | None = [] if deferred else None

    def begin(self) -> None:
        """Write the pending lines to train.log, and from now on each line at once."""
        lines, self.pending = self.pending, None
        if lines:
            self.workdir.append("train.log", "\n".join(lines))

    def say(self, text: str) -> None:
        """Write a line to the screen and to train.log."""
        if not self.workdir.writer:
            return
        if not self.quiet or text.startswith("WARNING"):
            bars.say(text)
        if self.pending is not None:
            self.pending.append(text)
        else:
            self.workdir.append("train.log", text)

    def end(self, text: str) -> None:
        """Write the line that ends a run to the screen and, with the time, to train.log."""
        if self.workdir.writer:
            bars.say(text)
            self.record(text)

    def record(self, text: str) -> None:
        """Write a line with the time to train.log alone, as errors are on the screen already."""
        now = datetime.datetime.now().astimezone()
        self.workdir.append("train.log", f"{now:%Y-%m-%d %H:%M:%S %z} {text}")

    def write(self, step: int, values: dict[str, float]) -> None:
        """Write the values of a step to metrics.jsonl and to the boards.

        A value that is not finite becomes null in the file.
        """
        self.note(step, {k: _json(v) for k, v in values.items()})
        for board in self.boards:
            board.write(step, values)

    def note(self, step: int, facts: dict[str, Any]) -> None:
        """Write a line to metrics.jsonl that no board draws as a curve."""
        self.workdir.append("metrics.jsonl", json.dumps({"step": step} | facts))

    def warn(self, step: int, text: str, **facts: Any) -> None:
        """Write a warning to screen, train.log and metrics.jsonl, where the report reads it."""
        self.say(f"WARNING: step {step}: {text}")
        self.note(step, {"warning": text} | facts)

    def truncate(self, step: int, rollbacks: bool = False) -> None:
        """Drop the lines of updates after `step` from metrics.jsonl, since they will be made again.

        Args:
          rollbacks: keep the lines about batches that stay left out.
        """
        rows, bad = self.workdir.read_lines("metrics.jsonl")
        if bad and self.workdir.writer:
            kept_as = self.workdir.copy_aside("metrics.jsonl", "broken/metrics.jsonl")
            self.say(
                f"metrics.jsonl: {bad} damaged lines are left out; the file is kept in {kept_as}"
            )
        keep = lambda r: r["step"] <= step or (rollbacks and "nonfinite" in r)
        kept = [json.dumps(r) for r in rows if keep(r)]
        if self.workdir.writer and (rows or self.workdir.file("metrics.jsonl").exists()):
            self.workdir.write_text("metrics.jsonl", "".join(line + "\n" for line in kept))
        for board in self.boards:
            board.rewind(step)

    def picture(self, name: str, data: bytes) -> None:
        """Write a PNG file to pictures/ and to the boards.

        Args:
          name: "what_0001000.png", with the step.
          data: bytes of the file.
        """
        self.workdir.write_bytes(f"pictures/{name}", data)
        what, _, step = name.removesuffix(".png").rpartition("_")
        for board in self.boards:
            board.picture(int(step), what, data)

    def table(self, name: str, text: str) -> None:
        """Write a text file to tables/."""
        self.workdir.write_text(f"tables/{name}", text)

    def evaluated(self, step: int) -> bool:
        """Return whether metrics.jsonl has an evaluation of `step`."""
        rows, _ = self.workdir.read_lines("metrics.jsonl")
        return any(r["step"] == step and any(k.startswith("eval/") for k in r) for r in rows)

    def close(self) -> None:
        """Close the boards."""
        for board in self.boards:
            board.close()
        self.boards = []


def _json(value: float) -> float | None:
    """Return a value as JSON can hold it: None for NaN and infinity."""
    value = float(value)
    return value if math.isfinite(value) else None


def fetch(metrics: dict[str, jax.Array], first: int, last: int) -> dict[str, float]:
    """Return the metrics of update `last` on the host.

    Args:
      metrics: scalars on the devices.
      first: the first update since metrics were fetched before, for the error.

    Raises:
      NonFiniteError: a value is NaN or infinite; it arose in updates `first` to `last`.
    """
    values = {k: float(v) for k, v in jax.device_get(metrics).items()}
    bad = [k for k, v in values.items() if not math.isfinite(v)]
    if bad:
        raise NonFiniteError(
            f"{', '.join(sorted(bad))} not finite in steps {first} to {last}; the last good "
            "checkpoint is kept. Lower optimizer.base_lr, or set optimizer.clip_norm or "
            "dtype=float32, and run again",
            sorted(bad),
            last,
        )
    return values


class Meter:
    """Clock of training between two log lines: rates, waiting for data, share of clipped steps.

    The time of saving and evaluating is left out of the rates (`paused`).

    Attributes:
      waited: seconds spent waiting for batches.
      norms: gradient norm of each step, left on the device until they are read.
    """

    def __init__(
        self,
        batch_size: int,
        total_steps: int,
        flops_per_step: float | None,
        clip_norm: float = 0.0,
    ):
        """Make a meter that stands at step 0.

        Args:
          batch_size: images of an update, on all devices.
          total_steps: of the run, for the time to go.
          flops_per_step: FLOPs of an update on one device; None = unknown.
          clip_norm: of the optimizer; 0 = gradients are never clipped.
        """
        self.batch_size, self.total, self.clip_norm = batch_size, total_steps, clip_norm
        self.flops, self.norms = flops_per_step, []
        self.peak = peak_flops(jax.devices()[0].device_kind)
        self.waited = 0.0
        self.last = (0, time.perf_counter())
        self.rate: float | None = None

    def start(self, step: int) -> None:
        """Start the clock anew at `step`: after compilation, and at every log line."""
        self.last, self.waited, self.norms = (step, time.perf_counter()), 0.0, []

    @contextlib.contextmanager
    def paused(self, metrics: dict[str, jax.Array]) -> Iterator[None]:
        """Stop the clock while the body runs.

        Args:
          metrics: of the last step; the clock stops when they are ready, as that step is training.
        """
        jax.block_until_ready(metrics)
        begin = time.perf_counter()
        try:
            yield
        finally:
            step, since = self.last
            self.last = step, since + time.perf_counter() - begin

    def count(self, metrics: dict[str, jax.Array]) -> None:
        """Note the gradient norm of a step without waiting for it; to be called at every step."""
        if self.clip_norm:
            self.norms.append(metrics["grad_norm"])

    def read(self, step: int) -> dict[str, float]:
        """Return rates and shares since the last call; {} where no step was made since."""
        now = time.perf_counter()
        steps, seconds = step - self.last[0], now - self.last[1]
        if steps <= 0:
            return {}
        per_step = seconds / steps
        out = {
            "img_per_sec": self.batch_size / per_step,
            "img_per_sec_per_device": self.batch_size / per_step / jax.device_count(),
            "data_wait": self.waited / seconds,
            "eta_s": per_step * (self.total - step),
        }
        if self.flops and self.peak:
            out["mfu"] = self.flops / per_step / self.peak
        if self.norms:
            clipped = sum(float(x) > self.clip_norm for x in jax.device_get(self.norms))
            out["clip_share"] = clipped / len(self.norms)
        self.start(step)
        return out


def progress(step: int, total: int, values: dict[str, Any]) -> str:
    """Return the line about a logged step: losses, rate, speed, waiting for data, time to go."""
    terms = [
        f"{k.removeprefix('loss/')} {v:.4f}"
        for k, v in values.items()
        if k.startswith("loss/") and k != "loss/total"
    ]
    parts = [
        f"step {step}/{total} ({100 * step / total:.0f} %)",
        f"epoch {values['epoch']:.1f}",
        f"loss {values['loss/total']:.4f} ({', '.join(terms)})",
        f"lr {values['lr']:.2e}",
    ]
    if "img_per_sec" in values:
        parts += [
            f"{values['img_per_sec']:,.0f} img/s "
            f"({values['img_per_sec_per_device']:,.0f} per device)",
            f"data wait {100 * values['data_wait']:.0f} %",
            f"ETA {datetime.timedelta(seconds=round(values['eta_s']))}",
        ]
    if "bad_files" in values:
        count = values["bad_files"]
        parts.append(f"{count} bad file{'s' * (count != 1)} skipped")
    if "clip_share" in values:
        parts.insert(4, f"clipped {100 * values['clip_share']:.0f} % of steps")
    if "mfu" in values:
        parts.insert(-2, f"MFU {100 * values['mfu']:.1f} %")
    return " | ".join(parts)
