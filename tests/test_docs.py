"""Documents name what is there: code that compiles, programs, flags and links that exist."""

import argparse
import re
import runpy
import shlex
import subprocess
import sys

import helpers
import pytest
from absl import flags

from mimjax.programs import cli

DOCS = [helpers.ROOT / "README.md", *sorted((helpers.ROOT / "docs").glob("*.md"))]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.S | re.M)
# up to the end of the line or of an inline `code`; a backslash continues the line
COMMAND = re.compile(r"python -m (mimjax\S*?)(?=[\s`])((?:\\\n|[^`\n])*)")
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
    found = {}
    for path in DOCS:
        for module, rest in COMMAND.findall(path.read_text()):
            words = tuple(shlex.split(rest.replace("\\\n", " "), comments=True))
            found.setdefault((module, words), name(path))
    return [
        pytest.param(module, list(words), id=f"{place}:{module} {' '.join(words)[:60]}")
        for (module, words), place in found.items()
    ]


def anchor(title):
    """What GitHub makes of a heading."""
    return "#" + re.sub(r"[^\w\- ]", "", title.strip().lower()).replace(" ", "-")


@pytest.fixture
def own_flags():
    """Removes the flags that a program defines, so that the next one starts without them."""
    before = set(flags.FLAGS)
    yield
    for flag in set(flags.FLAGS) - before:
        delattr(flags.FLAGS, flag)
    flags.FLAGS.unparse_flags()


class Parsed(Exception):
    """The program has read its command line; it need not run."""


@pytest.mark.parametrize("code", python_blocks())
def test_python_compiles(code):
    compile(code, "block", "exec")


@pytest.mark.parametrize(("module", "words"), commands())
def test_commands_parse(module, words, own_flags, monkeypatch):
    """Module, flags, their values and the config's keys, as the program itself reads them."""

    def parse(main, required=("config", "workdir")):
        cli.check_config_flags(sys.argv)
        assert not flags.FLAGS(sys.argv)[1:], "left over"
        assert all(flags.FLAGS[f].value is not None for f in required), required
        raise Parsed

    def parse_args(parser, args=None):
        real(parser, args)
        raise Parsed

    real = argparse.ArgumentParser.parse_args
    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse_args)
    monkeypatch.setattr(cli, "run", parse)
    monkeypatch.setattr(sys, "argv", [module, *words])
    monkeypatch.chdir(helpers.ROOT)
    with pytest.raises(Parsed):
        runpy.run_module(module, run_name="__main__")


def test_commands_are_found():
    """The search itself works: every document with a program in it was read."""
    programs = {p.values[0] for p in commands()}
    assert {
        "mimjax.main",
        "plan",
        "reconstruct",
        "prepare",
    } <= programs
    assert "export" in programs
    assert len(python_blocks()) >= 10


@pytest.mark.parametrize("method", sorted(helpers.CONFIGS))
@pytest.mark.parametrize("data", ["digits", "photos"])
def test_make_demo_starts_every_method(method, data):
    """What `make demo METHOD= DATA=` would run: configs that exist, the teacher's run first."""
    words = ("make", "-n", "-o", ".venv/demo", "demo", f"METHOD={method}", f"DATA={data}")
    out = subprocess.run(words, cwd=helpers.ROOT, capture_output=True, text=True, check=True)
    found = re.findall(r"--config=configs/(\w+)\.py:(\S+).*?--workdir=(\S+)", out.stdout, re.S)
    first = {"beit": "dvae", "cae": "dvae", "caev2": "mae", "mrmae": "mae"}.get(method)
    assert [name for name, *_ in found] == ([first, method] if first else [method])
    for name, argument, _ in found:
        helpers.CONFIGS[name].get_config(argument)
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
