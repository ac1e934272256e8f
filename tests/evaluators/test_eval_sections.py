"""The sections of `config.eval`: which evaluators run, when, and a user's own in a file."""

import copy
import json
import textwrap

import helpers
import pytest
from evaluators.evaluator_runs import made, started
from ml_collections import ConfigDict
from train import inside

from mimjax import schema
from mimjax.data import make_source
from mimjax.errors import ConfigError
from mimjax.evaluators import base
from mimjax.evaluators.base import Evaluator
from mimjax.evaluators.error import MaskedError
from mimjax.evaluators.health import Health
from mimjax.evaluators.pictures import Pictures
from mimjax.evaluators.probes import Probes
from mimjax.plugs import find_plug
from mimjax.run import setup
from mimjax.run.sections import Eval, Settings
from mimjax.schema import section
from mimjax.storage import config_version, settings
from mimjax.storage.files import Workdir


def written(tmp_path, text, name="mine.py"):
    """A user's file."""
    file = tmp_path / name
    file.write_text(textwrap.dedent(text))
    return file


def example(tmp_path):
    """The evaluator of the contract's own text, in a file."""
    text = base.__doc__.split("# norms.py\n")[1].split("It is chosen by")[0]
    return written(tmp_path, textwrap.dedent(text), "norms.py")


COUNT = """
    import dataclasses
    from mimjax.evaluators import Evaluator

    @dataclasses.dataclass(frozen=True)
    class Count(Evaluator):
        scale: float = 1.0

        def make(self, bench):
            def measure(state, frozen):
                yield "step", self.scale * int(state.step)
            return measure
"""


def rows_of(workdir, name):
    rows, bad = Workdir(str(workdir), writer=False).read_lines("metrics.jsonl")
    assert not bad
    return {row["step"]: row[f"eval/{name}"] for row in rows if f"eval/{name}" in row}


# ------------------------------------------------------------------ which
def test_the_shipped_evaluators_are_found_by_short_names():
    names = {"MaskedError": MaskedError, "health": Health, "pictures": Pictures, "PROBES": Probes}
    for name, cls in names.items():
        assert find_plug(Evaluator, name, "eval.mine") is cls
    with pytest.raises(ConfigError, match=r"eval\.mine: 'Helth'; allowed: MaskedError, Health, P"):
        find_plug(Evaluator, "Helth", "eval.mine")


def test_sections_are_switched_off_and_on_again():
    c = section(Settings).lock()
    assert list(schema.build(Eval, c.eval, "eval").by_name) == ["error", "health", "pictures"]
    for name in ("error", "health", "probes", "pictures"):
        c.eval[name] = None
    assert schema.build(Eval, c.eval, "eval").by_name == {}
    again = {
        "error": MaskedError(every=3),
        "probes": Probes(ks=(5,)),
        "pictures": Pictures(count=2),
    }
    for name, evaluator in again.items():
        c.eval[name] = section(evaluator)
    for other in (c, copy.deepcopy(c), ConfigDict(json.loads(settings.to_json(c)))):
        assert schema.build(Eval, other.eval, "eval").by_name == again
    c.eval.probes.ks, c.eval.pictures = (1, 9), None
    on = schema.build(Eval, c.eval, "eval").by_name
    assert on == {"error": MaskedError(every=3), "probes": Probes(ks=(1, 9))}
    assert section(Eval, error=None, probes=Probes()).to_dict()["error"] is None


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("healht", True, r"eval\.healht: unknown; allowed: batch_size, error, every, health, max"),
        ("healht", None, r"eval\.healht: unknown; allowed: .*, or a section that names its Eval"),
        ("healht", {"every": 3}, r"eval\.healht: unknown; allowed: "),
        ("mine", {"type": "Helth"}, r"eval\.mine\.type: 'Helth'; allowed: MaskedError, Health, "),
        (
            "mine",
            {"type": "Pictures", "cuont": 3},
            r"eval\.mine\.cuont: unknown; allowed: count, e",
        ),
        ("mine", {"type": "mimjax.task:Task"}, r"eval\.mine\.type: .* is no Evaluator; allowed: "),
        ("error", True, r"eval\.error: True; allowed: a section of settings, or None"),
        ("probes", {"type": "Probes", "ks": ()}, r"eval\.probes\.ks: \(\); allowed: "),
        ("health", {"type": "Health", "warn_below": -1.0}, r"eval\.health\.warn_below: -1.0; allo"),
        ("health", {"type": "Health", "every": -1}, r"eval\.health\.every: -1; allowed: 0 or more"),
    ],
)
def test_wrong_sections_are_named(name, value, message):
    with pytest.raises(ConfigError, match=f"^{message}"):
        schema.build(Settings, {"eval": {name: value}}, "")


