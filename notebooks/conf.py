"""The site made of these notebooks and of `guide/`: ``sphinx-build -W notebooks .site``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import plotly
import plotly.io

import rectify_widgets

if TYPE_CHECKING:
    from sphinx.application import Sphinx

project = author = html_title = "rectify_widgets"
release = rectify_widgets.__version__
extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
    "sphinx-mathjax-offline",
]
exclude_patterns = ["**.ipynb_checkpoints"]
suppress_warnings = [
    "myst.header",  # a table of results begins with a third-level heading
    "mystnb.unknown_mime_type",  # a live widget; its snapshot follows
]

html_theme = "furo"
html_extra_path = [str(Path(plotly.__file__).parent / "package_data" / "plotly.min.js")]
html_static_path = ["guide/site.css"]
html_css_files = ["site.css"]
html_copy_source = html_show_sphinx = html_show_copyright = False

copybutton_prompt_text, copybutton_prompt_is_regexp = r">>> |\.\.\. ", True  # not copied

nb_execution_mode = "off"  # the outputs are committed, and compared by the tests
nb_ipywidgets_js: dict[str, dict[str, str]] = {}  # a page fetches nothing from another host
myst_enable_extensions = ["amsmath", "dollarmath"]
myst_heading_anchors = 3

default_role = "py:obj"  # what stands between backquotes in a docstring
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"


def draw_charts(_app: Sphinx, _docname: str, source: list[str]) -> None:
    """Give charts of plotly as HTML, which wants one file of the library beside the page."""
    if "application/vnd.plotly.v1+json" not in source[0]:
        return
    notebook = json.loads(source[0])
    for cell in notebook["cells"]:
        for output in cell.get("outputs", ()):
            data = output.get("data", {})
            if chart := data.pop("application/vnd.plotly.v1+json", None):
                figure = plotly.io.from_json(json.dumps(chart), skip_invalid=True)
                data["text/html"] = plotly.io.to_html(
                    figure, full_html=False, include_plotlyjs="directory"
                )
    source[0] = json.dumps(notebook)


def keep_figures_whole(_app: Sphinx, docname: str, source: list[str]) -> None:
    """Break no line before or after the signs inside a figure of a table."""
    if docname.startswith("results/"):
        source[0] = source[0].replace(" ± ", "\N{NO-BREAK SPACE}±\N{NO-BREAK SPACE}")
        source[0] = source[0].replace(" / ", "\N{NO-BREAK SPACE}/\N{NO-BREAK SPACE}")


def setup(app: Sphinx) -> None:
    """Connect what changes a page before it is read."""
    app.connect("source-read", draw_charts)
    app.connect("source-read", keep_figures_whole)
