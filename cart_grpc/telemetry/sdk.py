"""What the exports of traces and of metrics share: the exporter, the resource, and why an export failed."""

import functools
import logging
import re
import uuid
from importlib.metadata import entry_points, version
from typing import Any, Final

from opentelemetry.sdk.resources import SERVICE_NAME, Resource

from cart_grpc.otel import Signal

_USER: Final = re.compile(r"//[^/@\s]*@")


class NotExported(Exception):
    """The exporter could not deliver. The text says why."""


class LastLine(logging.Filter):
    """Keeps the last line that the SDK logs, instead of writing it: it logs each attempt, and a traceback with some."""

    text = "unknown"

    def filter(self, record: logging.LogRecord) -> bool:
        self.text = _USER.sub("//***@", record.getMessage())
        return False


# One for both signals: a logger asks its filters only until one of them says no, and some exporters share a logger.
_line: Final = LastLine()


def silence() -> LastLine:
    """Silence the exporters that are made. Return their last line: only that says why an export failed."""
    for name, logger in list(logging.root.manager.loggerDict.items()):
        if name.startswith(("opentelemetry.exporter", "opentelemetry.sdk")) and isinstance(logger, logging.Logger):
            logger.addFilter(_line)
    return _line


def make_exporter(signal: Signal, name: str) -> Any:
    """Return the signal's exporter with the name of its entry point. It reads its own variables."""
    (found,) = entry_points(group=f"opentelemetry_{signal}_exporter", name=name)
    return found.load()()


@functools.cache
def resource() -> Resource:
    """Return the resource of this process. OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES come first."""
    ours = {"service.version": version("cart-grpc"), "service.instance.id": str(uuid.uuid4())}
    given = Resource.create()
    if str(given.attributes.get(SERVICE_NAME, "")).startswith("unknown_service"):
        given = given.merge(Resource({SERVICE_NAME: "cart-grpc"}))
    return Resource(ours).merge(given)
