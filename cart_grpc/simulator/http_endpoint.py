"""The simulator over HTTP: the contract of reservation.openapi.yaml, and the `basic` contract at /basic."""

import json
import uuid
from collections.abc import Awaitable, Callable, Iterable
from contextlib import aclosing
from functools import partial
from typing import Any, Final, TypeVar

from aiohttp import web
from cartgrpc.reservation.v1 import reservation_pb2
from google.protobuf import json_format
from google.protobuf.message import Message

from cart_grpc.logs import events
from cart_grpc.logs.log import Log
from cart_grpc.protocol.reservation import Intent
from cart_grpc.reservation_api import wire
from cart_grpc.simulator import codec
from cart_grpc.simulator.access import Headers
from cart_grpc.simulator.basic_endpoint import BasicEndpoint
from cart_grpc.simulator.errors import BadRequest, RevisionTooLow, SimulatorError, Throttled
from cart_grpc.simulator.simulator import Simulator
from cart_grpc.simulator.status import get_grpc_code, get_http_status

MessageType = TypeVar("MessageType", bound=Message)
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

_MAX_BODY: Final = 1 << 20

log = Log(__name__)


class HttpEndpoint:
    """The operations of reservation.openapi.yaml: decode, call, encode."""

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

    async def batch_apply(self, request: web.Request) -> web.StreamResponse:
        """POST /v1/reservations:batchApply."""
        entries = _to_entries(await request.read())
        ids = [_find_id(each) for each in entries]
        codec.check_batch(ids)
        response = web.StreamResponse(headers={"Content-Type": "application/x-ndjson"})
        async with aclosing(
            self._simulator.apply_batch([partial(_to_entry_intent, each) for each in entries])
        ) as ready:
            # An error comes before any outcome and has a status of its own.
            async for outcomes in ready:
                if not await _send(request, response, map(_to_line, codec.to_batch_responses(ids, outcomes))):
                    return response
        await _send(request, response, ())
        return response

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


def make_app(simulator: Simulator, check: Callable[[Headers], None] = lambda _: None) -> web.Application:
    """Return the application that serves `simulator`. `check` raises a SimulatorError for headers without access."""

    @web.middleware
    async def check_access(request: web.Request, handler: Handler) -> web.StreamResponse:
        check(request.headers.items())
        return await handler(request)

    reservations, basic = HttpEndpoint(simulator), BasicEndpoint(simulator)
    app = web.Application(middlewares=[_answer_errors, check_access], client_max_size=_MAX_BODY)
    app.router.add_put("/v1/reservations/{reservation_id}", reservations.apply)
    app.router.add_get("/v1/reservations/{reservation_id}", reservations.get, allow_head=False)
    app.router.add_post("/v1/reservations:batchApply", reservations.batch_apply)
    app.router.add_post("/v1/reservations:lookup", reservations.lookup)
    app.router.add_post("/basic", basic.post)
    app.router.add_get("/basic", basic.get, allow_head=False)
    app.router.add_delete("/basic/{reservation_id}", basic.delete)
    return app


@web.middleware
async def _answer_errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    try:
        return await handler(request)
    except SimulatorError as error:
        return _to_error_response(error)
    except web.HTTPException:
        raise
    except Exception as error:  # noqa: BLE001 - the client gets only the id of the log entry
        incident = uuid.uuid4().hex
        log(events.SIMULATOR_ERROR, "incident %s", incident, exc_info=error)
        error_body = {"code": 500, "status": "INTERNAL", "message": f"incident {incident}", "reason": "INTERNAL"}
        return web.json_response({"error": error_body}, status=500)


def _to_intent(body: bytes, reservation_id: str) -> Intent:
    message = _parse(body, reservation_pb2.ApplyReservationRequest()).reservation
    if message.reservation_id not in ("", reservation_id):
        raise BadRequest("INVALID_FIELD", "reservation_id must be the same in the body and in the path")
    message.reservation_id = reservation_id
    return codec.to_intent(message)


def _to_entries(body: bytes) -> list[dict[str, Any]]:
    """Return the entries of a batch, not parsed: a malformed entry fails alone."""
    entries = _load(body).get("reservations", [])
    if not isinstance(entries, list) or not all(isinstance(each, dict) for each in entries):
        raise BadRequest("MALFORMED", "reservations must be an array of objects")
    return entries


def _find_id(entry: dict[str, Any]) -> str:
    reservation_id = entry.get("reservationId", entry.get("reservation_id"))
    return reservation_id if isinstance(reservation_id, str) else ""


def _to_entry_intent(entry: dict[str, Any]) -> Intent:
    return codec.to_intent(_parse_value(entry, reservation_pb2.Reservation()))


def _parse(body: bytes, message: MessageType) -> MessageType:
    return _parse_value(_load(body), message)


def _load(body: bytes) -> dict[str, Any]:
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        raise BadRequest("MALFORMED", "the body must be JSON") from None
    if not isinstance(value, dict):
        raise BadRequest("MALFORMED", "the body must be a JSON object")
    return value


def _parse_value(value: dict[str, Any], message: MessageType) -> MessageType:
    try:
        return json_format.ParseDict(value, message, ignore_unknown_fields=True)
    except (ValueError, TypeError, AttributeError, RecursionError, json_format.ParseError) as error:
        why = wire.clean_text(str(error))
        raise BadRequest("MALFORMED", f"the body must be a {message.DESCRIPTOR.name} in JSON: {why}") from None


async def _send(request: web.Request, response: web.StreamResponse, lines: Iterable[bytes]) -> bool:
    """Send `lines`. Returns False if the client has left."""
    try:
        if not response.prepared:
            await response.prepare(request)
        for line in lines:
            await response.write(line)
    except ConnectionError:
        return False
    return True


def _to_line(message: Message | None) -> bytes:
    if message is None:
        return codec.NOT_A_MESSAGE + b"\n"
    return json.dumps(json_format.MessageToDict(message)).encode() + b"\n"


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
