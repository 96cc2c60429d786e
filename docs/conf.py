"""The site: pages of this folder, and of the repository's own texts that they include. Build: see CONTRIBUTING.md."""

from __future__ import annotations

import inspect
import os
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.util.inspect import stringify_signature

import snnfast

project = "snnfast"
version = release = snnfast.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.mathjax", "sphinx.ext.viewcode"]
exclude_patterns = ["_build"]
smartquotes_action = "D"  # dashes; quotes and dots are code: "hard", [T, B, ...]
nitpicky = True  # a reference that leads nowhere is a warning, and the build takes warnings for errors

myst_enable_extensions = ["dollarmath"]
myst_fence_as_directive = ["math"]  # ```math, as what browses a repository renders it
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_typehints = "none"  # docstrings say types, shapes and dtypes; overloads would hide the options
autodoc_preserve_defaults = True  # F.cross_entropy, not <function …>
autodoc_inherit_docstrings = False
napoleon_numpy_docstring = False
napoleon_use_rtype = False

html_theme = "pydata_sphinx_theme"
html_title = f"snnfast {release}"
html_sidebars = {page: [] for page in ("index", "mathematics", "architecture", "contributing", "changelog")}
html_show_sourcelink = False
html_show_copyright = False
html_theme_options = {"show_prev_next": False, "navigation_with_keys": False, "header_links_before_dropdown": 7}

# Texts of the repository that have a page here, which includes them.
ROOT = Path(__file__).resolve().parent.parent
INCLUDED = {
    "index": "README.md",
    "mathematics": "MATH.md",
    "contributing": "CONTRIBUTING.md",
    "changelog": "CHANGELOG.md",
    "results/benchmarks": "benchmarks/results/README.md",
    "results/paper": "benchmarks/paper/results/README.md",
}


def lead_to_pages(app: Sphinx, doctree: nodes.document) -> None:
    """Links between files of the repository, which work where it is browsed, lead to these files' pages here."""
    page = app.env.docname
    pages = {ROOT / file: name for name, file in INCLUDED.items()}
    pages |= {Path(app.env.doc2path(name)).resolve(): name for name in app.env.found_docs}
    folders = [Path(app.env.doc2path(page)).parent, (ROOT / INCLUDED.get(page, "README.md")).parent]
    for link in doctree.findall(pending_xref):
        if link["reftype"] != "myst":
            continue
        target, _, heading = link["reftarget"].partition("#")
        files = [Path(os.path.normpath(folder / target)) for folder in folders]
        files += [Path(f"{file}.md") for file in files]  # MyST drops the suffix of what is outside of docs/
        found = next((pages[file] for file in files if file in pages), None)
        if target and found:
            link["refdomain"], link["reftarget"] = "doc", found
            link["reftargetid"] = link.get("reftargetid") or heading or None


def as_called(app: Sphinx, what: str, name: str, obj: Any, options: Any, signature: str | None, returns: Any):
    """A signature without what refuses misspelt options by name: ``**unknown``, and surrogates' ``__new__``."""
    if signature == "(*args, **options)":
        own = inspect.signature(obj.__init__)
        signature = stringify_signature(
            own.replace(parameters=list(own.parameters.values())[1:]), show_annotation=False
        )
    return (signature.replace(", **unknown", ""), returns) if signature else None


def setup(app: Sphinx) -> None:
    app.connect("doctree-read", lead_to_pages)
    app.connect("autodoc-process-signature", as_called)
