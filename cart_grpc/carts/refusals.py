"""The reasons for which the service refuses a call: one tree of exceptions. None of them means a bug.

    CallRefused
    ├── InvalidArgument              a field of the request is invalid
    │   └── RequestIdReused          another request used this request_id
    ├── NotFound                     there is no such cart, item or reservation
    ├── AlreadyExists                the cart exists already
    ├── FailedPrecondition           the request is valid, but the state of the cart does not allow it
    │   ├── CartClosed               the cart has ended
    │   ├── CurrencyMismatch         a price is in another currency than the cart
    │   └── ReservationCommitted     a reservation is sold, or is being sold, and cannot be released
    ├── Aborted
    │   └── EtagMismatch             the cart has changed since the caller read it
    ├── LimitExceeded                a stored total would exceed its limit
    └── Unavailable                  the request is valid; try again
        ├── Overloaded               too many calls are in progress
        │   ├── TooManyCalls         too many calls of one user are in progress
        │   └── TooManyStreams       one user or one connection has too many open streams
        ├── DatabaseUnavailable      the database does not answer; nothing was changed
        │   ├── DatabaseFull         the database has no space left
        │   └── DatabaseDamaged      the database cannot read its data any more
        ├── OutcomeUnknown           the connection broke during COMMIT: the change may have been made
        ├── CallTimeout              the call exceeded the server's time-out: the change may have been made
        └── ShuttingDown             this server is about to stop

`rpc/status.py` has the table of gRPC status codes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar


@dataclass(frozen=True, slots=True)
class FieldViolation:
    """An invalid field, as a path such as `item.quantity`, and the rule that it breaks."""

    field: str
    reason: str
    description: str


class CallRefused(Exception):
    """The service refused the call. It had no effect, except where a subclass says that it may have had one.

    `reason` is UPPER_SNAKE_CASE. `metadata` repeats the variable parts of the message.
    """

    reason: ClassVar[str] = "REFUSED"

    def __init__(self, message: str, metadata: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.metadata = dict(metadata or {})


class InvalidArgument(CallRefused):
    """The request is invalid. `violations` has at least one entry."""

    reason = "INVALID_FIELD"

    def __init__(self, violations: Sequence[FieldViolation]) -> None:
        first = violations[0]
        super().__init__(
            "; ".join(f"{violation.field}: {violation.description}" for violation in violations[:5]),
            {"field": first.field, "violation": first.reason},
        )
        self.violations = tuple(violations)


class RequestIdReused(InvalidArgument):
    """The user sent the same request_id with another request before."""

    reason = "REQUEST_ID_REUSED"

    def __init__(self, request_id: str) -> None:
        description = f"{request_id!r} was used for another request; send a new request_id"
        super().__init__([FieldViolation("request_id", self.reason, description)])
        self.metadata["request_id"] = request_id


class NotFound(CallRefused):
    """No such cart, item or reservation. `resource_type` is its type, such as `cartgrpc.v1.Cart`."""

    def __init__(self, resource_type: str, name: str) -> None:
        super().__init__(f"{name} was not found", {"resource_type": resource_type, "resource_name": name})
        self.resource_type = resource_type
        self.name = name


class CartNotFound(NotFound):
    """No cart was ever made under this name."""

    reason = "CART_NOT_FOUND"

    def __init__(self, name: str) -> None:
        super().__init__("cartgrpc.v1.Cart", name)


class ItemNotFound(NotFound):
    """The cart has no such item."""

    reason = "ITEM_NOT_FOUND"

    def __init__(self, name: str) -> None:
        super().__init__("cartgrpc.v1.Item", name)


class ReservationNotFound(NotFound):
    """There is no such reservation, or it has been finished for so long that it was purged."""

    reason = "RESERVATION_NOT_FOUND"

    def __init__(self, name: str) -> None:
        super().__init__("cartgrpc.v1.ReservationRecord", name)


class AlreadyExists(CallRefused):
    """The cart exists already, and has not ended."""

    reason = "CART_EXISTS"
    resource_type = "cartgrpc.v1.Cart"

    def __init__(self, name: str) -> None:
        super().__init__(f"{name} exists already", {"resource_type": self.resource_type, "resource_name": name})
        self.name = name


class FailedPrecondition(CallRefused):
    """The request is valid, but the state does not allow it. `subject` names the resource whose state prevents it."""

    def __init__(self, subject: str, message: str, metadata: Mapping[str, str]) -> None:
        super().__init__(message, {"subject": subject, **metadata})
        self.subject = subject


class CartClosed(FailedPrecondition):
    """The cart is not ACTIVE."""

    reason = "CART_CLOSED"

    def __init__(self, name: str, state: str) -> None:
        super().__init__(name, f"{name} is {state} and takes no changes", {"state": state})


class CurrencyMismatch(FailedPrecondition):
    """A price is in another currency than the cart's."""

    reason = "CURRENCY_MISMATCH"

    def __init__(self, name: str, cart_currency: str, currency: str) -> None:
        message = f"{name} has prices in {cart_currency}, not in {currency}"
        super().__init__(name, message, {"cart_currency_code": cart_currency, "currency_code": currency})


