"""Markdown: the links and anchors of a document, and the rewriting of its links."""

import re
from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import Final

from markdown_it import MarkdownIt

# Code is matched first, so that nothing in it counts as a link.
_PARTS: Final = re.compile(
    r"(?P<block>^ *(?P<fence>`{3,})[^\n]*\n.*?^ *(?P=fence)`*$|^#+ .*?$)"
    r"|!?\[(?P<text>(?:[^\[\]]|\[[^\[\]]*\])*)\]\((?P<target>[^)\s]+)\)"
    r"|(?<!`)(?P<ticks>`+)(?!`)(?P<code>(?:(?!\n\n).)+?)(?<!`)(?P=ticks)(?!`)",
    re.MULTILINE | re.DOTALL,
)
_PARSER: Final = MarkdownIt("commonmark").enable("table")


def anchor_of(heading: str) -> str:
    """Return the anchor that GitHub gives a heading."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


def anchors(text: str) -> set[str]:
    """Return the anchors of all headings. Of equal headings, the later ones have a number."""
    found: dict[str, int] = {}
    every = set()
    tokens = _PARSER.parse(text)
    for opening, content in pairwise(tokens):
        if opening.type == "heading_open":
            shown = "".join(each.content for each in content.children or () if each.type in ("text", "code_inline"))
            anchor = anchor_of(shown)
            count = found[anchor] = found.get(anchor, -1) + 1
            every.add(f"{anchor}-{count}" if count else anchor)
    return every


def links(text: str) -> list[str]:
    """Return the targets of all links and images."""
    inline = (child for token in _PARSER.parse(text) for child in token.children or ())
    targets = (child.attrGet("href") or child.attrGet("src") for child in inline)
    return [str(target) for target in targets if target]


def rewrite(text: str, link: Callable[[str, str], tuple[str, str] | None], code: Callable[[str], str | None]) -> str:
    """Return the text with other links.

    `link` gets the text and the target of a link outside headings, and returns others; with the target "" only the text
    stays; None keeps the link. `code` gets the text of inline code, and returns the target of a link around it.
    """

    def replace(match: re.Match[str]) -> str:
        whole = match[0]
        if match["block"] is not None:
            return whole
        if match["target"] is None:
            target = code(match["code"])
            return f"[{whole}]({target})" if target else whole
        other = link(match["text"], match["target"])
        if other is None:
            return whole
        shown, target = other
        return f"{'!' if whole.startswith('!') else ''}[{shown}]({target})" if target else shown

    return _PARTS.sub(replace, text)


def definitions(entries: Mapping[str, str]) -> str:
    """Return a definition list, as MyST writes it: each key as code, with the Markdown that explains it."""
    return "\n\n".join(define(f"`{key}`", text) for key, text in entries.items()) + "\n"


def define(term: str, text: str) -> str:
    """Return one entry of a definition list."""
    return f"{term}\n: " + "\n".join(f"  {line}" if line else "" for line in text.splitlines()).strip()
