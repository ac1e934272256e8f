"""The progress line's rates, and the boards beside metrics.jsonl."""

import io
import json
import subprocess
import sys
import types
from unittest import mock

import helpers
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

from mimjax import plugs, schema
from mimjax.errors import ConfigError
from mimjax.run.sections import Boards
from mimjax.storage.files import Workdir
from mimjax.train import boards, loop, metrics


def test_rates_between_two_lines(monkeypatch):
    """Ten steps of 64 images in four seconds, one of them waiting, on a chip of known peak."""
    now = [100.0]
    monkeypatch.setattr(metrics.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(metrics.jax, "device_count", lambda: 8)
    monkeypatch.setattr(metrics, "peak_flops", lambda kind: 989e12)
    meter = metrics.Meter(64, 110, flops_per_step=0.4 * 0.5 * 989e12, clip_norm=1.0)
    meter.start(10)
    now[0], meter.waited = 104.0, 1.0
    for norm in [0.5, 1.0] * 3 + [1.5, 2.0, 3.0, jnp.float32(7)]:
        meter.count({"grad_norm": jnp.float32(norm)})
    values = meter.read(20)
    assert values["img_per_sec"] == pytest.approx(160)
    assert values["img_per_sec_per_device"] == pytest.approx(20)
    assert values["data_wait"] == pytest.approx(0.25)
    assert values["eta_s"] == pytest.approx(36)
    assert values["mfu"] == pytest.approx(0.5)
    assert values["clip_share"] == pytest.approx(0.4)  # above the norm, not at it
    line = metrics.progress(20, 110, values | {"epoch": 1.0, "loss/total": 0.5, "lr": 1e-3})
    for part in ("160 img/s (20 per device)", "MFU 50.0 %", "data wait 25 %", "ETA 0:00:36"):
        assert part in line
    assert "clipped 40 % of steps" in line
    assert meter.read(20) == {}  # no step since


def test_saving_and_evaluating_are_no_time_of_training(monkeypatch):
    """Ten steps take five seconds, with a save of 30 seconds and an evaluation of 7 among them."""
    now = [100.0]
    monkeypatch.setattr(metrics.time, "perf_counter", lambda: now[0])
    meter = metrics.Meter(64, 110, flops_per_step=None)
    meter.start(10)
    for seconds in (30.0, 7.0):
        now[0] += 2.0
        with meter.paused({"loss/total": jnp.float32(1)}):
            now[0] += seconds
    now[0] += 1.0
    values = meter.read(20)
    assert values["img_per_sec"] == pytest.approx(64 * 10 / 5)
    assert values["eta_s"] == pytest.approx(90 / 2)


def test_the_loop_pauses_the_clock_while_it_saves_and_evaluates(monkeypatch):
    """The clock moves only where a step is made, a checkpoint saved or an evaluator run."""
    now, read = [100.0], {}
    monkeypatch.setattr(metrics.time, "perf_counter", lambda: now[0])

    def tick(seconds, value=None):
        now[0] += seconds
        return value

    run = mock.MagicMock()
    run.setup.config = ConfigDict({"log_every": 4, "checkpoint_every": 2, "eval": {"every": 5}})
    run.setup.config.profile = ConfigDict({"steps": None})
    run.setup.clock.total_steps, run.setup.data.bad_files.counts.return_value = 8, {}
    run.feed.return_value.__enter__.return_value = iter([{}] * 8)
    run.save.side_effect = lambda state: tick(100.0)
    monkeypatch.setattr(loop, "evaluate", lambda *_: tick(1000.0))
    monkeypatch.setattr(loop, "report", lambda r, m, step, v: read.update({step: m.read(step)}))
    monkeypatch.setattr(loop.sharding, "to_global", lambda mesh, batch: batch)
    monkeypatch.setattr(metrics, "fetch", lambda *_: {})
    state = types.SimpleNamespace(step=0)
    loop.advance(run, lambda *_: tick(2.0, (state, {})), metrics.Meter(64, 8, None), state)
    assert [read[step]["img_per_sec"] for step in (1, 4, 8)] == pytest.approx([64 / 2] * 3)


def test_without_clipping_or_a_known_peak_neither_is_reported():
    meter = metrics.Meter(8, 10, flops_per_step=1e9)
    meter.start(0)
    meter.count({"grad_norm": jnp.float32(9.0)})
    assert not {"clip_share", "mfu"} & meter.read(1).keys()
    assert metrics.peak_flops("NVIDIA H200") == 989e12
    assert metrics.peak_flops("cpu") is None


@pytest.fixture
def wandb(monkeypatch):
    """A module that writes down what is asked of it."""
    calls = []

    def record(name):
        return lambda *args, **kwargs: calls.append((name, args, kwargs))

    def init(**kwargs):
        calls.append(("init", (), kwargs))
        run = {n: record(n) for n in ("log", "finish", "define_metric")}
        return types.SimpleNamespace(**run)

    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(init=init))
    return calls


@pytest.mark.parametrize("mode", ["offline", "online"])
def test_wandb_gets_every_number_and_a_restart_continues(wandb, tmp_path, mode):
    workdir = Workdir(str(tmp_path / "mine"))
    for step in (1, 2):
        log = metrics.Log(workdir)
        board = boards.WandB(mode, "faces")
        log.boards = boards.open_boards([board], workdir, {"epochs": 3})
        log.write(step, {"loss/total": 0.5})
        log.close()
    first, second = (kwargs for name, _, kwargs in wandb if name == "init")
    assert first == second  # the same id: the same run there
    assert (first["mode"], first["project"], first["name"]) == (mode, "faces", "mine")
    assert (first["dir"], first["config"]) == (str(tmp_path / "mine"), {"epochs": 3})
    assert first["resume"] == "allow"
    logged = [args[0] for name, args, _ in wandb if name == "log"]
    assert logged == [{"step": s, "loss/total": 0.5} for s in (1, 2)]
    assert [name for name, *_ in wandb].count("finish") == 2
    rows = [json.loads(x) for x in (tmp_path / "mine" / "metrics.jsonl").read_text().splitlines()]
    assert rows == logged  # the file has the same lines


