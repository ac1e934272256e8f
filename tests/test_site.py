"""Pages that are made from the code say all of it, and the code in pages runs."""

import importlib
import json
import re
import shlex

import helpers
import numpy as np
import pytest
import yaml
from absl import flags
from pages import DOCS, FENCE, PAGES, PART, PICTURES, blocks, made, name

from mimjax.errors import ConfigError
from mimjax.programs import cli, usage
from mimjax.run.sections import load
from mimjax.run.setup import check_settings
from mimjax.schema import make_task
from mimjax.storage.settings import flatten
from mimjax.task import Clock

reference = importlib.import_module("reference")  # docs/_ext, by `pages`
composition = importlib.import_module("composition")
# whose Python blocks are executed, and where; those of other libraries are compiled
EXECUTED = {
    "README.md": "tests/inference/test_model.py",
    "CONTRIBUTING.md": "tests/test_site.py",
    "docs/python.md": "tests/inference/test_model.py",
    "docs/export.md": "tests/torch_io/test_export.py",
    "docs/design.md": "tests/test_site.py",
}
OTHERS = {"docs/downstream.md"}  # configs of mmsegmentation and detectron2


def test_what_pages_ask_for_is_made():
    asked = sorted({words for path in PAGES for words in made(path)})
    assert len(asked) > 40
    for words in asked:
        function, *rest = words.split()
        text = getattr(reference, function)(*rest)
        assert len(text) > 30, words


def test_every_method_has_a_page_with_all_its_parts():
    methods = {n for n in helpers.METHODS if make_task(load(n), Clock(1, 1)).describe()}
    pages = {p.stem: p for p in (helpers.ROOT / "docs/methods").glob("*.md")}
    assert methods
    assert methods == pages.keys() - {"index", "ablations"}
    readme = (helpers.ROOT / "README.md").read_text()
    for method in methods:
        kinds = {words.split()[0] for words in made(pages[method])}
        assert kinds == {"composition", "method", "recipe", "picture", "ablations", "settings"}
        assert f"docs/methods/{method}.md" in readme
    for row in re.findall(r"^\| \[.*\]\(docs/methods/.*$", readme, re.M):
        assert row.split(" | ")[1].strip("`") in methods


@pytest.mark.parametrize("path", PICTURES, ids=lambda p: p.stem)
def test_a_picture_is_on_its_page_with_its_command(path):
    """It is small, and its note begins with the command that made it."""
    assert path.stat().st_size < 60_000
    method, data = re.fullmatch(r"([a-z]+\d?)_(\w+)", path.stem).groups()
    note = path.with_suffix(".md").read_text()
    made_by = re.match(r"`((?:make demo|mimjax train) [^`]+)`", note)[1]
    assert method in re.split(r"[ =:]", made_by)
    assert data in re.split(r"[ =,]", made_by)
    text = reference.picture(method)
    assert f"(/images/{path.name})" in text
    assert note.strip() in text


def test_the_figure_has_every_part_of_a_method():
    """Networks, targets and losses of a method are boxes, and each loss has two arrows."""
    task = make_task(load("cae"), Clock(1, 1))
    boxes, arrows = composition.describe(task)
    keys = [b.key for b in boxes]
    assert len(set(keys)) == len(keys)
    assert {"image", "masking", "encoder", *task.networks, *task.targets} <= set(keys)
    for key, term in task.terms.items():
        assert {a for a, b in arrows if b == f"term {key}"} == {term.network, term.target}
    places = composition.arrange(boxes)
    spots = [(x, y + i) for b in boxes for x, y in [places[b.key]] for i in range(b.height)]
    assert len(set(spots)) == len(spots), "boxes overlap"


def test_settings_of_a_method_are_all_there():
    """Each setting of the config is a row, with what it allows."""
    text, c = reference.settings("bootmae"), load("bootmae")
    keys = [
        k for k in flatten(c.method.to_dict()) if k.rpartition(".")[2] not in ("type", "digest")
    ]
    assert text.count("\n| `") == len(keys)
    assert "| `ratio` | `0.75` | above 0 and below 1 |" in text
    assert "| `norm` | `channel` | " in text


def test_every_program_is_described():
    text = reference.programs()
    for program in usage.PROGRAMS:
        assert f"## {program}\n" in text
        with cli.defined(helpers.module_of(program)) as found:
            assert all(re.search(rf"--(\[no\])?{flag}\b", text) for flag in found)


NAMED = re.compile(r"`((?:mimjax|configs|tests|launch|benchmarks|docs)/[\w./]+)`")


@pytest.mark.parametrize("path", DOCS, ids=name)
def test_files_that_are_named_exist(path):
    for file in NAMED.findall(path.read_text()):
        place = helpers.ROOT / file
        example = "/foo." in file or "/NAME." in file
        theirs = path.name == "downstream.md" and file.startswith("configs/")
        assert place.exists() or example or theirs, file


