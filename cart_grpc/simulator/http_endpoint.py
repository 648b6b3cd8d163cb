"""The simulator over HTTP: the contract of reservation.openapi.yaml, and the `basic` contract at /basic."""

import json
import logging
import uuid
from collections.abc import Awaitable, Callable
from typing import Any, Final, TypeVar

from aiohttp import web
from cartgrpc.reservation.v1 import reservation_pb2
from google.protobuf import json_format
from google.protobuf.message import Message

from cart_grpc.protocol.reservation import Intent
from cart_grpc.reservation_api import wire
from cart_grpc.simulator import codec
from cart_grpc.simulator.basic_endpoint import BasicEndpoint
from cart_grpc.simulator.errors import BadRequest, RevisionTooLow, SimulatorError, Throttled
from cart_grpc.simulator.simulator import Simulator
from cart_grpc.simulator.status import get_grpc_code, get_http_status

MessageType = TypeVar("MessageType", bound=Message)

_MAX_BODY: Final = 1 << 20

_log = logging.getLogger(__name__)


class HttpEndpoint:
    """The three operations of reservation.openapi.yaml: decode, call, encode."""

    def __init__(self, simulator: Simulator) -> None:
        self._simulator = simulator

    async def apply(self, request: web.Request) -> web.Response:
        """PUT /v1/reservations/{reservation_id}."""
        body = await request.read()
        reply = await self._simulator.apply(lambda: _to_intent(body, request.match_info["reservation_id"]))
        response = codec.to_response(reply)
        if response is None:
            return web.Response(body=codec.NOT_A_MESSAGE, content_type="text/html")
        return _to_response(response)

    async def get(self, request: web.Request) -> web.Response:
        """GET /v1/reservations/{reservation_id}."""
        reservation_id = request.match_info["reservation_id"]
        codec.check_id(reservation_id)
        stored = self._simulator.get(reservation_id)
        return _to_response(reservation_pb2.GetReservationResponse(reservation=codec.to_reservation(stored)))

    async def lookup(self, request: web.Request) -> web.Response:
        """POST /v1/reservations:lookup."""
        message = _parse(await request.read(), reservation_pb2.LookupReservationsRequest())
        codec.check_lookup(len(message.reservation_ids))
        found, missing = self._simulator.lookup(message.reservation_ids)
        return _to_response(
            reservation_pb2.LookupReservationsResponse(
                found=[codec.to_reservation(each) for each in found], missing=missing
            )
        )


def make_app(simulator: Simulator) -> web.Application:
    """Return the application that serves `simulator`."""
    reservations, basic = HttpEndpoint(simulator), BasicEndpoint(simulator)
    app = web.Application(middlewares=[_answer_errors], client_max_size=_MAX_BODY)
    app.router.add_put("/v1/reservations/{reservation_id}", reservations.apply)
    app.router.add_get("/v1/reservations/{reservation_id}", reservations.get, allow_head=False)
    app.router.add_post("/v1/reservations:lookup", reservations.lookup)
    app.router.add_post("/basic", basic.post)
    app.router.add_get("/basic", basic.get, allow_head=False)
    app.router.add_delete("/basic/{reservation_id}", basic.delete)
    return app


@web.middleware
async def _answer_errors(
    request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> web.StreamResponse:
    try:
        return await handler(request)
    except SimulatorError as error:
        return _to_error_response(error)
    except web.HTTPException:
        raise
    except Exception:  # noqa: BLE001 - the client gets only the id of the log entry
        incident = uuid.uuid4().hex
        _log.exception("incident %s", incident)
        error_body = {"code": 500, "status": "INTERNAL", "message": f"incident {incident}", "reason": "INTERNAL"}
        return web.json_response({"error": error_body}, status=500)


def _to_intent(body: bytes, reservation_id: str) -> Intent:
    message = _parse(body, reservation_pb2.ApplyReservationRequest()).reservation
    if message.reservation_id not in ("", reservation_id):
        raise BadRequest("INVALID_FIELD", "reservation_id must be the same in the body and in the path")
    message.reservation_id = reservation_id
    return codec.to_intent(message)


def _parse(body: bytes, message: MessageType) -> MessageType:
    try:
        value = json.loads(body)
        if not isinstance(value, dict):
            raise BadRequest("MALFORMED", "the body must be a JSON object")
        return json_format.ParseDict(value, message, ignore_unknown_fields=True)
    except (ValueError, TypeError, AttributeError, RecursionError, json_format.ParseError) as error:
        why = wire.clean_text(str(error))
        raise BadRequest("MALFORMED", f"the body must be a {message.DESCRIPTOR.name} in JSON: {why}") from None


def _to_response(message: Message) -> web.Response:
    return web.json_response(json_format.MessageToDict(message))


def _to_error_response(error: SimulatorError) -> web.Response:
    status = get_http_status(error)
    body: dict[str, Any] = {
        "error": {
            "code": status,
            "status": get_grpc_code(error).name,
            "message": str(error),
            "reason": error.reason,
        }
    }
    headers = {}
    if isinstance(error, RevisionTooLow):
        body["reservation"] = json_format.MessageToDict(codec.to_reservation(error.current))
    if isinstance(error, Throttled):
        headers["Retry-After"] = str(-(-error.retry_after_us // 1_000_000))
    return web.json_response(body, status=status, headers=headers)
