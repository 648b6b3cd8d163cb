"""Why a call is refused: one tree of exceptions. None of them is a bug.

    CallRefused                      the call did not do what the caller asked
    ├── InvalidArgument              the request is wrong; lists each field and its valid values
    │   └── RequestIdReused          another request has used the request_id
    ├── NotFound                     no such cart, item, checkout or reservation
    ├── AlreadyExists                an open cart has this name
    ├── FailedPrecondition           the request is valid, but the state does not allow it
    │   ├── CartClosed               the cart has ended
    │   ├── CurrencyMismatch         a price has another currency than the cart
    │   ├── CartFrozen, CartEmpty, NotReserved, SubtotalMismatch, CheckoutNotReady, CheckoutExpired, CheckoutClosed,
    │   │   CheckoutCompleted, OrderReferenceMismatch, UserErasing: see `checkout_refusals`
    │   ├── ReservationCommitted     the reservation is committed, or about to be, and cannot be released
    │   └── ReservationUnprocessable the database or the server cannot process the reservation's row
    ├── Aborted
    │   └── EtagMismatch             the cart has changed since the caller read it
    ├── LimitExceeded                a stored total would exceed its limit
    └── Unavailable                  the request is valid; try again later
        ├── Overloaded               too many calls are running
        │   ├── TooManyCalls         one user or one service has too many calls in progress
        │   └── TooManyStreams       a user, a service, a connection or this server has too many open streams
        ├── DatabaseUnavailable      the database does not answer; nothing was changed
        │   ├── DatabaseFull         the database has no space left; nothing was changed
        │   └── DatabaseDamaged      the database cannot read its data; nothing was changed
        ├── OutcomeUnknown           the connection broke during COMMIT: the change may have been made
        ├── CallTimeout              the call took too long: the change may have been made
        └── ShuttingDown             this server is stopping; the change may have been made if the call was running

One table maps them to gRPC status codes: `rpc.status.CODES`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar


@dataclass(frozen=True, slots=True)
class FieldViolation:
    """An invalid field, as a path such as `item.quantity`, and a description of its valid values."""

    field: str
    reason: str
    description: str


class CallRefused(Exception):
    """The call did not do what the caller asked. It had no effect, unless the subclass says that it may have had one.

    `reason` is UPPER_SNAKE_CASE. `metadata` repeats the variable parts of the message.
    """

    reason: ClassVar[str] = "REFUSED"

    def __init__(self, message: str, metadata: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.metadata = dict(metadata or {})


class InvalidArgument(CallRefused):
    """The request is wrong. `violations` has at least one entry."""

    reason = "INVALID_FIELD"

    def __init__(self, violations: Sequence[FieldViolation]) -> None:
        first = violations[0]
        super().__init__(
            "; ".join(
                ": ".join(filter(None, (violation.field, violation.description))) for violation in violations[:5]
            ),
            {"field": first.field, "violation": first.reason},
        )
        self.violations = tuple(violations)


class RequestIdReused(InvalidArgument):
    """Another request has used the request_id. A request_id is scoped to the user, not to the cart."""

    reason = "REQUEST_ID_REUSED"

    def __init__(self, request_id: str) -> None:
        description = f"another request has used {request_id!r}; use a new request_id"
        super().__init__([FieldViolation("request_id", self.reason, description)])
        self.metadata["request_id"] = request_id


class NotFound(CallRefused):
    """No such resource. `resource_type` is its type, such as `cartgrpc.v1.Cart`."""

    def __init__(self, resource_type: str, name: str) -> None:
        super().__init__(f"{name} was not found", {"resource_type": resource_type, "resource_name": name})
        self.resource_type = resource_type
        self.name = name


class CartNotFound(NotFound):
    """This name has never had a cart, or its last cart ended and was purged."""

    reason = "CART_NOT_FOUND"

    def __init__(self, name: str) -> None:
        super().__init__("cartgrpc.v1.Cart", name)


class ItemNotFound(NotFound):
    """The cart has no such item."""

    reason = "ITEM_NOT_FOUND"

    def __init__(self, name: str) -> None:
        super().__init__("cartgrpc.v1.Item", name)


class ReservationNotFound(NotFound):
    """There is no such reservation, or it has ended and was purged."""

    reason = "RESERVATION_NOT_FOUND"

    def __init__(self, name: str) -> None:
        super().__init__("cartgrpc.v1.ReservationRecord", name)


class AlreadyExists(CallRefused):
    """An open cart has this name."""

    reason = "CART_EXISTS"
    resource_type = "cartgrpc.v1.Cart"

    def __init__(self, name: str) -> None:
        super().__init__(f"{name} already exists", {"resource_type": self.resource_type, "resource_name": name})
        self.name = name


class FailedPrecondition(CallRefused):
    """The request is valid, but the state of `subject`, a resource name, does not allow it.

    `violations` has a subject and a description for each resource that does not allow it.
    """

    def __init__(self, subject: str, message: str, metadata: Mapping[str, str]) -> None:
        super().__init__(message, {"subject": subject, **metadata})
        self.subject = subject
        self.violations: Sequence[tuple[str, str]] = ((subject, message),)


class CartClosed(FailedPrecondition):
    """The cart has ended. `state` is the name of its state."""

    reason = "CART_CLOSED"

    def __init__(self, name: str, state: str) -> None:
        super().__init__(name, f"{name} is {state} and cannot be changed", {"state": state})


class CurrencyMismatch(FailedPrecondition):
    """A price has another currency than the cart."""

    reason = "CURRENCY_MISMATCH"

    def __init__(self, name: str, cart_currency: str, currency: str) -> None:
        message = f"{name} has the currency {cart_currency}; a price cannot be in {currency}"
        super().__init__(name, message, {"cart_currency_code": cart_currency, "currency_code": currency})


class ReservationCommitted(FailedPrecondition):
    """No intent follows COMMIT: the customer may have paid, and the COMMIT may have taken effect without an answer."""

    reason = "RESERVATION_COMMITTED"

    def __init__(self, name: str, state: str) -> None:
        super().__init__(name, f"{name} is {state} and cannot be released", {"state": state})


class ReservationUnprocessable(FailedPrecondition):
    """The database or the server cannot process the reservation's row. `error` says why."""

    reason = "RESERVATION_UNPROCESSABLE"

    def __init__(self, name: str, error: str) -> None:
        super().__init__(name, f"{name} cannot be processed: {error}", {"error": error})


