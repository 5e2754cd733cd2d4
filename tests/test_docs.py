"""The README and the pages of docs/: short, complete, and without dead links."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), ROOT / "tools" / "launch" / "README.md"]
LINK = re.compile(r"\]\(([^)#\s]+)(?:#[^)]*)?\)")


def targets(page):
    """The files that a page links to."""
    links = [link for link in LINK.findall(page.read_text()) if not link.startswith(("http:", "https:"))]
    return [(page.parent / link).resolve() for link in links]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_to_files(page):
    assert [str(target) for target in targets(page) if not target.exists()] == []


def test_the_readme_is_short_and_leads_to_every_page():
    readme = ROOT / "README.md"
    assert len(readme.read_text().splitlines()) <= 150
    assert {page for page in PAGES if page.parent.name == "docs"} <= set(targets(readme))


def test_the_readme_names_every_config():
    text = (ROOT / "README.md").read_text()
    assert [p.name for p in (ROOT / "configs").glob("*.py") if f"`{p.name}`" not in text] == []
