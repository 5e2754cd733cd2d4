"""The README and the pages of docs/: short, complete, and without dead links."""

import datetime
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from simclr_jax.version import __version__

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.glob("*.md")), *sorted(DOCS.glob("notebooks/*.md"))]
FRAMES = ("index.md", "reference.md")  # of the site: they hold other pages
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
    assert {page for page in PAGES if page.parent == DOCS and page.name not in FRAMES} <= set(targets(readme))


def test_the_site_has_every_page():
    trees = "\n".join(re.findall(r"```{toctree}\n(.*?)```", (DOCS / "index.md").read_text(), re.DOTALL))
    listed = {line for line in trees.splitlines() if line and not line.startswith(":")}
    pages = {str(page.relative_to(DOCS).with_suffix("")) for page in PAGES if page.is_relative_to(DOCS)}
    assert listed == pages - {"index"}


@pytest.mark.slow
def test_the_site_builds_without_a_warning(tmp_path):
    pytest.importorskip("myst_nb", reason="pip install -e '.[docs]'")
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-d", tmp_path / "trees"]
    env = {**os.environ, "XLA_FLAGS": ""}  # one device, as the notebook's reader has
    done = subprocess.run(
        [*command, DOCS, tmp_path / "site"], capture_output=True, text=True, check=False, env=env
    )
    assert done.returncode == 0, done.stderr
    notebook = (tmp_path / "site" / "notebooks" / "first_encoder.html").read_text()
    assert "of the neighbours show the same digit" in notebook
    assert re.search(r'<img[^>]* src="\.\./_images/\w+\.png"', notebook)
    assert "simclr_jax.encoder.load" in (tmp_path / "site" / "api" / "encoder.html").read_text()


def test_releases_have_dates_and_the_newest_is_the_version():
    text = (ROOT / "CHANGELOG.md").read_text()
    releases = re.findall(r"^## (\d+\.\d+\.\d+) - (\S+)$", text, re.MULTILINE)
    dates = [datetime.date.fromisoformat(date) for _, date in releases]
    assert dates == sorted(dates, reverse=True)
    assert releases[0][0] == __version__
    assert len(re.findall("^## ", text, re.MULTILINE)) - len(releases) == text.count("## Unreleased\n") <= 1


def test_the_readme_names_every_config():
    text = (ROOT / "README.md").read_text()
    assert [p.name for p in (ROOT / "configs").glob("*.py") if f"`{p.name}`" not in text] == []
