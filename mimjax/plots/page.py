"""Pieces of a page of HTML: sections, tables, warnings, pictures, and the page around them.

The page is filled into the template `plots/report.html`: head and style, light and dark, without
any font, script or picture from elsewhere. This module reads no other file.
"""

from __future__ import annotations

import base64
import html
import importlib.resources
import string
from collections.abc import Iterable, Sequence
from typing import Any

TEMPLATE = importlib.resources.files("mimjax.plots").joinpath("report.html")
WARNINGS = 20  # that are shown, the last ones


def text(plain: object) -> str:
    """Return plain text as HTML."""
    return html.escape(str(plain))


def short(plain: str, longest: int) -> str:
    """Return plain text as HTML; of a long one the beginning, with the whole in its title."""
    whole = plain.encode(errors="replace").decode()  # a folder's name need not be text
    if len(whole) <= longest:
        return text(whole)
    return f'<span title="{text(whole)}">{text(whole[: longest - 1])}…</span>'


def page(title: str, **parts: str) -> str:
    """Return the whole page.

    Args:
      title: plain text.
      parts: HTML of the template's parts by name; parts that are left out are empty.
    """
    template = string.Template(TEMPLATE.read_text(encoding="utf-8"))
    empty = dict.fromkeys(template.get_identifiers(), "")
    return template.substitute(empty | parts, title=text(title))


def header(title: str, line: str, boxes: Iterable[tuple[str, str]] = (), story: str = "") -> str:
    """Return the head of a page: title, a line below it, numbers in boxes, and what is predicted.

    Args:
      boxes: (what it is, the number) of each.
      story: "" = none.
    """
    tiles = "".join(f"<div><b>{text(v)}</b>{text(k)}</div>" for k, v in boxes)
    return (
        f"<header><h1>{text(title)}</h1><p>{text(line)}</p></header>"
        f'<div class="tiles">{tiles}</div>'
        + f"<p>What is predicted: {text(story)}</p>"
        * bool(story)
    )


def section(title: str, body: str) -> str:
    """Return a titled section; "" where the body is empty."""
    return f"<section><h2>{text(title)}</h2>{body}</section>" if body else ""


def warnings(texts: Sequence[str]) -> str:
    """Return a box with the last warnings, of plain text; "" where there are none."""
    if not texts:
        return ""
    more = f" (the last {WARNINGS} of {len(texts)})" if len(texts) > WARNINGS else ""
    items = "".join(f"<li>{text(said)}</li>" for said in texts[-WARNINGS:])
    return f'<div class="warning"><h2>Warnings{more}</h2><ul>{items}</ul></div>'


def folded(title: str, body: str) -> str:
    """Return HTML that a reader opens."""
    return f"<details><summary>{text(title)}</summary>{body}</details>"


def lines(plain: str) -> str:
    """Return plain text with its line breaks; "" where there is none."""
    return f"<pre>{text(plain)}</pre>" if plain else ""


def grid(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Return a table with a row of headings."""
    cells = lambda row, tag: "".join(f"<{tag}>{text(c)}</{tag}>" for c in row)
    body = "".join(f"<tr>{cells(row, 'td')}</tr>" for row in rows)
    return f"<table><thead><tr>{cells(head, 'th')}</tr></thead><tbody>{body}</tbody></table>"


def image(data: bytes, caption: str, about: str) -> str:
    """Return a picture with its caption; see `png`."""
    return f"<figure><figcaption>{text(caption)}</figcaption>{png(data, about)}</figure>"


def png(data: bytes, about: str) -> str:
    """Return a picture, whose bytes stand in the HTML itself.

    Args:
      data: a PNG file.
      about: the text in place of the picture.
    """
    source = f"data:image/png;base64,{base64.b64encode(data).decode()}"
    return f'<img alt="{short(about, len(about))}" src="{source}">'


def several(parts: Iterable[str], kind: str) -> str:
    """Return pieces in the layout of a class of the template ("strip"); "" where all are empty."""
    body = "".join(parts)
    return f'<div class="{kind}">{body}</div>' if body else ""


def markdown(source: str) -> str:
    """Return the HTML of Markdown as `evaluators.table.render` writes it.

    It knows tables, lists and paragraphs.
    """
    out, table, items = [], [], []
    for raw in [*source.splitlines(), ""]:
        if raw.startswith("|"):
            table.append([cell.strip() for cell in raw.strip("|").split("|")])
            continue
        if table:
            out.append(grid(table[0], table[2:]))
            table = []
        if raw.startswith("- "):
            items.append(f"<li>{text(raw[2:])}</li>")
            continue
        if items:
            out.append(f"<ul>{''.join(items)}</ul>")
            items = []
        if raw.strip():
            out.append(f"<p>{text(raw)}</p>")
    return "".join(out)
