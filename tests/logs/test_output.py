"""A record is one line in each format, whatever its values contain."""

import json
import logging
import sys
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cart_grpc.logs import events, output
from cart_grpc.logs.limits import LINES_PER_WINDOW
from cart_grpc.logs.log import Log
from tests.logs.lines import check_text, parse, started

log = Log("cart_grpc.example")
HOSTILE = "a\n2026-01-01T00:00:00.000Z ERROR forged\r\x1b[2J\u202e\u2028\udcff\0 level=ERROR"
ANY_TEXT = st.text(st.characters(codec=None, exclude_categories=()), max_size=50)


def test_a_line_has_its_event_and_its_fields_in_json() -> None:
    with started("json", "worker-1") as written:
        log(events.BREAKER_OPENED, "the API %s", "fails", code="UNAVAILABLE", attempt=3)
    [line] = parse(written.getvalue())
    assert line.pop("time")
    assert line == {
        "level": "WARNING", "logger": "cart_grpc.example", "event": "breaker_opened", "message": "the API fails",
        "process": "worker-1", "code": "UNAVAILABLE", "attempt": 3,
    }  # fmt: skip


def test_a_line_has_its_event_and_its_fields_in_text() -> None:
    with started("text") as written:
        log(events.BREAKER_OPENED, "the API %s", "fails", code="UNAVAILABLE", cause='a "b"', shown="fails", attempt=3)
    line = written.getvalue()
    check_text(line)
    assert line[25:] == 'WARNING breaker_opened the API fails code=UNAVAILABLE cause="a \\"b\\"" attempt=3\n'


def test_a_line_of_a_library_has_the_name_of_its_logger_as_event() -> None:
    with started("json") as written:
        logging.getLogger("asyncio").warning("slow")
    [line] = parse(written.getvalue())
    assert line["event"] == line["logger"] == "asyncio"


def test_an_alarm_begins_with_alarm() -> None:
    with started("json") as written:
        log(events.CHECKOUT_ALARM, "it failed")
    [line] = parse(written.getvalue())
    assert line["message"] == "ALARM it failed"
    assert line["level"] == "ERROR"


@pytest.mark.parametrize("style", ["json", "text"])
@given(text=ANY_TEXT | st.just(HOSTILE), key=ANY_TEXT)
def test_no_value_can_break_a_line(style: output.Format, text: str, key: str) -> None:
    with started(style) as written:
        log.write(events.CALL_REFUSED, "a call of %s", text, user=key, reason=text)
        logging.getLogger("library").warning("%s", text)
        logging.getLogger("library").warning(text, key)
        log.write(events.INTERNAL_ERROR, "an error", exc_info=ValueError(text))
    if style == "json":
        assert len(parse(written.getvalue())) == 4
    else:
        check_text(written.getvalue())
        assert len([line for line in written.getvalue().splitlines() if not line.startswith("  ")]) == 4


@pytest.mark.parametrize("style", ["json", "text"])
def test_a_long_value_is_cut(style: output.Format) -> None:
    with started(style) as written:
        log(events.CALL_REFUSED, "a call of %s", "x" * 1_000_000, user="\n" * 1_000_000)
        log(events.INTERNAL_ERROR, "an error", exc_info=ValueError("\n".join(["y" * 10_000] * 1_000)))
    assert len(written.getvalue()) < 1_000_000
    assert max(map(len, written.getvalue().splitlines())) < 500_000


def test_a_traceback_is_one_string_in_json() -> None:
    with started("json") as written:
        log(events.INTERNAL_ERROR, "an error", exc_info=ValueError(HOSTILE))
    [line] = parse(written.getvalue())
    assert r"ValueError: a" in line["exception"]
    assert all(each.startswith("  ") and each.isprintable() for each in line["exception"].split("\n"))


def test_an_error_that_nothing_handles_is_a_line_in_json() -> None:
    with started("json") as written:
        sys.excepthook(ValueError, ValueError(HOSTILE), None)
    [line] = parse(written.getvalue())
    assert line["event"] == "crashed"


def test_auto_is_json_unless_standard_error_is_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    with started("auto") as written:
        log(events.STOPPED, "stopped")
    assert json.loads(written.getvalue())
    with started("text") as written:
        monkeypatch.setattr(written, "isatty", lambda: True)
        monkeypatch.setattr(logging.root, "handlers", [])
        output.start("INFO", "auto")
        log(events.STOPPED, "stopped")
    check_text(written.getvalue())


@pytest.mark.parametrize(
    "write",
    [lambda: log(events.ATTEMPT_FAILED, "failed"), lambda: logging.getLogger("library").info("failed")],
    ids=["our own", "a library's"],
)
def test_a_flood_of_lines_becomes_a_few_and_their_number(write: Callable[[], None]) -> None:
    with started("json") as written:
        for _ in range(5_000):
            write()
        output.report_suppressed(is_last=True)
    *lines, last = parse(written.getvalue())
    assert len(lines) == LINES_PER_WINDOW
    assert (last["event"], last["level"], last["suppressed"]) == ("lines_suppressed", "INFO", 5_000 - LINES_PER_WINDOW)
    assert last["of_event"] == lines[0]["event"]


def test_no_alarm_is_suppressed() -> None:
    with started("json") as written:
        for number in range(100):
            log(events.RESERVATION_ALARM, "reservation %d", number)
    assert len(parse(written.getvalue())) == 100
