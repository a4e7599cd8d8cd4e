"""The documentation as pages, by Sphinx: `make docs` builds them, and a test builds them without a warning."""

from __future__ import annotations

from pathlib import Path

from sphinx.application import Sphinx

import geo3d

project = "geo3d"
author = "The geo3d authors"
copyright = "The geo3d authors, Apache-2.0"
release = version = geo3d.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3
exclude_patterns = ["_build"]

html_theme = "furo"
html_title = f"geo3d {version}"

# Docstrings are Google's style. What is public is what a room's `__all__` names, in that order.
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
autodoc_default_options = {"members": True}


def readme_first(app: Sphinx, page: str, source: list[str]) -> None:
    """The first page is the README, whose links are those of the folder above."""
    if page == "index":
        text = (Path(app.srcdir).parent / "README.md").read_text(encoding="utf-8")
        source[0] = text.replace("](docs/", "](").replace("](examples/", "](../examples/") + source[0]


def setup(app: Sphinx) -> None:
    """Called by Sphinx."""
    app.connect("source-read", readme_first)
