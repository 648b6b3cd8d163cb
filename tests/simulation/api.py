"""The client of the simulated Reservation API."""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from functools import partial

from google.protobuf.message import Message

from cart_grpc.protocol.reservation import Intent
from cart_grpc.reservation_api.api import UNRECORDED, Answer, Applied, Attempt, NoAnswerError
from cart_grpc.reservation_api.batches import apply_batch
from cart_grpc.reservation_api.grpc_api import _parse_batch
from tests.simulation.batch_calls import BatchCall
from tests.simulation.loop import Process
from tests.simulation.network import Network


class SimulatedApi:
    """A replica's client of the Reservation API. Implements `ReservationApi`."""

    def __init__(self, network: Network, process: Process, max_batch: int) -> None:
        self.max_batch = max_batch
        self._network = network
        self._process = process

    async def apply(self, intent: Intent, *, timeout: float, attempt: Attempt = UNRECORDED) -> Answer:
        reply: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._network.send(self._process, intent, reply)
        try:
            async with asyncio.timeout(timeout):
                return await reply
        except TimeoutError:
            raise NoAnswerError("DEADLINE_EXCEEDED", "no answer in time") from None

    def apply_batch(self, intents: Sequence[Intent], *, timeout: float) -> AsyncGenerator[Sequence[Applied], None]:
        return apply_batch(intents, partial(self._stream, BatchCall(self._process, intents), timeout), _parse_batch)

    async def _stream(self, call: BatchCall, timeout: float, _request: Message) -> AsyncGenerator[bytes, None]:
        deadline = asyncio.get_running_loop().time() + timeout
        self._network.send_batch(call)
        while True:
            try:
                async with asyncio.timeout_at(deadline):
                    event = await call.events.get()
            except TimeoutError:
                raise NoAnswerError("DEADLINE_EXCEEDED", "no answer in time") from None
            if event is None:
                return
            if isinstance(event, Exception):
                raise event
            yield event

    async def close(self) -> None:
        """Nothing to close."""
