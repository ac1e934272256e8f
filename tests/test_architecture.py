"""The house stays in order: import directions and the sizes of rooms."""

import ast
import re

import helpers
import pytest

PACKAGE = helpers.ROOT / "mimjax"
BASE = {"models", "losses", "masking", "rng", "rules", "errors", "checks", "ema", "values"}
BASE |= {"config_version"}
# rooms from the ground up; a room may import from its own floor and those below
FLOORS = [
    BASE,
    {"task", "targets", "methods"},
    {
        "train",
        "data",
        "torch_io",
        "files",
        "outputs",
        "lock",
        "charts",
        "page",
        "report",
        "evaluators",
        "pictures",
        "progress",
        *("exits", "stopping", "peers", "native"),
        "heatmaps",
        "scatter",
        "schema",
        "settings",
        "flops",
        "hlo",
    },
    {
        *(
            "build",
            "start",
            "restore",
            "contradictions",
            "describe",
            "trained",
            "cli",
            "extend",
            "main",
            "plan",
            "export",
        ),
        *("reconstruct", "attention", "api", "convert", "encoders", "published", "data/stats"),
        *("features", "feature_files", "encoding", "embedding", "embedding_map", "ending"),
        *("memory", "agreement"),
        "overrides",
    },
]
# methods see none of these: no flags, configs, checkpoints, loaders or files
FORBIDDEN = {"absl", "ml_collections", "orbax", "grain", "etils", "logging", "os", "pathlib"}
ONLY_HERE = {"orbax": {"train/checkpoints.py"}, "grain": {"data/"}, "torch": {"torch_io/"}}


def imports(path):
    """Top-level names of everything a file imports, and the mimjax rooms among them."""
    names, rooms = set(), set()
    for node in ast.walk(ast.parse(path.read_text())):
        modules = []
        if isinstance(node, ast.Import):
            modules = [a.name for a in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            modules = [node.module]
            if node.module == "mimjax":
                modules = [f"mimjax.{a.name}" for a in node.names]
        for module in modules:
            names.add(module.split(".")[0])
            if module.startswith("mimjax."):
                rooms.add(module.split(".")[1])
    return names, rooms


FILES = sorted(p for p in PACKAGE.rglob("*.py"))


# programs that stand in a room for their name's sake; they read configs, and nothing imports them
PROGRAMS = {"data/stats"}


def room(path):
    place = str(path.relative_to(PACKAGE)).removesuffix(".py")
    return place if place in PROGRAMS else place.split("/")[0]


def floor(name):
    return next((i for i, f in enumerate(FLOORS) if name in f), None)


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports(path):
    names, rooms = imports(path)
    here = room(path)
    if here != "__init__":
        assert floor(here) is not None, f"{here}: say in FLOORS where this room stands"
        for other in rooms - {"__version__"}:
            assert floor(other) <= floor(here), f"{here} imports {other} from above"
    if here in BASE | {"task", "targets", "methods"}:
        assert not names & FORBIDDEN, names & FORBIDDEN
    assert not re.search(r"^\s*(from|import) mimjax\.data\.stats", path.read_text(), re.M)
    relative = str(path.relative_to(PACKAGE))
    for module, places in ONLY_HERE.items():
        if module in names:
            assert any(relative.startswith(p) for p in places), f"{module} in {relative}"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_rooms_are_small(path):
    text = path.read_text()
    limit = 250 if room(path) == "methods" else 400
    assert text.count("\n") <= limit
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            limit = 75 if node.name == "train_step" else 60
            assert node.end_lineno - node.lineno < limit, node.name


def test_the_step_knows_no_method():
    for path in (PACKAGE / "train").glob("*.py"):
        _, rooms = imports(path)
        assert not rooms & {"methods", "targets", "models"}, path
        assert "isinstance(task" not in path.read_text()
