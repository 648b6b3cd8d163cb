"""The values of the plain model: a cart and its lines, as a caller would note them on paper."""

from dataclasses import dataclass, field
from typing import Any

from cartgrpc.v1 import cart_pb2

ENDED = ("EXPIRED", "DELETED", "CHECKED_OUT", "MERGED")
# The limits of the server under test, small enough to be reached.
MAX_ITEMS = 3
MAX_QUANTITY = 9
# Of one user: carts, items and units.
MOST = (2, 5, 25)
# There are 0 units of it. Every other sku is always in stock.
SOLD_OUT = "sold-out"
DEFAULT_TTL_SECONDS = 604_800

# A currency code and an amount in its smallest unit.
Price = tuple[str, int]


class Refused(Exception):
    """The model refuses a call, with the `reason` that the server must give."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass(slots=True)
class Line:
    """One line of a cart. `held`: a quantity that answers showed, and the id of its reservation.

    `since`: when an answer said that it was added, and its uid; `updated`: when it last changed, in microseconds.
    """

    sku: str
    options: dict[str, str]
    quantity: int
    price: Price | None = None
    labels: dict[str, str] = field(default_factory=dict)
    held: tuple[int, str] | None = None
    since: tuple[int, str] = (0, "")
    updated: int = 0


@dataclass(slots=True)
class Cart:
    """One cart, its lines by item id in the order in which they were added.

    `etag` and `revision` are the last that an answer showed, `etags` all that answers showed for this name. `etag` is
    empty if a change was not answered with the cart. `settled_etag`: with this etag, every item had settled.
    """

    name: str
    state: str = "ACTIVE"
    lines: dict[str, Line] = field(default_factory=dict)
    labels: dict[str, str] = field(default_factory=dict)
    own_currency: str = ""
    ttl_seconds: int = DEFAULT_TTL_SECONDS
    etag: str = ""
    revision: int = 0
    etags: set[str] = field(default_factory=set)
    checkout: str = ""
    merged_into: str = ""
    settled_etag: str = ""

    @property
    def currency(self) -> str:
        """The currency that a caller set, else that of the prices, else ""."""
        return self.own_currency or next((line.price[0] for line in self.lines.values() if line.price), "")

    @property
    def subtotal(self) -> int:
        return sum(line.quantity * line.price[1] for line in self.lines.values() if line.price)

    @property
    def total_quantity(self) -> int:
        return sum(line.quantity for line in self.lines.values())

    @property
    def contents(self) -> tuple[Any, ...]:
        """All that a caller can set, to see whether a call changed anything."""
        lines = {name: (line.quantity, line.price, dict(line.labels)) for name, line in self.lines.items()}
        return (self.state, lines, dict(self.labels), self.own_currency, self.ttl_seconds)

    def check(self, seen: cart_pb2.Cart) -> None:
        """Raise AssertionError unless `seen` shows this cart."""
        state = cart_pb2.Cart.State.Name(seen.state).removeprefix("STATE_")
        assert (seen.name, state) == (self.name, self.state)
        assert [item.name for item in seen.items] == [f"{self.name}/items/{item_id}" for item_id in self.lines]
        for item, line in zip(seen.items, self.lines.values(), strict=True):
            check_item(item, line)
        self.check_totals(seen)

    def check_totals(self, seen: cart_pb2.Cart) -> None:
        """Raise AssertionError unless the fields of `seen` beside its items show this cart."""
        assert (seen.item_count, seen.total_quantity) == (len(self.lines), self.total_quantity)
        assert (seen.currency_code, price_of(seen, "subtotal")) == (
            self.currency,
            (self.currency, self.subtotal) if self.currency else None,
        )
        assert (dict(seen.labels), seen.ttl.seconds) == (self.labels, self.ttl_seconds)
        assert (seen.checkout, seen.merged_into) == (self.checkout, self.merged_into)


@dataclass(slots=True)
class Checkout:
    """One checkout. `lines` are the cart's when it began. It is COMPLETED as soon as the sale is decided.

    `is_ready`: an answer showed that it can be completed. `etag` and `etags` as those of a cart.
    """

    name: str
    cart: str
    lines: dict[str, Line]
    currency: str
    subtotal: int
    state: str = "OPEN"
    order_reference: str = ""
    is_ready: bool = False
    etag: str = ""
    etags: set[str] = field(default_factory=set)

    def check(self, seen: cart_pb2.Checkout, *, is_waiting: bool = False) -> None:
        """Raise AssertionError unless `seen` shows this checkout; if `is_waiting`, this one or a later state of it."""
        self.check_totals(seen)
        if is_waiting:
            return
        self.check_state(seen)
        lines = {} if self.state == "CANCELLED" else self.lines
        assert [item.name for item in seen.items] == [f"{self.cart}/items/{item_id}" for item_id in lines]
        for item, line in zip(seen.items, lines.values(), strict=True):
            check_item(item, line)

    def check_state(self, seen: cart_pb2.Checkout) -> None:
        """Raise AssertionError unless `seen` shows the state and the etag, and note the etag."""
        state = cart_pb2.Checkout.State.Name(seen.state).removeprefix("STATE_").replace("COMPLETING", "COMPLETED")
        assert (state, seen.order_reference) == (self.state, self.order_reference)
        assert seen.reason == ""
        assert seen.ready or not self.is_ready or self.state != "OPEN", f"{seen} is not ready any more"
        assert seen.etag == self.etag if self.etag else seen.etag not in self.etags
        self.is_ready = self.is_ready or seen.ready
        self.etag, self.etags = seen.etag, self.etags | {seen.etag}

    def check_totals(self, seen: cart_pb2.Checkout) -> None:
        """Raise AssertionError unless `seen` shows the name and the totals."""
        assert (seen.name, seen.cart) == (self.name, self.cart)
        totals = (len(self.lines), sum(line.quantity for line in self.lines.values()))
        assert (seen.item_count, seen.total_quantity) == totals
        assert price_of(seen, "subtotal") == ((self.currency, self.subtotal) if self.currency else None)


def check_item(item: cart_pb2.Item, line: Line) -> None:
    """Raise AssertionError unless `item` shows `line`, and note its reservation."""
    shown = (item.sku, dict(item.options), item.quantity, price_of(item, "unit_price"), dict(item.labels))
    assert shown == (line.sku, line.options, line.quantity, line.price, line.labels)
    if line.held and line.held[0] == line.quantity and line.sku != SOLD_OUT:
        assert item.reservation.reservation_id == line.held[1], f"a line that stays the same is reserved anew: {item}"
    line.held = (line.quantity, item.reservation.reservation_id)
    line.since = (item.create_time.ToMicroseconds(), item.uid)
    line.updated = item.update_time.ToMicroseconds()


def price_of(message: Any, field_name: str) -> Price | None:
    """The amount in a field of `message`, None if it is absent."""
    if not message.HasField(field_name):
        return None
    money = getattr(message, field_name)
    return (money.currency_code, money.minor_units)