def test_an_evaluator_without_make_and_a_name_twice_are_refused():
    task, mesh, _ = started()
    with pytest.raises(ConfigError, match=r"eval\.mine\.type: 'mimjax.*Evaluator' has no method"):
        made(task, mesh, {"mine": Evaluator()})
    with pytest.raises(ConfigError, match=r"eval\.knn: another section logs its values as eval/kn"):
        made(task, mesh, {"probes": Probes(), "knn": Health()})


# ------------------------------------------------------------------ a user's own
@pytest.mark.gate
def test_the_contract_s_example_runs_beside_the_shipped_ones(tmp_path, monkeypatch):
    """A file and an option name it; config.json keeps the section with the file's digest."""
    inside.quick(monkeypatch)
    cls = find_plug(Evaluator, f"{example(tmp_path)}:FeatureNorm", "eval.norm")
    c = helpers.small("mae", **inside.TINY, steps=2)
    c.eval.norm = section(cls, pool="cls")
    c.eval.health = section(Health())
    inside.go(c, tmp_path / "run")
    lengths = rows_of(tmp_path / "run", "norm/length")
    assert list(lengths) == list(rows_of(tmp_path / "run", "health/rankme")) == [0, 2]
    assert lengths[0] > 0
    assert lengths[0] != lengths[2]
    kept = json.loads((tmp_path / "run/config.json").read_text())["eval"]["norm"]
    assert kept["pool"] == "cls"
    assert kept["type"] == f"{tmp_path}/norms.py:FeatureNorm"
    assert len(kept["digest"]) == 16


def test_each_has_its_own_interval(tmp_path, monkeypatch):
    """All of them run at the first and the last step as well."""
    inside.quick(monkeypatch)
    path = f"{written(tmp_path, COUNT)}:Count"
    cls = find_plug(Evaluator, path, "eval.mine")
    intervals = {"often": 2, "never": 0, "shared": None}
    settings = {"steps": 7, "eval.every": 3}
    c = helpers.small("mae", **inside.TINY, **settings)
    for name, every in intervals.items():
        c.eval[name] = section(cls, every=every, scale=2.0)
    inside.go(c, tmp_path / "run")
    found = {name: rows_of(tmp_path / "run", f"{name}/step") for name in intervals}
    steps = {"often": [0, 2, 4, 6, 7], "never": [0, 7], "shared": [0, 3, 6, 7]}
    assert found == {name: {n: 2.0 * n for n in at} for name, at in steps.items()}


def test_its_error_names_it(tmp_path, monkeypatch):
    inside.quick(monkeypatch)
    text = COUNT.replace("self.scale * int(state.step)", "state.stpe")
    cls = find_plug(Evaluator, f"{written(tmp_path, text)}:Count", "eval.mine")
    c = helpers.small("mae", **inside.TINY, steps=2)
    c.eval.mine = section(cls)
    with pytest.raises(AttributeError, match="stpe") as error:
        inside.go(c, tmp_path / "run")
    assert error.value.__notes__ == ["in the evaluator 'mine' at step 0"]


# ------------------------------------------------------------------ config.json of version 2
def test_switches_of_version_2_are_the_same_sections():
    old = {"config_version": 2, "eval": {"every": 7, "batch_size": None, "max_images": 50}}
    old["eval"] |= {"error": True, "health": False, "probes": True, "pictures": 5}
    before = copy.deepcopy(old)
    new = config_version.upgrade(old, "config.json")
    assert old == before
    wanted = section(Eval, every=7, max_images=50, health=None, probes=Probes())
    wanted.pictures.count = 5
    assert settings.flatten({"eval": new["eval"]}) == settings.flatten(
        json.loads(settings.to_json(ConfigDict({"eval": wanted})))
    )
    assert config_version.upgrade(old | {"eval": {"pictures": 0}}, "")["eval"] == {"pictures": None}
    assert "eval" not in config_version.upgrade({"config_version": 2, "steps": 3}, "")


def test_the_switches_stand_for_the_classes_defaults():
    """What version 2 did is what the sections do by default; where not, the translation says so."""
    for name, text in config_version.EVALUATORS_OF_2.items():
        cls = {"error": MaskedError, "health": Health, "pictures": Pictures, "probes": Probes}[name]
        assert schema.build(Evaluator, text, f"eval.{name}") == cls()


def test_unlabeled_images_refuse_probes_before_anything_is_written(tmp_path, monkeypatch):
    inside.quick(monkeypatch)
    c = helpers.small("mae", **inside.TINY, **{"eval.probes": section(Probes())})
    source = make_source("synthetic", "train", num_classes=0)
    monkeypatch.setattr(setup, "make_split", lambda *_: source)
    with pytest.raises(ConfigError, match=r"eval\.probes: on, but the source 'synthetic' has no l"):
        helpers.begun(c, tmp_path / "run")
    assert not (tmp_path / "run").exists()
