"""The lines of a log, as a test reads them."""

import io
import json
import logging
import re
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from cart_grpc.logs import output
from cart_grpc.logs.events import EVENTS
from cart_grpc.logs.log import Log

LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")
TIME = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z"
# A line of the text format: its beginning, then visible characters only.
TEXT = re.compile(rf"{TIME} (?:{'|'.join(LEVELS)}) [\w.]+ .*")
NAMES = {event.name for event in EVENTS}


def parse(text: str) -> list[dict[str, Any]]:
    """Return the lines of a log in JSON. Fail if one is not as docs/logging.md promises."""
    return [_check(json.loads(line, parse_constant=_refuse), line) for line in text.split("\n")[:-1]]


def _check(line: dict[str, Any], raw: str) -> dict[str, Any]:
    assert list(line)[:5] == ["time", "level", "logger", "event", "message"]
    assert re.fullmatch(TIME, line["time"])
    assert line["level"] in LEVELS
    assert line["event"] in NAMES or line["event"] == line["logger"]
    assert raw.isascii()
    assert raw.isprintable()
    shown = [value for key, value in line.items() if isinstance(value, str) and key != "exception"]
    assert all(value.isprintable() for value in shown)
    return line


def _refuse(constant: str) -> None:
    raise AssertionError(f"{constant} is not JSON")


def check_text(text: str) -> None:
    """Fail if a line is neither a record in the text format nor the indented line of a traceback."""
    for line in text.split("\n")[:-1]:
        assert line.isprintable()
        assert TEXT.fullmatch(line) or line.startswith("  "), line


@contextmanager
def started(style: output.Format, name: str = "") -> Iterator[io.StringIO]:
    """Start the log of this process, as a program does, and end it after the test. Yields its output."""
    stream = io.StringIO()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stderr", stream)
        patch.setattr(Log, "limits", None)
        for owner, attribute in (
            (logging.root, "handlers"), (logging.root, "level"), (logging, "raiseExceptions"), (sys, "excepthook"),
            (sys, "unraisablehook"), (threading, "excepthook"),
        ):  # fmt: skip
            patch.setattr(owner, attribute, getattr(owner, attribute))
        patch.setattr(logging.root, "handlers", [])
        try:
            output.start("INFO", style, name)
            yield stream
        finally:
            logging.captureWarnings(capture=False)
