"""The pages, their fenced code, and the commands in it."""

import re
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
# tests/probe has the tests of reservation-api.md, and `make bench` writes performance.md.
_OTHERS = {"docs/reservation-api.md", "docs/performance.md"}
_DOCUMENTS = {str(path.relative_to(ROOT)) for path in (ROOT / "docs").rglob("*.md")}
PAGES = ["README.md", *sorted(_DOCUMENTS - _OTHERS)]
PYTHON_CLIENT = "docs/clients/python.md"

_FENCE = re.compile(r"^ *```(\w*)\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)
# A command ends with its line, unless that ends with a backslash or begins a here-document.
_COMMAND = re.compile(r"^\$ (.*<<(\w+)\n(?:.*\n)*?\2$|(?:.*\\\n)*.*)", re.MULTILINE)


class Fence(NamedTuple):
    """Fenced code of a page. `line` is that of its beginning, and `language` may be empty."""

    page: str
    line: int
    language: str
    text: str

    @property
    def steps(self) -> list[tuple[str, str]]:
        """The commands, each with the output that the page shows. Code in `sh` is one command."""
        if self.language == "sh":
            return [(self.text.rstrip(), "")]
        found = list(_COMMAND.finditer(self.text))
        ends = [match.start() for match in found[1:]] + [len(self.text)]
        return [(match[1], self.text[match.end() : end].strip("\n")) for match, end in zip(found, ends, strict=True)]

    @property
    def commands(self) -> list[str]:
        """The commands, without output."""
        return [command for command, _ in self.steps]


def read(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def fences(page: str, *languages: str) -> list[Fence]:
    """Return the fenced code of a page, all of it or that in some languages."""
    text = read(page)
    found = [Fence(page, text[: match.start()].count("\n") + 1, match[1], match[2]) for match in _FENCE.finditer(text)]
    return [fence for fence in found if not languages or fence.language in languages]