SPAN = re.compile(r"(?<!`)`(--config\.[^`\n]+)`")


def fragments():
    """Overrides that sentences name, without a command; those of a user's files are left out."""
    found = {}
    for path in DOCS:
        for span in SPAN.findall(path.read_text()):
            words = shlex.split(span)
            placeholder = any(re.search(r"my\.py|FILE|DIR|[A-Z]{4}|=$", w) for w in words)
            if not placeholder:
                found.setdefault(tuple(w.split("|")[0] for w in words), name(path))
    return [
        pytest.param(words, id=f"{where}:{' '.join(words)[:60]}") for words, where in found.items()
    ]


ANY = (
    "mae",
    "bootmae",
    "cae",
    "mrmae",
    "fine_tune",
    "linear_probe",
    "mae:demo,data=shifted_digits",
)


@pytest.mark.parametrize("words", fragments())
def test_settings_that_sentences_name_exist(words):
    """Some config takes them; a key without a value is one of its settings."""
    refused = []
    given, keys = [w for w in words if "=" in w], [w for w in words if "=" not in w]
    for config in ANY:
        try:
            c = helpers.config_of(f"--config={config}", *given)
        except (ConfigError, flags.Error) as error:
            refused.append(str(error))
            continue
        known = {f"--config.{key}" for key in flatten(c.to_dict())}
        if known.issuperset(keys):
            return
        refused.append(f"{keys} in {config}")
    pytest.fail(" / ".join(refused[:2]))


def test_the_workflow_calls_targets_that_exist():
    jobs = yaml.safe_load((helpers.ROOT / ".github/workflows/checks.yml").read_text())["jobs"]
    called = {
        w for job in jobs.values() for s in job["steps"] for w in s.get("run", "").split()[1:]
    }
    matrix = jobs["make"]["strategy"]["matrix"]
    called |= {w for words in matrix["target"] for w in words.split()}
    called |= {row["target"] for row in matrix["include"]}
    called = {w for w in called if re.fullmatch(r"[\w-]+", w)} - {"target"}
    targets = set(re.findall(r"^([\w-]+):", (helpers.ROOT / "Makefile").read_text(), re.M))
    assert {"lint", "types", "test", "test-gate", "docs", "test-wheel"} <= called <= targets


# ------------------------------------------------------------------ blocks that are executed
def test_every_python_block_is_executed_somewhere():
    with_code = {
        name(p) for p in DOCS if any(m[1] == "python" for m in FENCE.finditer(p.read_text()))
    }
    assert with_code == EXECUTED.keys() | OTHERS
    for page, test in EXECUTED.items():
        assert page in (helpers.ROOT / test).read_text(), f"{test} does not read {page}"


def test_the_method_of_contributing():
    names = {}
    exec(compile(blocks("CONTRIBUTING.md")[0], "CONTRIBUTING.md", "exec"), names)
    task = names["Foo"]()
    assert [row[0] for row in task.describe()[1:]] == ["pixel"]
    assert task.num_masked == 118  # of 196


@pytest.fixture
def parts(tmp_path, monkeypatch):
    """The overrides of each command of the design page, in a folder with the files of the page."""
    commands = []
    for m in FENCE.finditer((helpers.ROOT / "docs/design.md").read_text()):
        if m[1] == "python":
            file = re.match(r"# (\w+\.py)\n", m[2])[1]
            (tmp_path / file).write_text(m[2])
        elif m[2].startswith("mimjax train"):
            commands.append(shlex.split(m[2]))
    monkeypatch.chdir(tmp_path)
    assert all(command[:3] == ["mimjax", "train", "--config=mae:demo"] for command in commands)
    return [[w for w in command if w.startswith("--config.")] for command in commands]


def test_each_part_of_the_design_page_is_taken(parts):
    assert len(parts) == 5
    for overrides in parts:
        c = helpers.config_of("--config=mae:demo", *overrides)
        assert PART.search(" ".join(overrides))
        make_task(c, Clock(1, 1))
        check_settings(c)


@pytest.mark.gate
def test_the_five_parts_of_the_design_page(parts, tmp_path):
    """They train together: files as they stand there, with the overrides of all commands."""
    tiny = ["steps=2", "optimizer.schedule.warmup_steps=1", "batch_size=16"]
    tiny += ["eval.max_images=16", "eval.probes=None", "log_every=1"]
    overrides = [word for part in parts for word in part]
    helpers.program(
        "train",
        "--config=mae:demo",
        f"--workdir={tmp_path / 'run'}",
        *overrides,
        *(f"--config.{w}" for w in tiny),
    )
    rows = [json.loads(x) for x in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    merged = {k: v for row in rows for k, v in row.items()}
    assert merged["eval/norm/length"] > 0
    assert np.isfinite(merged["loss/pixel"])
    log = (tmp_path / "run/train.log").read_text()
    for said in ("Edges(scale=2)", "TwoLayers", "stripes", "16 patches, 8 masked"):
        assert said in log, said
