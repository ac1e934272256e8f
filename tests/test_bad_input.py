"""Wrong settings through the real command line: one line, the key in it, nothing half-written."""

import json
import os

import helpers
import pytest

MAE, BOOT = "--config=configs/mae.py:demo", "--config=configs/bootmae.py:demo"
SHORT = ["--config.steps=2", "--config.eval.probes=False", "--config.eval.error=False"]
SHORT += ["--config.eval.health=False", "--config.eval.pictures=0", "--config.batch_size=16"]
SHORT += ["--config.optimizer.warmup_steps=0"]

# what is typed -> what the line must name
MISTAKES = {
    "mistyped key": ([MAE, "--config.method.encoder.widht=3"], "config.method.encoder.widht"),
    "unknown section": ([MAE, "--config.optimiser.lr=3"], "config.optimiser"),
    "no such config": (["--config=configs/nothing.py"], "configs/nothing.py"),
    "config argument": (["--config=configs/mae.py:size=xxl"], "size='xxl'"),
    "value of another type": ([MAE, "--config.batch_size=many"], "config.batch_size"),
    "image and patch": ([MAE, "--config.method.encoder.patch=3"], "method.encoder.image_size"),
    "batch and accumulation": ([MAE, "--config.accum=3", "--config.batch_size=16"], "batch_size"),
    "ratio above one": ([MAE, "--config.method.masking.ratio=1.5"], "method.masking.ratio"),
    "ratio that leaves nothing": ([MAE, "--config.method.masking.ratio=0.99"], "masking.ratio"),
    "heads and width": ([MAE, "--config.method.encoder.heads=5"], "method.encoder.heads"),
    "injected layer": ([BOOT, "--config.method.pixel_layer=9"], "method.pixel_layer"),
    "unknown kind of mask": ([MAE, "--config.method.masking.kind=blok"], "method.masking.kind"),
    "missing folder": ([MAE, "--config.data.source=folder", "--config.data.path=/no"], "data.path"),
    "no path": ([MAE, "--config.data.source=folder"], "data.path"),
    "unknown source": ([MAE, "--config.data.source=digit"], "data.source"),
    "warm-up longer than the run": (
        [MAE, "--config.optimizer.warmup_steps=99"],
        "optimizer.warmup",
    ),
    "no teacher": ([MAE, "--config.method.target=features"], "teacher.path"),
    "no tokenizer": (["--config=configs/cae.py:demo"], "teacher.path"),
    "a tokenizer's grid": (
        ["--config=configs/cae.py:demo,path=random", "--config.method.target.size=(12,12)"],
        "method.target.size",
    ),
    "unknown tokenizer": (["--config=configs/beit.py:tokenizer=dallee"], "tokenizer='dallee'"),
    "no such weights": ([MAE, "--config.init_from=/no/file.safetensors"], "/no/file.safetensors"),
    "no such workdir": ([MAE, "--config.resume=/no/workdir"], "resume"),
    "unknown dtype": ([MAE, "--config.dtype=float8"], "dtype"),
    "unknown answer to NaN": ([MAE, "--config.on_nonfinite=skip"], "on_nonfinite: 'skip'"),
    "no retry": ([MAE, "--config.on_nonfinite_retries=0"], "on_nonfinite_retries: 0"),
    "unknown schedule": ([MAE, "--config.optimizer.schedule=poly"], "optimizer.schedule"),
    "mesh that does not fit": ([MAE, "--config.mesh.fsdp=3"], "mesh"),
}


def one_line(out):
    """The error: one line on stderr, no traceback, exit code 1."""
    assert out.returncode == 1, out.stdout + out.stderr
    assert "Traceback" not in out.stderr, out.stderr
    errors = [line for line in out.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, out.stderr
    return errors[0]


@pytest.mark.parametrize("name", MISTAKES)
def test_mistake(name, tmp_path):
    args, key = MISTAKES[name]
    # the mistake stands last, so that it wins over the shortening flags
    out = helpers.run(
        "mimjax.main", args[0], *SHORT, *args[1:], f"--workdir={tmp_path / 'run'}", check=False
    )
    assert key in one_line(out), out.stderr
    for made in ("config.json", "metrics.jsonl", "checkpoints/2"):
        assert not (tmp_path / "run" / made).exists()


def test_batch_not_divisible_by_devices(tmp_path):
    out = helpers.run(
        "mimjax.main",
        MAE,
        "--config.batch_size=12",
        f"--workdir={tmp_path}",
        devices=8,
        check=False,
    )
    assert "batch_size: 12 is not divisible by devices 8" in one_line(out)


def test_empty_folder(tmp_path):
    (tmp_path / "images").mkdir()
    out = helpers.run(
        "mimjax.main",
        MAE,
        "--config.data.source=folder",
        f"--config.data.path={tmp_path / 'images'}",
        f"--workdir={tmp_path / 'run'}",
        check=False,
    )
    line = one_line(out)
    assert "data.path" in line
    assert "images" in line


def test_debug_shows_the_traceback(tmp_path):
    out = helpers.run(
        "mimjax.main", MAE, "--config.accum=0", f"--workdir={tmp_path}", "--debug", check=False
    )
    assert out.returncode != 0
    assert "Traceback" in out.stderr


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("finished")
    helpers.run("mimjax.main", MAE, *SHORT, f"--workdir={workdir}")
    return workdir


@pytest.mark.parametrize(
    ("args", "key"),
    [
        ([BOOT], "task"),
        ([MAE, "--config.method.encoder.depth=2"], "method.encoder.depth"),
        ([MAE, "--config.method.pixel_norm=channel"], "method.pixel_norm"),
        ([MAE, "--config.method.target=pca", "--config.method.pca_components=4"], "method."),
    ],
)
def test_workdir_of_another_model(finished, args, key):
    before = {
        p: p.read_bytes() for p in finished.rglob("*") if p.is_file() and p.name != "train.log"
    }
    out = helpers.run(
        "mimjax.main", args[0], *SHORT, *args[1:], f"--workdir={finished}", check=False
    )
    line = one_line(out)
    assert key in line
    assert "was made with" in line
    after = {p: p.read_bytes() for p in before}
    assert before == after


def test_other_changes_are_applied_and_shown(finished):
    out = helpers.run(
        "mimjax.main",
        MAE,
        *SHORT,
        "--config.steps=4",
        "--config.log_every=1",
        f"--workdir={finished}",
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


def test_non_finite_loss_stops_and_keeps_the_last_good_checkpoint(tmp_path):
    """A learning rate that overflows: the steps are named, no bad checkpoint is written."""
    args = [MAE, *SHORT, "--config.checkpoint_every=1", "--config.log_every=3"]
    helpers.run("mimjax.main", *args, f"--workdir={tmp_path}")
    out = helpers.run(
        "mimjax.main",
        *args,
        "--config.steps=9",
        "--config.optimizer.lr=1e38",
        f"--workdir={tmp_path}",
        check=False,
    )
    line = one_line(out)
    assert "not finite in steps 3 to" in line
    assert "last good checkpoint" in line
    kept = sorted(int(n) for n in os.listdir(tmp_path / "checkpoints") if n.isdigit())
    assert kept[-1] == int(line.split("in steps ")[1].split()[0]) - 1
