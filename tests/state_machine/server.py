"""The server under test, its simulator, and the loop in which both run while a call is made."""

import asyncio
from collections.abc import Coroutine
from contextlib import AsyncExitStack
from typing import Any, TypeVar

import grpc
from google.protobuf.message import Message

from cart_grpc.settings import Settings
from cart_grpc.simulator.server import SimulatorConfig, SimulatorServer, make_simulator
from tests.databases import shards_of
from tests.rpc.refusal import to_refusal
from tests.service.conftest import Replica, running_replica
from tests.state_machine.carts import MAX_ITEMS, MAX_QUANTITY, MOST, SOLD_OUT
from tests.state_machine.model import Outcome

T = TypeVar("T")


async def _first(stream: Any) -> Message:
    """The first message of a stream, which ends then."""
    message: Message = await stream.read()
    stream.cancel()
    return message


class ServerUnderTest:
    """One server on one database. A restart replaces it by another one; the simulator stays."""

    def __init__(self, database_url: str) -> None:
        self._runner = asyncio.Runner()
        self._database_url = database_url
        self._servers = AsyncExitStack()
        self._replica: Replica | None = None
        self.simulator = make_simulator(SimulatorConfig(stock={SOLD_OUT: 0}, latency_us=0, seed=1))
        self._api = SimulatorServer(self.simulator)
        self._ports = self._run(self._api.start("127.0.0.1:0", None))
        self.restart()

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        return self._runner.run(work)

    def restart(self) -> None:
        """Stop the server, if it runs, and start another one on the same database."""
        self._run(self._restart())

    async def _restart(self) -> None:
        await self._servers.aclose()
        settings = Settings(
            listen="127.0.0.1:0",
            database_url=self._database_url,
            database_shards=shards_of(self._database_url),
            reservation_url=f"grpc://127.0.0.1:{self._ports.grpc}",
            reservation_poll_interval=0.05,
            reservation_backoff_max=0.2,
            lame_duck=0.0,
            shutdown_grace=0.5,
            max_items_per_cart=MAX_ITEMS,
            max_quantity_per_item=MAX_QUANTITY,
            max_carts_per_user=MOST[0],
            max_items_per_user=MOST[1],
            max_units_per_user=MOST[2],
        )
        self._replica = await self._servers.enter_async_context(running_replica(settings))

    def call(self, *calls: tuple[str, Any]) -> list[Outcome]:
        """Make `calls` at the same time and return their outcomes."""
        return self._run(self._call_all(calls))

    async def _call_all(self, calls: tuple[tuple[str, Any], ...]) -> list[Outcome]:
        return list(await asyncio.gather(*(self._call(*one) for one in calls)))

    async def _call(self, method: str, request: Any) -> Outcome:
        assert self._replica is not None
        try:
            reply = getattr(self._replica.stub, method)(request, timeout=20)
            return await (reply if method != "WatchCart" else _first(reply))
        except grpc.aio.AioRpcError as error:
            return to_refusal(error).info.reason

    def wait(self) -> None:
        """Let the server work for a moment."""
        self._run(asyncio.sleep(0.005))

    def close(self) -> None:
        self._run(self._servers.aclose())
        self._run(self._api.stop(0))
        self._runner.close()
