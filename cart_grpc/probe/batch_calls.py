"""A batch as the probe sends it: again if an entry has no answer, and with the arrival of results measured."""

import asyncio
from collections.abc import Sequence
from typing import Final, NoReturn

from cart_grpc.probe.findings import CheckFailed
from cart_grpc.protocol.reservation import Intent
from cart_grpc.reservation_api.api import Answer, NoAnswerError, ReservationApi

MAX_BATCH_TRIES: Final = 5
"""More than for single calls: if one message in ten is lost, the same entry is hardly lost five times."""


class Batch:
    """`intents` for one batch call to `api`, within `timeout` seconds.

    `answers` are those so far, by position. `message_count` and `seconds_to_first` are about the last call.
    """

    def __init__(self, api: ReservationApi, intents: Sequence[Intent], timeout: float) -> None:
        self.answers: dict[int, Answer] = {}
        self.message_count = 0
        self.seconds_to_first = 0.0
        self._api = api
        self._intents = intents
        self._timeout = timeout
        self._calls = 0

    async def send(self) -> None:
        """Send all intents. Raises NoAnswerError if some never got an answer, and BatchesUnsupported.

        Raises CheckFailed at the last try if these calls ended well, but left the same entry out each time.
        """
        self._calls += 1
        self.message_count = 0
        now, failures = asyncio.get_running_loop().time, {}
        start = now()
        async for applied in self._api.apply_batch(self._intents, timeout=self._timeout):
            self.message_count += 1
            if self.message_count == 1:
                self.seconds_to_first = now() - start
            for position, outcome in applied:
                if isinstance(outcome, NoAnswerError):
                    failures[position] = outcome
                else:
                    self.answers.setdefault(position, outcome)
        for position in failures.keys() - self.answers.keys():
            raise failures[position]
        if len(self.answers) < len(self._intents):
            self._raise_missing()

    def _raise_missing(self) -> NoReturn:
        missing = len(self._intents) - len(self.answers)
        message = f"{missing} of {len(self._intents)} entries have no result, although the call ended well"
        if self._calls == MAX_BATCH_TRIES:
            raise CheckFailed(message)
        raise NoAnswerError("NO_RESULT", message, reached=True)

    def in_order(self) -> list[Answer]:
        """Return the answers in the order of the intents. All must have one."""
        return [self.answers[position] for position in range(len(self._intents))]
