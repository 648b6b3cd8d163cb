"""Basic Reservation APIs that break one point each: the simulator's endpoint without that point."""

import asyncio
import time

from aiohttp import web

from cart_grpc.simulator.errors import BadRequest, NotReserved, UnknownReservation
from cart_grpc.simulator.simulator import Simulator
from tests.probe.basic_endpoints import Endpoint


class AnswersNoId(Endpoint):
    """Answers a POST without an id."""

    async def post(self, request: web.Request) -> web.Response:
        await super().post(request)
        return web.json_response({}, status=201)


class TakesNothing(Endpoint):
    """Does not reduce the stock."""

    async def post(self, request: web.Request) -> web.Response:
        self.simulator.set_stock((await request.json())["item"], 10)
        return await super().post(request)


class Lags(Endpoint):
    """Finds a reservation only 0.3 s after its POST."""

    def __init__(self, simulator: Simulator) -> None:
        super().__init__(simulator)
        self.posted_at: dict[str, float] = {}

    async def post(self, request: web.Request) -> web.Response:
        self.posted_at[(await request.json())["id"]] = time.monotonic()
        return await super().post(request)

    async def get(self, request: web.Request) -> web.Response:
        fresh = time.monotonic() - self.posted_at.get(request.query["id"], 0) < 0.3
        return web.json_response([]) if fresh else await super().get(request)


class QuotesQuantities(Endpoint):
    """Answers quantities as strings."""

    async def get(self, request: web.Request) -> web.Response:
        live = self.live(request.query["id"])
        return web.json_response([each | {"quantity": str(each["quantity"])} for each in live])


class WrapsLists(Endpoint):
    """Answers a look-up with an object instead of a list."""

    async def get(self, request: web.Request) -> web.Response:
        return web.json_response({"reservations": self.live(request.query["id"])})


class UnknownIsNotFound(Endpoint):
    """Answers a look-up of an unknown id with 404."""

    async def get(self, request: web.Request) -> web.Response:
        if not self.live(request.query["id"]):
            raise UnknownReservation
        return await super().get(request)


class FindsAll(Endpoint):
    """Finds the reservations of all ids, and answers them under the requested id."""

    async def get(self, request: web.Request) -> web.Response:
        found = [each for known in self.simulator._stock._by_basic_id for each in self.live(known)]
        basic_id = request.query["id"]
        return web.json_response(
            [{"reservation_id": each["reservation_id"], "id": basic_id, "quantity": each["quantity"]} for each in found]
        )


class Mixes(Endpoint):
    """Reserves the quantity of the later one for two concurrent POSTs."""

    async def post(self, request: web.Request) -> web.Response:
        body = await request.json()
        self.quantity = body["quantity"]
        await asyncio.sleep(0.01)
        return await self.reserve(body["id"], body["item"], self.quantity)


class Sums(Endpoint):
    """Adds a repeated POST to the existing reservation."""

    async def post(self, request: web.Request) -> web.Response:
        body = await request.json()
        for each in self.live(body["id"]):
            body["quantity"] += each["quantity"]
            await self.simulator.delete(each["reservation_id"])
        return await self.reserve(body["id"], body["item"], body["quantity"])


class DeletesNothing(Endpoint):
    """Answers a DELETE and does nothing."""

    async def delete(self, request: web.Request) -> web.Response:
        return web.Response(status=204)


class HidesDeleted(Endpoint):
    """Hides a deleted reservation, but keeps its units."""

    def __init__(self, simulator: Simulator) -> None:
        super().__init__(simulator)
        self.hidden: set[str] = set()

    async def delete(self, request: web.Request) -> web.Response:
        self.hidden.add(request.match_info["reservation_id"])
        return web.Response(status=204)

    async def get(self, request: web.Request) -> web.Response:
        live = self.live(request.query["id"])
        return web.json_response([each for each in live if each["reservation_id"] not in self.hidden])


class DeletesAll(Endpoint):
    """Deletes all reservations of the same id."""

    async def delete(self, request: web.Request) -> web.Response:
        stored = self.simulator._stock._reservations.get(request.match_info["reservation_id"])
        for each in self.live(stored.intent.labels["basic.id"] if stored else ""):
            await self.simulator.delete(each["reservation_id"])
        return web.Response(status=204)


class HasNoDelete(Endpoint):
    """Has no DELETE."""

    async def delete(self, request: web.Request) -> web.Response:
        raise web.HTTPMethodNotAllowed("DELETE", ["GET"])


class FindsAndDeletesNothing(HasNoDelete):
    """Has no DELETE, and finds nothing on look-ups."""

    async def get(self, request: web.Request) -> web.Response:
        return web.json_response([])


class GoneIsAnError(Endpoint):
    """Answers DELETE of an unknown reservation with 500."""

    async def delete(self, request: web.Request) -> web.Response:
        try:
            return await super().delete(request)
        except UnknownReservation:
            raise web.HTTPInternalServerError from None


class GoneIsRefused(Endpoint):
    """Answers DELETE of an unknown reservation with 400."""

    async def delete(self, request: web.Request) -> web.Response:
        try:
            return await super().delete(request)
        except UnknownReservation:
            raise BadRequest("GONE", "it is gone") from None


class DeletesAnother(Endpoint):
    """Deletes all reservations on DELETE of an unknown one."""

    async def delete(self, request: web.Request) -> web.Response:
        if request.match_info["reservation_id"] not in self.simulator._stock._reservations:
            for number in list(self.simulator._stock._reservations):
                self.simulator._stock.delete(number, self.simulator._clock())
        return await super().delete(request)


class SoldOutIsAnError(Endpoint):
    """Answers out of stock with 500."""

    async def post(self, request: web.Request) -> web.Response:
        try:
            return await super().post(request)
        except NotReserved:
            raise web.HTTPInternalServerError from None


class SoldOutIsText(Endpoint):
    """Answers out of stock with 409 and without the error body."""

    async def post(self, request: web.Request) -> web.Response:
        try:
            return await super().post(request)
        except NotReserved:
            raise web.HTTPConflict from None


class SoldOutHangs(Endpoint):
    """Never answers if out of stock."""

    async def post(self, request: web.Request) -> web.Response:
        try:
            return await super().post(request)
        except NotReserved:
            return await asyncio.Future()


class RefusesAndReserves(Endpoint):
    """Refuses as out of stock, but reserves one unit."""

    async def post(self, request: web.Request) -> web.Response:
        body = await request.json()
        try:
            return await super().post(request)
        except NotReserved:
            if self.simulator.levels(body["item"]).available:
                await self.reserve(body["id"], body["item"], 1)
            raise


class KnowsAsciiOnly(Endpoint):
    """Replaces non-ASCII characters with question marks."""

    async def post(self, request: web.Request) -> web.Response:
        body = await request.json()
        item = body["item"].encode("ascii", "replace").decode()
        if item != body["item"]:
            self.simulator.set_stock(item, 10)
        return await self.reserve(body["id"], item, body["quantity"])


class FailsOnLetters(Endpoint):
    """Answers non-ASCII items with 500."""

    async def post(self, request: web.Request) -> web.Response:
        if not (await request.json())["item"].isascii():
            raise web.HTTPInternalServerError
        return await super().post(request)
