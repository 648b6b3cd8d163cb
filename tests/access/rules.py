"""The permissions, written down once more, by hand and from the design: a wrong row of the product's tables is found.

Nothing here is read from the product. A method without a line here has no expectation, which fails the tests.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

READ, WRITE, ACT_AS = "carts.read", "carts.write", "carts.act-as"
OPERATORS_READ, OPERATORS_WRITE = "admin.read", "admin.write"
ALL_SCOPES: Final = (READ, WRITE, ACT_AS, OPERATORS_READ, OPERATORS_WRITE)
CARTS, OPERATORS, HEALTH = "cartgrpc.v1.CartService", "cartgrpc.v1.CartAdminService", "grpc.health.v1.Health"
# The services of each port. Each port with TLS also answers health checks.
SERVED: Final = {"token": {CARTS, HEALTH}, "service": {CARTS, HEALTH}, "operator": {OPERATORS, HEALTH}, "health": set()}


@dataclass(frozen=True)
class Answer:
    """The answer to a caller: a code, a reason, and details.

    The details are the metadata of a refused identity (`fault`, `scope`, `field`), or the reason for each invalid
    field. `details` of None: any.
    """

    code: str = "OK"
    reason: str = ""
    details: Mapping[str, str] | None = None

    def matches(self, seen: "Answer") -> bool:
        """Whether `seen` is as expected here."""
        alike = (self.code, self.reason) == (seen.code, seen.reason)
        return alike and (self.details is None or self.details == seen.details)


def unauthenticated(reason: str, fault: str = "") -> Answer:
    return Answer("UNAUTHENTICATED", reason, {"fault": fault} if fault else {})


def denied(scope: str, field: str = "") -> Answer:
    return Answer("PERMISSION_DENIED", "PERMISSION_DENIED", {"scope": scope} | ({"field": field} if field else {}))


def invalid(field: str, reason: str | None = None) -> Answer:
    return Answer("INVALID_ARGUMENT", "INVALID_FIELD", {field: reason} if reason else None)


def not_found(kind: str) -> Answer:
    return Answer("NOT_FOUND", f"{kind}_NOT_FOUND")


OK: Final = Answer()
UNREACHABLE: Final = Answer("UNAVAILABLE")
NOT_SERVED: Final = Answer("UNIMPLEMENTED")
MALFORMED: Final = invalid("", "MALFORMED_REQUEST")


@dataclass(frozen=True)
class Rule:
    """One method: the scope that it needs, "" for none, and the request's fields that name resources of a user.

    `without` is the answer if the cart that it names is missing, or the item, checkout or reservation.
    """

    scope: str
    names: tuple[str, ...] = ()
    without_cart: Answer = OK
    without_part: Answer = OK

    @property
    def writes(self) -> bool:
        return self.scope in (WRITE, OPERATORS_WRITE)


_CART, _ITEM, _CHECKOUT, _RESERVATION = map(not_found, ("CART", "ITEM", "CHECKOUT", "RESERVATION"))
RULES: Final[Mapping[str, Rule]] = {
    # The first item creates the cart.
    f"{CARTS}/AddItem": Rule(WRITE, ("parent",)),
    f"{CARTS}/BatchAddItems": Rule(WRITE, ("parent",)),
    f"{CARTS}/ReplaceItems": Rule(WRITE, ("name",)),
    f"{CARTS}/UpdateItem": Rule(WRITE, ("item.name",), _CART, _ITEM),
    f"{CARTS}/RemoveItem": Rule(WRITE, ("name",), _CART, _ITEM),
    f"{CARTS}/RetryReservation": Rule(WRITE, ("name",), _CART, _ITEM),
    f"{CARTS}/ClearCart": Rule(WRITE, ("name",), _CART),
    f"{CARTS}/CreateCart": Rule(WRITE, ("parent",)),
    f"{CARTS}/UpdateCart": Rule(WRITE, ("cart.name",), _CART),
    f"{CARTS}/DeleteCart": Rule(WRITE, ("name",), _CART),
    f"{CARTS}/GetCart": Rule(READ, ("name",), _CART),
    f"{CARTS}/ListCarts": Rule(READ, ("parent",)),
    f"{CARTS}/WatchCart": Rule(READ, ("name",), _CART),
    f"{CARTS}/MergeCarts": Rule(WRITE, ("name", "source"), _CART),
    f"{CARTS}/BeginCheckout": Rule(WRITE, ("name",), _CART),
    f"{CARTS}/CompleteCheckout": Rule(WRITE, ("name",), _CHECKOUT, _CHECKOUT),
    f"{CARTS}/CancelCheckout": Rule(WRITE, ("name",), _CHECKOUT, _CHECKOUT),
    f"{CARTS}/GetCheckout": Rule(READ, ("name",), _CHECKOUT, _CHECKOUT),
    f"{CARTS}/ListCheckouts": Rule(READ, ("parent",)),
    f"{OPERATORS}/ListReservations": Rule(OPERATORS_READ),
    f"{OPERATORS}/GetReservation": Rule(OPERATORS_READ, without_part=_RESERVATION),
    f"{OPERATORS}/RetryReservation": Rule(OPERATORS_WRITE, without_part=_RESERVATION),
    f"{OPERATORS}/ReleaseReservation": Rule(OPERATORS_WRITE, without_part=_RESERVATION),
    f"{OPERATORS}/GetReservationStats": Rule(OPERATORS_READ),
    f"{OPERATORS}/GetProcessStats": Rule(OPERATORS_READ),
    f"{OPERATORS}/PauseReservations": Rule(OPERATORS_WRITE),
    f"{OPERATORS}/ResumeReservations": Rule(OPERATORS_WRITE),
    f"{OPERATORS}/ListCarts": Rule(OPERATORS_READ),
    f"{OPERATORS}/ListCheckouts": Rule(OPERATORS_READ),
    f"{OPERATORS}/GetCheckout": Rule(OPERATORS_READ, without_part=_CHECKOUT),
    f"{OPERATORS}/EndCheckout": Rule(OPERATORS_WRITE, without_part=_CHECKOUT),
    f"{OPERATORS}/EraseUser": Rule(OPERATORS_WRITE),
    f"{HEALTH}/Check": Rule(""),
    f"{HEALTH}/List": Rule(""),
    f"{HEALTH}/Watch": Rule(""),
}
