"""What one batch touches: values as they were read, changed in memory command by command, then written once."""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field

from cart_grpc.carts.calls import Change, LoadedCart
from cart_grpc.carts.model import Cart, Item, Line
from cart_grpc.names import CartKey, UserKey
from cart_grpc.protocol.reservation import Reservation

ReplyKey = tuple[UserKey, str]
ItemKey = tuple[CartKey, str]


@dataclass(frozen=True, slots=True)
class Reply:
    """What a request_id was answered, and the fingerprint of the request it was used for."""

    fingerprint: bytes
    reply: bytes


@dataclass(slots=True)
class ReadSet:
    """What a batch must read before its commands can run.

    `whole_carts` are read with all their items and reconciling reservations, `skus` with the reconciling reservations
    of that cart and sku.
    """

    users: set[UserKey] = field(default_factory=set)
    replies: set[ReplyKey] = field(default_factory=set)
    carts: set[CartKey] = field(default_factory=set)
    whole_carts: set[CartKey] = field(default_factory=set)
    items: set[ItemKey] = field(default_factory=set)
    reservations: set[tuple[CartKey, str]] = field(default_factory=set)
    skus: set[tuple[CartKey, str]] = field(default_factory=set)


class UnitOfWork:
    """The state that a batch's commands share: each sees what those before it did."""

    def __init__(self) -> None:
        self.replies: dict[ReplyKey, Reply] = {}
        self.carts: dict[CartKey, Cart] = {}
        self.items: defaultdict[CartKey, dict[str, Item]] = defaultdict(dict)
        self.reservations: dict[str, Reservation] = {}
        self._of_sku: defaultdict[tuple[CartKey, str], set[str]] = defaultdict(set)
        self.new_replies: set[ReplyKey] = set()
        self.changed_carts: set[CartKey] = set()
        self.changed_items: set[ItemKey] = set()
        self.changed_reservations: set[str] = set()

    def load_item(self, item: Item) -> None:
        self.items[item.cart][item.item_id] = item

    def load_reservation(self, reservation: Reservation) -> None:
        self.reservations[reservation.reservation_id] = reservation
        self._of_sku[reservation.cart, reservation.sku].add(reservation.reservation_id)

    def contents(self, key: CartKey, item_ids: Iterable[str] | None, skus: Iterable[str]) -> LoadedCart:
        """What a command on `key` may see: the lines in `item_ids`, or all where that is None.

        `skus` are those of lines that it may make.
        """
        items = self.items[key]
        named = set(skus)
        if item_ids is None:
            item_ids = sorted(items, key=lambda item_id: (items[item_id].create_time, items[item_id].uid))
            named.update(sku for cart, sku in self._of_sku if cart == key)
        lines = {item_id: self._line(items[item_id]) for item_id in item_ids if item_id in items}
        named.update(line.item.sku for line in lines.values())
        releasing = frozenset(sku for sku in named if self._is_releasing(key, sku))
        return LoadedCart(key, self.carts.get(key), lines, releasing)

    def _is_releasing(self, key: CartKey, sku: str) -> bool:
        return any(self.reservations[name].releasing for name in self._of_sku.get((key, sku), ()))

    def _line(self, item: Item) -> Line:
        return Line(item, self.reservations[item.reservation_id])

    def find_line(self, key: CartKey, item_id: str) -> Line | None:
        item = self.items[key].get(item_id)
        return self._line(item) if item else None

    def of_sku(self, key: CartKey, sku: str) -> list[Reservation]:
        """The reservations of a cart and sku that were read or made: every reconciling one, where ReadSet named it."""
        return [self.reservations[reservation_id] for reservation_id in sorted(self._of_sku.get((key, sku), ()))]

    def put_cart(self, cart: Cart) -> None:
        if self.carts.get(cart.key) is not cart:
            self.carts[cart.key] = cart
            self.changed_carts.add(cart.key)

    def put_reservation(self, reservation: Reservation) -> None:
        if self.reservations.get(reservation.reservation_id) is not reservation:
            self.load_reservation(reservation)
            self.changed_reservations.add(reservation.reservation_id)

    def put_reply(self, key: ReplyKey, reply: Reply) -> None:
        self.replies[key] = reply
        self.new_replies.add(key)

    def apply(self, change: Change) -> None:
        """Take over what a rule changed."""
        self.put_cart(change.cart)
        key = change.cart.key
        for line in change.lines:
            if self.items[key].get(line.item.item_id) is not line.item:
                self.load_item(line.item)
                self.changed_items.add((key, line.item.item_id))
            self.put_reservation(line.reservation)
        for line in change.removed:
            del self.items[key][line.item.item_id]
            self.changed_items.add((key, line.item.item_id))
            self.put_reservation(line.reservation)
