"""Documents say what is true: their code runs, and programs, flags, files and links exist.

The site's own build (`make docs`) checks its links and pages once more, with warnings as errors.
"""

import ast
import importlib
import json
import os
import pathlib
import re
import shlex
import subprocess
import sys

import helpers
import pytest
from absl import flags
from pages import DOCS, FENCE, NOTEBOOK, PART, PICTURES, made, name

from mimjax.data.sources import SourceConfig, short_name
from mimjax.programs import cli, usage
from mimjax.run.demos import DATA
from mimjax.run.sections import load
from mimjax.schema import build, make_task
from mimjax.task import Clock

CONFIGS = sorted((helpers.ROOT / "configs").rglob("*.py"))
# up to the end of the line or of an inline `code`; a backslash continues the line
NAMES = "|".join(usage.PROGRAMS)
COMMAND = re.compile(rf"(?<![\w/.(])mimjax ({NAMES})(?=[\s`])((?:\\\n|[^`\n])*)")
LINK = re.compile(r"\]\(([^)#\s]*)(#[^)\s]*)?\)")


def python_blocks():
    return [
        pytest.param(code, id=f"{name(path)}:{text[: m.start()].count(chr(10)) + 2}")
        for path in DOCS
        for text in [path.read_text()]
        for m in FENCE.finditer(text)
        if m[1] == "python"
        for code in [m[2]]
    ]


def commands():
    """Commands with flags; a name alone in a sentence is none."""
    found = {}
    for path in [*DOCS, *CONFIGS, *(p.with_suffix(".md") for p in PICTURES)]:
        whole = path.read_text()
        if path in CONFIGS:  # a docstring's command goes on in the next line
            whole = re.sub(r"\n +(?=--)", " ", whole)
        for program, rest in COMMAND.findall(whole):
            text = rest.replace("\\\n", " ")
            positional = hasattr(helpers.module_of(program), "POSITIONAL") and text.strip()
            if text.strip().startswith("--") or positional:
                words = tuple(shlex.split(text, comments=True))
                if PART.search(text):  # of a file that the page shows: see `parts`
                    continue
                found.setdefault((program, words), name(path))
    return [
        pytest.param(program, list(words), id=f"{place}:{program} {' '.join(words)[:60]}")
        for (program, words), place in found.items()
    ]


def typed_in_notebook():
    """The commands of the tutorial's calls of `run`."""
    cells = json.loads(NOTEBOOK.read_text())["cells"]
    trees = [ast.parse("".join(c["source"])) for c in cells if c["cell_type"] == "code"]
    calls = [n for tree in trees for n in ast.walk(tree) if isinstance(n, ast.Call)]
    named = [n for n in calls if isinstance(n.func, ast.Name) and n.func.id == "run"]
    return [shlex.split(ast.literal_eval(n.args[0])) for n in named]


@pytest.mark.parametrize("words", typed_in_notebook(), ids=lambda words: words[1])
def test_commands_of_the_tutorial_parse(words, monkeypatch):
    monkeypatch.chdir(helpers.ROOT)
    assert words[0] == "mimjax"
    helpers.program(*words[1:], parse_only=True)


@pytest.mark.slow
def test_the_tutorial_runs(tmp_path, monkeypatch):
    """It is executed as by the site's build; only the lengths of its runs are cut."""
    nbclient, nbformat = (importlib.import_module(name) for name in ("nbclient", "nbformat"))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    for cell in notebook.cells:
        cell.source = re.sub(r"--config.steps=\d+", "--config.steps=120", cell.source)
    bin_folder = str(pathlib.Path(sys.executable).parent)
    monkeypatch.setenv("PATH", bin_folder, prepend=os.pathsep)
    nbclient.NotebookClient(
        notebook, timeout=None, resources={"metadata": {"path": tmp_path}}
    ).execute()
    last = next(c for c in reversed(notebook.cells) if c.cell_type == "code")
    text = "".join(out.get("text", "") for out in last.outputs)
    assert float(re.search(r"difference of logits: (\S+)", text)[1]) < 1e-4


def anchor(title):
    """What GitHub makes of a heading."""
    return "#" + re.sub(r"[^\w\- ]", "", title.strip().lower()).replace(" ", "-")


@pytest.mark.parametrize("code", python_blocks())
def test_python_compiles(code):
    compile(code, "block", "exec")


@pytest.mark.parametrize(("program", "words"), commands())
def test_commands_parse(program, words, monkeypatch):
    """Program, flags, their values and the config's keys, as the program itself reads them."""
    monkeypatch.chdir(helpers.ROOT)
    module = helpers.module_of(program)
    with cli.defined(module):
        assert not cli.read(module, [program, *words])[1:], "left over"
        assert all(flags.FLAGS[f].value is not None for f in module.REQUIRED), module.REQUIRED


def test_commands_are_found():
    """The search itself works: every document with a program in it was read."""
    programs = {p.values[0] for p in commands()}
    assert {"train", "plan", "reconstruct", "prepare", "export", "features", "report"} <= programs
    assert any(word.startswith("--seeds=") for p in commands() for word in p.values[1])
    assert len(python_blocks()) >= 10
    assert {p.values[1][0] for p in commands() if p.values[0] == "config"} >= {"mae:demo"}


FIRST = {
    "beit": "dvae",
    "cae": "dvae",
    "caev2": "mae",
    "mrmae": "mae",
    "recipes/three_targets": "mae",
}
SIZES = {"digits": (8, 8), "shifted_digits": (24, 24), "photos": (64, 64)}
DEMOS = [*sorted(helpers.CONFIGS), "recipes/three_targets", "recipes/bootmae_conv"]


@pytest.mark.parametrize("method", DEMOS)
def test_make_demo_starts_every_method(method):
    """What `make demo METHOD= DATA=` would run: configs that exist, the teacher's run first."""
    words = ("make", "-n", "-o", ".venv/demo", "demo", f"METHOD={method}", "DATA=shifted_digits")
    out = subprocess.run(words, cwd=helpers.ROOT, capture_output=True, text=True, check=True)
    found = re.findall(r"--config=configs/([\w/]+)\.py:(\S+).*?--workdir=(\S+)", out.stdout, re.S)
    first = FIRST.get(method)
    assert [word for word, *_ in found] == ([first, method] if first else [method])
    for word, argument, _ in found:
        for data in DATA:
            c = load(f"{word}:{argument}".replace("shifted_digits", data))
            assert short_name(build(SourceConfig, c.data.source, "data.source")) == data
            view = make_task(c, Clock(1, 1)).views["image"]
            assert (view.size, view.channels) == (SIZES[data], c.data.channels)
    if first:
        assert found[1][1].endswith(f"path={found[0][2]}")


def headings(path):
    """The anchors of a page, as GitHub and the site make them."""
    text = FENCE.sub("", path.read_text())
    return {anchor(m[1]) for m in re.finditer(r"^#+ (.*)", text, re.M)}


@pytest.mark.parametrize("path", DOCS, ids=name)
def test_links_lead_somewhere(path):
    for file, place in LINK.findall(FENCE.sub("", path.read_text())):
        if file.startswith(("http:", "https:")):
            continue
        target = path.parent / file if file else path
        assert target.exists(), file
        # a page that includes a file of the repository has its headings
        pages = [target, *(helpers.ROOT / w.split()[1] for w in made(target) if "included" in w)]
        assert not place or any(place in headings(p) for p in pages), f"{file}{place}"
