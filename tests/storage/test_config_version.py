"""Settings of older versions: what a workdir of before means today."""

import json

import helpers
import pytest
from ml_collections import ConfigDict

from mimjax import schema
from mimjax.data.configured import source_config
from mimjax.data.sources import Digits, Folder, Photos, Synthetic, Tfds
from mimjax.run import changes
from mimjax.run.sections import Boards
from mimjax.schedules import BEiTCosine, Constant, MAECosine
from mimjax.storage import config_version, settings
from mimjax.storage.files import Workdir
from mimjax.train.boards import TensorBoard, WandB
from mimjax.train.optimizers import AdamW, OptimizerConfig

OLD = json.loads((helpers.ROOT / "tests/golden/configs_version_2.json").read_text())


def upgraded(name="mae", **sections):
    """A published config of version 2 with other settings, as this version reads it."""
    old = dict(OLD[name])
    for key, value in sections.items():
        old[key] = old[key] | value if isinstance(value, dict) else value
    return config_version.upgrade(old | {config_version.KEY: 2}, "config.json")


@pytest.mark.parametrize("name", helpers.CONFIGS)
def test_a_published_config_of_version_2_is_today_s(name, tmp_path):
    """Setting by setting: a workdir of before is continued without a word."""
    c, said = helpers.CONFIGS[name].get_config(), []
    assert settings.flatten(upgraded(name)) == settings.flatten(json.loads(settings.to_json(c)))
    workdir = Workdir(str(tmp_path), writer=False)
    assert changes.check_workdir(c, workdir, upgraded(name), said.append) == {}
    assert said == []


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("mae", MAECosine(3.0, 7, 0.25)),
        ("beit", BEiTCosine(3.0, 7, 0.25)),
        ("constant", Constant(1.0, 3.0, 7)),  # which never read the minimum
    ],
)
def test_rule_and_schedule_get_their_settings(schedule, expected):
    old = {"warmup_epochs": 3.0, "warmup_steps": 7, "min_lr": 0.25, "schedule": schedule}
    found = upgraded(optimizer=old | {"b1": 0.5, "b2": 0.75, "eps": 1e-3, "lr": 2.0})["optimizer"]
    assert {"name", "b1", "b2", "eps", *old} & found.keys() == {"schedule"}
    built = schema.build(OptimizerConfig, found, "optimizer")
    assert built.schedule == expected
    assert (built.rule, built.lr) == (AdamW(0.5, 0.75, 1e-3), 2.0)


@pytest.mark.parametrize(
    ("source", "options", "expected"),
    [
        ("digits", {}, Digits()),
        ("folder", {"test_fraction": 0.25}, Folder(0.25)),
        ("photos", {"length": 5}, Photos(5)),
        ("synthetic", {"side": 8}, Synthetic(side=8)),
        ("tfds", {"dataset": "mine", "data_dir": "/d"}, Tfds("mine", "/d")),
    ],
)
def test_a_source_gets_its_options(source, options, expected):
    found = upgraded(data={"source": source, "options": options})["data"]
    assert "options" not in found
    assert set(found) == set(helpers.CONFIGS["mae"].get_config().data)
    # each setting stands there, so that nothing seems to have changed since
    assert found["source"] == schema.section(expected).to_dict()
    assert source_config(ConfigDict({"data": found})) == expected


def test_options_that_all_sources_have_go_where_these_stand():
    found = upgraded(data={"options": {"channels": 4, "splits": "none"}})["data"]
    assert (found["channels"], found["splits"], found["source"]["test_fraction"]) == (
        4,
        "none",
        0.1,
    )


def test_boards_keep_what_wandb_was_told():
    found = upgraded(wandb="offline", wandb_project="faces")
    assert not {"wandb", "wandb_project"} & found.keys()
    boards = schema.build(Boards, found["boards"], "boards").by_name
    assert boards == {"tensorboard": TensorBoard(), "wandb": WandB("offline", "faces")}
