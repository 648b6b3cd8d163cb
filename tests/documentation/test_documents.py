"""Every document: its links lead to a file and a heading, and it begins with its purpose."""

import re
import tomllib
from functools import cache
from pathlib import Path

import pytest
from markdown_it import MarkdownIt

from cart_grpc.settings import Settings
from tests.documentation import DOCUMENTS, ROOT
from tools import reference_errors
from tools.markdown import anchors, links

OF_DEMO_SHOPS = {"CART_PORT", "CART_ADDR", "CART_SERVICE_ADDR"}
NAVIGATION = tomllib.loads((ROOT / "docs/navigation.toml").read_text(encoding="utf-8"))


@cache
def anchors_of(file: Path) -> frozenset[str]:
    return frozenset(anchors(file.read_text(encoding="utf-8")))


def faults(document: Path, text: str) -> list[str]:
    """The links of a document that lead nowhere, as a reader of the repository follows them."""
    found = []
    for target in links(text):
        path, _, anchor = target.partition("#")
        if re.match(r"[a-z]+:", target):
            continue
        file = (document.parent / path).resolve() if path else document
        if not file.exists() or (anchor and file.suffix == ".md" and anchor not in anchors_of(file)):
            found.append(target)
    return found


@pytest.mark.parametrize("name", DOCUMENTS)
def test_every_link_leads_to_a_file_and_a_heading(name: str) -> None:
    document = ROOT / name
    assert faults(document, document.read_text(encoding="utf-8")) == []


def test_a_link_to_no_file_and_one_to_no_heading_are_found() -> None:
    text = (
        "[a](docs/none.md) [b](docs/concepts.md#none) [c](docs/concepts.md#errors) `[d](none.md)` ![e](docs/none.svg)"
    )
    assert faults(ROOT / "README.md", text) == ["docs/none.md", "docs/concepts.md#none", "docs/none.svg"]


@pytest.mark.parametrize("name", DOCUMENTS)
def test_a_document_begins_with_its_title_and_a_sentence(name: str) -> None:
    tokens = MarkdownIt("commonmark").enable("table").parse((ROOT / name).read_text(encoding="utf-8"))
    assert [token.type for token in tokens[:4]] == ["heading_open", "inline", "heading_close", "paragraph_open"]
    assert tokens[0].tag == "h1"
    assert not re.match(r"[^.:]*:$", tokens[4].content), "it must say something by itself"
    assert sum(token.type == "heading_open" and token.tag == "h1" for token in tokens) == 1


@pytest.mark.parametrize("name", DOCUMENTS)
def test_every_setting_in_a_document_exists(name: str) -> None:
    words = set(re.findall(r"(?<![\w$/])CART_[A-Z_]+[A-Z](?!\w)", (ROOT / name).read_text(encoding="utf-8")))
    known = {*Settings().shown(), *reference_errors.texts(ROOT)["reasons"], "CART_CONFIG_FILE"}
    assert words - known - OF_DEMO_SHOPS == set()


def test_the_navigation_has_every_page_once() -> None:
    listed = [page for part in NAVIGATION["parts"] for page in part["pages"]]
    assert len(listed) == len(set(listed))
    pages = {f"docs/{page}" for page in listed if not page.startswith(("../", "reference/"))}
    assert pages == {name for name in DOCUMENTS if name.startswith("docs/")} - {"docs/index.md"}
