"""Short times in which something must happen first, such as the arrival of a call, on a machine of any speed."""

from collections.abc import Iterator


def growing(first: float) -> Iterator[float]:
    """Yield times in seconds, each twice as long as the one before.

    A call with a short deadline may end before it reaches the server, on a busy machine. The test repeats it with the
    next time until it has reached the server.
    """
    for doublings in range(8):
        yield first * 2**doublings
    raise AssertionError("no time was long enough")
