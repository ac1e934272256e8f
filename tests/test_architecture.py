"""The house stays in order: imports between rooms, libraries, sizes of files."""

import ast

import helpers

PACKAGE = helpers.ROOT / "mimjax"
FILES = sorted(PACKAGE.rglob("*.py"))
# The one order of rooms, from the bottom up, stands in CONTRIBUTING.md.
ORDER = next(
    line.strip("`").split(" < ")
    for line in (helpers.ROOT / "CONTRIBUTING.md").read_text().splitlines()
    if line.startswith("`top modules < ")
)
# Imports that go up, (file, room) -> why. The list only shrinks: at most 20, and none that is gone.
EXCEPTIONS: dict[tuple[str, str], str] = {}
# What rooms that state mathematics never see: no flags, configs, checkpoints, loaders or files.
PURE = {"models", "masking", "targets", "methods", "transfer"}
FORBIDDEN = {"absl", "ml_collections", "orbax", "grain", "etils", "logging", "os", "pathlib"}
ONLY_HERE = {
    "orbax": {"storage/checkpoints.py"},
    "grain": {"data/"},
    "torch": {"torch_io/"},
    "matplotlib": {"plots/"},
}


def place(path):
    return str(path.relative_to(PACKAGE))


def room_of(parts):
    """The room of a file or module, given its path below the package."""
    first = parts[0].removesuffix(".py")
    return first if first in ORDER else "top modules"


def imports(path):
    """Return the top-level names that a file imports, and the modules of mimjax, anywhere in it."""
    names, modules = set(), set()
    for node in ast.walk(ast.parse(path.read_text())):
        found = []
        if isinstance(node, ast.Import):
            found = [a.name for a in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert not node.level, f"{path}: relative import"
            found = [node.module]
            if node.module == "mimjax":
                found = [f"mimjax.{a.name}" for a in node.names]
        names |= {name.split(".")[0] for name in found}
        modules |= {name for name in found if name.startswith("mimjax.")}
    return names, modules


def test_rooms_import_from_those_below():
    wrong, used = [], set()
    for path in FILES:
        if path == PACKAGE / "__init__.py":
            continue  # the package's face: `mimjax.load` is imported when it is called
        here = room_of(path.relative_to(PACKAGE).parts)
        for module in sorted(imports(path)[1]):
            other = room_of(module.split(".")[1:])
            if ORDER.index(other) <= ORDER.index(here):
                continue
            if (place(path), other) in EXCEPTIONS:
                used.add((place(path), other))
            else:
                wrong.append(f"{place(path)} ({here}) imports {module} ({other}), a room above")
    assert not wrong, "\n".join(wrong)
    assert EXCEPTIONS.keys() == used, f"gone: {EXCEPTIONS.keys() - used}"
    assert len(EXCEPTIONS) <= 20


def test_libraries_are_imported_where_they_belong():
    wrong = []
    for path in FILES:
        names, here = imports(path)[0], place(path)
        if room_of(path.relative_to(PACKAGE).parts) in PURE:
            wrong += [f"{here} imports {name}" for name in sorted(names & FORBIDDEN)]
        for library, places in ONLY_HERE.items():
            if library in names and not any(here.startswith(p) for p in places):
                wrong.append(f"{here} imports {library}; allowed in {', '.join(sorted(places))}")
    assert not wrong, "\n".join(wrong)


def test_every_room_stands_in_the_order():
    rooms = {p.name for p in PACKAGE.iterdir() if (p / "__init__.py").exists()}
    assert rooms <= set(ORDER)


def composition(path):
    """Whether a file declares a method as a composition of parts."""
    return path.parent.name == "methods" and "(MIM)" in path.read_text()


def test_files_and_functions_are_small():
    wrong = []
    for path in FILES:
        text = path.read_text()
        # a composition is a page; the class that runs them all is a file as others
        limit = 100 if composition(path) else 400
        if text.count("\n") > limit:
            wrong.append(f"{place(path)}: {text.count(chr(10))} lines; allowed: {limit}")
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef):
                limit = 75 if node.name == "train_step" else 60
                if node.end_lineno - node.lineno >= limit:
                    wrong.append(f"{place(path)}: {node.name} has {limit} lines or more")
    assert not wrong, "\n".join(wrong)


def test_the_step_knows_no_method():
    for path in (PACKAGE / "train").glob("*.py"):
        rooms = {room_of(m.split(".")[1:]) for m in imports(path)[1]}
        assert not rooms & {"methods", "targets", "models"}, path
        assert "isinstance(task" not in path.read_text()
