"""The log of something that fails for a while: its first failure with the cause, and its end.

An outage of hours fails a thousand times a minute. Each cause is logged once, a reminder follows at most once a minute,
and one line says how long it took.
"""

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

from cart_grpc.carts.refusals import DatabaseUnavailable
from cart_grpc.logs.events import Event
from cart_grpc.logs.log import Log
from cart_grpc.store.failures import find_cause, get_sqlstate, show_cause, translate_failures

log = Log(__name__)
REMINDER_SECONDS: Final = 60.0
# An outage is over once nothing has failed for this long: under load, some calls succeed between those that fail.
QUIET_SECONDS: Final = 1.0


class FailureLog:
    """The failures of one thing, such as all writes. Use it in one thread only.

    `failing` and `recovered` are the events of the lines. `fails` and `works` are what the lines say, such as "writes
    fail" and "writes work again". If `failing` has the level ERROR, a failure is a bug: the first of each kind is
    logged with its traceback. `clock` is a monotonic clock in seconds.
    """

    def __init__(
        self,
        failing: Event,
        recovered: Event,
        fails: str,
        works: str,
        *,
        quiet_seconds: float = QUIET_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.fails = fails
        self._works = works
        self._failing = failing
        self._recovered = recovered
        self._quiet_seconds = quiet_seconds
        self._clock = clock
        self._kinds: set[tuple[type[BaseException], str]] = set()
        self._count = 0
        self._begin_time = self._last_time = self._log_time = 0.0

    @property
    def is_failing(self) -> bool:
        """Whether the last failure is not over yet."""
        return self._count > 0

    @contextmanager
    def translated(self) -> Iterator[None]:
        """Note how the block ends. Raise the refusal instead of an error that the database caused.

        An error with another cause passes unchanged, and says nothing about the database.
        """
        try:
            with translate_failures():
                yield
        except DatabaseUnavailable as refusal:
            self.note_failure(refusal)
            raise
        self.note_success()

    def note_failure(self, error: BaseException) -> None:
        """Count a failure, and log it if its cause is new or the last line is a minute old."""
        now, cause = self._clock(), find_cause(error)
        if not self._count:
            self._begin_time = now
        self._count += 1
        self._last_time = now
        kind = (type(cause), get_sqlstate(cause))
        if kind not in self._kinds:
            self._kinds.add(kind)
            traced = error if self._failing.level == logging.ERROR else None
            log(self._failing, "%s: %s", self.fails, show_cause(error), sqlstate=kind[1], exc_info=traced)
        elif now - self._log_time >= REMINDER_SECONDS:
            line = "%s for %.0f s now, %d times: %s"
            log(self._failing, line, self.fails, now - self._begin_time, self._count, show_cause(error))
        else:
            return
        self._log_time = now

    def note_success(self) -> None:
        """Log the end of the outage if nothing has failed for `quiet_seconds`."""
        if not self._count:
            return
        now = self._clock()
        if now - self._last_time < self._quiet_seconds:
            return
        seconds = now - self._begin_time
        log(self._recovered, "%s after %.1f s and %d failures", self._works, seconds, self._count)
        self._count = 0
        self._kinds.clear()
