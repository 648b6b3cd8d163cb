"""The simulator's `basic` endpoint, served alone: unchanged, with behaviour that `basic` leaves open, and failing."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from aiohttp import web

from cart_grpc.simulator.basic_endpoint import BasicEndpoint, _to_object
from cart_grpc.simulator.errors import NotReserved
from cart_grpc.simulator.http_endpoint import _answer_errors
from cart_grpc.simulator.simulator import Simulator


class Endpoint(BasicEndpoint):
    """Keeps `basic`; the parts of which broken endpoints are made."""

    def __init__(self, simulator: Simulator) -> None:
        super().__init__(simulator)
        self.simulator = simulator

    def live(self, basic_id: str) -> list[dict[str, Any]]:
        """The live reservations of an id."""
        return [_to_object(each) for each in self.simulator._stock.find_live(basic_id, self.simulator._clock())]

    async def reserve(self, basic_id: str, item: str, quantity: int) -> web.Response:
        """Reserve, and answer as a POST does."""
        record = await self.simulator.reserve(lambda: (basic_id, item, quantity))
        assert record
        return web.json_response({"reservation_id": record.intent.reservation_id}, status=201)


class Idempotent(Endpoint):
    """Keeps `basic`: answers a repeated POST like the first."""

    async def post(self, request: web.Request) -> web.Response:
        if live := self.live((await request.json())["id"]):
            return web.json_response({"reservation_id": live[0]["reservation_id"]}, status=200)
        return await super().post(request)


class RefusesRepeats(Endpoint):
    """Keeps `basic`: refuses a repeated POST."""

    async def post(self, request: web.Request) -> web.Response:
        if self.live((await request.json())["id"]):
            raise NotReserved("EXISTS")
        return await super().post(request)


class Numbers(Endpoint):
    """Keeps `basic`: ids are numbers, and look-ups leave out the item."""

    async def post(self, request: web.Request) -> web.Response:
        answer = await super().post(request)
        assert isinstance(answer.body, bytes)
        return web.json_response({"reservation_id": int(json.loads(answer.body)["reservation_id"])})

    async def get(self, request: web.Request) -> web.Response:
        live = self.live(request.query["id"])
        return web.json_response(
            [
                {"reservation_id": int(each["reservation_id"]), "id": each["id"], "quantity": each["quantity"]}
                for each in live
            ]
        )


class Dies(Endpoint):
    """Goes down after three POSTs."""

    posts = 0

    async def post(self, request: web.Request) -> web.Response:
        answer = await super().post(request)
        self.posts += 1
        self.simulator.faults = type(self.simulator.faults)(down=self.posts >= 3)
        return answer


class ReservesAndFails(Endpoint):
    """Every POST takes effect, but its answer is 500."""

    async def post(self, request: web.Request) -> web.Response:
        await super().post(request)
        raise web.HTTPInternalServerError


class TakesNoPosts(Endpoint):
    """Every POST fails."""

    async def post(self, request: web.Request) -> web.Response:
        raise web.HTTPInternalServerError


class LooksNothingUp(Endpoint):
    """Every look-up fails."""

    async def get(self, request: web.Request) -> web.Response:
        raise web.HTTPServiceUnavailable


class Signals(Endpoint):
    """Sets `arrived` at call number `count` of `method`, and delays that call by 0.1 s."""

    method, count = "POST", 1

    def __init__(self, simulator: Simulator) -> None:
        super().__init__(simulator)
        self.arrived = asyncio.Event()

    async def post(self, request: web.Request) -> web.Response:
        await self._signal(request)
        return await super().post(request)

    async def delete(self, request: web.Request) -> web.Response:
        await self._signal(request)
        return await super().delete(request)

    async def _signal(self, request: web.Request) -> None:
        self.count -= request.method == self.method
        if self.count == 0 and not self.arrived.is_set():
            self.arrived.set()
            await asyncio.sleep(0.1)


class SignalsDelete(Signals):
    """Signals the second DELETE: with the first one, the first check releases its last reservation."""

    method, count = "DELETE", 2


@asynccontextmanager
async def serving(
    simulator: Simulator, make: Callable[[Simulator], BasicEndpoint] = Endpoint, *, drops: bool = True
) -> AsyncIterator[tuple[str, BasicEndpoint]]:
    """Serve an endpoint on a free port; yields its URL. `drops`: a call whose client leaves is cancelled."""
    endpoint = make(simulator)
    app = web.Application(middlewares=[_answer_errors])
    app.router.add_post("/shop", endpoint.post)
    app.router.add_get("/shop", endpoint.get)
    app.router.add_delete("/shop/{reservation_id}", endpoint.delete)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0, handler_cancellation=drops)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield f"basic+http://127.0.0.1:{runner.addresses[0][1]}/shop", endpoint
    finally:
        await runner.cleanup()
