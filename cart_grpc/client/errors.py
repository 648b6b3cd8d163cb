"""The exceptions of calls: one for each status code, with the details of google.rpc.Status as attributes.

    CartError
    ├── InvalidArgument       the request is wrong: see `fields`
    ├── NotFound              no such cart, item or checkout
    ├── AlreadyExists         an open cart has this name
    ├── FailedPrecondition    the state does not allow the call: see `reason` and `violations`
    ├── Aborted               the etag is not the current one: read again and decide again
    ├── ResourceExhausted     a limit (LIMIT_EXCEEDED), or the server is too busy (`retry_after` is set)
    ├── Unavailable           no server answers, also after all retries
    ├── DeadlineExceeded      no answer in time
    ├── PermissionDenied
    └── Unauthenticated

Any other code is a CartError itself. After Unavailable and DeadlineExceeded, a change may have been made: repeat the
call with the error's `request_id` to find out.
"""

from collections.abc import Iterable, Mapping
from typing import Final, NamedTuple

import grpc
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2

_STATUS_KEY: Final = "grpc-status-details-bin"
CLIENT_CLOSED: Final = "CLIENT_CLOSED"


class FieldError(NamedTuple):
    """A wrong field of the request, as a path such as `item.quantity`, and a description of its valid values."""

    field: str
    reason: str
    description: str


class Violation(NamedTuple):
    """A precondition or quota that a call violates, and the name of the resource that it is about."""

    type: str
    subject: str
    description: str


class Details(NamedTuple):
    """The details of an error. All of them are empty if gRPC itself made the error."""

    reason: str = ""
    fields: tuple[FieldError, ...] = ()
    violations: tuple[Violation, ...] = ()
    metadata: Mapping[str, str] = {}
    retry_after: float | None = None


class CartError(Exception):
    """A call failed.

    `code` is the status code, `reason` is in UPPER_SNAKE_CASE, such as CART_NOT_FOUND, and `metadata` has every
    variable part of `message`. `retry_after` is how many seconds to wait before a repetition, or None.
    `request_id` is that of a mutation, also if the client made it.
    """

    def __init__(
        self, code: grpc.StatusCode, message: str, details: Details | None = None, request_id: str = ""
    ) -> None:
        details = details or Details()
        super().__init__(code, message, details, request_id)
        self.code = code
        self.message = message
        self.reason = details.reason
        self.fields = list(details.fields)
        self.violations = list(details.violations)
        self.metadata = dict(details.metadata)
        self.retry_after = details.retry_after
        self.request_id = request_id

    def __str__(self) -> str:
        return f"{self.code.name}{self.reason and f'/{self.reason}'}: {self.message}"


class InvalidArgument(CartError):
    """The request is wrong: `fields` lists each wrong field. Or its request_id was used for another request."""


class NotFound(CartError):
    """There is no such cart, item or checkout."""


class AlreadyExists(CartError):
    """An open cart has this name."""


class FailedPrecondition(CartError):
    """The request is valid, but the state does not allow it."""


class Aborted(CartError):
    """The etag is not the current one."""


class ResourceExhausted(CartError):
    """A limit would be exceeded; or, if `retry_after` is set, the server is too busy. Nothing was changed."""


class Unavailable(CartError):
    """No server answered, also after all retries. A change may have been made."""


class DeadlineExceeded(CartError):
    """There was no answer in time. A change may have been made."""


class PermissionDenied(CartError):
    """The caller may not do this."""


class Unauthenticated(CartError):
    """The caller has no valid token."""


_CLASSES: Final[Mapping[grpc.StatusCode, type[CartError]]] = {
    grpc.StatusCode.INVALID_ARGUMENT: InvalidArgument,
    grpc.StatusCode.NOT_FOUND: NotFound,
    grpc.StatusCode.ALREADY_EXISTS: AlreadyExists,
    grpc.StatusCode.FAILED_PRECONDITION: FailedPrecondition,
    grpc.StatusCode.ABORTED: Aborted,
    grpc.StatusCode.RESOURCE_EXHAUSTED: ResourceExhausted,
    grpc.StatusCode.UNAVAILABLE: Unavailable,
    grpc.StatusCode.DEADLINE_EXCEEDED: DeadlineExceeded,
    grpc.StatusCode.PERMISSION_DENIED: PermissionDenied,
    grpc.StatusCode.UNAUTHENTICATED: Unauthenticated,
}


def to_error(
    code: grpc.StatusCode,
    message: str,
    trailing_metadata: Iterable[tuple[str, str | bytes]] = (),
    request_id: str = "",
) -> CartError:
    """Return the exception for a status. Details that are unknown or malformed are ignored."""
    kind = _CLASSES.get(code, CartError)
    return kind(code, message, _decode(trailing_metadata), request_id)


def closed() -> CartError:
    """Return the exception for a call on a client that is closed."""
    return CartError(grpc.StatusCode.CANCELLED, "the client is closed", Details(CLIENT_CLOSED))


def _decode(trailing_metadata: Iterable[tuple[str, str | bytes]]) -> Details:
    found = Details()
    for key, value in trailing_metadata:
        if key == _STATUS_KEY and isinstance(value, bytes):
            try:
                details = status_pb2.Status.FromString(value).details
            except DecodeError:
                continue
            for detail in details:
                found = _add(found, detail)
    return found


def _add(found: Details, detail: AnyMessage) -> Details:
    """Return `found` with one more detail."""
    info, request = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
    precondition, quota = error_details_pb2.PreconditionFailure(), error_details_pb2.QuotaFailure()
    retry = error_details_pb2.RetryInfo()
    try:
        if detail.Unpack(info):
            return found._replace(reason=info.reason, metadata=dict(info.metadata))
        if detail.Unpack(request):
            fields = (FieldError(one.field, one.reason, one.description) for one in request.field_violations)
            return found._replace(fields=(*found.fields, *fields))
        if detail.Unpack(precondition):
            violations = (Violation(one.type, one.subject, one.description) for one in precondition.violations)
            return found._replace(violations=(*found.violations, *violations))
        if detail.Unpack(quota):
            violations = (Violation("", one.subject, one.description) for one in quota.violations)
            return found._replace(violations=(*found.violations, *violations))
        if detail.Unpack(retry):
            return found._replace(retry_after=max(retry.retry_delay.ToMicroseconds() / 1e6, 0.0))
    except DecodeError:
        pass
    return found
