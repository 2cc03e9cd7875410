"""Tests of the documentation site: it builds without warnings and without the network."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("mkdocs")
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the site in an environment whose proxies refuse every connection."""
    folder = tmp_path_factory.mktemp("site")
    proxies = dict.fromkeys(
        ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), "http://[::1]:9"
    )
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)],
        cwd=ROOT,
        env={**os.environ, **proxies, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr
    return folder


def test_site_has_every_document(site: Path) -> None:
    for document in (ROOT / "docs").glob("*.md"):
        assert (site / document.with_suffix(".html").name).exists()


def test_site_loads_nothing_from_other_servers(site: Path) -> None:
    loads = r"<(?:script|img|iframe)[^>]+src=\"(?:https?:)?//|<link[^>]+href=\"(?:https?:)?//"
    for page in site.rglob("*.html"):
        assert re.findall(loads, page.read_text()) == [], page.name


def test_site_documents_the_public_api(site: Path) -> None:
    import segrec_batch

    names = {*segrec_batch.__all__} - {"__version__"}
    page = (site / "api.html").read_text()
    assert [name for name in names if f"segrec_batch.{name}" not in page] == []