def test_wandb_is_not_touched_unless_asked_for(wandb, tmp_path):
    shipped = Boards().by_name
    for board in shipped.values():
        board.check("boards")
    (board,) = boards.open_boards(shipped.values(), Workdir(str(tmp_path)), {})
    assert isinstance(board, boards.TensorBoard)
    board.close()
    reader = Workdir(str(tmp_path), writer=False)
    assert boards.open_boards([boards.WandB("online"), board], reader, {}) == []
    assert wandb == []


def test_wandb_wanted_and_missing_is_one_clear_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(
        ConfigError, match=r'^boards.wandb.mode: \'online\', but .*pip install "mimjax\[wandb\]"'
    ):
        boards.WandB("online").check("boards.wandb")
    wanted = {"wandb": schema.section(boards.WandB, mode="yes")}
    with pytest.raises(
        ConfigError, match=r"^boards.wandb.mode: 'yes'; allowed: off, offline, online"
    ):
        schema.build(Boards, wanted, "boards")


USERS = """
import dataclasses
from typing import Annotated

from mimjax.train.boards import Board
from mimjax.values import Text


@dataclasses.dataclass
class Lines(Board):
    name: Annotated[str, Text("a file's name")] = "lines.txt"

    def open(self, workdir, config, step):
        self.workdir, self.seed = workdir, config["seed"]

    def write(self, step, values):
        self.workdir.append(self.name, f"{self.seed} {step} {sorted(values)[0]}")
"""


def test_a_board_of_a_user_s_own_file(tmp_path):
    """The user's board stands beside the shipped ones, of which one is taken away."""
    (tmp_path / "mine.py").write_text(USERS)
    c = helpers.small("mae", seed=5)
    own = plugs.find_plug(boards.Board, f"{tmp_path}/mine.py:Lines", "boards.lines")
    c.boards.lines = schema.section(own, name="mine.txt")
    c.boards.tensorboard = None
    wanted = schema.build(Boards, c.boards, "boards").by_name
    assert set(wanted) == {"wandb", "lines"}
    log = metrics.Log(Workdir(str(tmp_path / "run")))
    log.boards = boards.open_boards(wanted.values(), log.workdir, c.to_dict(), np.int32(3))
    log.write(4, {"loss": 0.5})
    log.picture("a_0000004.png", b"")  # the base class shows none
    log.truncate(3)
    log.close()
    assert (tmp_path / "run/mine.txt").read_text() == "5 4 loss\n"
    c.boards.lines.nmae = "x"
    with pytest.raises(ConfigError, match=r"^boards.lines.nmae: unknown; allowed: name"):
        schema.build(Boards, c.boards, "boards")
    c.boards.lines.type = "mimjax.train.boards:Nothing"
    with pytest.raises(ConfigError, match=r"^boards.lines.type: .*Nothing"):
        schema.build(Boards, c.boards, "boards")


def events(folder):
    """Read event files by their own format: lengths, checksums, protocol buffers; oldest first."""
    from tensorboardX.proto.event_pb2 import Event

    found = []
    for file in sorted(folder.glob("events.out.tfevents.*"), key=lambda p: p.stat().st_mtime_ns):
        data = file.read_bytes()
        while data:
            size = int.from_bytes(data[:8], "little")
            found.append(Event.FromString(data[12 : 12 + size]))
            data = data[16 + size :]
    return found


def curve(folder):
    """What TensorBoard draws: a mark takes back the points from its step on."""
    points = []
    for event in events(folder):
        if event.HasField("session_log"):
            points = [(s, v) for s, v in points if s < event.step]
        points += [(event.step, v.simple_value) for v in event.summary.value if v.tag == "loss"]
    return points


def test_tensorboard_goes_on_after_a_restart_and_a_rollback(tmp_path):
    """The run is killed after step 5 with a checkpoint of step 2, and later goes back to step 3."""
    workdir = Workdir(str(tmp_path))
    for start, last in ((0, 5), (2, 4)):
        log = metrics.Log(workdir)
        log.boards = boards.open_boards([boards.TensorBoard()], workdir, {}, step=start)
        for step in range(start and start + 1, last + 1):
            log.write(step, {"loss": step + start / 16})
        if start:
            log.truncate(3)
            log.write(4, {"loss": 9.0})
            data = io.BytesIO()
            Image.new("RGB", (6, 4), (255, 0, 0)).save(data, "PNG")
            log.picture("reconstruction_0000004.png", data.getvalue())
        log.close()
    assert curve(tmp_path) == [(0, 0), (1, 1), (2, 2), (3, 3.125), (4, 9)]
    marks = [e.step for e in events(tmp_path) if e.HasField("session_log")]
    assert marks == [0, 3, 4]
    pictures = [(e.step, v) for e in events(tmp_path) for v in e.summary.value if v.image.width]
    ((step, value),) = pictures
    assert (step, value.tag, value.image.width, value.image.height) == (4, "reconstruction", 6, 4)
    assert (tmp_path / "pictures/reconstruction_0000004.png").exists()


@pytest.mark.gate
def test_the_board_does_not_load_torch():
    """TensorboardX would load torch where it is installed: seconds at every start."""
    code = (
        "import sys; from mimjax.train import boards; boards.summary_writer();"
        "assert 'torch' not in sys.modules; import torch; assert torch.__version__"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=helpers.ROOT, check=False)
    assert done.returncode == 0
