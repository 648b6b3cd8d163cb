"""A monotonic clock for tests."""


class MonotonicClock:
    """A clock in microseconds that moves only when a test moves it."""

    def __init__(self) -> None:
        self.now = 100_000_000

    def __call__(self) -> int:
        return self.now
