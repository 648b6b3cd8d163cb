"""The simulator over gRPC: ReservationService and SimulatorService.

Requests and responses are bytes here, for two reasons: a response can be garbage, and a malformed request gets
INVALID_ARGUMENT, for which grpc.aio would send exception text to the client.
"""

import uuid
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from functools import partial
from typing import Any, Final, NoReturn, TypeVar

import grpc
from cartgrpc.reservation.v1 import reservation_pb2
from cartgrpc.simulator.v1 import simulator_pb2
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.message import DecodeError, Message
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

from cart_grpc.logs import events
from cart_grpc.logs.log import Log
from cart_grpc.reservation_api import wire
from cart_grpc.simulator import codec
from cart_grpc.simulator.access import Headers
from cart_grpc.simulator.errors import BadRequest, RevisionTooLow, SimulatorError, Throttled
from cart_grpc.simulator.simulator import Simulator
from cart_grpc.simulator.status import get_grpc_code

Context = grpc.aio.ServicerContext[Any, Any]
Request = TypeVar("Request", bound=Message)

RESERVATION_SERVICE: Final = reservation_pb2.DESCRIPTOR.services_by_name["ReservationService"].full_name
SIMULATOR_SERVICE: Final = simulator_pb2.DESCRIPTOR.services_by_name["SimulatorService"].full_name

_ERROR_DOMAIN: Final = "cartgrpc.reservation.v1"
_MAX_PAGE: Final = 1000
_MAX_STOCK: Final = 1 << 53

log = Log(__name__)


class ReservationEndpoint:
    """ReservationService: decode, call, encode."""

    def __init__(self, simulator: Simulator) -> None:
        self._simulator = simulator

    async def apply_reservation(self, request: reservation_pb2.ApplyReservationRequest) -> bytes:
        """ApplyReservation."""
        reply = await self._simulator.apply(lambda: codec.to_intent(request.reservation))
        response = codec.to_response(reply)
        return codec.NOT_A_MESSAGE if response is None else response.SerializeToString()

    async def batch_apply_reservations(
        self, request: reservation_pb2.BatchApplyReservationsRequest
    ) -> AsyncGenerator[bytes, None]:
        """BatchApplyReservations."""
        ids = [each.reservation_id for each in request.reservations]
        codec.check_batch(ids)
        reads = [partial(codec.to_intent, each) for each in request.reservations]
        async with aclosing(self._simulator.apply_batch(reads)) as ready:
            async for outcomes in ready:
                for response in codec.to_batch_responses(ids, outcomes):
                    yield codec.NOT_A_MESSAGE if response is None else response.SerializeToString()

    async def get_reservation(self, request: reservation_pb2.GetReservationRequest) -> bytes:
        """GetReservation."""
        codec.check_id(request.reservation_id)
        stored = self._simulator.get(request.reservation_id)
        return reservation_pb2.GetReservationResponse(reservation=codec.to_reservation(stored)).SerializeToString()

    async def lookup_reservations(self, request: reservation_pb2.LookupReservationsRequest) -> bytes:
        """LookupReservations."""
        codec.check_lookup(len(request.reservation_ids))
        found, missing = self._simulator.lookup(request.reservation_ids)
        return reservation_pb2.LookupReservationsResponse(
            found=[codec.to_reservation(each) for each in found], missing=missing
        ).SerializeToString()


class SimulatorEndpoint:
    """SimulatorService: decode, call, encode."""

    def __init__(self, simulator: Simulator) -> None:
        self._simulator = simulator

    async def set_stock(self, request: simulator_pb2.SetStockRequest) -> bytes:
        """SetStock."""
        if not request.sku or not 0 <= request.quantity <= _MAX_STOCK:
            raise BadRequest("INVALID_FIELD", "sku is required, and quantity must be 0 to 2^53")
        self._simulator.set_stock(request.sku, request.quantity)
        return simulator_pb2.SetStockResponse(quantity=request.quantity).SerializeToString()

    async def get_stock(self, request: simulator_pb2.GetStockRequest) -> bytes:
        """GetStock."""
        levels = self._simulator.levels(request.sku)
        return simulator_pb2.GetStockResponse(
            available_quantity=levels.available, held_quantity=levels.held, committed_quantity=levels.committed
        ).SerializeToString()

    async def set_faults(self, request: simulator_pb2.SetFaultsRequest) -> bytes:
        """SetFaults."""
        self._simulator.faults = codec.to_faults(request.faults)
        faults = codec.to_faults_message(self._simulator.faults)
        return simulator_pb2.SetFaultsResponse(faults=faults).SerializeToString()

    async def get_faults(self, _request: simulator_pb2.GetFaultsRequest) -> bytes:
        """GetFaults."""
        faults = codec.to_faults_message(self._simulator.faults)
        return simulator_pb2.GetFaultsResponse(faults=faults).SerializeToString()

    async def list_effects(self, request: simulator_pb2.ListEffectsRequest) -> bytes:
        """ListEffects."""
        size = request.page_size if 0 < request.page_size <= _MAX_PAGE else _MAX_PAGE
        effects = self._simulator.effects(request.after_sequence, size)
        return simulator_pb2.ListEffectsResponse(
            effects=[codec.to_effect(effect) for effect in effects], call_count=self._simulator.call_count
        ).SerializeToString()


