"""Why a call is refused: one tree of exceptions, and nothing in it is a bug.

    CallRefused                          a call that did not do what it was asked, and why
    ├── InvalidArgument              the request itself is wrong: which fields, and what would be right
    │   └── RequestIdReused          the request_id was used for another body
    ├── NotFound                     no such cart, item or reservation
    ├── AlreadyExists                the cart is there already
    ├── FailedPrecondition           the request is fine, the cart's state is not
    │   ├── CartClosed               the cart has ended
    │   ├── CurrencyMismatch         a price is in another currency than the cart
    │   └── ReservationCommitted     a reservation is sold, or being sold, and cannot be released
    ├── Aborted
    │   └── EtagMismatch             the cart has changed since the caller read it
    ├── LimitExceeded                a stored total would pass its limit
    └── Unavailable                  nothing is wrong with the request; try again
        ├── Overloaded               too much is under way
        │   ├── TooManyCalls         too much of one user is under way
        │   └── TooManyStreams       one user or one connection has too many open streams
        ├── DatabaseUnavailable      the database does not answer; nothing was done
        │   ├── DatabaseFull         it has no room left
        │   └── DatabaseDamaged      what it has stored cannot be read any more
        ├── OutcomeUnknown           the database went away in mid-commit: it may have been done
        ├── CallTimeout              it took longer than this server lets a call take
        └── ShuttingDown             this server is about to stop

The gRPC status code of each stands in one table, at the edge.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar


@dataclass(frozen=True, slots=True)
class FieldViolation:
    """A field at fault, as a path such as `item.quantity`, and what would be right."""

    field: str
    reason: str
    description: str


class CallRefused(Exception):
    """A call that did not do what it was asked: without effect, unless its kind says that it may have had one.

    `reason` is UPPER_SNAKE_CASE; `metadata` repeats what varies in the message.
    """

    reason: ClassVar[str] = "REFUSED"

    def __init__(self, message: str, metadata: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.metadata = dict(metadata or {})


class InvalidArgument(CallRefused):
    """The request itself is wrong. `violations` has at least one entry."""

    reason = "INVALID_FIELD"

    def __init__(self, violations: Sequence[FieldViolation]) -> None:
        first = violations[0]
        super().__init__(
            "; ".join(f"{violation.field}: {violation.description}" for violation in violations[:5]),
            {"field": first.field, "violation": first.reason},
        )
        self.violations = tuple(violations)


class RequestIdReused(InvalidArgument):
    """The request_id was used for another body."""

    reason = "REQUEST_ID_REUSED"

    def __init__(self, request_id: str) -> None:
        description = f"{request_id!r} was used for another request; take a new one"
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
    """The cart is there already, and has not ended."""

    reason = "CART_EXISTS"
    resource_type = "cartgrpc.v1.Cart"

    def __init__(self, name: str) -> None:
        super().__init__(f"{name} exists already", {"resource_type": self.resource_type, "resource_name": name})
        self.name = name


class FailedPrecondition(CallRefused):
    """The request is fine, the state is not. `subject` names what is in the way."""

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
    """From COMMIT no other intent follows: the customer may have paid, and the answer may be under way."""

    reason = "RESERVATION_COMMITTED"

    def __init__(self, name: str, state: str) -> None:
        super().__init__(name, f"{name} is {state} and cannot be released", {"state": state})


class Aborted(CallRefused):
    """Somebody else was faster: read again, decide again."""


class EtagMismatch(Aborted):
    """The cart has changed since the caller read its etag."""

    reason = "ETAG_MISMATCH"

    def __init__(self, name: str, sent: str, current: str) -> None:
        has_changed = f"{name} has changed: its etag is {current}, not {sent}"
        message = has_changed if current else f"{name} does not exist, so it has no etag; {sent} was sent"
        super().__init__(message, {"resource_name": name, "sent_etag": sent, "current_etag": current})


class LimitExceeded(CallRefused):
    """A stored total would pass its limit. `subject` is whose total, `limit` the most that is allowed."""

    reason = "LIMIT_EXCEEDED"

    def __init__(self, subject: str, quota: str, limit: int, value: int) -> None:
        message = f"{subject}: {quota} would be {value}; the limit is {limit}"
        super().__init__(message, {"subject": subject, "quota": quota, "limit": str(limit), "value": str(value)})
        self.subject = subject


class Unavailable(CallRefused):
    """Nothing is wrong with the request. `retry_after_us` is a hint in microseconds."""

    retry_after_us: ClassVar[int] = 1_000_000


class Overloaded(Unavailable):
    """Too much is under way; nothing was done."""

    reason = "OVERLOADED"
    retry_after_us = 500_000

    def __init__(
        self,
        message: str = "too many calls are under way; try again shortly",
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message, metadata)


class TooManyCalls(Overloaded):
    """Too many calls of one user are under way; nothing was done. `limit` is how many."""

    reason = "TOO_MANY_CALLS"

    def __init__(self, limit: int) -> None:
        super().__init__(f"this user has {limit} calls under way; wait for some to end", {"limit": str(limit)})


class TooManyStreams(Overloaded):
    """A user or a connection (`holder`) has `limit` open streams already."""

    reason = "TOO_MANY_STREAMS"

    def __init__(self, holder: str, limit: int) -> None:
        message = f"this {holder} has {limit} open streams, the most it may have; close one before opening another"
        super().__init__(message, {"holder": holder, "limit": str(limit)})


class DatabaseUnavailable(Unavailable):
    """The database does not answer; nothing was done."""

    reason = "DATABASE_UNAVAILABLE"
    text: ClassVar[str] = "the database is not available; nothing was changed"

    def __init__(self) -> None:
        super().__init__(self.text)


class DatabaseFull(DatabaseUnavailable):
    """The database has no room left; nothing was done, and somebody has to make room."""

    reason = "DATABASE_FULL"
    text = "the database has no room left; nothing was changed"
    retry_after_us = 10_000_000


class DatabaseDamaged(DatabaseUnavailable):
    """What the database has stored cannot be read any more; nothing was done, and somebody has to restore it."""

    reason = "DATABASE_DAMAGED"
    text = "the database is damaged; nothing was changed"
    retry_after_us = 60_000_000


class OutcomeUnknown(Unavailable):
    """The database went away in mid-commit: the change may have been made."""

    reason = "OUTCOME_UNKNOWN"

    def __init__(self) -> None:
        super().__init__("the database went away in mid-commit; repeat the call with the same request_id to find out")


class CallTimeout(Unavailable):
    """It took longer than this server lets a call take: the change may have been made."""

    reason = "CALL_TIMEOUT"

    def __init__(self, seconds: float) -> None:
        message = f"not done within {seconds:g} s; repeat the call with the same request_id to find out"
        super().__init__(message, {"timeout": f"{seconds:g}s"})


class ShuttingDown(Unavailable):
    """This server is about to stop; nothing was done."""

    reason = "SHUTTING_DOWN"

    def __init__(self) -> None:
        super().__init__("this server is shutting down; nothing was changed")
