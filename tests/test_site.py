"""The site builds without a warning, is whole, and reads nothing from another host."""

from __future__ import annotations

import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

import rectify_widgets as rw

pytestmark = pytest.mark.slow

LOADED = {"script": "src", "img": "src", "link": "href", "iframe": "src", "source": "src"}
"""Tag to the attribute whose file a browser reads without being asked."""


class Page(HTMLParser):
    """What a page loads, what it links to, and the places in it that can be linked to."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.loaded: list[str] = []
        self.links: list[str] = []
        self.places = {""}
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note what a tag names."""
        given = {name: value or "" for name, value in attrs}
        self.places.add(given.get("id", ""))
        if address := given.get(LOADED.get(tag, ""), ""):
            self.loaded.append(address)
        if tag == "a" and "href" in given:
            self.links.append(given["href"])


@pytest.fixture(scope="module")
def site(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[Path, Page]:
    out = tmp_path_factory.mktemp("site")
    build = [sys.executable, "-m", "sphinx", "-qW", "--keep-going", "notebooks", str(out)]
    run = subprocess.run(build, cwd=repository, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert not run.stderr
    return {path: Page(path) for path in sorted(out.rglob("*.html")) if path.name != "report.html"}


def test_every_link_inside_leads_somewhere(site: dict[Path, Page]) -> None:
    lost = []
    for path, page in site.items():
        for link in page.links + page.loaded:
            address = urlsplit(link)
            if address.scheme or address.netloc:
                continue
            goal = (path.parent / unquote(address.path)).resolve() if address.path else path
            known = site.get(goal)
            if not goal.exists() or (known and unquote(address.fragment) not in known.places):
                lost.append(f"{path.name}: {link}")
    assert not lost


def test_nothing_is_read_from_another_host(site: dict[Path, Page]) -> None:
    foreign = [
        f"{path.name}: {address}"
        for path, page in site.items()
        for address in page.loaded
        if urlsplit(address).scheme not in {"", "data"} or urlsplit(address).netloc
    ]
    assert not foreign
    for sheet in {
        path.parent / a for path, page in site.items() for a in page.loaded if ".css" in a
    }:
        text = Path(str(sheet).partition("?")[0]).read_text(encoding="utf-8")
        assert "url(http" not in text
        assert "@import" not in text


def test_every_tutorial_and_every_public_name_is_there(
    site: dict[Path, Page], repository: Path
) -> None:
    names = {path.stem for path in site}
    assert {path.stem for path in (repository / "notebooks").glob("*.ipynb")} <= names
    (reference,) = (page for path, page in site.items() if path.stem == "reference")
    missing = {f"rectify_widgets.{name}" for name in rw.__all__} - {"rectify_widgets.cases"}
    assert not missing - reference.places
