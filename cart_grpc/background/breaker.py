"""A circuit breaker: while the Reservation API is down, it allows a single probe call per interval."""

from collections.abc import Callable


class Breaker:
    """Opens after `threshold` failures in a row and closes on the first success.

    While open it allows one probe call every `probe_interval_us`. `clock` is a monotonic clock in microseconds. Source:
    Michael Nygard, "Release It!".
    """

    def __init__(self, clock: Callable[[], int], *, threshold: int, probe_interval_us: int) -> None:
        self._clock = clock
        self._threshold = threshold
        self._probe_interval_us = probe_interval_us
        self._failures = 0
        self._next_probe = 0
        self._opened_at = 0

    @property
    def is_open(self) -> bool:
        return self._failures >= self._threshold

    def allowed_calls(self, wanted: int) -> int:
        """Return how many of `wanted` calls may be made now: all while closed, otherwise one probe or none."""
        if not self.is_open:
            return wanted
        return min(wanted, 1) if self._clock() >= self._next_probe else 0

    def record_probe(self) -> None:
        """Count a probe that starts now.

        The next probe is allowed after the interval even if this one has not ended: a probe that hangs must not keep
        the breaker open.
        """
        self._next_probe = self._clock() + self._probe_interval_us

    def record_success(self) -> bool:
        """Count a call that got any answer. Returns whether this closed the breaker."""
        was_open, self._failures = self.is_open, 0
        return was_open

    def record_failure(self) -> bool:
        """Count a call that was not answered. Returns whether this opened the breaker."""
        was_open = self.is_open
        self._failures += 1
        if not was_open:
            self._opened_at = self._clock()
            self._next_probe = self._opened_at + self._probe_interval_us
        return self.is_open and not was_open

    def find_open_us(self) -> int | None:
        """Return how long the breaker has been open, in microseconds; None while it is closed."""
        return self._clock() - self._opened_at if self.is_open else None

    def until_probe_us(self) -> int:
        """Return the microseconds until the next probe is allowed; 0 if a call is allowed now."""
        return max(0, self._next_probe - self._clock()) if self.is_open else 0
