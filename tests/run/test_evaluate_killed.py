"""`mimjax evaluate` killed in the middle: the same command gives the table of one that was not."""

import json
import re
import signal
import time

import helpers
import pytest

pytestmark = pytest.mark.gate
SHORT = ["--config.steps=1", "--config.eval.every=0", "--config.batch_size=16"]
SHORT += ["--config.optimizer.schedule.warmup_steps=0", "--config.eval.error=None"]
SHORT += ["--config.eval.probes=None", "--config.eval.health=None", "--config.eval.pictures=None"]
SHORT += [f"--config.method.encoder.{k}" for k in ("width=16", "depth=1", "heads=2")]


def cells(folder):
    return json.loads((folder / "evaluation.json").read_text())["cells"]


KNN = ["--protocols=knn,ep", "--queries=4", "--epochs=20", "--count=201"]
TUNE = ["--protocols=fine_tune", "--rows=pretrained", "--epochs=40", "--count=201"]


@pytest.mark.parametrize(
    ("asked", "moments"),
    [
        (
            KNN,
            [
                lambda out: any(out.glob("features/*/patches_block_0.f32")),  # in the features
                lambda out: (out / "evaluation.json").exists(),  # in the heads
                lambda out: len(cells(out)) > 2,
            ],
        ),
        (TUNE, [lambda out: any(out.glob("fine_tune/*/rate_1/checkpoints/[1-9]*[05]"))]),
    ],
    ids=["heads", "encoder"],
)
def test_kill_9(asked, moments, tmp_path):
    run, whole, killed = (tmp_path / name for name in ("run", "whole", "killed"))
    words = "--config=configs/mae.py:demo", *SHORT, f"--workdir={run}"
    helpers.answer("train", *words, check=True, devices=1)
    words = [f"--model={run}", *asked]
    helpers.run("evaluate", *words, f"--output={whole}")
    for moment in moments:
        process = helpers.start("evaluate", *words, f"--output={killed}")
        deadline = time.time() + 240
        while not moment(killed):
            assert process.poll() is None, "the evaluation ended before it could be killed"
            assert time.time() < deadline
            time.sleep(0.001)
        process.send_signal(signal.SIGKILL)
        process.wait()
    out = helpers.run("evaluate", *words, f"--output={killed}")
    assert len(moments) < 2 or "results are kept" in out.stdout
    for log in killed.glob("fine_tune/*/rate_1/train.log"):
        assert re.search(r"weights: continued from step [1-9]", log.read_text())
    table = (whole / "evaluation.md").read_text()
    assert (killed / "evaluation.md").read_text() == table
    assert not (killed / "run.lock").exists()
