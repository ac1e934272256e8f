"""Side-by-side timing: separate processes, one step in turn, order reversed.

Every contender is its own warmed-up process pinned to one core. The parent asks each in turn for
one step, so that whatever else the machine does hits all alike; the order is reversed each round.
Reported are medians of wall and process CPU time and a bootstrap interval of their ratio.
"""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from mimjax.programs import allocator


def serve(make: Callable[[], Callable[[], float]], core: int, warmup: int = 2) -> None:
    """Serve as a contender's process: build the step, warm up, answer each line with a timed step.

    Args:
      make: () -> step; imports its framework inside, after the process is pinned, because thread
        pools are sized by the cores they find.
      warmup: steps before the first answer; the first of them compiles.
    """
    os.sched_setaffinity(0, {core})
    allocator.keep()  # as our programs do; PyTorch gains from it, too
    step = make()
    for _ in range(warmup):
        step()
    print(json.dumps({"ready": True}), flush=True)
    for _ in sys.stdin:
        wall, cpu = time.perf_counter(), time.process_time()
        value = step()
        row = {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu, "loss": value}
        print(json.dumps(row), flush=True)


@dataclasses.dataclass
class Contender:
    """A running process and the times it reported, seconds per step."""

    name: str
    process: subprocess.Popen
    wall: list[float] = dataclasses.field(default_factory=list)
    cpu: list[float] = dataclasses.field(default_factory=list)
    loss: float = float("nan")

    @classmethod
    def start(
        cls, name: str, arguments: Sequence[str], program: str = "benchmarks.step"
    ) -> Contender:
        """Start `python -m PROGRAM` with these arguments and wait until it is warm."""
        command = [sys.executable, "-m", program, *arguments]
        pipe = subprocess.PIPE
        self = cls(name, subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True))
        self.answer()
        return self

    def answer(self) -> dict:
        """Return the next JSON line; frameworks print other lines too."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith("{"):
                return json.loads(line)
        raise RuntimeError(f"{self.name}: ended with exit code {self.process.wait()}")

    def step(self) -> None:
        """Let the process make one step, and note its times."""
        assert self.process.stdin is not None
        self.process.stdin.write("step\n")
        self.process.stdin.flush()
        row = self.answer()
        self.wall.append(row["wall"])
        self.cpu.append(row["cpu"])
        self.loss = row["loss"]

    def close(self) -> None:
        """End the process."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(30)

    def summary(self) -> dict[str, Any]:
        """Return medians, minima and all times in seconds, and the last loss."""
        out: dict[str, Any] = {"loss": self.loss}
        for name in ("wall", "cpu"):
            times = getattr(self, name)
            out |= {f"{name}_median": float(np.median(times)), f"{name}_min": min(times)}
            out[name] = [round(t, 4) for t in times]
        return out


def play(contenders: Sequence[Contender], rounds: int) -> None:
    """Time `rounds` steps of each contender in turn; every second round goes backwards."""
    for i in range(rounds):
        for contender in contenders if i % 2 == 0 else contenders[::-1]:
            contender.step()


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> dict[str, float]:
    """Return the ratio of medians and its 95 % bootstrap interval over rounds, pair by pair."""
    a, b = np.asarray(ours), np.asarray(theirs)
    rows = np.random.default_rng(0).integers(0, len(a), (10_000, len(a)))
    draws = np.median(a[rows], axis=1) / np.median(b[rows], axis=1)
    low, high = np.quantile(draws, (0.025, 0.975))
    value = float(np.median(a) / np.median(b))
    return {"ratio": value, "low": float(low), "high": float(high)}
