"""Short names for scripts that need a JupyterLab and a page, such as `pictures`."""

from __future__ import annotations

from tests.browser.frontends import ROOT, Lab, write_notebook
from tests.browser.pages import SCREENSHOTS, Watched, open_page

__all__ = ["ROOT", "SCREENSHOTS", "Lab", "Watched", "open_page", "write_notebook"]
