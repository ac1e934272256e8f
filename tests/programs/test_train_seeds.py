"""`mimjax train --seeds`: a run for each seed, each of which continues by itself."""

import json

import helpers
import pytest
from train import inside

from mimjax.errors import ConfigError
from mimjax.programs import train as program

WORDS = ["--config=mae:demo", "--config.steps=2", "--config.batch_size=16", "--config.log_every=1"]
WORDS += [f"--config.eval.{name}=None" for name in ("probes", "error", "pictures", "health")]
WORDS += [f"--config.method.{k}" for k in ("encoder.depth=1", "encoder.width=32")]
WORDS += ["--config.method.decoder.depth=1", "--config.optimizer.schedule.warmup_steps=0"]


@pytest.mark.gate
def test_each_seed_has_its_own_run(tmp_path, monkeypatch):
    inside.quick(monkeypatch)
    helpers.program("train", *WORDS, f"--workdir={tmp_path}", "--seeds=1,3")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["seed_1", "seed_3"]
    for run in tmp_path.iterdir():
        assert json.loads((run / "config.json").read_text())["config_file"] == "mae:demo"
    one, three = (helpers.losses(tmp_path / f"seed_{n}") for n in (1, 3))
    assert one.keys() == three.keys() == {1, 2}
    assert one != three
    helpers.program("train", *WORDS, f"--workdir={tmp_path}/alone", "--config.seed=3")
    assert helpers.losses(tmp_path / "alone") == three
    helpers.program("train", *WORDS, f"--workdir={tmp_path}", "--seeds=1,3")
    log = (tmp_path / "seed_3/train.log").read_text()
    assert "continued from step 2" in log
    assert "changed since the last start" not in log


@pytest.mark.parametrize(
    ("words", "seed", "said"),
    [
        (["0", "1", "0"], 0, "--seeds: 0,1,0: one is given twice"),
        (["1"], 4, "--config.seed: 4, beside --seeds"),
        (["x"], 0, "--seeds: 'x'; allowed: integers from 0 to"),
        (["-1"], 0, "--seeds: '-1'; allowed: integers from 0 to"),
    ],
)
def test_refused(words, seed, said):
    with pytest.raises(ConfigError) as found:
        program.seeded(words, seed, 0, "runs")
    assert str(found.value).startswith(said)
