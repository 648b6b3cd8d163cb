"""The common parts of the exports of traces and of metrics: making an exporter, and the cause of a failed export."""

import logging
import re
from importlib.metadata import entry_points
from typing import Any, Final

from cart_grpc.otel import Signal, find_exporter, find_protocol

# gRPC's lines have an address without a scheme.
_USER: Final = re.compile(r"(//[^/@\s]*|[^\s/@:]+:[^\s/@]*)@")
_ENTRY_POINTS: Final = {"grpc": "otlp_proto_grpc", "http/protobuf": "otlp_proto_http"}


class NotExported(Exception):
    """The exporter could not deliver. The text says why."""


class LastLine(logging.Filter):
    """Keeps the last line of loggers, instead of writing it."""

    text = "unknown"

    def filter(self, record: logging.LogRecord) -> bool:
        self.text = _USER.sub("***@", record.getMessage())
        return False


# One for both signals: some exporters share a logger, which asks its filters only until one of them says no.
_line: Final = LastLine()


def silence() -> LastLine:
    """Silence the exporters that are made: they log each attempt. Return their last line, which says why it failed."""
    for name, logger in list(logging.root.manager.loggerDict.items()):
        if name.startswith(("opentelemetry.exporter", "opentelemetry.sdk")) and isinstance(logger, logging.Logger):
            logger.addFilter(_line)
    return _line


def make_exporter(signal: Signal) -> Any:
    """Return the exporter that the variables ask for. It reads its own variables. Raises OtelError."""
    name = find_exporter(signal)
    if name == "otlp":
        name = _ENTRY_POINTS[find_protocol(signal)]
    (found,) = entry_points(group=f"opentelemetry_{signal}_exporter", name=name)
    return found.load()()
