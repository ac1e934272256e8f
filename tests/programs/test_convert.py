"""`mimjax convert` for every shipped config: the first state, and how training goes on from it."""

import json
import re
import shlex

import helpers
import pytest
from torch_io import exports

from mimjax.errors import ConfigError
from mimjax.inference import published
from mimjax.losses import L1
from mimjax.programs import convert
from mimjax.run import changes
from mimjax.run.config_files import import_config
from mimjax.schedules import MAECosine
from mimjax.schema import section
from mimjax.storage.files import Workdir
from mimjax.storage.settings import to_json

SHIPPED = [n for n in helpers.METHODS if n != "dvae"] + ["recipes/small_data"]
ONE_BLOCK = {"depth": 1, "stage_depths": (1, 1), "fuse_layers": (0,), "inject": 0}


@pytest.mark.parametrize("name", SHIPPED)
def test_every_shipped_config_has_a_first_state(name):
    """Warm-ups are in epochs, although nothing is known of the data that make one."""
    c = import_config(name).get_config().unlock()
    for part in helpers.sections(c.method):
        part.update({k: v for k, v in ONE_BLOCK.items() if part.get(k)})
        part.update({"path": "random"} if "path" in part else {})
    program = convert.first_program(c)
    assert program.abstract_state.params["encoder"]
    assert program.task.clock.total_steps >= c.epochs


@pytest.mark.parametrize(
    ("steps", "schedule"), [(None, {"warmup_steps": 5000}), (40, {"warmup_epochs": 5.0})]
)
def test_no_warm_up_is_too_long_for_data_that_are_not_known(steps, schedule):
    c = helpers.small("mae", **{"optimizer.schedule": MAECosine(**schedule)})
    c.steps, c.epochs = steps, 20.0
    assert convert.first_program(c).task.clock.total_steps >= 40


def test_a_file_of_ours_says_the_heads_of_its_decoder(tmp_path):
    """The decoder has 2 heads, which no published network of this width has."""
    path, where = str(tmp_path / "out.pth"), str(tmp_path / "run")
    exports.export("mae", "mae", decoder=True).write(path)
    c = helpers.config_of("--config=configs/mae.py:demo")
    convert.convert(path, c, where, "auto", published.Choice())
    method = json.loads((tmp_path / "run/config.json").read_text())["method"]
    decoder = exports.task("mae").decoder
    assert (method["encoder"]["heads"], method["decoder"]["heads"]) == (2, decoder.heads)


def test_all_that_differs_is_named_as_overrides(tmp_path):
    """The line of a refused start has the words that make it fit, whatever the kinds of values."""
    made = helpers.small("bootmae", **{"method.average": None, "method.encoder.heads": 2})
    made.method.pixel.loss = section(L1())
    saved = json.loads(to_json(made))
    c = helpers.config_of("--config=configs/bootmae.py:demo")
    with pytest.raises(ConfigError) as e:
        changes.check_workdir(c, Workdir(str(tmp_path)), saved, print)
    words = shlex.split(re.search(r"were made with \((.*)\), or another", str(e.value))[1])
    assert "--config.method.encoder.width=32" in words
    assert "\n" not in str(e.value)
    again = helpers.config_of("--config=configs/bootmae.py:demo", *words)
    changes.check_workdir(again, Workdir(str(tmp_path)), saved, print)
