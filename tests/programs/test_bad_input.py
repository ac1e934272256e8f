"""Wrong input on the command line: one line, the key in it, nothing harmed or half-made.

The mistakes stand in `mistakes.py`; pytest prints all of them with their answers at the end.
"""

import contextlib
import json
import os
import re
import shutil
import subprocess

import helpers
import jax
import numpy as np
import pytest
from mistakes import MAE, MISTAKES, SHORT
from PIL import Image
from safetensors.numpy import save_file

from mimjax.errors import Exit
from mimjax.storage.files import Workdir
from mimjax.storage.lock import FILE, RunLock
from mimjax.torch_io.read import load

DISKS = {"full": "64k", "small": "1m", "tight": "3m"}  # of 2-layer runs, 1.7 MiB per checkpoint
LIMIT = ["sh", "-c", 'ulimit -f 0 && exec "$@"', "sh"]  # where no disk can be mounted
CODE = {  # files of a user
    "unfinished": "def get_config(arg=None):\n    c = (1,\n",
    "locked": """from mimjax import schema
from mimjax.run.sections import Settings


def get_config(arg=None):
    c = schema.section(Settings)
    c.lock()
    c.mine = 3
    return c
""",
    "empty_py": "x = 1\n",
    "failing": "import mimjax\n\n1 / 0\n",
}
# what a run that is refused may leave, and what one that fails later may
SAID = {"train.log", "bad_files.txt"}
BEGUN = {"config.json", "parameters.txt", "metrics.jsonl", "report.html", "data_index.npz"}
HALF = (".new", ".part", "-tmp", FILE)


def one_line(out, code=Exit.REFUSED):
    """The error: one line on stderr, no traceback but of a user's module, and the exit code."""
    assert out.returncode == code, out.stdout + out.stderr
    assert ("Traceback" in out.stderr) == ("while it was imported" in out.stderr), out.stderr
    errors = [line for line in out.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, out.stderr
    return errors[0]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("finished")
    helpers.answer("train", MAE, *SHORT, f"--workdir={workdir}", check=True, devices=1)
    return workdir


def mount(place, size):
    """A disk of this size at `place`; whether that is allowed here."""
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "none", str(place)]
    with contextlib.suppress(FileNotFoundError):
        return subprocess.run(command, capture_output=True, check=False).returncode == 0
    return False


