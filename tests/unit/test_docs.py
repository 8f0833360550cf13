"""The pages under docs: generated ones are fresh, promises have tests, links lead somewhere."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
DOCS = ROOT / "docs"
PAGES = sorted([*ROOT.glob("*.md"), *DOCS.glob("*.md")])


def slug(heading: str) -> str:
    """Return a heading as a test is named."""
    return re.sub(r"[^a-z0-9]+", "_", heading.lower().replace("'", "")).strip("_")


def anchor(heading: str) -> str:
    """Return a heading as a link names it."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-")


def headings(page: Path, level: str = "#{1,6}") -> list[str]:
    text = re.sub(r"^```.*?^```$", "", page.read_text("utf-8"), flags=re.MULTILINE | re.DOTALL)
    return [found[1] for found in re.finditer(rf"^{level} (.+)$", text, re.MULTILINE)]


def test_generated_pages_are_fresh() -> None:
    done = subprocess.run(
        [sys.executable, str(DOCS / "generate.py"), "--check"],
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_what_if_has_the_test_that_proves_it() -> None:
    named = headings(DOCS / "what-if.md", "###")
    assert len(named) > 20
    tests = {
        found
        for path in (ROOT / "tests").rglob("test_*.py")
        for found in re.findall(r"def test_(\w+)\(", path.read_text("utf-8"))
    }
    assert [heading for heading in named if slug(heading) not in tests] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_leads_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text("utf-8")):
        if "://" in target:
            continue
        name, _, place = target.partition("#")
        path = (page.parent / name).resolve() if name else page
        assert path.exists(), target
        if place:
            assert place in map(anchor, headings(path)), target


def test_the_readme_can_be_read_in_one_go() -> None:
    assert len((ROOT / "README.md").read_text("utf-8").splitlines()) <= 160
