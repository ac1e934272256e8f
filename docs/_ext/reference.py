"""Texts of the site that are made from the code: settings, flags, classes, tables of methods.

Each function returns Markdown; `made.py` puts it into a page. Nothing here knows a method, a
program or a setting by name, so that a page cannot say what the code does not.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import inspect
import itertools
import json
import pathlib
import re
import textwrap
from collections.abc import Callable, Iterator
from typing import Any

from absl import flags
from composition import figure

from mimjax import plugs, schema, values
from mimjax.errors import Exit
from mimjax.programs import cli, usage
from mimjax.programs.config import rows
from mimjax.run.config_files import import_config, shipped
from mimjax.run.messages import composition as aligned
from mimjax.run.sections import Settings, load
from mimjax.task import Clock

ROOT = pathlib.Path(__file__).parents[2]


def table(head: tuple[str, ...], body: list[tuple[Any, ...]]) -> str:
    """Return a table in Markdown."""
    cell = lambda text: " ".join(str(text).split()).replace("|", "\\|")
    line = lambda row: f"| {' | '.join(map(cell, row))} |"
    return "\n".join([line(head), line(("---",) * len(head)), *map(line, body)])


def code(text: str, language: str = "text") -> str:
    """Return a block of code in Markdown."""
    return f"```{language}\n{textwrap.dedent(text).rstrip()}\n```"


def prose(doc: str) -> str:
    """Return a docstring without outer indentation in Markdown: indented lines become code."""
    out: list[str] = []
    for indented, lines in itertools.groupby(doc.strip("\n").split("\n"), _indented()):
        text = "\n".join(lines).strip("\n")
        out.append(code(text) if indented else text)
    return "\n\n".join(out)


def _indented() -> Callable[[str], bool]:
    """Return whether a line is indented; an empty one is as the line before it."""
    last = False

    def decide(line: str) -> bool:
        nonlocal last
        last = line.startswith("  ") if line.strip() else last
        return last

    return decide


@functools.cache
def config(name: str) -> Any:
    """Return a config by what a user types."""
    return load(name)


@functools.cache
def task(name: str) -> Any:
    """Return the task of a config, at its published sizes."""
    return schema.make_task(config(name), Clock(1, 1))


# ------------------------------------------------------------------ methods
def composition(name: str) -> str:
    """Return the figure of a method's parts, and the table that a run prints at its start."""
    lines = textwrap.dedent("\n".join(aligned(task(name))))
    return f"```{{raw}} html\n{figure(task(name))}\n```\n\n{code(lines)}"


def methods() -> str:
    """Return a table of the pages of methods: config, encoder, and what is predicted."""
    body = []
    for page in sorted((ROOT / "docs/methods").glob("*.md")):
        if page.stem in shipped():
            made = task(page.stem)
            link = f"[{page.read_text().splitlines()[0].removeprefix('# ')}]({page.name})"
            body.append((link, f"`{page.stem}`", type(made.encoder).__name__, made.story))
    return table(("method", "config", "encoder", "what is predicted"), body)


def method(name: str) -> str:
    """Return what a method's file says about it, without its first line."""
    doc = inspect.getdoc(importlib.import_module(type(task(name)).__module__)) or ""
    return prose(doc.partition("\n\n")[2])


def picture(name: str) -> str:
    """Return the pictures of a method's demos that are kept, each with its command and its table.

    docs/images/NAME_DATA.png is the newest picture of such a run; the .md beside it holds the
    command, and the run's `table.md`.
    """
    out = []
    for image in sorted((ROOT / "docs/images").glob(f"{name}_*.png")):
        data = image.stem.removeprefix(f"{name}_").replace("_", " ")
        out.append(f"![Pictures of a demo on {data}](/images/{image.name})")
        out.append(image.with_suffix(".md").read_text().strip())
    return "\n\n".join(out or ["No picture of this method's demo is kept here."])


def recipe(name: str) -> str:
    """Return what a config file says about itself, without its first line."""
    return prose((import_config(name).__doc__ or "").partition("\n\n")[2])


def title(name: str) -> str:
    """Return the first line of a config file."""
    return (import_config(name).__doc__ or "").strip().split("\n")[0]


def recipes() -> str:
    """Return a table of all shipped configs."""
    return table(("config", "what it is"), [(f"`{name}`", title(name)) for name in shipped()])


def attributes(cls: type) -> dict[str, str]:
    """Return what a class and those that it derives from say of their fields, by name."""
    out: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        _, found, rest = (inspect.cleandoc(base.__doc__ or "")).partition("Attributes:\n")
        if not found:
            continue
        for entry in re.split(r"\n(?=  \S)", "\n" + textwrap.dedent(rest.split("\n\n")[0])):
            names, colon, words = " ".join(entry.split()).partition(": ")
            if colon and re.fullmatch(r"[\w, ]+", names):
                out |= {one.strip(): words for one in names.split(",")}
        for names, words in re.findall(r"^  (\w[\w, ]*): (.*(?:\n    .*)*)", rest, re.M):
            out |= {one.strip(): " ".join(words.split()) for one in names.split(",")}
    return out