def add_services(server: grpc.aio.Server, simulator: Simulator, check: Callable[[Headers], None]) -> None:
    """Add both services of `simulator` to `server`. `check` raises a SimulatorError for metadata without access."""
    unary, stream = partial(_unary_handler, check), partial(_stream_handler, check)
    reservation, control = ReservationEndpoint(simulator), SimulatorEndpoint(simulator)
    services = {
        RESERVATION_SERVICE: {
            "ApplyReservation": unary(reservation_pb2.ApplyReservationRequest, reservation.apply_reservation),
            "BatchApplyReservations": stream(
                reservation_pb2.BatchApplyReservationsRequest, reservation.batch_apply_reservations
            ),
            "GetReservation": unary(reservation_pb2.GetReservationRequest, reservation.get_reservation),
            "LookupReservations": unary(reservation_pb2.LookupReservationsRequest, reservation.lookup_reservations),
        },
        SIMULATOR_SERVICE: {
            "SetStock": unary(simulator_pb2.SetStockRequest, control.set_stock),
            "GetStock": unary(simulator_pb2.GetStockRequest, control.get_stock),
            "SetFaults": unary(simulator_pb2.SetFaultsRequest, control.set_faults),
            "GetFaults": unary(simulator_pb2.GetFaultsRequest, control.get_faults),
            "ListEffects": unary(simulator_pb2.ListEffectsRequest, control.list_effects),
        },
    }
    server.add_generic_rpc_handlers(
        tuple(grpc.method_handlers_generic_handler(name, methods) for name, methods in services.items())
    )


def _unary_handler(
    check: Callable[[Headers], None], request_type: type[Request], behaviour: Callable[[Request], Awaitable[bytes]]
) -> Any:
    async def answer(raw: bytes, context: Context) -> bytes:
        try:
            check(context.invocation_metadata() or ())
            return await behaviour(_parse(request_type, raw))
        except Exception as error:  # noqa: BLE001 - see _abort
            return await _abort(context, error)

    return grpc.unary_unary_rpc_method_handler(answer)


def _stream_handler(
    check: Callable[[Headers], None],
    request_type: type[Request],
    behaviour: Callable[[Request], AsyncGenerator[bytes, None]],
) -> Any:
    async def answer(raw: bytes, context: Context) -> AsyncGenerator[bytes, None]:
        try:
            check(context.invocation_metadata() or ())
            async with aclosing(behaviour(_parse(request_type, raw))) as responses:
                async for response in responses:
                    yield response
        except Exception as error:  # noqa: BLE001 - see _abort
            await _abort(context, error)

    return grpc.unary_stream_rpc_method_handler(answer)


def _parse(request_type: type[Request], raw: bytes) -> Request:
    try:
        return request_type.FromString(raw)
    except DecodeError:
        raise BadRequest("MALFORMED", f"the request is not a valid {request_type.DESCRIPTOR.name}") from None


async def _abort(context: Context, error: Exception) -> NoReturn:
    """End the call with the status of `error`. Of a bug, the client gets only the id of the log entry."""
    if isinstance(error, SimulatorError):
        failure = _to_status(error)
    else:
        incident = uuid.uuid4().hex
        log(events.SIMULATOR_ERROR, "incident %s", incident, exc_info=error)
        failure = status_pb2.Status(code=grpc.StatusCode.INTERNAL.value[0], message=f"incident {incident}")
    status = rpc_status.to_status(failure)
    await context.abort(status.code, status.details, status.trailing_metadata)
    raise AssertionError("abort returned")


def _to_status(error: SimulatorError) -> status_pb2.Status:
    details: list[Message] = [error_details_pb2.ErrorInfo(reason=error.reason, domain=_ERROR_DOMAIN)]
    if isinstance(error, RevisionTooLow):
        details.append(codec.to_reservation(error.current))
    if isinstance(error, Throttled):
        details.append(error_details_pb2.RetryInfo(retry_delay=wire.to_duration(error.retry_after_us)))
    status = status_pb2.Status(code=get_grpc_code(error).value[0], message=str(error))
    for detail in details:
        packed = AnyMessage()
        packed.Pack(detail)
        status.details.append(packed)
    return status
