"""What is declared is used, and what is pinned goes together, for every supported Python."""

import ast
import importlib.metadata
import re
import tomllib

import helpers
import pytest
from packaging.requirements import Requirement

import mimjax

PROJECT = tomllib.loads((helpers.ROOT / "pyproject.toml").read_text())["project"]
PINS = [
    Requirement(line)
    for line in (helpers.ROOT / "constraints.txt").read_text().splitlines()
    if line and not line.startswith("#")
]
MODULES = {  # packages whose module has another name
    "absl-py": "absl",
    "orbax-checkpoint": "orbax",
    "pillow": "PIL",
    "scikit-learn": "sklearn",
    "tensorflow-datasets": "tensorflow_datasets",
}
# accelerators' plugins, the peers of benchmarks, stores, what is installed by hand: not pinned
UNPINNED = {"gpu", "cuda12", "cuda13", "tpu", "wandb", "bench", "tf", "gcs", "s3"}


def applies(requirement, python):
    marker = requirement.marker
    return marker is None or marker.evaluate({"python_version": python, "extra": ""})


def plain(name):
    return re.sub(r"[-_.]+", "-", name).lower()


@pytest.mark.parametrize("python", ["3.11", "3.12", "3.13"])
def test_every_requirement_has_one_pin_that_it_allows(python):
    pins = {}
    for pin in PINS:
        if applies(pin, python):
            assert plain(pin.name) not in pins, pin.name
            pins[plain(pin.name)] = str(pin.specifier).removeprefix("==")
    extras = PROJECT["optional-dependencies"]
    wanted = [r for name, rows in extras.items() if name not in UNPINNED for r in rows]
    for requirement in map(Requirement, [*PROJECT["dependencies"], *wanted]):
        if applies(requirement, python):
            assert requirement.specifier.contains(pins[plain(requirement.name)]), requirement
    assert pins["jax"] == pins["jaxlib"]
    # flax 0.12.12 needs jax 0.11.1 or newer, and flax 0.12.8 cannot be imported beside it
    assert (pins["flax"] == "0.12.8") == (pins["jax"] == "0.10.2")


def test_a_second_api_under_the_same_name_is_not_taken():
    """Orbax 1.0 will put its v1 API where today's stands."""
    (orbax,) = (r for r in map(Requirement, PROJECT["dependencies"]) if "orbax" in r.name)
    assert not orbax.specifier.contains("1.0.0")
    assert orbax.specifier.contains("0.13")


def test_what_is_declared_is_imported():
    used = set()
    for path in (helpers.ROOT / "mimjax").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                used |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                used.add(node.module.split(".")[0])
    declared = {Requirement(r).name for r in PROJECT["dependencies"]}
    assert {d for d in declared if MODULES.get(d, d) not in used} == set()


def test_the_version_stands_in_one_place():
    assert "version" not in PROJECT
    assert PROJECT["dynamic"] == ["version"]
    assert importlib.metadata.version("mimjax") == mimjax.__version__


def test_both_cudas_have_an_extra():
    extras = PROJECT["optional-dependencies"]
    assert extras["gpu"] == ["mimjax[cuda12]"]
    for name in ("cuda12", "cuda13"):
        (requirement,) = map(Requirement, extras[name])
        assert (requirement.name, requirement.extras) == ("jax", {name})
