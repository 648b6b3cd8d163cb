"""The simulator as the exercise's Reservation API, with all its weaknesses: see `cart_grpc.reservation_api.basic_api`."""

import json
from typing import Final

from aiohttp import web

from cart_grpc.simulator import codec
from cart_grpc.simulator.errors import BadRequest
from cart_grpc.simulator.rules import Record
from cart_grpc.simulator.simulator import Simulator
from cart_grpc.simulator.stock import BASIC_ID

_MAX_QUANTITY: Final = (1 << 31) - 1


class BasicDoor:
    """The three operations: decode, call, encode."""

    def __init__(self, simulator: Simulator) -> None:
        self._simulator = simulator

    async def post(self, request: web.Request) -> web.Response:
        """POST /basic."""
        body = await request.read()
        record = await self._simulator.reserve(lambda: _to_wanted(body))
        if record is None:
            return _nonsense()
        return web.json_response({"reservation_id": record.intent.reservation_id}, status=201)

    async def get(self, request: web.Request) -> web.Response:
        """GET /basic?id=."""
        live = await self._simulator.find_live(request.query.get("id", ""))
        return _nonsense() if live is None else web.json_response([_to_object(record) for record in live])

    async def delete(self, request: web.Request) -> web.Response:
        """DELETE /basic/{reservation_id}."""
        await self._simulator.give_back(request.match_info["reservation_id"])
        return web.Response(status=204)


def _to_wanted(body: bytes) -> tuple[str, str, int]:
    try:
        wanted = json.loads(body)
        basic_id, item, quantity = wanted["id"], wanted["item"], wanted["quantity"]
    except (ValueError, TypeError, KeyError, RecursionError):
        raise BadRequest("MALFORMED", "the body is not {id, item, quantity} in JSON") from None
    if not (isinstance(basic_id, str) and basic_id and isinstance(item, str) and item):
        raise BadRequest("INVALID_FIELD", "id and item are strings, and not empty")
    if type(quantity) is not int or not 1 <= quantity <= _MAX_QUANTITY:
        raise BadRequest("INVALID_FIELD", "quantity is 1 or more")
    return basic_id, item, quantity


def _to_object(record: Record) -> dict[str, object]:
    intent = record.intent
    return {
        "reservation_id": intent.reservation_id,
        "id": intent.labels[BASIC_ID],
        "item": record.sku,
        "quantity": record.granted,
    }


def _nonsense() -> web.Response:
    return web.Response(body=codec.NO_MESSAGE, content_type="text/html")
