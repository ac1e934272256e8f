"""Sphinx settings of the site; `make docs` builds it, and a warning is an error."""

import os
import pathlib
import sys

HERE = pathlib.Path(__file__).parent
sys.path[:0] = [str(HERE / "_ext"), str(HERE.parent)]

import mimjax  # noqa: E402

project = "mimjax"
author = "The mimjax authors"
copyright = "2026, the mimjax authors; Apache-2.0"
release = version = mimjax.__version__

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "made",
]
exclude_patterns = ["_build", "_ext", "images/*.md"]
source_suffix = {".md": "myst-nb", ".ipynb": "myst-nb"}
myst_heading_anchors = 4
# the tutorial types `mimjax`; NOTEBOOKS=off executes nothing
os.environ["PATH"] = os.pathsep.join([str(pathlib.Path(sys.executable).parent), os.environ["PATH"]])
nb_execution_mode = os.environ.get("NOTEBOOKS", "cache")
nb_execution_cache_path = str(HERE / "_build/.jupyter_cache")
nb_execution_timeout = 7200  # seconds of a cell, on a busy machine
nb_execution_raise_on_error = True
nb_execution_show_tb = True

# docstrings: Google style; `name` is code
default_role = "literal"
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_use_rtype = False
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
python_maximum_signature_line_length = 80
python_use_unqualified_type_names = True
highlight_language = "none"

html_theme = "furo"
html_title = f"mimjax {release}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sphinx = False
html_theme_options = {"navigation_with_keys": True}
