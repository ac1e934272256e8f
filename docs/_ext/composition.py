"""The figure of a method: its parts as boxes, from the task itself.

  image -> what is hidden -> encoder [-> regressor] -> networks -> losses <- targets

The picture is SVG in a page's own colors (`currentColor`), for light and dark alike.
"""

from __future__ import annotations

import html
import textwrap
from typing import Any, NamedTuple

from mimjax.schema import brief

LETTERS, LINE, PAD = 20, 16, 12  # of a box: letters of a line; pixels of a line and of its border
WIDTH, GAP, ROW = 150, 34, 22  # pixels of a box, between columns and between rows


class Box(NamedTuple):
    """A box of the figure.

    Attributes:
      key: by which arrows name it; column: from the left, from 0.
      lines: its text, the first line in bold.
    """

    key: str
    column: int
    lines: tuple[str, ...]

    @property
    def height(self) -> int:
        """Pixels."""
        return 2 * PAD + LINE * len(self.lines)


def words(text: str) -> list[str]:
    """Return a text in lines of a box."""
    return textwrap.wrap(text, LETTERS) or [""]


def part(key: str, column: int, title: str, thing: Any, *more: str) -> Box:
    """Return the box of a part: the field's name, the class and the settings that differ."""
    cls, _, rest = brief(thing).partition("(")
    said = rest.removesuffix(")") if len(rest) < 60 else ""
    lines = [title, cls, *(words(said) if said else ())]
    return Box(key, column, tuple(lines + [w for text in more for w in words(text)]))


def figure(task: Any) -> str:
    """Return the figure of a task that is a composition, as SVG in HTML."""
    boxes, arrows = describe(task)
    places = arrange(boxes)
    width = max(x for x, _ in places.values()) + WIDTH + 2
    height = max(y + b.height for b in boxes for _, y in [places[b.key]]) + 2
    shapes = [shape(b, *places[b.key]) for b in boxes]
    known = {b.key: b for b in boxes}
    lines = [arrow(known[a], places[a], known[b], places[b]) for a, b in arrows]
    label = html.escape(f"The parts of {type(task).__name__} and how data pass through them")
    return (
        f'<div class="composition"><svg viewBox="0 0 {width} {height}" style="min-width:'
        f'{0.72 * width:.0f}px" role="img" aria-label="{label}"><defs><marker id="tip" '
        'viewBox="0 0 8 8" refX="8" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        '<path d="M0 0 8 4 0 8z" fill="currentColor"/></marker></defs>'
        f"{''.join(lines + shapes)}</svg></div>"
    )


def describe(task: Any) -> tuple[list[Box], list[tuple[str, str]]]:
    """Return boxes and arrows, each from a key to a key."""
    hidden = f"hides {task.num_masked} of {task.encoder.num_patches} patches"
    boxes = [
        Box("image", 0, ("image", "x".join(map(str, task.encoder.image_size)))),
        part("masking", 0, "masking", task.masking, hidden),
        part("encoder", 1, "encoder", type(task.encoder)(), sees(task)),
    ]
    arrows = [("image", "masking"), ("masking", "encoder")]
    after, column = "encoder", 2
    if "regressor" in task.networks:
        boxes.append(part("regressor", 2, "regressor", task.regressor, "latents of masked patches"))
        arrows.append(("encoder", "regressor"))
        after, column = "regressor", 3
    for name in task.networks:
        if name != "regressor":
            boxes.append(part(name, column, name, getattr(task, name)))
            arrows.append((after, name))
    for name, target in task.targets.items():
        own = f"reads {target.of} {', '.join(target.networks)}" if target.of else ""
        boxes.append(part(name, column + 2, name, target, *([own] if own else [])))
    for name, term in task.terms.items():
        loss = f"{brief(term.loss)}, weight {term.weight:g}"
        more = [f"normalize {term.normalize}"] if term.normalize != "none" else []
        at = f"at {term.at.replace('+', ', ')}"
        lines = [f"{name} (loss)", *words(loss), *more, *words(at)]
        boxes.append(Box(f"term {name}", column + 1, tuple(lines)))
        arrows += [(term.network, f"term {name}"), (term.target, f"term {name}")]
    if reads := task.masking.reads:
        boxes = [
            b._replace(lines=(*b.lines, *words(f"by {reads}"))) if b.key == "masking" else b
            for b in boxes
        ]
    return boxes, arrows


def sees(task: Any) -> str:
    """Return what the encoder gets."""
    return "sees all, mask tokens" if task.encoder.use_mask_token else "sees visible patches"


def arrange(boxes: list[Box]) -> dict[str, tuple[int, int]]:
    """Return the top left corner of each box: columns are centered on one line."""
    columns: dict[int, list[Box]] = {}
    for box in boxes:
        columns.setdefault(box.column, []).append(box)
    tall = lambda column: sum(b.height for b in column) + ROW * (len(column) - 1)
    middle, out = max(map(tall, columns.values())) / 2, {}
    for number, column in columns.items():
        y = middle - tall(column) / 2 + 1
        for box in column:
            out[box.key] = 1 + number * (WIDTH + GAP), round(y)
            y += box.height + ROW
    return out


def shape(box: Box, x: int, y: int) -> str:
    """Return a box."""
    kind = "loss" if box.key.startswith("term ") else "part"
    text = "".join(
        f'<text x="{x + WIDTH / 2:g}" y="{y + PAD + LINE * (i + 0.75):g}"'
        f"{' class=name' if not i else ''}>{html.escape(line)}</text>"
        for i, line in enumerate(box.lines)
    )
    size = f'width="{WIDTH}" height="{box.height}"'
    return f'<g class="{kind}"><rect x="{x}" y="{y}" {size} rx="6"/>{text}</g>'


def arrow(a: Box, at: tuple[int, int], b: Box, to: tuple[int, int]) -> str:
    """Return the arrow from a box to another."""
    if a.column == b.column:  # downward
        (x0, y0), (x1, y1) = (at[0] + WIDTH / 2, at[1] + a.height), (to[0] + WIDTH / 2, to[1])
    else:
        right = a.column < b.column
        x0, x1 = (at[0] + WIDTH, to[0]) if right else (at[0], to[0] + WIDTH)
        y0, y1 = at[1] + a.height / 2, to[1] + b.height / 2
    return f'<path d="M{x0:g} {y0:g} {x1:g} {y1:g}" marker-end="url(#tip)"/>'
