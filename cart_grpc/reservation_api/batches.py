"""One batch call, for all transports: which intents have an outcome, and how much the server may send."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterable, Sequence
from contextlib import aclosing, suppress
from typing import Final

from cartgrpc.reservation.v1 import reservation_pb2

from cart_grpc.protocol.reservation import Intent
from cart_grpc.reservation_api import wire
from cart_grpc.reservation_api.api import Answer, Applied, NoAnswerError

Result = tuple[object, Callable[[Intent], Answer]]
"""The id in a result, and a function that returns its answer to that intent or raises NoAnswerError."""

_MAX_MESSAGES: Final = 2 * wire.MAX_BATCH
_END_SECONDS: Final = 1.0


async def apply_batch(
    intents: Sequence[Intent],
    send: Callable[[reservation_pb2.BatchApplyReservationsRequest], AsyncGenerator[bytes, None]],
    parse: Callable[[bytes], Iterable[Result]],
) -> AsyncGenerator[Sequence[Applied], None]:
    """Implements ReservationApi.apply_batch.

    `send` makes the call and yields the messages of the answer; `parse` returns the results in one of them. Both raise
    NoAnswerError, which ends the batch.
    """
    batch = _Batch(intents)
    if batch.unsendable:
        yield batch.unsendable
    if batch.is_complete:
        return
    async with aclosing(send(batch.request)) as messages:
        async for message in messages:
            batch.count(message)
            if applied := batch.read(parse(message)):
                yield applied
            if batch.is_complete:
                await _read_end(messages)
                return


class _Batch:
    """The intents that have no outcome yet.

    `request` is the message to send. `unsendable` are the outcomes of intents that no message can hold.
    """

    def __init__(self, intents: Sequence[Intent]) -> None:
        self.request = reservation_pb2.BatchApplyReservationsRequest()
        self.unsendable: list[Applied] = []
        self._open: dict[object, tuple[int, Intent]] = {}
        self._messages = self._bytes = 0
        for position, intent in enumerate(intents):
            try:
                self.request.reservations.append(wire.to_message(intent))
            except NoAnswerError as error:
                self.unsendable.append(Applied(position, error))
            else:
                self._open[intent.reservation_id] = position, intent

    @property
    def is_complete(self) -> bool:
        """Whether every intent has an outcome."""
        return not self._open

    def count(self, message: bytes) -> None:
        """Raise NoAnswerError("INVALID_ANSWER") if the server sends too much: every message delays other calls."""
        self._messages += 1
        self._bytes += len(message)
        if self._messages > _MAX_MESSAGES or self._bytes > wire.MAX_BATCH_BYTES:
            raise wire.invalid_answer(f"{self._messages} messages with {self._bytes >> 10} KiB answer one batch")

    def read(self, results: Iterable[Result]) -> list[Applied]:
        """Return the outcomes in `results`: the first for each id that was asked about."""
        applied = []
        for reservation_id, read in results:
            found = self._open.pop(reservation_id, None)
            if found is None:
                continue
            position, intent = found
            try:
                applied.append(Applied(position, read(intent)))
            except NoAnswerError as error:
                applied.append(Applied(position, error))
        return applied


async def _read_end(messages: AsyncGenerator[bytes, None]) -> None:
    """Read to the end, but not for long: no outcome is missing, and a server may dislike calls that are reset."""
    with suppress(NoAnswerError, TimeoutError):
        async with asyncio.timeout(_END_SECONDS):
            async for _ in messages:
                pass
