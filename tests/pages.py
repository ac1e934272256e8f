"""The documents: where they are, and what stands in them."""

import re
import sys

import helpers

sys.path.append(str(helpers.ROOT / "docs/_ext"))  # what makes parts of pages from the code

PAGES = sorted(
    p for p in (helpers.ROOT / "docs").rglob("*.md") if not {"_build", "images"} & set(p.parts)
)
DOCS = [helpers.ROOT / f"{name}.md" for name in ("README", "CONTRIBUTING", "CHANGELOG")] + PAGES
PICTURES = sorted((helpers.ROOT / "docs/images").glob("*.png"))  # each with an .md beside it
NOTEBOOK = helpers.ROOT / "docs/tutorial.ipynb"
FENCE = re.compile(r"^```([^\n`]*)\n(.*?)^```", re.S | re.M)
MADE = re.compile(r"^```\{made\} (.*)$", re.M)
# an override that names a file which the page itself shows
PART = re.compile(r"=(\w+\.py):\w+")


def name(path):
    return str(path.relative_to(helpers.ROOT))


def blocks(path):
    """The Python blocks of a page."""
    return [m[2] for m in FENCE.finditer((helpers.ROOT / path).read_text()) if m[1] == "python"]


def made(path):
    """What a page asks `docs/_ext/reference.py` for."""
    return MADE.findall(path.read_text()) if path.suffix == ".md" else []
