"""The Reservation API over gRPC."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from contextlib import aclosing, contextmanager
from functools import partial
from typing import Any, ClassVar, Final, TypeVar

import grpc
from cartgrpc.reservation.v1 import reservation_pb2
from google.protobuf.message import DecodeError, Message
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

from cart_grpc.channels import open_async_channel
from cart_grpc.protocol.lanes import HOLD_LANE, LANES, lane_of
from cart_grpc.protocol.reservation import Decision, Intent
from cart_grpc.reservation_api import wire
from cart_grpc.reservation_api.api import (
    UNRECORDED,
    Answer,
    Applied,
    Attempt,
    BatchesUnsupported,
    NoAnswerError,
    StaleRevision,
    Style,
)
from cart_grpc.reservation_api.batches import Result, apply_batch
from cart_grpc.reservation_api.connections import Connections
from cart_grpc.reservation_api.credentials import Headers
from cart_grpc.tls.client import explain

APPLY_METHOD: Final = "/cartgrpc.reservation.v1.ReservationService/ApplyReservation"
_BATCH_METHOD: Final = "/cartgrpc.reservation.v1.ReservationService/BatchApplyReservations"
_GET_METHOD: Final = "/cartgrpc.reservation.v1.ReservationService/GetReservation"
_LOOKUP_METHOD: Final = "/cartgrpc.reservation.v1.ReservationService/LookupReservations"

_Response = TypeVar("_Response", bound=Message)

# Before any result they mean that the server, or a proxy that knows only the other methods, refuses the batch as a
# whole. If the reason concerns single calls, too, they will report it.
_NO_BATCHES: Final = wire.PERMANENT | {"UNIMPLEMENTED", "PERMISSION_DENIED", "UNAUTHENTICATED"}
# Field 1000 is the integer 3, and field 1001 is the text "x".
_UNKNOWN_FIELDS: Final = b"\xc0\x3e\x03\xca\x3e\x01x"

_OPTIONS: Final[tuple[tuple[str, int], ...]] = (
    # The reconciler is the only one that retries: nested retries multiply.
    ("grpc.enable_retries", 0),
    ("grpc.max_send_message_length", wire.MAX_LOOKUP_BYTES),
    # A server with default settings closes connections that ping more often than every five minutes.
    ("grpc.keepalive_time_ms", 330_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    # The default backoff would take up to two minutes to notice that the API is back.
    ("grpc.initial_reconnect_backoff_ms", 250),
    ("grpc.min_reconnect_backoff_ms", 2_000),
    ("grpc.max_reconnect_backoff_ms", 5_000),
)


class GrpcReservationApi:
    """Implements AuditableApi for the server at `target` (`host:port`). Create it inside the running loop.

    Each lane has connections of its own, so that hanging holds cannot delay releases and checkouts. `credentials`
    returns the newest credentials, None: no TLS. `headers` returns the metadata of a call.
    """

    styles: ClassVar[frozenset[Style]] = frozenset({Style.UNKNOWN_FIELDS})
    max_batch: int = wire.MAX_BATCH

    def __init__(
        self,
        target: str,
        *,
        credentials: Callable[[], grpc.ChannelCredentials | None] = lambda: None,
        headers: Callable[[], Headers] = lambda: (),
    ) -> None:
        def connect(method: str, max_bytes: int = wire.MAX_ANSWER_BYTES, *, streamed: bool = False) -> Connections:
            options = (*_OPTIONS, ("grpc.max_receive_message_length", max_bytes))
            return Connections(
                partial(open_async_channel, target, options),
                method,
                credentials=credentials,
                headers=headers,
                streamed=streamed,
            )

        # The calls return bytes, parsed here: grpc.aio would hide the error of an answer that does not parse.
        self._applies = {lane: connect(APPLY_METHOD) for lane in LANES}
        self._batches = {lane: connect(_BATCH_METHOD, wire.MAX_BATCH_MESSAGE_BYTES, streamed=True) for lane in LANES}
        self._gets, self._lookups = connect(_GET_METHOD), connect(_LOOKUP_METHOD, wire.MAX_LOOKUP_BYTES)

    async def apply(self, intent: Intent, *, timeout: float, attempt: Attempt = UNRECORDED) -> Answer:
        """See ReservationApi.apply."""
        return await self._apply(
            reservation_pb2.ApplyReservationRequest(reservation=wire.to_message(intent)), intent, timeout
        )

    async def apply_as(self, style: Style, intent: Intent, *, timeout: float) -> Answer:
        """See AuditableApi.apply_as."""
        request = reservation_pb2.ApplyReservationRequest(reservation=wire.to_message(intent))
        for message in (request, request.reservation):
            message.MergeFromString(_UNKNOWN_FIELDS)
        return await self._apply(request, intent, timeout)

    async def _apply(self, request: reservation_pb2.ApplyReservationRequest, intent: Intent, timeout: float) -> Answer:
        try:
            answer = await _call(self._applies[lane_of(intent)], request, timeout)
        except grpc.aio.AioRpcError as error:
            return _to_answer(error, intent)
        return wire.to_decision(_parse(answer, reservation_pb2.ApplyReservationResponse).reservation, intent)

    def apply_batch(self, intents: Sequence[Intent], *, timeout: float) -> AsyncGenerator[Sequence[Applied], None]:
        """See ReservationApi.apply_batch."""
        connections = self._batches[lane_of(intents[0]) if intents else HOLD_LANE]
        return apply_batch(intents, partial(_send_batch, connections, timeout), _parse_batch)

    async def find(self, reservation_id: str, *, timeout: float) -> Decision | None:
        """See AuditableApi.find."""
        request = reservation_pb2.GetReservationRequest(reservation_id=reservation_id)
        try:
            answer = await _call(self._gets, request, timeout)
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.NOT_FOUND:
                return None
            raise _to_no_answer(error) from None
        return wire.to_latest(_parse(answer, reservation_pb2.GetReservationResponse).reservation, reservation_id)

    async def look_up(self, reservation_ids: Sequence[str], *, timeout: float) -> tuple[list[Decision], list[str]]:
        """See AuditableApi.look_up."""
        request = reservation_pb2.LookupReservationsRequest(reservation_ids=reservation_ids)
        try:
            answer = await _call(self._lookups, request, timeout)
        except grpc.aio.AioRpcError as error:
            raise _to_no_answer(error) from None
        return wire.to_looked_up(_parse(answer, reservation_pb2.LookupReservationsResponse), reservation_ids)

    async def close(self) -> None:
        """See ReservationApi.close."""
        connections = (*self._applies.values(), *self._batches.values(), self._gets, self._lookups)
        await asyncio.gather(*(each.close() for each in connections))


async def _call(connections: Connections, request: Message, timeout: float) -> bytes | None:
    """Return the answer, None for status OK without one.

    Raises AioRpcError for an error status, NoAnswerError for any other failure.
    """
    with _to_no_answers(timeout):
        return await connections.call(request.SerializeToString(), timeout)


async def _send_batch(connections: Connections, timeout: float, request: Message) -> AsyncGenerator[bytes, None]:
    """Yield the messages of the answer. Raises NoAnswerError, and BatchesUnsupported before the first message."""
    answered = False
    try:
        with _to_no_answers(timeout):
            async with aclosing(connections.stream(request.SerializeToString(), timeout)) as messages:
                async for message in messages:
                    answered = True
                    yield message
    except grpc.aio.AioRpcError as error:
        if not answered and error.code().name in _NO_BATCHES:
            raise BatchesUnsupported(error.code().name, wire.clean_text(error.details() or "")) from None
        raise _to_no_answer(error) from None


def _parse_batch(message: bytes) -> Iterator[Result]:
    for result in _parse(message, reservation_pb2.BatchApplyReservationsResponse).results:
        yield result.reservation_id, partial(wire.to_outcome, result)


@contextmanager
def _to_no_answers(timeout: float) -> Iterator[None]:
    if timeout <= 0:
        # Otherwise a quick answer could arrive before an expired deadline is noticed.
        raise NoAnswerError("DEADLINE_EXCEEDED", "no time was left for the call")
    try:
        yield
    except (grpc.aio.AioRpcError, NoAnswerError):
        raise
    except asyncio.CancelledError:
        # A closed channel and a server that cancels also raise CancelledError; our task was not cancelled then.
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            raise
        raise NoAnswerError("CANCELLED", "the call was cancelled by the other side") from None
    except Exception as error:
        raise NoAnswerError("UNKNOWN", wire.clean_text(f"{type(error).__name__}: {error}")) from error


def _parse(answer: bytes | None, response: type[_Response]) -> _Response:
    if answer is None:
        raise wire.invalid_answer("the status is OK, but there is no answer")
    try:
        return response.FromString(answer)
    except DecodeError:
        raise wire.invalid_answer(f"the answer is not a {response.DESCRIPTOR.name}") from None


def _to_answer(error: grpc.aio.AioRpcError, intent: Intent) -> Answer:
    code = error.code()
    status = _find_status(error)
    if code.name in wire.PERMANENT:
        return wire.to_permanent_failure(_find_reason(status), code.name, error.details() or "")
    if code is grpc.StatusCode.ABORTED and (current := _find_current(status, intent)):
        return current
    raise _to_no_answer(error) from None


def _to_no_answer(error: grpc.aio.AioRpcError) -> NoAnswerError:
    code, text = error.code(), error.details() or ""
    retry_after_us = _find_retry_after(_find_status(error))
    return NoAnswerError(
        code.name,
        wire.clean_text(explain(text) if code is grpc.StatusCode.UNAVAILABLE else text),
        retry_after_us=retry_after_us,
        reached=code.name in wire.REACHED,
    )


def _find_status(error: grpc.aio.AioRpcError) -> status_pb2.Status:
    try:
        return rpc_status.from_call(error) or status_pb2.Status()  # type: ignore[arg-type]  # it has the methods of a call
    except (ValueError, DecodeError):
        return status_pb2.Status()


def _find_detail(status: status_pb2.Status, detail: Any) -> bool:
    for packed in status.details:
        try:
            if packed.Unpack(detail):
                return True
        except DecodeError:
            continue
    return False


def _find_reason(status: status_pb2.Status) -> str:
    info = error_details_pb2.ErrorInfo()
    return info.reason if _find_detail(status, info) else ""


def _find_retry_after(status: status_pb2.Status) -> int | None:
    info = error_details_pb2.RetryInfo()
    return wire.clean_retry_after(wire.to_microseconds(info.retry_delay)) if _find_detail(status, info) else None


def _find_current(status: status_pb2.Status, intent: Intent) -> StaleRevision | None:
    current = reservation_pb2.Reservation()
    return wire.to_stale_revision(current, intent) if _find_detail(status, current) else None
