"""How code writes a line: `log(EVENT, "a plain sentence with %s", value, reservation=...)`.

Values from outside may stand in the sentence and in the fields. The output escapes and cuts them.
"""

import logging
from collections.abc import Mapping
from contextvars import ContextVar
from typing import ClassVar, Final, Protocol

from cart_grpc.logs.events import Event
from cart_grpc.logs.limits import Kind, Limits


class Ids(Protocol):
    """The ids of the call, or of the attempt at the Reservation API, for which the current task works."""

    def find_ids(self) -> Mapping[str, str]:
        """Return `trace_id`, `span_id` and `request_id`, as far as they exist.

        Empty in another task and after the end: a task that a call starts for everybody, such as a writer of batches,
        copies the context of that call.
        """
        ...


# Whose ids the lines of the current task have.
IDS: Final[ContextVar[Ids | None]] = ContextVar("ids", default=None)


class Log:
    """The lines of one module; `name` is its name.

    `limits` are those of this process. They are None until the output starts, so tests see every line.
    """

    limits: ClassVar[Limits | None] = None

    def __init__(self, name: str) -> None:
        self._logger = logging.getLogger(name)

    def __call__(
        self, event: Event, message: str, *values: object, exc_info: BaseException | None = None, **fields: object
    ) -> None:
        """Write a line, unless the level is off or there are too many of its event. Empty fields are left out."""
        if self.admits(event):
            self.write(event, message, *values, exc_info=exc_info, **fields)

    def admits(self, event: Event, reason: str = "", method: str = "") -> bool:
        """Count a line by its event, `reason` and `method`, which are constants. Return whether to write it."""
        if not self._logger.isEnabledFor(event.level):
            return False
        if self.limits is None or not event.is_limited:
            return True
        return self.limits.admits(Kind(event.name, event.level, reason, method))

    def write(
        self, event: Event, message: str, *values: object, exc_info: BaseException | None = None, **fields: object
    ) -> None:
        """Write a line that `admits` admitted."""
        if event.is_alarm:
            # Imported here because commands for callers log, too, and their packages have no metrics.
            from cart_grpc.metrics import ALARMS  # noqa: PLC0415

            ALARMS.inc()
        extra = {"event": event.name, "fields": fields}
        sentence = f"ALARM {message}" if event.is_alarm else message
        self._logger.log(event.level, sentence, *values, exc_info=exc_info, extra=extra)
