"""The limits of repeated lines: a flood of refusals or failures must not fill a disk or take the event loop."""

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

LINES_PER_WINDOW: Final = 10
FIRST_WINDOW_SECONDS: Final = 1.0
MAX_WINDOW_SECONDS: Final = 60.0


class Kind(NamedTuple):
    """The lines that are counted together. All parts come from the code, never from a caller."""

    event: str
    level: int
    reason: str = ""
    method: str = ""


class Suppressed(NamedTuple):
    """How many lines of a kind were not written in the last `seconds`."""

    kind: Kind
    lines: int
    seconds: float


@dataclass(slots=True)
class _Window:
    end_time: float
    seconds: float
    lines: int = 0
    is_reported: bool = False

    @property
    def suppressed(self) -> int:
        return max(0, self.lines - LINES_PER_WINDOW)


class Limits:
    """Admits LINES_PER_WINDOW lines of each kind in a window.

    A window is a second long. It is followed by one twice as long, up to a minute, if lines were suppressed. `clock` is
    a monotonic clock in seconds. Threads may share the object.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._windows: dict[Kind, _Window] = {}
        self._ended: list[Suppressed] = []

    def admits(self, kind: Kind) -> bool:
        """Count a line. Return whether it may be written."""
        with self._lock:
            now = self._clock()
            window = self._windows.get(kind)
            if window is None or now >= window.end_time:
                window = self._windows[kind] = self._next(kind, window, now)
            window.lines += 1
            return window.lines <= LINES_PER_WINDOW

    def take_suppressed(self, *, is_last: bool = False) -> Sequence[Suppressed]:
        """Return each window that has ended with suppressed lines, once; with `is_last`, also those still open."""
        with self._lock:
            now = self._clock()
            for kind, window in self._windows.items():
                if is_last or now >= window.end_time:
                    self._report(kind, window)
            ended, self._ended = self._ended, []
            return ended

    def _next(self, kind: Kind, last: _Window | None, now: float) -> _Window:
        seconds = FIRST_WINDOW_SECONDS
        if last is not None:
            self._report(kind, last)
            if last.suppressed and now < last.end_time + last.seconds:
                seconds = min(2 * last.seconds, MAX_WINDOW_SECONDS)
        return _Window(now + seconds, seconds)

    def _report(self, kind: Kind, window: _Window) -> None:
        if window.suppressed and not window.is_reported:
            window.is_reported = True
            self._ended.append(Suppressed(kind, window.suppressed, window.seconds))
