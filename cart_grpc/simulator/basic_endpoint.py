"""The simulator over HTTP by the `basic` contract, with all its weaknesses (`cart_grpc.reservation_api.basic_api`)."""

import json
from typing import Final

from aiohttp import web

from cart_grpc.simulator import codec
from cart_grpc.simulator.errors import BadRequest
from cart_grpc.simulator.rules import StoredReservation
from cart_grpc.simulator.simulator import Simulator
from cart_grpc.simulator.stock import BASIC_ID

_MAX_QUANTITY: Final = (1 << 31) - 1


class BasicEndpoint:
    """The three operations of the `basic` contract: decode, call, encode."""

    def __init__(self, simulator: Simulator) -> None:
        self._simulator = simulator

    async def post(self, request: web.Request) -> web.Response:
        """POST /basic."""
        body = await request.read()
        reservation = await self._simulator.reserve(lambda: _to_request(body))
        if reservation is None:
            return _garbage()
        return web.json_response({"reservation_id": reservation.intent.reservation_id}, status=201)

    async def get(self, request: web.Request) -> web.Response:
        """GET /basic?id=."""
        live = await self._simulator.find_live(request.query.get("id", ""))
        return _garbage() if live is None else web.json_response([_to_object(each) for each in live])

    async def delete(self, request: web.Request) -> web.Response:
        """DELETE /basic/{reservation_id}."""
        await self._simulator.delete(request.match_info["reservation_id"])
        return web.Response(status=204)


def _to_request(body: bytes) -> tuple[str, str, int]:
    try:
        request = json.loads(body)
        basic_id, item, quantity = request["id"], request["item"], request["quantity"]
    except (ValueError, TypeError, KeyError, RecursionError):
        raise BadRequest("MALFORMED", "the body must be a JSON object with id, item and quantity") from None
    if not (isinstance(basic_id, str) and basic_id and isinstance(item, str) and item):
        raise BadRequest("INVALID_FIELD", "id and item must be non-empty strings")
    if type(quantity) is not int or not 1 <= quantity <= _MAX_QUANTITY:
        raise BadRequest("INVALID_FIELD", f"quantity must be 1 to {_MAX_QUANTITY}")
    return basic_id, item, quantity


def _to_object(stored: StoredReservation) -> dict[str, object]:
    intent = stored.intent
    return {
        "reservation_id": intent.reservation_id,
        "id": intent.labels[BASIC_ID],
        "item": stored.sku,
        "quantity": stored.granted,
    }


def _garbage() -> web.Response:
    return web.Response(body=codec.NOT_A_MESSAGE, content_type="text/html")
