"""Bars on a terminal, and nothing of them anywhere else."""

import io
import sys

import pytest

from mimjax import progress, stopping


class Terminal(io.StringIO):
    def isatty(self):
        return True


def steps():
    bar = progress.steps(2, 5, quiet=False)
    with bar:
        for _ in range(3):
            bar.update()
            bar.refresh()
        progress.say("a line")


def test_a_run_shows_its_steps_on_a_terminal(monkeypatch, capsys):
    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    steps()
    assert "train: " in screen.getvalue()
    assert "5/5" in screen.getvalue()
    assert capsys.readouterr().out == "a line\n"


def test_pipes_see_lines_alone(capsys):
    steps()
    assert list(progress.track(range(3), "features")) == [0, 1, 2]
    assert capsys.readouterr() == ("a line\n", "")


def test_a_signal_ends_a_loop(monkeypatch):
    signals = stopping.Signals()
    monkeypatch.setattr(stopping, "check", signals.check)
    items = progress.track(range(9), "features")
    assert [next(items) for _ in range(4)] == [0, 1, 2, 3]
    signals.hear(15)
    with pytest.raises(stopping.Stopped):
        next(items)
