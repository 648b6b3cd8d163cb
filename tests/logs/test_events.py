"""The table of events, its documentation and the code agree."""

import logging
import re
from pathlib import Path

from cart_grpc.logs import events
from cart_grpc.logs.events import EVENTS, Event

ROOT = Path(__file__).parents[2]
ROW = re.compile(r"^\| `(\w+)` \| (\w+) \|", re.MULTILINE)
SOURCES = [path for path in (ROOT / "cart_grpc").rglob("*.py") if path.parent.name != "logs"]


def level_of(event: Event) -> str:
    return "ALARM" if event.is_alarm else logging.getLevelName(event.level)


def test_the_page_lists_every_event_with_its_level() -> None:
    page = (ROOT / "docs" / "logging.md").read_text()
    assert dict(ROW.findall(page)) == {event.name: level_of(event) for event in EVENTS}


def test_names_are_unique_and_in_snake_case() -> None:
    names = [event.name for event in EVENTS]
    assert len(names) == len(set(names))
    assert all(re.fullmatch(r"[a-z]+(_[a-z]+)*", name) for name in names)
    assert [
        name for name, value in vars(events).items() if isinstance(value, Event) and name != value.name.upper()
    ] == []


def test_every_event_is_written_somewhere() -> None:
    code = "".join(path.read_text() for path in (ROOT / "cart_grpc").rglob("*.py"))
    assert [event.name for event in EVENTS if f"events.{event.name.upper()}" not in code] == []


def test_every_line_of_our_code_has_an_event() -> None:
    """A logger of the standard library would write lines without one."""
    used = re.compile(r"logging\.(getLogger\(__name__|debug|info|warning|error|exception|critical)\b")
    assert [str(path) for path in SOURCES if used.search(path.read_text())] == []
