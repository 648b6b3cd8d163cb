"""The common parts of the exports of traces and of metrics: making an exporter, and the cause of a failed export."""

import logging
import re
from collections.abc import Callable
from enum import Enum
from importlib.metadata import entry_points
from typing import Any, Final

from cart_grpc.logs.events import Event
from cart_grpc.otel import Signal, find_exporter, find_protocol
from cart_grpc.store.failure_log import FailureLog

# gRPC's lines have an address without a scheme.
_USER: Final = re.compile(r"(//[^/@\s]*|[^\s/@:]+:[^\s/@]*)@")
_ENTRY_POINTS: Final = {"grpc": "otlp_proto_grpc", "http/protobuf": "otlp_proto_http"}


class _LastLine(logging.Filter):
    """Keeps the last line of loggers, instead of writing it."""

    text = "unknown"

    def filter(self, record: logging.LogRecord) -> bool:
        self.text = _USER.sub("***@", record.getMessage())
        return False


# One for both signals: some exporters share a logger, which asks its filters only until one of them says no.
_line: Final = _LastLine()


def _silence() -> _LastLine:
    """Silence the exporters that are made. Return their last line."""
    for name, logger in list(logging.root.manager.loggerDict.items()):
        if name.startswith(("opentelemetry.exporter", "opentelemetry.sdk")) and isinstance(logger, logging.Logger):
            logger.addFilter(_line)
    return _line


class LoggedExports:
    """The exports of one signal. An outage is logged once, with its cause, and its end.

    The exporters of the SDK log each attempt, and only that line says why it failed.
    """

    def __init__(self, failing: Event, recovered: Event, fails: str, works: str) -> None:
        self._failures = FailureLog(failing, recovered, fails, works, quiet_seconds=0)
        self._reason = _silence()

    def run(self, export: Callable[[], Enum]) -> bool:
        """Run `export`, whose result is SUCCESS or FAILURE. Return whether it succeeded. Raises nothing."""
        try:
            if export().name != "SUCCESS":
                raise NotExported(self._reason.text)  # noqa: TRY301 - noted as other failures are
        except Exception as error:  # noqa: BLE001 - an exporter may raise anything, and its thread must go on
            self._failures.note_failure(error)
            return False
        self._failures.note_success()
        return True


class NotExported(Exception):
    """The exporter could not deliver. The text says why."""


def make_exporter(signal: Signal) -> Any:
    """Return the exporter that the variables ask for. It reads its own variables. Raises OtelError."""
    name = find_exporter(signal)
    if name == "otlp":
        name = _ENTRY_POINTS[find_protocol(signal)]
    (found,) = entry_points(group=f"opentelemetry_{signal}_exporter", name=name)
    return found.load()()
