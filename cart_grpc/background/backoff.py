"""The pauses between calls for one reservation.

tenacity's retry loop is not used: it took a fifth of the CPU time of a reservation that needed no second try.
"""

import random

SECOND_TRY_MIN_US = 50_000
SECOND_TRY_MAX_US = 250_000


def second_try_us() -> int:
    """Return the pause between the two tries of one attempt, in microseconds."""
    return int(random.uniform(SECOND_TRY_MIN_US, SECOND_TRY_MAX_US))  # noqa: S311 - jitter, not a secret


def next_attempt_us(attempt_count: int, initial_us: int, max_us: int) -> int:
    """Return the pause after attempt number `attempt_count` (1 or more), in microseconds.

    Exponential backoff with full jitter: uniform between 0 and min(max_us, initial_us * 2**(attempt_count - 1)), so
    that reservations that failed together do not come back together. Source: Marc Brooker, "Exponential Backoff And
    Jitter", AWS Architecture Blog, 2015.
    """
    bound_us = min(max_us, initial_us << min(attempt_count - 1, 40))
    return int(random.uniform(0, bound_us))  # noqa: S311 - jitter, not a secret
