"""Collects the sources of the documentation site: the documents with links between pages, and the reference.

Documents link to files of the repository, so that they work on a forge. Here, a link to a file with a page becomes a
link to the page, and a setting, a method or the reason of an error in inline code becomes a link to the reference.
"""

import argparse
import tomllib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from posixpath import normpath, relpath
from typing import Any, Final

from cart_grpc.settings import Settings, variable_of
from tools import protos, reference_api, reference_errors, reference_limits, reference_settings
from tools.markdown import rewrite
from tools.reference_names import DOWNLOADS, OPENAPI

_IMAGES: Final = (".svg", ".png")
_METHODS_PAGE: Final = "reference/cart-service.md"


def collect(root: Path, target: Path) -> None:
    """Write the sources of the site in `root`, the project's folder, into the folder `target`. Old files there go."""
    navigation = tomllib.loads((root / "docs" / "navigation.toml").read_text(encoding="utf-8"))
    kept = set()
    for path, content in _sources(root, navigation):
        file = target / path
        kept.add(file)
        # Sphinx reads only changed files.
        if not file.exists() or file.read_bytes() != content:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(content)
    for file in [each for each in target.rglob("*") if each.is_file() and each not in kept]:
        file.unlink()


def _sources(root: Path, navigation: Mapping[str, Any]) -> Iterator[tuple[str, bytes]]:
    files = protos.read(root / "protos")
    reasons = reference_errors.texts(root)["reasons"]
    made = dict(reference_api.pages(files, reasons))
    made[reference_errors.PAGE] = reference_errors.page(root, files.values())
    made[reference_settings.PAGE] = reference_settings.page()
    made[reference_limits.PAGE] = reference_limits.page()
    words = {method.name: f"{_METHODS_PAGE}#{method.name.lower()}" for method in _cart_methods(files)}
    words |= {reason: f"{reference_errors.PAGE}#{reason.lower()}" for reason in reasons}
    settings = (variable_of(name) for name in Settings.model_fields)
    words |= {setting: f"{reference_settings.PAGE}#{setting.lower()}" for setting in settings}
    pages = _pages(root, navigation)
    files_to_download = {f"protos/{path}" for path in files} | {OPENAPI}
    for document_path, page in pages.items():
        document = _Document(root, document_path, page, pages | navigation["sources"], words)
        text = document.site_text()
        files_to_download |= document.files
        if page == "index.md":
            text += _contents(navigation)
        yield page, text.encode()
    for page, text in made.items():
        yield page, rewrite(text, lambda _text, _target: None, _link_to(page, words)).encode()
    for file in sorted(files_to_download):
        yield f"{DOWNLOADS}/{file}", (root / file).read_bytes()
    for image in (each for each in (root / "docs").rglob("*") if each.suffix in _IMAGES):
        yield image.relative_to(root / "docs").as_posix(), image.read_bytes()


def _cart_methods(files: Mapping[str, protos.File]) -> Iterator[protos.Method]:
    for service in files["cartgrpc/v1/cart_service.proto"].services:
        yield from service.methods


def _pages(root: Path, navigation: Mapping[str, Any]) -> dict[str, str]:
    """The page of each document, by its path in the project's folder."""
    documents = sorted((root / "docs").rglob("*.md"))
    pages = {each.relative_to(root).as_posix(): each.relative_to(root / "docs").as_posix() for each in documents}
    for part in navigation["parts"]:
        for page in part["pages"]:
            if page.startswith("../"):
                pages[page.removeprefix("../")] = _name(page)
    return pages


def _name(page: str) -> str:
    """The path of a page of the navigation on the site."""
    return page.removeprefix("../").lower()


def _contents(navigation: Mapping[str, Any]) -> str:
    parts = (
        f"```{{toctree}}\n:hidden:\n:caption: {part['title']}\n\n" + "\n".join(map(_name, part["pages"])) + "\n```\n"
        for part in navigation["parts"]
    )
    return "\n" + "\n".join(parts)


def _link_to(page: str, words: Mapping[str, str]) -> Callable[[str], str | None]:
    """Return a function that finds the link from `page` to the reference of a word in code."""

    def find(code: str) -> str | None:
        place = words.get(code)
        if place is None or place.startswith(f"{page}#"):
            return None
        return relpath(place, PurePosixPath(page).parent)

    return find


class _Document:
    """A document of the project with its page. `files` are the files that it links to and that have no page."""

    def __init__(
        self, root: Path, document: str, page: str, pages: Mapping[str, str], words: Mapping[str, str]
    ) -> None:
        self._root = root
        self._document = document
        self._page = page
        self._pages = pages
        self._words = words
        self.files: set[str] = set()

    def site_text(self) -> str:
        text = (self._root / self._document).read_text(encoding="utf-8")
        return rewrite(text, self._link, _link_to(self._page, self._words))

    def _link(self, text: str, target: str) -> tuple[str, str] | None:
        """A link on the site: to a page, an image or a file to download. Of a link to a folder, only the text."""
        path, hash_, anchor = target.partition("#")
        if not path or ":" in path:
            return None
        file = normpath(PurePosixPath(self._document).parent / path)
        here = PurePosixPath(self._page).parent
        if file in self._pages:
            shown = _title(self._root / file) if text.endswith(".md") else text
            return shown, f"{relpath(self._pages[file], here)}{hash_}{anchor}"
        if file.endswith(_IMAGES):
            return text, relpath(file.removeprefix("docs/"), here)
        if (self._root / file).is_file():
            self.files.add(file)
            return text, relpath(f"{DOWNLOADS}/{file}", here)
        return (text, "") if (self._root / file).exists() else None


def _title(document: Path) -> str:
    return document.read_text(encoding="utf-8").partition("\n")[0].removeprefix("# ")


def main() -> None:
    """Collect the sources into `build/site` of the project's folder."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("root", type=Path, help="the project's folder")
    root = parser.parse_args().root
    collect(root, root / "build" / "site")


if __name__ == "__main__":
    main()
