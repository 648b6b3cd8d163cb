"""How long to wait before the Reservation API is asked again: tenacity's strategies, in seconds.

tenacity's own loop is left out: it took a fifth of the processor time of a reservation that needed no second try.
"""

from tenacity import AsyncRetrying, RetryCallState, wait_random, wait_random_exponential


class Backoff:
    """`initial` and `most` bound the pause between two claims of one reservation, in seconds."""

    def __init__(self, initial: float, most: float) -> None:
        # All that a strategy looks at is the attempt's number; it is asked and done before anybody else can ask.
        self._state = RetryCallState(retry_object=AsyncRetrying(), fn=None, args=(), kwargs={})
        self._second_try = wait_random(0.05, 0.25)
        self._next_claim = wait_random_exponential(multiplier=initial, max=most)

    def second_try(self) -> float:
        """Before the second try under one claim."""
        return self._second_try(self._state)

    def next_claim(self, attempt: int) -> float:
        """After `attempt`, 1 or more. Full jitter, up to an exponential bound: so that a crowd spreads out."""
        self._state.attempt_number = attempt
        return self._next_claim(self._state)
