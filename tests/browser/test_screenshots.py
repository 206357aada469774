"""Screenshots stay out of the repository."""

from __future__ import annotations

import subprocess

import pytest

from tests.browser.frontends import ROOT
from tests.browser.pages import SCREENSHOTS


def git(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )


def test_every_screenshot_is_ignored() -> None:
    if git("rev-parse", "--is-inside-work-tree").returncode:
        pytest.skip("no git checkout")
    files = [path.relative_to(ROOT).as_posix() for path in SCREENSHOTS.glob("*")]
    wanted = [*files, (SCREENSHOTS / "new.png").relative_to(ROOT).as_posix()]
    ignored = git("check-ignore", "--no-index", *wanted).stdout.splitlines()
    assert sorted(ignored) == sorted(wanted)
    assert git("ls-files", SCREENSHOTS.relative_to(ROOT).as_posix()).stdout == ""
