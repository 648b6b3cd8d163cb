"""The site: it builds without a warning, needs nothing of another host, and its search finds words."""

import json
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

from tests.documentation import ROOT
from tools import site

pytestmark = pytest.mark.docs
# The attributes from which a browser loads something by itself.
LOADING = {
    "script": "src",
    "img": "src",
    "link": "href",
    "iframe": "src",
    "source": "src",
    "video": "src",
    "use": "href",
}
# These links name a page and load nothing.
NAMING = {"canonical", "index", "search", "next", "prev", "author", "copyright"}


class Assets(HTMLParser):
    """Collects what a page loads."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        loaded = values.get(LOADING.get(tag, ""))
        if loaded and not (tag == "link" and values.get("rel") in NAMING):
            self.found.append(loaded)
        self.found += re.findall(r"url\(['\"]?([^'\")]+)", values.get("style") or "")


def build(sources: Path, target: Path) -> subprocess.CompletedProcess[str]:
    options = ["--quiet", "--nitpicky", "--fail-on-warning", "--keep-going", "-c", str(ROOT / "docs")]
    command = [sys.executable, "-m", "sphinx", *options, "-d", str(target / "trees")]
    command += [str(sources), str(target / "html")]
    # A proxy to nowhere: what needs a network fails.
    nowhere = dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), "http://127.0.0.1:9")
    return subprocess.run(command, env={**os.environ, **nowhere}, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    site.collect(ROOT, folder / "sources")
    finished = build(folder / "sources", folder)
    assert finished.returncode == 0, finished.stderr
    return folder / "html"


def test_nothing_comes_from_another_host(built: Path) -> None:
    pages, styles = list(built.rglob("*.html")), list(built.rglob("*.css"))
    assert len(pages) > 30
    assert styles
    outside = []
    for page in pages:
        assets = Assets()
        assets.feed(page.read_text(encoding="utf-8"))
        assert assets.found
        outside += [f"{page.name}: {asset}" for asset in assets.found if re.match(r"(\w+:)?//", asset)]
    for style in styles:
        text = style.read_text(encoding="utf-8")
        found = re.findall(r"(?:url\(|@import)\s*['\"]?([^'\")\s]+)", text)
        outside += [f"{style.name}: {asset}" for asset in found if re.match(r"(https?:)?//", asset)]
    assert outside == []


def test_an_asset_of_another_host_is_found() -> None:
    assets = Assets()
    assets.feed('<link rel="stylesheet" href="//fonts.example/x.css"><a href="https://example.com">x</a>')
    assert assets.found == ["//fonts.example/x.css"]


def test_the_search_finds_reasons_fields_and_settings(built: Path) -> None:
    index = json.loads((built / "searchindex.js").read_text(encoding="utf-8").removeprefix("Search.setIndex(")[:-1])
    terms = {**index["terms"], **index["titleterms"]}
    for word, page in (
        ("cart_frozen", "reference/errors"),
        ("request_id", "reference/cart-service"),
        ("cart_database_url", "reference/settings"),
    ):
        pages = terms[word] if isinstance(terms[word], list) else [terms[word]]
        assert page in {index["docnames"][number] for number in pages}


def test_documents_of_the_root_and_files_with_a_page_are_links_to_pages(built: Path) -> None:
    start = (built / "index.html").read_text(encoding="utf-8")
    for page in ("reliability.html", "reference/cart-service.html", "reference/errors.html", "reference/settings.html"):
        assert f'href="{page}"' in start
    architecture = (built / "architecture.html").read_text(encoding="utf-8")
    assert 'href="upgrades.html#how-to-write-a-migration"' in architecture


@pytest.mark.parametrize("link", ["[a](none.md)", "[a](#none)", "![a](none.svg)"])
def test_a_link_that_leads_nowhere_fails_the_build(link: str, tmp_path: Path) -> None:
    sources = tmp_path / "sources"
    sources.mkdir()
    (sources / "index.md").write_text(f"# A page\n\n{link}\n", encoding="utf-8")
    finished = build(sources, tmp_path)
    assert finished.returncode != 0
    assert "none" in finished.stderr


def test_files_without_a_page_can_be_downloaded(built: Path) -> None:
    names = {path.name for path in (built / "_downloads").rglob("*") if path.is_file()}
    assert names >= {"cart_service.proto", "reservation.openapi.yaml", "haproxy.cfg"}
