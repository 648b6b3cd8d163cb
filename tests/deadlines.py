"""Deadlines of calls that must reach a server, and end there without an answer."""

from collections.abc import Iterator


def growing(first: float) -> Iterator[float]:
    """Yield deadlines in seconds, each twice as long as the one before.

    A call with a short deadline may end before it reaches the server, on a busy machine. The test repeats it with the
    next deadline until it has reached the server.
    """
    for doublings in range(8):
        yield first * 2**doublings
    raise AssertionError("no call reached the server in time")
