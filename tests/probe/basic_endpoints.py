"""The simulator's basic door, served alone: as it is, within what the contract leaves open, and down in many ways."""

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


class Door(BasicEndpoint):
    """Breaks nothing; says what a broken one is made of."""

    def __init__(self, simulator: Simulator) -> None:
        super().__init__(simulator)
        self.simulator = simulator

    def live(self, basic_id: str) -> list[dict[str, Any]]:
        """What is live for an id."""
        return [_to_object(each) for each in self.simulator._stock.find_live(basic_id, self.simulator._clock())]

    async def reserve(self, basic_id: str, item: str, quantity: int) -> web.Response:
        """Answer as a POST of these."""
        record = await self.simulator.reserve(lambda: (basic_id, item, quantity))
        assert record
        return web.json_response({"reservation_id": record.intent.reservation_id}, status=201)


class Idempotent(Door):
    """Not broken: a repeated POST is answered as the first was."""

    async def post(self, request: web.Request) -> web.Response:
        if live := self.live((await request.json())["id"]):
            return web.json_response({"reservation_id": live[0]["reservation_id"]}, status=200)
        return await super().post(request)


class RefusesRepeats(Door):
    """Not broken: a repeated POST is refused."""

    async def post(self, request: web.Request) -> web.Response:
        if self.live((await request.json())["id"]):
            raise NotReserved("EXISTS")
        return await super().post(request)


class Numbers(Door):
    """Not broken: ids are numbers, and a look-up does not repeat the item."""

    async def post(self, request: web.Request) -> web.Response:
        answer = await super().post(request)
        assert isinstance(answer.body, bytes)
        return web.json_response({"reservation_id": int(json.loads(answer.body)["reservation_id"])})

    async def get(self, request: web.Request) -> web.Response:
        live = self.live(request.query["id"])
        return web.json_response(
            [{"reservation_id": int(e["reservation_id"]), "id": e["id"], "quantity": e["quantity"]} for e in live]
        )


class Dies(Door):
    """After a few POSTs, nothing answers any more."""

    posts = 0

    async def post(self, request: web.Request) -> web.Response:
        answer = await super().post(request)
        self.posts += 1
        self.simulator.faults = type(self.simulator.faults)(down=self.posts >= 3)
        return answer


class ReservesAndFails(Door):
    """Every POST takes effect, and its answer is lost."""

    async def post(self, request: web.Request) -> web.Response:
        await super().post(request)
        raise web.HTTPInternalServerError


class TakesNoPosts(Door):
    """Every POST fails."""

    async def post(self, request: web.Request) -> web.Response:
        raise web.HTTPInternalServerError


class LooksNothingUp(Door):
    """Every look-up fails."""

    async def get(self, request: web.Request) -> web.Response:
        raise web.HTTPServiceUnavailable


class Told(Door):
    """Sets `arrived` when the `count`th `method` arrives, and takes a while before it does what was asked."""

    method, count = "POST", 1

    def __init__(self, simulator: Simulator) -> None:
        super().__init__(simulator)
        self.arrived = asyncio.Event()

    async def post(self, request: web.Request) -> web.Response:
        await self._tell(request)
        return await super().post(request)

    async def delete(self, request: web.Request) -> web.Response:
        await self._tell(request)
        return await super().delete(request)

    async def _tell(self, request: web.Request) -> None:
        self.count -= request.method == self.method
        if self.count == 0 and not self.arrived.is_set():
            self.arrived.set()
            await asyncio.sleep(0.1)


class ToldOfDelete(Told):
    """The same of the second DELETE: the first check gives back what it took last."""

    method, count = "DELETE", 2


@asynccontextmanager
async def serving(
    simulator: Simulator, make: Callable[[Simulator], BasicEndpoint] = Door, *, drops: bool = True
) -> AsyncIterator[tuple[str, BasicEndpoint]]:
    """Serve a door on a free port. `drops`: it stops working on what its caller does not wait for."""
    door = make(simulator)
    app = web.Application(middlewares=[_answer_errors])
    app.router.add_post("/shop", door.post)
    app.router.add_get("/shop", door.get)
    app.router.add_delete("/shop/{reservation_id}", door.delete)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0, handler_cancellation=drops)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield f"basic+http://127.0.0.1:{runner.addresses[0][1]}/shop", door
    finally:
        await runner.cleanup()
