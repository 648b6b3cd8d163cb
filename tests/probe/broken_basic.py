"""Basic Reservation APIs that break one thing each: the simulator's door, with that thing taken out."""

import asyncio
import time

from aiohttp import web

from cart_grpc.simulator.errors import BadRequest, NotReserved, UnknownReservation
from cart_grpc.simulator.simulator import Simulator
from tests.probe.basic_endpoints import Door


class AnswersNoId(Door):
    """A POST reserves, and does not say under which id."""

    async def post(self, request: web.Request) -> web.Response:
        await super().post(request)
        return web.json_response({}, status=201)


class TakesNothing(Door):
    """What is reserved can still be reserved by others."""

    async def post(self, request: web.Request) -> web.Response:
        self.simulator.set_stock((await request.json())["item"], 10)
        return await super().post(request)


class Lags(Door):
    """A look-up finds what was posted a while ago."""

    def __init__(self, simulator: Simulator) -> None:
        super().__init__(simulator)
        self.posted_at: dict[str, float] = {}

    async def post(self, request: web.Request) -> web.Response:
        self.posted_at[(await request.json())["id"]] = time.monotonic()
        return await super().post(request)

    async def get(self, request: web.Request) -> web.Response:
        fresh = time.monotonic() - self.posted_at.get(request.query["id"], 0) < 0.3
        return web.json_response([]) if fresh else await super().get(request)


class QuotesQuantities(Door):
    """A quantity is a string."""

    async def get(self, request: web.Request) -> web.Response:
        live = self.live(request.query["id"])
        return web.json_response([each | {"quantity": str(each["quantity"])} for each in live])


class WrapsLists(Door):
    """A look-up answers an object."""

    async def get(self, request: web.Request) -> web.Response:
        return web.json_response({"reservations": self.live(request.query["id"])})


class UnknownIsNotFound(Door):
    """A look-up of an id that has nothing is 404."""

    async def get(self, request: web.Request) -> web.Response:
        if not self.live(request.query["id"]):
            raise UnknownReservation
        return await super().get(request)


class FindsAll(Door):
    """A look-up finds everybody's, and says that it is what was asked for."""

    async def get(self, request: web.Request) -> web.Response:
        found = [each for basic_id in self.simulator._stock._by_basic_id for each in self.live(basic_id)]
        asked = request.query["id"]
        return web.json_response(
            [{"reservation_id": each["reservation_id"], "id": asked, "quantity": each["quantity"]} for each in found]
        )


class Mixes(Door):
    """Of two POSTs at once, the later one's quantity is reserved for both."""

    async def post(self, request: web.Request) -> web.Response:
        body = await request.json()
        self.quantity = body["quantity"]
        await asyncio.sleep(0.01)
        return await self.reserve(body["id"], body["item"], self.quantity)


class Sums(Door):
    """A repeated POST is added to what is there."""

    async def post(self, request: web.Request) -> web.Response:
        body = await request.json()
        for each in self.live(body["id"]):
            body["quantity"] += each["quantity"]
            await self.simulator.delete(each["reservation_id"])
        return await self.reserve(body["id"], body["item"], body["quantity"])


class DeletesNothing(Door):
    """A DELETE is answered, and that is all."""

    async def delete(self, request: web.Request) -> web.Response:
        return web.Response(status=204)


class HidesDeleted(Door):
    """What is deleted is not found any more, and nobody else gets it."""

    def __init__(self, simulator: Simulator) -> None:
        super().__init__(simulator)
        self.hidden: set[str] = set()

    async def delete(self, request: web.Request) -> web.Response:
        self.hidden.add(request.match_info["reservation_id"])
        return web.Response(status=204)

    async def get(self, request: web.Request) -> web.Response:
        live = self.live(request.query["id"])
        return web.json_response([each for each in live if each["reservation_id"] not in self.hidden])


class DeletesAll(Door):
    """A DELETE ends all reservations under the same id."""

    async def delete(self, request: web.Request) -> web.Response:
        record = self.simulator._stock._reservations.get(request.match_info["reservation_id"])
        for each in self.live(record.intent.labels["basic.id"] if record else ""):
            await self.simulator.delete(each["reservation_id"])
        return web.Response(status=204)


class HasNoDelete(Door):
    """There is no DELETE."""

    async def delete(self, request: web.Request) -> web.Response:
        raise web.HTTPMethodNotAllowed("DELETE", ["GET"])


class FindsAndDeletesNothing(HasNoDelete):
    """There is no DELETE, and a look-up finds nothing."""

    async def get(self, request: web.Request) -> web.Response:
        return web.json_response([])


class GoneIsAnError(Door):
    """A DELETE of what is not there is 500."""

    async def delete(self, request: web.Request) -> web.Response:
        try:
            return await super().delete(request)
        except UnknownReservation:
            raise web.HTTPInternalServerError from None


class GoneIsRefused(Door):
    """A DELETE of what is not there is 400."""

    async def delete(self, request: web.Request) -> web.Response:
        try:
            return await super().delete(request)
        except UnknownReservation:
            raise BadRequest("GONE", "it is gone") from None


class DeletesAnother(Door):
    """A DELETE of an id that was never given ends whatever is there."""

    async def delete(self, request: web.Request) -> web.Response:
        if request.match_info["reservation_id"] not in self.simulator._stock._reservations:
            for number in list(self.simulator._stock._reservations):
                self.simulator._stock.delete(number, self.simulator._clock())
        return await super().delete(request)


class SoldOutIsAnError(Door):
    """Out of stock is 500."""

    async def post(self, request: web.Request) -> web.Response:
        try:
            return await super().post(request)
        except NotReserved:
            raise web.HTTPInternalServerError from None


class SoldOutIsText(Door):
    """Out of stock is 409 without a body that says so."""

    async def post(self, request: web.Request) -> web.Response:
        try:
            return await super().post(request)
        except NotReserved:
            raise web.HTTPConflict from None


class SoldOutHangs(Door):
    """Out of stock is waited for."""

    async def post(self, request: web.Request) -> web.Response:
        try:
            return await super().post(request)
        except NotReserved:
            return await asyncio.Future()


class RefusesAndReserves(Door):
    """What is out of stock is refused, and some of it reserved."""

    async def post(self, request: web.Request) -> web.Response:
        body = await request.json()
        try:
            return await super().post(request)
        except NotReserved:
            if self.simulator.levels(body["item"]).available:
                await self.reserve(body["id"], body["item"], 1)
            raise


class KnowsAsciiOnly(Door):
    """Other letters become question marks."""

    async def post(self, request: web.Request) -> web.Response:
        body = await request.json()
        item = body["item"].encode("ascii", "replace").decode()
        if item != body["item"]:
            self.simulator.set_stock(item, 10)
        return await self.reserve(body["id"], item, body["quantity"])


class FailsOnLetters(Door):
    """Other letters are 500."""

    async def post(self, request: web.Request) -> web.Response:
        if not (await request.json())["item"].isascii():
            raise web.HTTPInternalServerError
        return await super().post(request)