def settings(name: str) -> str:
    """Return the settings of a method: key, value in the config, what it allows, meaning."""
    c, rest = config(name), {}
    for row in rows(c, []):
        if row.key.startswith("method.") and not row.key.endswith(".type"):
            section, _, last = row.key.rpartition(".")
            rest.setdefault(section, []).append((last, row.value))
    out = []
    for section, found in rest.items():
        cls = class_of(c, section)
        said, hints = attributes(cls), values.fields(cls)
        head = f"`{section}`: `{cls.__name__}`. {first(cls)}"
        body = [
            (f"`{key}`", f"`{value}`", values.allowed(hints[key]), said.get(key, ""))
            for key, value in found
        ]
        out.append(f"{head}\n\n{table(('setting', 'here', 'allowed', 'meaning'), body)}")
    return "\n\n".join(out)


def class_of(c: Any, section: str) -> type:
    """Return the class of a config's section."""
    if section == "method":
        return schema.find_class(c.task, "task")
    node: Any = c
    for part in section.split("."):
        node = node[part]
    if "type" in node:
        return schema.find_class(node["type"], section)
    parent, _, last = section.rpartition(".")
    return values.parts(values.fields(class_of(c, parent))[last])[0]


def first(cls: type) -> str:
    """Return the first sentence of a class's docstring."""
    return " ".join((inspect.getdoc(cls) or "").split("\n\n")[0].split())


def ablations(*words: str) -> str:
    """Return a paper's section of configs/ablations.md, a level lower.

    Args:
      words: with which its heading begins.
    """
    text = (ROOT / "configs/ablations.md").read_text()
    sections = re.split(r"^(?=## )", text, flags=re.M)
    head = f"## {' '.join(words)} ("
    found = next((s for s in sections if s.startswith(head)), "")
    if not found:
        raise ValueError(f"configs/ablations.md has no section {head}...)")
    return found.partition("\n")[2].strip()


# ------------------------------------------------------------------ what fits where
def parts(*bases: str) -> str:
    """Return tables of the shipped classes that may fill a field, and of their settings.

    Args:
      bases: base classes as "module:Class".
    """
    out = []
    for path in bases:
        base = schema.find_class(path, "part")
        body = [(f"`{n}`", first(cls), _fields(cls)) for n, cls in plugs.shipped(base).items()]
        out.append(table((base.__name__, "what it is", "settings"), body))
    return "\n\n".join(out)


def _fields(cls: type) -> str:
    known = schema.defaults(cls).items()
    return ", ".join(f"`{k}={schema.brief(v)}`" for k, v in known)


def section(path: str) -> str:
    """Return the settings of a class of the config: name, default, what it allows, meaning."""
    cls = schema.find_class(path, "section")
    said, body = attributes(cls), []
    for name, hint in values.fields(cls).items():
        default = schema.defaults(cls)[name]
        brief = default if isinstance(default, str) else schema.brief(default)
        body.append((f"`{name}`", f"`{brief}`", values.allowed(hint), said.get(name, "")))
    return table(("setting", "default", "allowed", "meaning"), body)


def top() -> str:
    """Return the settings of a config that are no sections."""
    plain = [
        (f"`{name}`", f"`{schema.defaults(Settings)[name]}`", values.allowed(hint))
        for name, hint in values.fields(Settings).items()
        if not dataclasses.is_dataclass(schema.defaults(Settings)[name])
    ]
    said = attributes(Settings)
    body = [(*row, said.get(row[0].strip("`"), "")) for row in plain]
    return table(("setting", "default", "allowed", "meaning"), body)


# ------------------------------------------------------------------ programs
def program(name: str) -> str:
    """Return --help of a program."""
    module: Any = importlib.import_module(f"mimjax.programs.{name}")
    with cli.defined(module) as names:
        return code(usage.text(module, names, flags.FLAGS))


def programs() -> str:
    """Return --help of every program, each under a heading."""
    out = []
    for name, words in usage.PROGRAMS.items():
        out.append(f"## {name}\n\n`mimjax {name}`: {words}.\n\n{program(name)}")
    return "\n\n".join(out)


def exits() -> str:
    """Return a table of the exit codes, from their comments in the code."""
    lines = inspect.getsource(Exit).splitlines()
    found = [re.fullmatch(r"\s+(\w+) = (\d+)  # (.*)", line) for line in lines]
    return table(("code", "name", "meaning"), [(m[2], m[1], m[3]) for m in found if m])


# ------------------------------------------------------------------ files of the repository
def parity() -> str:
    """Return a table of what `make parity` measured, and when; docs/parity.json holds it."""
    found = json.loads((ROOT / "docs/parity.json").read_text())
    body = []
    for kind, row in found.items():
        files = f"{len(row['official'])}, {len(row['here']) or 'pinned'}"
        away, used = f"{row['deviation']:.1e}", f"{row['bound']:.1%}"
        far = (away, used) if row["deviation"] else ("none", "")
        at = f"`{row['at']}`" if row["at"] else ""
        body.append((f"`{kind}`", *far, f"{row['numbers']:,}", files, row["source"], at))
    head = ("kind", "deviation", "of bound", "numbers", "files, here", "source", "array")
    when = sorted({(r["date"], r["commit"], r["jax"]) for r in found.values()})
    said = ", ".join(f"{date} at commit `{commit}` with jax {jax}" for date, commit, jax in when)
    return f"Measured on {said}.\n\n{table(head, body)}"


def included(path: str) -> str:
    """Return a Markdown file of the repository without its title; its links lead to the site.

    Args:
      path: relative to the root.
    """
    text = (ROOT / path).read_text().partition("\n")[2].strip()
    return text.replace("](docs/", "](")


def names() -> Iterator[str]:
    """Yield the names of the functions that a page may ask for."""
    for name, thing in globals().items():
        if inspect.isfunction(thing) and thing.__module__ == __name__ and name[0] != "_":
            yield name
