"""Sphinx configuration: `make docs`."""

from __future__ import annotations

import sys
from pathlib import Path

import vbkit

sys.path.insert(0, str(Path(__file__).parent / "_ext"))

project = "vbkit"
author = "The vbkit developers"
copyright = author
version = release = vbkit.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "vbkit_docs"]
exclude_patterns = ["_build"]
source_suffix = {".md": "markdown"}
default_role = "literal"  # `x` in docstrings is code

myst_heading_anchors = 3
myst_enable_extensions = ["colon_fence"]

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
napoleon_google_docstring = True
napoleon_numpy_docstring = False

html_theme = "furo"
html_title = f"vbkit {version}"
html_copy_source = False
html_show_sphinx = False
