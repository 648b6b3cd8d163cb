"""OpenTelemetry's own log: a collector that is away must not fill ours."""

import logging
import time
from typing import Final

log = logging.getLogger(__name__)
_INTERVAL_SECONDS: Final = 60.0


def quieten() -> None:
    """Log each kind of line of OpenTelemetry at most once a minute, as one line without a traceback."""
    logger = logging.getLogger("opentelemetry")
    if not any(isinstance(handler, _Sparing) for handler in logger.handlers):
        logger.addHandler(_Sparing(logging.WARNING))
        logger.propagate = False


class _Sparing(logging.Handler):
    def __init__(self, level: int) -> None:
        super().__init__(level)
        self._next: dict[tuple[str, int], float] = {}

    def emit(self, record: logging.LogRecord) -> None:
        """Log the record as a warning of ours, unless its place in the code logged within the last minute."""
        place, now = (record.name, record.lineno), time.monotonic()
        if now >= self._next.get(place, 0.0):
            self._next[place] = now + _INTERVAL_SECONDS
            log.warning("%s: %s", record.name, record.getMessage())