class ReservationCommitted(FailedPrecondition):
    """No other intent may follow a COMMIT: the customer may have paid, and the answer may still come."""

    reason = "RESERVATION_COMMITTED"

    def __init__(self, name: str, state: str) -> None:
        super().__init__(name, f"{name} is {state} and cannot be released", {"state": state})


class Aborted(CallRefused):
    """Another caller changed the cart first. Read it again and decide again."""


class EtagMismatch(Aborted):
    """The cart has changed since the caller read its etag."""

    reason = "ETAG_MISMATCH"

    def __init__(self, name: str, sent: str, current: str) -> None:
        message = f"{name} has changed: its etag is {current}, not {sent}"
        if not current:
            message = f"{name} does not exist, so the etag {sent} cannot match"
        super().__init__(message, {"resource_name": name, "sent_etag": sent, "current_etag": current})


class LimitExceeded(CallRefused):
    """A stored total would exceed its limit. `subject` is the resource that has the total, `quota` the total's name."""

    reason = "LIMIT_EXCEEDED"

    def __init__(self, subject: str, quota: str, limit: int, value: int) -> None:
        message = f"{subject}: {quota} would be {value}; the limit is {limit}"
        super().__init__(message, {"subject": subject, "quota": quota, "limit": str(limit), "value": str(value)})
        self.subject = subject


class Unavailable(CallRefused):
    """The request is valid, and may succeed later. `retry_after_us` is a hint for the caller, in microseconds."""

    retry_after_us: ClassVar[int] = 1_000_000


class Overloaded(Unavailable):
    """Too many calls are in progress; nothing was changed."""

    reason = "OVERLOADED"
    retry_after_us = 500_000

    def __init__(
        self,
        message: str = "too many calls are in progress; try again shortly",
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message, metadata)


class TooManyCalls(Overloaded):
    """Too many calls of one user are in progress; nothing was changed. `limit` is the highest allowed number."""

    reason = "TOO_MANY_CALLS"

    def __init__(self, limit: int) -> None:
        super().__init__(
            f"this user has {limit} calls in progress, the most it may have; wait until some end", {"limit": str(limit)}
        )


class TooManyStreams(Overloaded):
    """A user or a connection (`holder`) has `limit` open streams already."""

    reason = "TOO_MANY_STREAMS"

    def __init__(self, holder: str, limit: int) -> None:
        message = f"this {holder} has {limit} open streams, the most it may have; close one before opening another"
        super().__init__(message, {"holder": holder, "limit": str(limit)})


class DatabaseUnavailable(Unavailable):
    """The database does not answer; nothing was changed."""

    reason = "DATABASE_UNAVAILABLE"
    text: ClassVar[str] = "the database is not available; nothing was changed"

    def __init__(self) -> None:
        super().__init__(self.text)


class DatabaseFull(DatabaseUnavailable):
    """The database has no space left; nothing was changed. An operator must free space."""

    reason = "DATABASE_FULL"
    text = "the database has no space left; nothing was changed"
    retry_after_us = 10_000_000


class DatabaseDamaged(DatabaseUnavailable):
    """The database cannot read its data any more; nothing was changed. An operator must restore a backup."""

    reason = "DATABASE_DAMAGED"
    text = "the database is damaged; nothing was changed"
    retry_after_us = 60_000_000


class OutcomeUnknown(Unavailable):
    """The connection to the database broke during COMMIT: the change may have been made."""

    reason = "OUTCOME_UNKNOWN"

    def __init__(self) -> None:
        super().__init__(
            "the connection to the database broke during COMMIT, so the change may have been made; "
            "repeat the call with the same request_id to find out"
        )


class CallTimeout(Unavailable):
    """The call exceeded the server's time-out: the change may have been made."""

    reason = "CALL_TIMEOUT"

    def __init__(self, seconds: float) -> None:
        message = (
            f"the call did not end within {seconds:g} s, so the change may have been made; "
            "repeat the call with the same request_id to find out"
        )
        super().__init__(message, {"timeout": f"{seconds:g}s"})


class ShuttingDown(Unavailable):
    """This server is about to stop; nothing was done."""

    reason = "SHUTTING_DOWN"

    def __init__(self) -> None:
        super().__init__("this server is shutting down; nothing was changed")
