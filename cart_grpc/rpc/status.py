"""Refusals as google.rpc.Status: one table of codes, and the error details that fit each refusal."""

from collections.abc import Sequence
from typing import Any, Final, NoReturn

import grpc
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

from cart_grpc.authentication.refusals import PermissionDenied, Unauthenticated
from cart_grpc.carts import refusals

DOMAIN = "cartgrpc.v1"
MAX_VIOLATION_BYTES = 3_000
CODES: tuple[tuple[type[refusals.CallRefused], grpc.StatusCode], ...] = (
    (refusals.InvalidArgument, grpc.StatusCode.INVALID_ARGUMENT),
    (Unauthenticated, grpc.StatusCode.UNAUTHENTICATED),
    (PermissionDenied, grpc.StatusCode.PERMISSION_DENIED),
    (refusals.NotFound, grpc.StatusCode.NOT_FOUND),
    (refusals.AlreadyExists, grpc.StatusCode.ALREADY_EXISTS),
    (refusals.FailedPrecondition, grpc.StatusCode.FAILED_PRECONDITION),
    (refusals.Aborted, grpc.StatusCode.ABORTED),
    (refusals.LimitExceeded, grpc.StatusCode.RESOURCE_EXHAUSTED),
    (refusals.Overloaded, grpc.StatusCode.RESOURCE_EXHAUSTED),
    (refusals.CallTimeout, grpc.StatusCode.DEADLINE_EXCEEDED),
    (refusals.DatabaseFull, grpc.StatusCode.RESOURCE_EXHAUSTED),
    (refusals.DatabaseDamaged, grpc.StatusCode.DATA_LOSS),
    (refusals.Unavailable, grpc.StatusCode.UNAVAILABLE),
)


def code_of(refusal: refusals.CallRefused) -> str:
    """Return the name of the code of a refusal."""
    return next(code for kind, code in CODES if isinstance(refusal, kind)).name


def to_status(refusal: refusals.CallRefused) -> status_pb2.Status:
    """Return the status of a refusal: code, message, ErrorInfo, and the details that fit its kind."""
    code = next(code for kind, code in CODES if isinstance(refusal, kind))
    info = error_details_pb2.ErrorInfo(reason=refusal.reason, domain=DOMAIN, metadata=refusal.metadata)
    return _status(code, refusal.message, info, *_details(refusal))


def internal(error_id: str) -> status_pb2.Status:
    """Return the status of a bug: only an id. The log has the exception under this id."""
    info = error_details_pb2.ErrorInfo(reason="INTERNAL", domain=DOMAIN, metadata={"error_id": error_id})
    return _status(grpc.StatusCode.INTERNAL, f"internal error {error_id}", info)


def to_rich(status: status_pb2.Status) -> grpc.Status:
    """Return the status as gRPC sends it: a code, a text, and the whole status in trailing metadata."""
    return rpc_status.to_status(status)


def encode(refusal: refusals.CallRefused) -> grpc.Status:
    """Return the status of a refusal as gRPC sends it. Those of _FEW are encoded once for each of their messages."""
    if not isinstance(refusal, _FEW):
        return to_rich(to_status(refusal))
    rich = _encoded.get(refusal.message)
    if rich is None:
        rich = _encoded[refusal.message] = to_rich(to_status(refusal))
    return rich


# The callers of a flood get these. Encoding a status takes 30 us, two thirds of the work that our own code does for
# a rejected call. Each message stands for one code, reason and metadata, and there are few.
_FEW: Final = (refusals.Overloaded, Unauthenticated, PermissionDenied)
_encoded: dict[str, grpc.Status] = {}


async def refuse(context: grpc.aio.ServicerContext[Any, Any], refusal: refusals.CallRefused) -> NoReturn:
    """End the call with the status of `refusal`."""
    await _end(context, encode(refusal))


async def abort(context: grpc.aio.ServicerContext[Any, Any], status: status_pb2.Status) -> NoReturn:
    """End the call with `status`."""
    await _end(context, to_rich(status))


async def _end(context: grpc.aio.ServicerContext[Any, Any], rich: grpc.Status) -> NoReturn:
    await context.abort(rich.code, rich.details or "", rich.trailing_metadata or ())
    raise AssertionError("abort returned")


def _status(code: grpc.StatusCode, message: str, *details: Message) -> status_pb2.Status:
    number: int = code.value[0]
    packed = []
    for detail in details:
        any_message = AnyMessage()
        any_message.Pack(detail)
        packed.append(any_message)
    return status_pb2.Status(code=number, message=message, details=packed)


def _fitting(violations: Sequence[tuple[str, str]]) -> Sequence[tuple[str, str]]:
    """The first violations, as many as callers have room for: clients limit the size of the trailers."""
    room = MAX_VIOLATION_BYTES
    for count, (subject, description) in enumerate(violations):
        room -= len(f"{subject}{description}".encode())
        if room < 0 and count:
            return violations[:count]
    return violations


def _details(refusal: refusals.CallRefused) -> list[Message]:
    match refusal:
        case refusals.InvalidArgument(violations=violations):
            fields = (
                error_details_pb2.BadRequest.FieldViolation(
                    field=violation.field, description=violation.description, reason=violation.reason
                )
                for violation in violations
            )
            return [error_details_pb2.BadRequest(field_violations=fields)]
        case refusals.NotFound(resource_type=kind, name=name) | refusals.AlreadyExists(resource_type=kind, name=name):
            return [error_details_pb2.ResourceInfo(resource_type=kind, resource_name=name, description=refusal.message)]
        case refusals.FailedPrecondition(violations=violations):
            failures = (
                error_details_pb2.PreconditionFailure.Violation(
                    type=refusal.reason, subject=subject, description=description
                )
                for subject, description in _fitting(violations)
            )
            return [error_details_pb2.PreconditionFailure(violations=failures)]
        case refusals.LimitExceeded(subject=subject):
            quota = error_details_pb2.QuotaFailure.Violation(subject=subject, description=refusal.message)
            return [error_details_pb2.QuotaFailure(violations=[quota])]
        case refusals.Unavailable(retry_after_us=retry_after_us):
            info = error_details_pb2.RetryInfo()
            info.retry_delay.FromMicroseconds(retry_after_us)
            return [info]
    return []
