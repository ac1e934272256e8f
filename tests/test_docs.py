"""Documents name what is there: code that compiles, programs, flags and links that exist."""

import re
import shlex
import subprocess

import helpers
import pytest
from absl import flags

from mimjax.data.sources import SourceConfig, short_name
from mimjax.programs import cli, usage
from mimjax.run.demos import DATA
from mimjax.run.sections import load
from mimjax.schema import build, make_task
from mimjax.task import Clock

DOCS = [helpers.ROOT / "README.md", *sorted((helpers.ROOT / "docs").glob("*.md"))]
CONFIGS = sorted((helpers.ROOT / "configs").rglob("*.py"))
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.S | re.M)
# up to the end of the line or of an inline `code`; a backslash continues the line
NAMES = "|".join(usage.PROGRAMS)
COMMAND = re.compile(rf"(?<![\w/.(])mimjax ({NAMES})(?=[\s`])((?:\\\n|[^`\n])*)")
LINK = re.compile(r"\]\(([^)#\s]+)(#[^)\s]*)?\)|\]\((#[^)\s]+)\)")


def name(path):
    return str(path.relative_to(helpers.ROOT))


def python_blocks():
    return [
        pytest.param(code, id=f"{path.name}:{text[: m.start()].count(chr(10)) + 2}")
        for path in DOCS
        for text in [path.read_text()]
        for m in FENCE.finditer(text)
        if m[1] == "python"
        for code in [m[2]]
    ]


def commands():
    """Commands with flags; a name alone in a sentence is none."""
    found = {}
    for path in [*DOCS, *CONFIGS]:
        whole = path.read_text()
        if path in CONFIGS:  # a docstring's command goes on in the next line
            whole = re.sub(r"\n +(?=--)", " ", whole)
        for program, rest in COMMAND.findall(whole):
            text = rest.replace("\\\n", " ")
            positional = hasattr(helpers.module_of(program), "POSITIONAL") and text.strip()
            if text.strip().startswith("--") or positional:
                words = tuple(shlex.split(text, comments=True))
                found.setdefault((program, words), name(path))
    return [
        pytest.param(program, list(words), id=f"{place}:{program} {' '.join(words)[:60]}")
        for (program, words), place in found.items()
    ]


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
    assert [name for name, *_ in found] == ([first, method] if first else [method])
    for name, argument, _ in found:
        for data in DATA:
            c = load(f"{name}:{argument}".replace("shifted_digits", data))
            assert short_name(build(SourceConfig, c.data.source, "data.source")) == data
            view = make_task(c, Clock(1, 1)).views["image"]
            assert (view.size, view.channels) == (SIZES[data], c.data.channels)
    if first:
        assert found[1][1].endswith(f"path={found[0][2]}")


@pytest.mark.parametrize("path", DOCS, ids=name)
def test_links_lead_somewhere(path):
    text = path.read_text()
    titles = [m[1] for m in re.finditer(r"^#+ (.*)", FENCE.sub("", text), re.M)]
    anchors = {anchor(t) for t in titles}
    for file, _, here in LINK.findall(text):
        if here:
            assert here in anchors, here
        elif not file.startswith(("http:", "https:")):
            assert (path.parent / file).exists(), file
