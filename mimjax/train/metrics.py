"""What a run says: metrics.jsonl, TensorBoard events, train.log, the progress line.

One device_get per logged step; values are those of that very step, so a restarted run writes the
same lines.
"""

from __future__ import annotations

import datetime
import json
import math
import time
from typing import Any

import jax

from mimjax.files import Workdir

# bf16 FLOP/s per chip, datasheets
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
    """A loss or norm became NaN or infinite; the message names the steps."""


def peak_flops(kind: str) -> float | None:
    """The chip's bf16 peak, None where it is not known (CPUs)."""
    return next((v for k, v in PEAK_FLOPS.items() if k.lower() in kind.lower()), None)


class Log:
    """Writes what a run says; process 0 only."""

    def __init__(self, workdir: Workdir):
        self.workdir = workdir
        self.board = None
        if workdir.writer and workdir.is_local:
            from tensorboardX import SummaryWriter  # imports protobuf: only where it writes

            self.board = SummaryWriter(str(workdir.path))

    def say(self, text: str) -> None:
        """A line on the screen and in train.log."""
        if self.workdir.writer:
            print(text, flush=True)
            self.workdir.append("train.log", text)

    def write(self, step: int, values: dict[str, float]) -> None:
        """One line of metrics.jsonl and the same values to TensorBoard."""
        row = {"step": step} | {k: _json(v) for k, v in values.items()}
        self.workdir.append("metrics.jsonl", json.dumps(row))
        if self.board is not None:
            for name, value in values.items():
                self.board.add_scalar(name, value, step)
            self.board.flush()

    def truncate(self, step: int) -> None:
        """Drops the lines of updates after `step`: they will be made again."""
        rows = self.workdir.read_lines("metrics.jsonl")
        kept = [json.dumps(r) for r in rows if r["step"] <= step]
        if self.workdir.writer and (rows or self.workdir.file("metrics.jsonl").exists()):
            self.workdir.write_text("metrics.jsonl", "".join(line + "\n" for line in kept))

    def evaluated(self, step: int) -> bool:
        """Whether metrics.jsonl has an evaluation of `step`."""
        rows = self.workdir.read_lines("metrics.jsonl")
        return any(r["step"] == step and any(k.startswith("eval/") for k in r) for r in rows)

    def close(self) -> None:
        if self.board is not None:
            self.board.close()


def _json(value: float) -> float | None:
    value = float(value)
    return value if math.isfinite(value) else None


def fetch(metrics: dict[str, jax.Array], first: int, last: int) -> dict[str, float]:
    """Metrics of update `last` on the host.

    Raises:
      NonFiniteError: a value is NaN or infinite; it arose in updates `first` to `last`.
    """
    values = {k: float(v) for k, v in jax.device_get(metrics).items()}
    bad = [k for k, v in values.items() if not math.isfinite(v)]
    if bad:
        raise NonFiniteError(
            f"{', '.join(sorted(bad))} not finite in steps {first} to {last}; the last good "
            "checkpoint is kept. Lower optimizer.base_lr, or set optimizer.clip_norm or "
            "dtype=float32, and run again"
        )
    return values


class Meter:
    """Images per second and the share of time spent waiting for data, between two log lines."""

    def __init__(self, batch_size: int, total_steps: int, flops_per_step: float | None):
        self.batch_size, self.total = batch_size, total_steps
        self.flops = flops_per_step  # of one device
        self.peak = peak_flops(jax.devices()[0].device_kind)
        self.waited = 0.0
        self.last = (0, time.perf_counter())
        self.rate: float | None = None

    def start(self, step: int) -> None:
        """(Re)starts the clock: after compilation, evaluation, saving."""
        self.last, self.waited = (step, time.perf_counter()), 0.0

    def read(self, step: int) -> dict[str, float]:
        """Rates since the last call; empty if no step was made."""
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
        self.start(step)
        return out


def progress(step: int, total: int, values: dict[str, Any]) -> str:
    """The progress line."""
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
        parts.append(f"{values['bad_files']} bad files skipped")
    if "mfu" in values:
        parts.insert(-2, f"MFU {100 * values['mfu']:.1f} %")
    return " | ".join(parts)
