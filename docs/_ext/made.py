"""A Sphinx directive whose body is made by a function of `reference`: {made} settings mae."""

from __future__ import annotations

import reference
from docutils import nodes
from docutils.parsers.rst import Directive
from docutils.statemachine import StringList


class Made(Directive):
    """Replace the directive by the Markdown that the named function returns."""

    required_arguments = 1
    optional_arguments = 1
    final_argument_whitespace = True

    def run(self) -> list[nodes.Node]:
        function, *words = " ".join(self.arguments).split()
        if function not in set(reference.names()):
            raise self.error(f"made: {function!r}; allowed: {', '.join(reference.names())}")
        text = getattr(reference, function)(*words)
        container = nodes.section() if "\n## " in f"\n{text}" else nodes.container()
        container.document = self.state.document
        lines = StringList(text.splitlines(), f"made {' '.join(self.arguments)}")
        self.state.nested_parse(lines, self.content_offset, container, match_titles=1)
        return container.children


def setup(app):
    """Register the directive."""
    app.add_directive("made", Made)
    return {"version": "1", "parallel_read_safe": True}