@pytest.fixture(scope="module")
def places(finished, tmp_path_factory):
    """Everything that the commands name: runs, folders, weights, disks; and what may be mounted."""
    root = tmp_path_factory.mktemp("places")
    for name in ("images", "broken", "empty", "held"):
        (root / name).mkdir()
    for i in range(12):
        pixels = np.random.default_rng(i).integers(256, size=(16, 16, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(root / f"images/{i}.png")
        (root / f"broken/{i}.jpg").write_bytes(b"no image")
    (root / "file").write_text("text")
    for name, text in CODE.items():
        (root / f"{name}.py").write_text(text)
    for name in ("run", "unreadable", "bare"):
        shutil.copytree(finished, root / name)
    shutil.rmtree(root / "bare/checkpoints")
    for file in (root / "unreadable/checkpoints").rglob("*"):
        if file.is_file():
            file.write_bytes(b"")
    made = {p.name: str(p) for p in root.iterdir()}
    made |= {name: str(root / f"{name}.py") for name in CODE}
    made |= {name: str(root / f"{name}.safetensors") for name in ("foreign", "cut", "headless")}
    save_file({"a.weight": np.zeros((3, 3), np.float32)}, made["foreign"])
    with open(made["foreign"], "rb") as whole, open(made["cut"], "wb") as cut:
        cut.write(whole.read()[:40])
    params = helpers.make(helpers.small("mae"))[1].abstract_state.params
    zeros = jax.tree.map(lambda x: np.zeros(x.shape, np.float32), params)
    save_file(load.to_torch(zeros, "mae"), made["headless"])
    mounted = [name for name, size in DISKS.items() if mount(root / name, size)]
    made |= {name: str(root / name) for name in DISKS}
    if "full" in mounted:
        with contextlib.suppress(OSError), open(root / "full/filler", "wb") as file:
            file.write(bytes(1 << 20))
    lock = RunLock(Workdir(made["held"]))
    lock.acquire(print)
    yield root, made, mounted
    lock.release()
    for name in mounted:
        subprocess.run(["umount", made[name]], check=True)


def files(*roots):
    """Every file's bytes; logs and pulses are appended to, and Python compiles what it imports."""
    found = [p for root in roots for p in root.rglob("*") if p.is_file()]
    found = [p for p in found if p.parent.name != "__pycache__"]
    return {p: p.read_bytes() for p in found if p.name not in ("train.log", FILE)}


def run(mistake, args, limited):
    """The program in this process or, where it must be, as one of its own.

    Args:
      limited: whether every file that it writes ends at 0 bytes.
    """
    if not mistake.alone:
        return helpers.answer(mistake.program, *args)
    env = helpers.environment(mistake.devices) | mistake.env
    command = [*(LIMIT if limited else []), *helpers.command(mistake.program)]
    return subprocess.run(
        [*command, *args],
        cwd=helpers.ROOT,
        env=env,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def marked(name):
    """A mistake that needs a process of its own is for the gate, but for one."""
    mistake = MISTAKES[name]
    if mistake.slow:
        return pytest.param(name, marks=pytest.mark.slow)
    return helpers.gate(name) if mistake.alone and name != "no GPU" else name


@pytest.mark.parametrize("name", map(marked, MISTAKES))
def test_mistake(name, places, tmp_path, record_property):
    root, made, mounted = places
    mistake = MISTAKES[name]
    fill = (made | {"new": str(tmp_path / "new")}).items()

    def filled(text):
        for key, value in fill:
            text = text.replace("{" + key + "}", value)
        return text

    before = files(root, tmp_path)
    limited = mistake.disk and len(mounted) < len(DISKS)
    out = run(mistake, [filled(a) for a in mistake.args], limited)
    line = one_line(out, mistake.code)
    assert filled(mistake.key) in line
    after = files(root, tmp_path)
    assert {p: after.get(p) for p in before} == before
    for place in after.keys() - before.keys():
        named = place.name in SAID | BEGUN or place.name.startswith("events.")
        assert place.name in SAID or (mistake.begun and (named or "checkpoints" in place.parts))
        assert not any(half in str(place.relative_to(place.parents[1])) for half in HALF), place
    for place in {p for top in (root, tmp_path) for p in top.rglob(FILE)}:
        assert place.parent.name == "held"  # no lock is left
    place = str(tmp_path)
    record_property("mistake", f"{name}: {line.replace(place, '').replace(str(root), '')}")


def test_there_are_forty_of_them():
    quick = [m for m in MISTAKES.values() if not m.slow]
    assert len(quick) >= 40
    assert sum(m.alone for m in MISTAKES.values()) == 10
    assert len({(m.program, m.args) for m in MISTAKES.values()}) == len(MISTAKES)


@pytest.mark.gate
def test_debug_shows_the_traceback(tmp_path):
    out = helpers.run(
        "train", MAE, "--config.accum=0", f"--workdir={tmp_path}", "--debug", check=False
    )
    assert out.returncode != 0
    assert "Traceback" in out.stderr


def test_other_changes_are_applied_and_shown(finished, places):
    """Last, after `places` has copied the run."""
    changes = "--config.steps=4", "--config.log_every=1"
    out = helpers.answer(
        "train", MAE, *SHORT, *changes, f"--workdir={finished}", check=True, devices=1
    )
    assert "changed since the last start: steps: 2 -> 4" in out.stdout
    assert "changed since the last start: log_every: 100 -> 1" in out.stdout
    assert "continued from step 2" in out.stdout
    assert "extended from 2 to 4 steps" in out.stdout
    assert json.loads((finished / "config.json").read_text())["steps"] == 4
    report = (finished / "report.html").read_text()
    assert "Changed against configs/mae.py:demo" in report
    assert "<td>steps</td><td>1500</td><td>4</td>" in report
    assert not (finished / "run.lock").exists()
    assert max(helpers.losses(finished)) == 4


@pytest.mark.gate
def test_non_finite_loss_stops_and_keeps_the_last_good_checkpoint(tmp_path):
    """A learning rate that overflows: the steps are named, no bad checkpoint is written."""
    args = [MAE, *SHORT, "--config.checkpoint_every=1", "--config.log_every=3"]
    helpers.answer("train", *args, f"--workdir={tmp_path}", check=True, devices=1)
    changes = "--config.steps=9", "--config.optimizer.lr=1e38"
    out = helpers.answer("train", *args, *changes, f"--workdir={tmp_path}", devices=1)
    line = one_line(out, Exit.ERROR)
    assert "not finite in steps 3 to" in line
    last = (tmp_path / "train.log").read_text().splitlines()[-1]
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d [+-]\d{4} " + re.escape(line), last)
    assert "last good checkpoint" in line
    kept = sorted(int(n) for n in os.listdir(tmp_path / "checkpoints") if n.isdigit())
    assert kept[-1] == int(line.split("in steps ")[1].split()[0]) - 1