class Aborted(CallRefused):
    """Another change came first. The caller should read again and decide again."""


class EtagMismatch(Aborted):
    """The cart has changed since the caller read its etag."""

    reason = "ETAG_MISMATCH"

    def __init__(self, name: str, sent: str, current: str) -> None:
        changed = f"{name} has changed: its etag is {current}, but the request has {sent}"
        message = changed if current else f"{name} does not exist, but the request has the etag {sent}"
        super().__init__(message, {"resource_name": name, "sent_etag": sent, "current_etag": current})


class LimitExceeded(CallRefused):
    """A stored total would exceed its limit. `subject` names the cart or item, `quota` the total."""

    reason = "LIMIT_EXCEEDED"

    def __init__(self, subject: str, quota: str, limit: int, value: int) -> None:
        message = f"{subject}: {quota} would be {value}; the limit is {limit}"
        super().__init__(message, {"subject": subject, "quota": quota, "limit": str(limit), "value": str(value)})
        self.subject = subject


class Unavailable(CallRefused):
    """The request is valid; try again later. `retry_after_us` suggests a delay in microseconds."""

    retry_after_us: ClassVar[int] = 1_000_000


class Overloaded(Unavailable):
    """Too many calls are running. Nothing was changed."""

    reason = "OVERLOADED"
    retry_after_us = 500_000

    def __init__(
        self,
        message: str = "too many calls are running; try again shortly",
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message, metadata)


class TooManyCalls(Overloaded):
    """A user or a service (`holder`) has `limit` calls in progress, the most that are allowed. Nothing was changed."""

    reason = "TOO_MANY_CALLS"

    def __init__(self, holder: str, limit: int) -> None:
        super().__init__(
            f"this {holder} has {limit} calls running or waiting (a long request counts as several); "
            "try again when some of them have ended",
            {"holder": holder, "limit": str(limit)},
        )


class TooManyStreams(Overloaded):
    """A user, a service, a connection or this server (`holder`) has `limit` open streams already."""

    reason = "TOO_MANY_STREAMS"

    def __init__(self, holder: str, limit: int) -> None:
        message = f"this {holder} has {limit} open streams, the most it may have; try again when one has ended"
        super().__init__(message, {"holder": holder, "limit": str(limit)})


class DatabaseUnavailable(Unavailable):
    """The database does not answer. Nothing was changed."""

    reason = "DATABASE_UNAVAILABLE"
    text: ClassVar[str] = "the database is not available; nothing was changed"

    def __init__(self) -> None:
        super().__init__(self.text)


class DatabaseFull(DatabaseUnavailable):
    """The database has no space left, and an operator must free some. Nothing was changed."""

    reason = "DATABASE_FULL"
    text = "the database has no space left; nothing was changed"
    retry_after_us = 10_000_000


class DatabaseDamaged(DatabaseUnavailable):
    """The database cannot read its data, and an operator must restore it. Nothing was changed."""

    reason = "DATABASE_DAMAGED"
    text = "the database is damaged; nothing was changed"
    retry_after_us = 60_000_000


class OutcomeUnknown(Unavailable):
    """The connection to the database broke during COMMIT. The change may have been made."""

    reason = "OUTCOME_UNKNOWN"

    def __init__(self) -> None:
        super().__init__(
            "the connection to the database broke during COMMIT, so the change may have been made; "
            "to find out, repeat the call with the same request_id"
        )


class CallTimeout(Unavailable):
    """The call exceeded this server's time limit, `seconds`. The change may have been made."""

    reason = "CALL_TIMEOUT"

    def __init__(self, seconds: float) -> None:
        message = (
            f"the call did not finish within {seconds:g} s, so the change may have been made; "
            "to find out, repeat the call with the same request_id"
        )
        super().__init__(message, {"timeout": f"{seconds:g}s"})


class ShuttingDown(Unavailable):
    """This server is stopping. Nothing was changed; if the call `was_running`, the change may have been made."""

    reason = "SHUTTING_DOWN"

    def __init__(self, *, was_running: bool = False) -> None:
        super().__init__(
            "this server stopped before the call had finished, so the change may have been made; "
            "to find out, repeat the call with the same request_id"
            if was_running
            else "this server is shutting down; nothing was changed"
        )
