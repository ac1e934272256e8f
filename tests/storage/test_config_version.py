"""Settings of older versions: what a workdir of before means today."""

import json

import helpers
import pytest
from ml_collections import ConfigDict

from mimjax import schema
from mimjax.data.configured import source_config
from mimjax.data.sources import Digits, Folder, Photos, Synthetic, Tfds
from mimjax.inference import teachers
from mimjax.run import changes, config_files
from mimjax.run.sections import Boards
from mimjax.schedules import BEiTCosine, Constant, MAECosine
from mimjax.storage import config_version, settings
from mimjax.storage.files import Workdir
from mimjax.train.boards import TensorBoard, WandB
from mimjax.train.optimizers import AdamW, OptimizerConfig

GOLDEN = helpers.ROOT / "tests/golden"
OLD = {v: json.loads((GOLDEN / f"configs_version_{v}.json").read_text()) for v in (1, 2, 3, 4)}
PUBLISHED = [(v, name) for v in (1, 2, 3, 4) for name in OLD[v]]


def upgraded(name="mae", version=2, **sections):
    """A published config of an older version with other settings, as this version reads it."""
    old = dict(OLD[version][name])
    for key, value in sections.items():
        old[key] = old[key] | value if isinstance(value, dict) else value
    return config_version.upgrade(old | {config_version.KEY: version}, "config.json")


@pytest.mark.parametrize(("version", "name"), PUBLISHED)
def test_a_published_config_is_today_s(version, name, tmp_path):
    """Setting by setting, demos too: a workdir of before is continued without a word.

    Since version 1 the regular expressions of decay rules were written shorter.
    """
    c, said, saved = teachers.fill(config_files.load(name)), [], upgraded(name, version)
    if version == 1:
        saved["optimizer"]["decay"] = json.loads(settings.to_json(c))["optimizer"]["decay"]
    assert settings.flatten(saved) == settings.flatten(json.loads(settings.to_json(c)))
    workdir = Workdir(str(tmp_path), writer=False)
    assert changes.check_workdir(c, workdir, saved, said.append) == {}
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


@pytest.mark.parametrize(("before", "now"), [(False, "none"), (True, "full")])
def test_what_is_computed_twice_has_a_name(before, now):
    """A setting `remat` of a user's own class is left as it is."""
    own = {"type": "/mine.py:Own", "remat": before}
    shipped = {"type": "mimjax.models.vit:ViT", "remat": before}
    method = {"encoder": {"remat": before}, "target": {"network": shipped}, "mine": own}
    read = lambda **old: config_version.upgrade({config_version.KEY: 4} | old, "config.json")
    made = read(method=method, seed=3)
    assert (made["attention"], made["stream"], made["seed"]) == ("auto", "compute", 3)
    assert made["method"] == {
        "encoder": {"remat": now},
        "target": {"network": shipped | {"remat": now}},
        "mine": own,
    }
    assert read(method=method, task="/mine.py:Task")["method"] == method
    assert read(method={"remat": now})["method"] == {"remat": now}  # written before its version


def test_boards_keep_what_wandb_was_told():
    found = upgraded(wandb="offline", wandb_project="faces")
    assert not {"wandb", "wandb_project"} & found.keys()
    boards = schema.build(Boards, found["boards"], "boards").by_name
    assert boards == {"tensorboard": TensorBoard(), "wandb": WandB("offline", "faces")}


def test_settings_that_came_later_are_completed_and_no_others():
    """A run that began before them goes on, and nothing seems to have changed."""

    def read(**sections):
        before = json.dumps(sections)
        known = {config_version.KEY: config_version.VERSION}
        made = config_version.upgrade(known | sections, "config.json")
        assert json.dumps(sections) == before
        return settings.flatten(made)

    assert read(data={"path": "/x", "augment": {}}) == {"data.path": "/x"} | config_version.LATER
    chosen = {"data.augment.rand_augment": "rand"}
    made = read(data={"augment": {"rand_augment": "rand"}})
    assert made == config_version.LATER | chosen
    assert read(seed=3) == {"seed": 3, "compile_cache_dir": "auto"}
