"""The output of the log: JSON or text, one line for each record, on standard error."""

import asyncio
import datetime as dt
import logging
import sys
import threading
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Final, Literal, TypeAlias

from pythonjsonlogger.json import JsonFormatter

from cart_grpc.logs import events
from cart_grpc.logs.limits import Kind, Limits
from cart_grpc.logs.log import IDS, Log
from cart_grpc.terminal import escape

Format: TypeAlias = Literal["auto", "text", "json"]
# Longer texts are cut: an answer or a request may have a megabyte.
MAX_MESSAGE: Final = 2_000
MAX_FIELD: Final = 300
MAX_TRACEBACK_LINES: Final = 200
_log = Log(__name__)


def start(level: str, style: Format = "auto", name: str = "") -> None:
    """Write lines from `level` on to standard error. `name` marks the lines of this process among several.

    "auto" is text on a terminal, otherwise JSON. If the root logger has a handler already, that one gets the lines.
    """
    # It logs a traceback for an answer that does not parse, and the status of the call says so already.
    logging.getLogger("grpc._common").setLevel(logging.CRITICAL)
    logging.getLogger("grpc._cython.cygrpc").addFilter(_is_of_use)
    if level != "DEBUG":
        logging.getLogger("alembic").setLevel(logging.WARNING)
    if logging.root.handlers:
        return
    is_text = style == "text" or (style == "auto" and sys.stderr.isatty())
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(TextLines(name) if is_text else JsonLines(name))
    handler.addFilter(_is_due)
    logging.basicConfig(level=level, handlers=[handler])
    logging.captureWarnings(capture=True)
    Log.limits = Limits()
    # A line that cannot be written is lost. Otherwise, logging would print it and a traceback as they are.
    logging.raiseExceptions = False
    if not is_text:
        _log_crashes()


async def keep_reporting() -> None:
    """Report suppressed lines every second until cancelled."""
    try:
        while Log.limits:
            await asyncio.sleep(1)
            report_suppressed()
    finally:
        report_suppressed(is_last=True)


def report_suppressed(*, is_last: bool = False) -> None:
    """Write a line for each kind of line of which some were suppressed in a window that has ended.

    With `is_last`, also for windows that have not ended.
    """
    for kind, lines, seconds in Log.limits.take_suppressed(is_last=is_last) if Log.limits else ():
        text = "%d more lines of %s in %g s are not shown"
        of = {"of_event": kind.event, "reason": kind.reason, "method": kind.method}
        shown: dict[str, Any] = {key: value for key, value in of.items() if value}
        event = events.Event(events.LINES_SUPPRESSED.name, kind.level, "", is_limited=False)
        _log(event, text, lines, kind.event, seconds, suppressed=lines, **shown)


class JsonLines(JsonFormatter):
    """Formats a record as a JSON object in ASCII: the keys of `_to_fields`, and `exception` if there is a traceback."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self._name = name

    def add_fields(self, log_data: dict[str, Any], record: logging.LogRecord, message_dict: dict[str, Any]) -> None:
        log_data.update(_to_fields(record, self._name))
        if message_dict.get("exc_info"):
            log_data["exception"] = "\n".join(_indent(message_dict["exc_info"]))


class TextLines(logging.Formatter):
    """Formats a record as `TIME LEVEL EVENT MESSAGE KEY=VALUE ...`, with its traceback indented below.

    A field whose text is in the message already is left out.
    """

    def __init__(self, name: str) -> None:
        super().__init__()
        self._name = name

    def format(self, record: logging.LogRecord) -> str:
        fields = _to_fields(record, self._name)
        time, level, _, event, message = (fields.pop(key) for key in ("time", "level", "logger", "event", "message"))
        shown = [
            f"{key}={_quote(value)}"
            for key, value in fields.items()
            if not isinstance(value, str) or value not in message
        ]
        lines = [" ".join([time, level, event, message, *shown])]
        if record.exc_info:
            lines += _indent(self.formatException(record.exc_info))
        return "\n".join(lines)


def _to_fields(record: logging.LogRecord, name: str) -> dict[str, Any]:
    """Return what a line says, escaped and cut: no text from outside can end a line or begin another."""
    time = dt.datetime.fromtimestamp(record.created, dt.UTC)
    fields: dict[str, Any] = {
        "time": f"{time:%Y-%m-%dT%H:%M:%S}.{time.microsecond // 1000:03}Z",
        "level": record.levelname,
        "logger": record.name,
        "event": getattr(record, "event", record.name),
        "message": _show(record.getMessage(), MAX_MESSAGE),
    }
    if name:
        fields["process"] = name
    own: Mapping[str, object] = getattr(record, "fields", {})
    for key, value in (*_find_ids().items(), *own.items()):
        if value not in (None, ""):
            fields[key] = value if isinstance(value, int | float) else _show(str(value), MAX_FIELD)
    return fields


def _find_ids() -> Mapping[str, object]:
    ids = IDS.get()
    return ids.find_ids() if ids else {}


def _show(text: str, most: int) -> str:
    return escape(text) if len(text) <= most else f"{escape(text[:most])}..."


def _quote(value: object) -> str:
    """Return a field's value as one word, or in double quotes."""
    text = str(value)
    if text and not any(letter in text for letter in ' "='):
        return text
    return '"{}"'.format(text.replace("\\", "\\\\").replace('"', '\\"'))


def _indent(traceback: str) -> list[str]:
    lines = traceback.split("\n")
    return [f"  {_show(line, MAX_MESSAGE)}" for line in lines[-MAX_TRACEBACK_LINES:]]


def _is_due(record: logging.LogRecord) -> bool:
    """Whether to write a record. `Log` has counted our own; those of libraries are counted by their logger."""
    try:
        record.getMessage()
    except Exception:  # noqa: BLE001 - a library's line whose values do not fit; it is better than none
        record.msg, record.args = str(record.msg), None
    if Log.limits is None or hasattr(record, "event"):
        return True
    return Log.limits.admits(Kind(record.name, record.levelno))


def _is_of_use(record: logging.LogRecord) -> bool:
    """Whether a record of gRPC tells an operator anything.

    It logs a traceback for some of the callers that vanish while a reply is sent. It also logs each metadata value that
    is not UTF-8, with a traceback. Any caller can send one, and the value may be a secret.
    """
    return not record.getMessage().startswith("Invalid encoding on ") and "ExecuteBatchError" not in record.getMessage()


def _log_crashes() -> None:
    """Make errors that nobody handles lines of the log. Python would print them as they are."""

    def log_crash(kind: type[BaseException], error: BaseException, _: TracebackType | None = None) -> None:
        if not issubclass(kind, KeyboardInterrupt | SystemExit):
            _log(events.CRASHED, "%s: nothing handled this error", kind.__name__, exc_info=error)

    sys.excepthook = log_crash
    sys.unraisablehook = lambda found: log_crash(found.exc_type, found.exc_value or found.exc_type())
    threading.excepthook = lambda found: log_crash(found.exc_type, found.exc_value or found.exc_type())
