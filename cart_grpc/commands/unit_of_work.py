"""The rows that one batch touches: read once, changed in memory command by command, written once."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

from cart_grpc.carts.calls import CartRead, Change, LoadedCart
from cart_grpc.carts.checkout_calls import CheckoutChange, LoadedCheckout
from cart_grpc.carts.checkout_refusals import CheckoutNotFound
from cart_grpc.carts.model import Cart, CartState, Checkout, CheckoutState, Item, Line, UserTotals, totals_of
from cart_grpc.carts.refusals import RequestIdReused
from cart_grpc.carts.sizes import REPLY_ROOM, RESERVATION_BYTES
from cart_grpc.names import CartKey, CheckoutKey, UserKey
from cart_grpc.protocol.reservation import Reservation

ReplyKey = tuple[UserKey, str]
ItemKey = tuple[CartKey, str]


@dataclass(frozen=True, slots=True)
class Reply:
    """The reply to a request_id, and the fingerprint of the request that it answered."""

    fingerprint: bytes
    reply: bytes

    @property
    def byte_size(self) -> int:
        """The bytes that it counts for its user."""
        return len(self.reply) + REPLY_ROOM


_NOTHING = UserTotals()


@dataclass(slots=True)
class ReadSet:
    """The keys of the rows that a batch reads before its commands run. It locks `users` first.

    Of each cart in `whole_carts`, it reads all items and reconciling reservations; of each cart and sku in `skus`, the
    reconciling reservations. Of each of `checkouts` it reads the items and their reservations, and the cart while the
    checkout is OPEN. A cart that is CHECKING_OUT comes with its checkout. One command may add carts of several users.
    """

    users: set[UserKey] = field(default_factory=set)
    replies: set[ReplyKey] = field(default_factory=set)
    carts: set[CartKey] = field(default_factory=set)
    whole_carts: set[CartKey] = field(default_factory=set)
    items: set[ItemKey] = field(default_factory=set)
    reservations: set[tuple[CartKey, str]] = field(default_factory=set)
    skus: set[tuple[CartKey, str]] = field(default_factory=set)
    checkouts: set[CheckoutKey] = field(default_factory=set)

    def add_checkout(self, key: CheckoutKey) -> None:
        """Add a checkout and its user."""
        self.users.add(key.user)
        self.checkouts.add(key)

    def add_cart(self, read: CartRead) -> None:
        """Add a cart, its user, and the items and skus that `read` names."""
        cart = read.cart
        self.users.add(cart.user)
        self.carts.add(cart)
        if read.item_ids is None:
            self.whole_carts.add(cart)
        else:
            self.items.update([(cart, item_id) for item_id in read.item_ids])
        if read.skus:
            self.skus.update([(cart, sku) for sku in read.skus])


class UnitOfWork:
    """The state that a batch's commands share: each command sees the effects of those before it.

    `totals` are the running totals of users, and `erase_times` when an operator began to erase them, if at all.
    """

    def __init__(self) -> None:
        self.totals: dict[UserKey, UserTotals] = {}
        self.erase_times: dict[UserKey, int] = {}
        self.replies: dict[ReplyKey, Reply] = {}
        self.carts: dict[CartKey, Cart] = {}
        self.items: defaultdict[CartKey, dict[str, Item]] = defaultdict(dict)
        self.reservations: dict[str, Reservation] = {}
        self.checkouts: dict[CheckoutKey, Checkout] = {}
        self.checkout_items: defaultdict[CheckoutKey, dict[str, Item]] = defaultdict(dict)
        self._ids_by_sku: defaultdict[tuple[CartKey, str], set[str]] = defaultdict(set)
        self.changed_users: set[UserKey] = set()
        self.new_replies: set[ReplyKey] = set()
        self.changed_carts: set[CartKey] = set()
        self.changed_items: set[ItemKey] = set()
        self.changed_reservations: set[str] = set()
        self.changed_checkouts: set[CheckoutKey] = set()
        self.changed_checkout_items: set[tuple[CheckoutKey, str]] = set()
        # The keys (slice, reservation id) that reservations had before they moved to a cart in another slice.
        self.left_keys: set[tuple[int, str]] = set()

    def load_item(self, item: Item) -> None:
        self.items[item.cart][item.item_id] = item

    def load_reservation(self, reservation: Reservation) -> None:
        self.reservations[reservation.reservation_id] = reservation
        ids = self._ids_by_sku[reservation.cart, reservation.sku]
        # A reservation that has passed to a checkout is not the cart's: another cart may have the name.
        if reservation.is_of_cart:
            ids.add(reservation.reservation_id)
        else:
            ids.discard(reservation.reservation_id)

    def load_checkout(self, checkout: Checkout) -> None:
        self.checkouts[checkout.key] = checkout

    def load_checkout_item(self, checkout: CheckoutKey, item: Item) -> None:
        self.checkout_items[checkout][item.item_id] = item

    def get_loaded_cart(self, reads: Sequence[CartRead]) -> LoadedCart:
        """Return the cart of the first entry of `reads`, with the carts of the other entries in its `others`.

        The ReadSet of the batch must include `reads`: a row that the batch did not read seems not to exist.
        """
        first = self._get_loaded_cart(reads[0])
        return first if len(reads) == 1 else first._replace(others=tuple(map(self._get_loaded_cart, reads[1:])))

    def _get_loaded_cart(self, read: CartRead) -> LoadedCart:
        key, item_ids, skus = read
        items = self.items[key]
        named = set(skus)
        if item_ids is None:
            item_ids = sorted(items, key=lambda item_id: (items[item_id].create_time, items[item_id].uid))
            named.update(sku for cart, sku in self._ids_by_sku if cart == key)
        lines = {item_id: self._line(items[item_id]) for item_id in item_ids if item_id in items}
        named.update(line.item.sku for line in lines.values())
        releasing = frozenset(sku for sku in named if self._is_releasing(key, sku))
        cart = self.carts.get(key)
        is_frozen = cart is not None and cart.state is CartState.CHECKING_OUT
        checkout = self.checkouts.get(key.checkout(cart.checkout_id)) if cart and is_frozen else None
        rest = self.find_totals(key.user).minus(totals_of(cart))
        itemless = self._itemless(key) if read.item_ids is None else ()
        return LoadedCart(key, cart, lines, releasing, (), checkout, rest, itemless)

    def get_loaded_checkout(self, key: CheckoutKey) -> LoadedCheckout:
        """Return a checkout that the batch's ReadSet named. Raises CheckoutNotFound."""
        checkout = self.checkouts.get(key)
        if checkout is None:
            raise CheckoutNotFound(key.name)
        cart = self.carts.get(checkout.cart) if checkout.state is CheckoutState.OPEN else None
        if cart and (cart.state is not CartState.CHECKING_OUT or cart.checkout_id != key.checkout_id):
            cart = None
        items = self.items[cart.key] if cart else self.checkout_items[key]
        ordered = sorted(items.values(), key=lambda item: (item.create_time, item.uid))
        return LoadedCheckout(checkout, cart, tuple(map(self._line, ordered)))

    def _is_releasing(self, key: CartKey, sku: str) -> bool:
        return any(
            self.reservations[reservation_id].releasing for reservation_id in self._ids_by_sku.get((key, sku), ())
        )

    def _line(self, item: Item) -> Line:
        return Line(item, self.reservations[item.reservation_id])

    def _itemless(self, key: CartKey) -> tuple[Reservation, ...]:
        of_items = {item.reservation_id for item in self.items[key].values()}
        ids = (each for (cart, _), ids in self._ids_by_sku.items() if cart == key for each in sorted(ids - of_items))
        return tuple(self.reservations[reservation_id] for reservation_id in ids)

    def find_line(self, key: CartKey, item_id: str) -> Line | None:
        item = self.items[key].get(item_id)
        return self._line(item) if item else None

    def reservations_of_sku(self, key: CartKey, sku: str) -> list[Reservation]:
        """The reservations of a cart and sku that were read or created.

        They include every reconciling one if the ReadSet named the sku or the whole cart.
        """
        return [self.reservations[reservation_id] for reservation_id in sorted(self._ids_by_sku.get((key, sku), ()))]

    def find_reply(self, key: ReplyKey, fingerprint: bytes) -> bytes | None:
        """Return the reply that a request_id got, None if it is "" or new. Raises RequestIdReused."""
        stored = self.replies.get(key) if key[1] else None
        if stored and stored.fingerprint != fingerprint:
            raise RequestIdReused(key[1])
        return stored.reply if stored else None

    def find_totals(self, user: UserKey) -> UserTotals:
        """The totals of a user, 0 if nothing is stored."""
        return self.totals.get(user, _NOTHING)

    def find_growth(self, change: Change, reply: Reply | None) -> UserTotals:
        """Return by how much the totals of the user of the change's cart would grow by `apply` and `put_reply`."""
        growth = self._cart_growth(change.cart)
        more_bytes = reply.byte_size if reply else 0
        for line in change.lines:
            if line.reservation.reservation_id not in self.reservations:
                more_bytes += RESERVATION_BYTES
        return growth._replace(stored_bytes=growth.stored_bytes + more_bytes)

    def find_checkout_growth(self, change: CheckoutChange) -> UserTotals:
        """Return by how much the totals of the user would grow by `apply_checkout`."""
        before = self.checkouts.get(change.checkout.key)
        growth = self._cart_growth(change.cart) if change.cart else _NOTHING
        more_bytes = change.checkout.byte_size - (before.byte_size if before else 0)
        more_bytes += RESERVATION_BYTES * sum(
            line.reservation.reservation_id not in self.reservations for line in change.lines
        )
        return growth._replace(stored_bytes=growth.stored_bytes + more_bytes)

    def _cart_growth(self, cart: Cart) -> UserTotals:
        return totals_of(cart).minus(totals_of(self.carts.get(cart.key)))

    def _count(self, user: UserKey, growth: UserTotals) -> None:
        if growth != _NOTHING:
            self.totals[user] = self.find_totals(user).plus(growth)
            self.changed_users.add(user)

    def put_erase_time(self, user: UserKey, now: int) -> None:
        self.totals.setdefault(user, _NOTHING)
        self.erase_times[user] = now
        self.changed_users.add(user)

    def put_cart(self, cart: Cart) -> None:
        if self.carts.get(cart.key) is not cart:
            self._count(cart.key.user, self._cart_growth(cart))
            self.carts[cart.key] = cart
            self.changed_carts.add(cart.key)

    def put_reservation(self, reservation: Reservation) -> None:
        before = self.reservations.get(reservation.reservation_id)
        if before is not reservation:
            if before is None:
                self._count(reservation.cart.user, UserTotals(RESERVATION_BYTES))
            elif before.cart != reservation.cart:
                self._move_reservation(before, reservation.cart)
            self.load_reservation(reservation)
            self.changed_reservations.add(reservation.reservation_id)

    def _move_reservation(self, before: Reservation, cart: CartKey) -> None:
        self._ids_by_sku[before.cart, before.sku].discard(before.reservation_id)
        self._count(before.cart.user, UserTotals(-RESERVATION_BYTES))
        self._count(cart.user, UserTotals(RESERVATION_BYTES))
        if before.cart.slice != cart.slice:
            self.left_keys.add((before.cart.slice, before.reservation_id))

    def _put_changed(self, reservation: Reservation, trace_context: str | None) -> None:
        """Put a reservation that a call may have changed. The trace context of a new intent is that of its call."""
        if reservation.trace_context != trace_context:
            before = self.reservations.get(reservation.reservation_id)
            if before is None or before.intent_revision != reservation.intent_revision:
                reservation = reservation._replace(trace_context=trace_context)
        self.put_reservation(reservation)

    def put_checkout(self, checkout: Checkout) -> None:
        before = self.checkouts.get(checkout.key)
        if before is not checkout:
            self._count(checkout.key.user, UserTotals(checkout.byte_size - (before.byte_size if before else 0)))
            self.load_checkout(checkout)
            self.changed_checkouts.add(checkout.key)

    def put_reply(self, key: ReplyKey, reply: Reply) -> None:
        self._count(key[0], UserTotals(reply.byte_size))
        self.replies[key] = reply
        self.new_replies.add(key)

    def apply(self, change: Change, trace_context: str | None = None) -> None:
        """Apply a rule's change to each cart that the change names. `trace_context` is that of the call, if traced."""
        self._apply_to_cart(change, trace_context)
        for other in change.others:
            self._apply_to_cart(other, trace_context)

    def _apply_to_cart(self, change: Change, trace_context: str | None) -> None:
        self.put_cart(change.cart)
        key = change.cart.key
        items = self.items[key]
        for line in change.lines:
            if items.get(line.item.item_id) is not line.item:
                self.load_item(line.item)
                self.changed_items.add((key, line.item.item_id))
            self._put_changed(line.reservation, trace_context)
        for line in change.removed:
            del items[line.item.item_id]
            self.changed_items.add((key, line.item.item_id))
            self._put_changed(line.reservation, trace_context)
        for reservation in change.itemless:
            self._put_changed(reservation, trace_context)

    def apply_checkout(self, change: CheckoutChange, trace_context: str | None = None) -> None:
        """Apply a rule's change to a checkout, and to its cart. `trace_context` is that of the call, if traced."""
        key = change.checkout.key
        self.put_checkout(change.checkout)
        if change.cart:
            self.put_cart(change.cart)
        owned = self.checkout_items[key]
        for line in change.lines:
            item = line.item
            if change.passes:
                del self.items[item.cart][item.item_id]
                self.changed_items.add((item.cart, item.item_id))
            if change.passes or (item.item_id in owned and owned[item.item_id] is not item):
                self.load_checkout_item(key, item)
                self.changed_checkout_items.add((key, item.item_id))
            self._put_changed(line.reservation, trace_context)
