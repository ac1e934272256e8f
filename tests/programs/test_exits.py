"""The table of exit codes, and which error has which."""

import os
import subprocess
import sys

import pytest

from mimjax.errors import ConfigError, Exit, PeerError, RunError, code_of
from mimjax.train.metrics import NonFiniteError


def test_the_table():
    codes = {code.name: int(code) for code in Exit}
    assert codes == {
        "DONE": 0,
        "ERROR": 1,
        "REFUSED": 2,
        "STOPPED": 75,
        "NO_ANSWER": 76,
        "INTERRUPTED": 130,
        "UNREAD": 141,
        "ENDED": 143,
    }


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ConfigError("lr: -1"), 2),
        (RunError("no space"), 1),
        (NonFiniteError("loss", [], 3), 1),
        (OSError(28, "No space left"), 1),
        (PeerError("process 1"), 76),
    ],
)
def test_errors(error, code):
    assert code_of(error) == code


@pytest.mark.parametrize("words", [("--help",), ("config", "--config=mae")])
def test_a_program_before_head_ends_quietly(words):
    read, write = os.pipe()
    os.close(read)  # nobody reads
    command = [sys.executable, "-m", "mimjax", *words]
    run = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, text=True, timeout=60)
    os.close(write)
    assert run.returncode == 141
    assert "roken" not in run.stderr
    assert "Traceback" not in run.stderr
