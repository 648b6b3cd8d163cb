"""The room that is left in the target of a merge, under the limits of an item, a cart and a user."""

from typing import NamedTuple

from cart_grpc.carts.calls import Given, LoadedCart, OpenCart
from cart_grpc.carts.model import Cart, Item, Line, UserTotals, totals_of
from cart_grpc.carts.sizes import CART_ROOM, RESERVATION_BYTES, entries_bytes, item_bytes
from cart_grpc.carts.totals import MAX_SUBTOTAL


class Fit(NamedTuple):
    """The units of the line after the merge, and the `quota` that left no room for all of them; "" if all fit.

    `has_room`: there is room for the line's item and reservation, if not for all units.
    """

    quantity: int
    quota: str
    has_room: bool


class MergeRoom:
    """The room for the lines of `source` in `target`.

    If both carts have the same user, the target gets the room that the source takes. A total that exceeds its limit
    already, because the limit was lowered, may stay as it is.
    """

    def __init__(self, target: OpenCart, source: LoadedCart, given: Given) -> None:
        limits, user = given.limits, target.cart.key.user
        self._limits = limits
        rest = target.rest_of_user
        total = rest.plus(totals_of(target.cart))
        self._bytes_per_row = RESERVATION_BYTES
        if source.cart and source.key.user == user:
            emptied = CART_ROOM + len(source.key.name) + entries_bytes(source.cart.labels)
            rest = rest.minus(totals_of(source.cart)).plus(UserTotals(emptied))
            self._bytes_per_row = 0
        self._has_room_for_cart = not target.is_new or rest.cart_count < limits.max_carts_per_user
        self._most_items = max(limits.max_items_per_user, total.item_count) - rest.item_count
        self._most_units = max(limits.max_units_per_user, total.unit_count) - rest.unit_count
        self._most_bytes = max(limits.max_user_bytes, total.stored_bytes) - rest.stored_bytes

    def fit(self, cart: Cart, before: Line | None, item: Item, units: int, *, moved_rows: int, new_rows: int) -> Fit:
        """How much of `units` more of `item` fits into `cart`, which has `before` of it.

        The merge moves `moved_rows` reservations for it, and makes `new_rows`. If there is room, it is taken.
        """
        least = before.item.quantity if before else 0
        row_bytes = moved_rows * self._bytes_per_row + new_rows * RESERVATION_BYTES
        full = self._find_full(cart, before, item, row_bytes)
        if full:
            return Fit(least, full, has_room=False)
        quota, most = self._find_most(cart, before, item)
        quantity = max(least, min(least + units, most))
        if quantity:
            self._most_bytes -= row_bytes
        return Fit(quantity, "" if quantity == least + units else quota, has_room=quantity > 0)

    def affords(self, cart: Cart, before: Line, unit_price: int) -> bool:
        """Whether the line can have this price: the subtotal has 64 bits."""
        rest = cart.subtotal - before.item.quantity * (before.item.unit_price or 0)
        return rest + before.item.quantity * unit_price <= MAX_SUBTOTAL

    def _find_full(self, cart: Cart, before: Line | None, item: Item, row_bytes: int) -> str:
        """The limit that leaves no room for the item and its reservation, or ""."""
        more_bytes = 0 if before else item_bytes(item)
        if cart.byte_size + more_bytes + row_bytes > self._most_bytes and more_bytes + row_bytes:
            return "bytes_per_user"
        if before:
            return ""
        if not self._has_room_for_cart:
            return "carts_per_user"
        if cart.item_count >= self._limits.max_items_per_cart:
            return "items_per_cart"
        if cart.item_count >= self._most_items:
            return "items_per_user"
        return "bytes_per_cart" if cart.byte_size + more_bytes > self._limits.max_cart_bytes else ""

    def _find_most(self, cart: Cart, before: Line | None, item: Item) -> tuple[str, int]:
        """The most units that the line may have, and the limit that says so."""
        least = before.item.quantity if before else 0
        most = [
            ("quantity_per_item", self._limits.max_quantity_per_item),
            ("units_per_user", self._most_units - cart.total_quantity + least),
        ]
        if item.unit_price:
            old = least * (before.item.unit_price or 0) if before else 0
            most.append(("subtotal", (MAX_SUBTOTAL - cart.subtotal + old) // item.unit_price))
        return min(most, key=lambda each: each[1])
