"""The target of a request: something of the caller's own, of another user, missing, or malformed."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from google.protobuf.message import Message
from grpc_health.v1 import health_pb2

from tests.access.rules import CARTS, HEALTH, MALFORMED, OK, OPERATORS, RULES, Answer, Rule, invalid
from tests.rpc.right import ADMIN, right

# An id that no checkout and no reservation has.
MISSING: Final = "01900000-0000-7000-8000-00000000ffff"
# The request_id that users A and B have used for AddItem.
ONCE: Final = "once"
ITSELF, OTHER, NOBODY = "itself", "other", "nobody"


@dataclass(frozen=True)
class User:
    """A user with the cart `default`, which has one item, and the cart `frozen`, which has an open checkout."""

    name: str
    checkout: str
    reservation: str
    page_tokens: Mapping[str, str]


Build = Callable[[str, User, User], Message | bytes | None]
Outcome = Callable[[Rule], Answer]


@dataclass(frozen=True)
class Target:
    """A kind of request. `build` gets the method, the caller's user and another user; None: the method has none.

    `named` says whose resource the first name in the request is, and `second` the second one. `outcome` is the answer
    to a caller who may make the request.
    """

    name: str
    named: str
    build: Build
    outcome: Outcome = lambda _: OK
    second: str = ITSELF


def to(method: str, user: User) -> Any:
    """The valid request for a method, about what `user` has."""
    service, _, name = method.rpartition("/")
    if service == HEALTH:
        return health_pb2.HealthCheckRequest()
    request = right(f"{ADMIN}/{name}" if service == OPERATORS else name, user.name)
    if name.endswith("Checkout") and name != "BeginCheckout":
        request.name = user.checkout
    elif "Reservation" in request.DESCRIPTOR.name and hasattr(request, "name") and service == OPERATORS:
        request.name = user.reservation
    elif name == "EraseUser":
        request.name, request.progress_only = user.name, False
    return request


def _changed(method: str, user: User, old: str, new: str) -> Message | None:
    """The request with the part `old` of its first name, or of its source, replaced; None if it has no such part."""
    request = to(method, user)
    for holder, field in ((request, "source"), *((each, "name") for each in _holders(request)), (request, "parent")):
        value = getattr(holder, field, "")
        if old in value:
            setattr(holder, field, value.replace(old, new))
            return request  # type: ignore[no-any-return]
    return None


def _holders(request: Any) -> list[Any]:
    return [getattr(request, part) for part in ("item", "cart") if hasattr(getattr(request, part, None), "name")] or [
        request
    ]


def _without_cart(method: str, user: User) -> Message | None:
    return _changed(method, user, "carts/default", "carts/missing")


def _without_part(method: str, user: User) -> Message | None:
    request = to(method, user)
    for holder in _holders(request):
        head, kind, _ = getattr(holder, "name", "").partition("/items/")
        if kind:
            holder.name = f"{head}{kind}{'f' * 32}"
            return request  # type: ignore[no-any-return]
    ids = [name.rpartition("/")[2] for name in (user.checkout, user.reservation)]
    found = (_changed(method, user, known, MISSING) for known in ids)
    return next((changed for changed in found if changed is not None), None)


def _named(method: str, user: User, *names: str) -> Message | None:
    """The request about `user`, with other names in the place of its first names; None if it names nothing."""
    fields = RULES[method].names
    if not fields:
        return None
    request = to(method, user)
    for field, name in zip(fields, names, strict=False):
        holder, _, last = field.rpartition(".")
        setattr(getattr(request, holder) if holder else request, last, name)
    return request  # type: ignore[no-any-return]


def _paged(method: str, user: User, tokens: Mapping[str, str]) -> Message | None:
    request, token = to(method, user), tokens.get(method.rpartition("/")[2])
    if token is None or not hasattr(request, "page_token"):
        return None
    request.page_token = token
    return request  # type: ignore[no-any-return]


def _once(method: str, user: User) -> Message | None:
    request = to(method, user)
    if not hasattr(request, "request_id"):
        return None
    request.request_id = ONCE
    return request  # type: ignore[no-any-return]


def _bad_name(rule: Rule) -> Answer:
    return invalid(rule.names[0], "INVALID_NAME")


def _cart(rule: Rule) -> Answer:
    return rule.without_cart


def _part(rule: Rule) -> Answer:
    return rule.without_part


About = Callable[[str, User], Message | bytes | None]


def _own(name: str, build: About, outcome: Outcome = lambda _: OK, named: str = ITSELF) -> Target:
    return Target(name, named, lambda method, me, _: build(method, me), outcome)


def _foreign(name: str, build: About, outcome: Outcome = lambda _: OK, named: str = OTHER) -> Target:
    """A request about another user. Only CartService distinguishes users."""

    def build_for(method: str, _: User, other: User) -> Message | bytes | None:
        return build(method, other) if method.startswith(CARTS) else None

    return Target(name, named, build_for, outcome, second=named)


def _merge_from(cart: str) -> Build:
    def build(method: str, me: User, other: User) -> Message | None:
        names = f"{me.name}/carts/default", f"{other.name}/carts/{cart}"
        return _named(method, me, *names) if method == MERGE else None

    return build


MERGE: Final = f"{CARTS}/MergeCarts"
TARGETS: Final[tuple[Target, ...]] = (
    _own("own", to),
    _foreign("foreign", to),
    _foreign("foreign cart that is missing", _without_cart, _cart),
    _foreign("foreign item or checkout that is missing", _without_part, _part),
    _foreign("user who does not exist", to, _cart, named=NOBODY),
    _foreign("foreign malformed name", lambda method, other: _named(method, other, f"{other.name}/"), _bad_name),
    _foreign("foreign call that was made once already", _once),
    Target("foreign source", ITSELF, _merge_from("default"), second=OTHER),
    Target("foreign source that is missing", ITSELF, _merge_from("missing"), _cart, second=OTHER),
    _own("missing cart", _without_cart, _cart),
    _own("missing item, checkout or reservation", _without_part, _part),
    Target(
        "foreign page token",
        ITSELF,
        lambda method, me, other: _paged(method, me, other.page_tokens),
        lambda _: invalid("page_token", "INVALID_PAGE_TOKEN"),
    ),
    _own("foreign request_id", _once),
    _own("malformed name", lambda method, me: _named(method, me, f"{me.name}/"), _bad_name),
    _own("no name", lambda method, me: _named(method, me, ""), _bad_name, named=NOBODY),
    _own("malformed body", lambda *_: b"\xff\xff\xff", lambda _: MALFORMED, named=NOBODY),
)
