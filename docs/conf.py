"""Sphinx settings. Build with ``make docs-html``; every warning is an error, and nothing is fetched from the network."""

import subprocess
import sys

from docutils.nodes import SkipNode
from docutils.utils.math import latex2mathml

from napari_stmdit import __version__

project = "napari-stmdit"
author = "The napari-stmdit developers"
copyright = author
release = version = __version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
]
exclude_patterns = ["_build"]

html_theme = "sphinx_book_theme"
html_title = "napari-stmdit"
html_theme_options = {
    "repository_url": "https://github.com/napari-stmdit/napari-stmdit",
    "repository_branch": "main",
    "path_to_docs": "docs",
    "use_repository_button": True,
    "use_issues_button": True,
    "show_toc_level": 2,
    "home_page_in_toc": True,
    "navbar_persistent": [],  # the search is in the side bar already
}
html_show_copyright = False
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_math_renderer = "mathml"  # browsers draw it themselves: no script, and no network

myst_enable_extensions = ["dollarmath", "amsmath", "colon_fence"]
myst_heading_anchors = 3
myst_links_external_new_tab = False

# Signatures carry the types; docstrings say what they mean. Defaults are shown as they are written in the source.
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
autodoc_member_order = "bysource"
autodoc_default_options = {"exclude-members": "model_config"}
napoleon_google_docstring = False
napoleon_use_rtype = False
napoleon_attr_annotations = False
default_role = "py:obj"
highlight_language = "none"  # a block that names no language is a shell's

nitpicky = True
# Other projects' names, and types that are no part of the public interface, are shown and not linked.
nitpick_ignore_regex = [("py:.*", r"(?!napari_stmdit\.(\w+$)).*")]


def commands_of_the_program(app, docname, source):
    """Put what the program says of its options where the page on the command line wants it."""
    if docname == "cli":
        asked = [sys.executable, "-m", "typer", "napari_stmdit.cli", "utils", "docs", "--name", "stmdit"]
        said = subprocess.run(asked, capture_output=True, text=True, check=True).stdout
        _, _, commands = said.partition("\n## ")
        source[0] = source[0].replace("<!-- commands -->", f"## {commands}")


def inline_formula(translator, node):
    """Write a formula in a line as MathML."""
    translator.body.append(latex2mathml.tex2mathml(node.astext()))
    raise SkipNode


def displayed_formula(translator, node):
    """Write a formula of its own as MathML."""
    formula = latex2mathml.tex2mathml(node.astext(), as_block=True)
    translator.body.append(f'<div class="math">{formula}</div>')
    raise SkipNode


def setup(app):
    """Connect them."""
    app.connect("source-read", commands_of_the_program)
    app.add_html_math_renderer("mathml", (inline_formula, None), (displayed_formula, None))
