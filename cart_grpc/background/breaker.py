"""A circuit breaker: while the Reservation API is down, one probe every now and then asks whether it is back."""

from collections.abc import Callable


class Breaker:
    """Opens after `threshold` failures in a row, lets one probe through every `probe_interval` seconds, and closes on
    the first success.

    `clock` is a monotonic clock in seconds. The pattern is Michael Nygard's, in "Release It!".
    """

    def __init__(self, clock: Callable[[], float], *, threshold: int = 5, probe_interval: float = 1.0) -> None:
        self._clock = clock
        self._threshold = threshold
        self._probe_interval = probe_interval
        self._failures = 0
        self._probe_at = 0.0
        self._opened_at = 0.0

    @property
    def is_open(self) -> bool:
        return self._failures >= self._threshold

    def permits(self, wanted: int) -> int:
        """How many calls may be made now, of `wanted`: all, none, or one probe."""
        if not self.is_open:
            return wanted
        return min(wanted, 1) if self._clock() >= self._probe_at else 0

    def probing(self) -> None:
        """A probe is on its way: no other before the interval is over, but then another, lest one that hangs or is lost
        keep the breaker open.
        """
        self._probe_at = self._clock() + self._probe_interval

    def succeeded(self) -> bool:
        """Count a call that was answered, whatever the answer. Returns whether this closed the breaker."""
        was_open, self._failures = self.is_open, 0
        return was_open

    def failed(self) -> bool:
        """Count a call that found nobody. Returns whether this opened the breaker."""
        was_open = self.is_open
        self._failures += 1
        if not was_open:
            self._opened_at = self._clock()
            self._probe_at = self._opened_at + self._probe_interval
        return self.is_open and not was_open

    def open_seconds(self) -> float | None:
        """For how long it has been open, None while it is closed."""
        return self._clock() - self._opened_at if self.is_open else None

    def seconds_to_probe(self) -> float:
        """How long until a probe may be made; 0 while closed, and where one may be made now."""
        return max(0.0, self._probe_at - self._clock()) if self.is_open else 0.0
