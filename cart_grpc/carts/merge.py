"""The rule of MergeCarts: the items of one cart pass to another one, with their reservations.

It never refuses a call because of a limit. It moves as much as fits, in the order of the source's items, and lists each
difference as an Adjustment. `protocol.merging` has the rules for the reservations.
"""

from typing import NamedTuple

from cart_grpc.carts.adjustments import Adjustment, AdjustmentType
from cart_grpc.carts.calls import Change, Given, LoadedCart, MergeCarts, OpenCart
from cart_grpc.carts.lines import hold_quantity
from cart_grpc.carts.merge_room import MergeRoom
from cart_grpc.carts.model import Cart, CartState, Item, Line, Money
from cart_grpc.carts.progress import held_quantity
from cart_grpc.carts.refusals import CartClosed, CartNotFound
from cart_grpc.carts.totals import frozen, recount, touch
from cart_grpc.protocol.merging import ask_beside_release, move, take_over
from cart_grpc.protocol.reservation import Reservation
from cart_grpc.protocol.transitions import hold, release


def merge_carts(target: OpenCart, _: MergeCarts, given: Given) -> Change:
    """Move the items of the source, and end it. Raises CartNotFound, CartFrozen or CartClosed for the source."""
    (source,) = target.others
    if source.cart is None:
        raise CartNotFound(source.key.name)
    if source.cart.state is CartState.CHECKING_OUT:
        raise frozen(source.cart, source.checkout)
    if source.cart.state is not CartState.ACTIVE:
        raise CartClosed(source.key.name, source.cart.state.name)
    merge = _Merge(target, source, source.cart, given)
    for line in source.lines.values():
        merge.add(line)
    return merge.finish()


def find_repeated(target: LoadedCart, _: MergeCarts) -> Change | None:
    """The result if the source has been merged into this target already: the target as it is."""
    (source,) = target.others
    if target.cart is None or source.cart is None or source.cart.state is not CartState.MERGED:
        return None
    if source.cart.merged_into != target.key.name:
        return None
    return Change(target.cart, tuple(target.lines.values()), releasing=target.releasing)


class _Price(NamedTuple):
    """The price that a line of the target gets, and the one that is lost, if any."""

    minor_units: int | None
    lost: Money | None = None
    type: AdjustmentType = AdjustmentType.PRICE_REPLACED


class _Merge:
    """The merge of one cart into another, line by line."""

    def __init__(self, target: OpenCart, source: LoadedCart, source_cart: Cart, given: Given) -> None:
        self._target = target
        self._now = given.now
        self._given = given
        self._room = MergeRoom(target, source, given)
        self._currency_code = source_cart.currency_code
        self._emptied = source_cart
        self._cart = target.cart
        self._lines = dict(target.lines)
        # The lines of the source with their reservations as they are now.
        self._removed: list[Line] = []
        # The source's reservations that belong to no item, and have not moved.
        self._staying = {row.reservation_id: row for row in source.itemless}
        # The target's reservations that belong to no item, if the merge has changed or moved them.
        self._itemless: list[Reservation] = []
        self._adjustments: list[Adjustment] = []

    def add(self, line: Line) -> None:
        """Move a line of the source, or as much of it as fits."""
        before = self._lines.get(line.item.item_id)
        price = self._choose_price(before, line)
        item = (before or line).item._replace(cart=self._cart.key, unit_price=price.minor_units)
        companions = self._find_companions(line.reservation)
        both_closed = before is not None and before.reservation.is_closed and line.reservation.is_closed
        moved_rows = len(companions) + (before is None or line.reservation.finish_time is None)
        fit = self._room.fit(
            self._cart, before, item, line.item.quantity, moved_rows=moved_rows, new_rows=int(both_closed)
        )
        self._emptied = recount(self._emptied, line, None)
        if not fit.quantity:
            self._removed.append(Line(line.item, release(line.reservation, self._now)))
            self._adjustments.append(self._adjustment(AdjustmentType.DROPPED, line, quota=fit.quota))
            return
        item = item._replace(quantity=fit.quantity)
        if item != (before or line).item._replace(cart=item.cart):
            item = item._replace(update_time=self._now)
        if not fit.has_room:
            after = Line(item, self._lines[item.item_id].reservation)
            self._removed.append(Line(line.item, release(line.reservation, self._now)))
        else:
            self._move_companions(companions)
            after = self._join(before, line, item) if before else self._move(line, item)
        self._put(before, after)
        self._note_differences(line, after, fit.quota, price)

    def finish(self) -> Change:
        """The changes of both carts."""
        key, target = self._cart.key, self._target
        releasing = target.releasing | {row.sku for row in self._itemless if row.releasing}
        releasing |= {line.item.sku for line in self._lines.values() if line.reservation.releasing}
        lines = sorted(self._lines.values(), key=lambda line: (line.item.create_time, line.item.uid))
        is_changed = target.is_new or self._itemless or self._lines != dict(target.lines)
        emptied = self._emptied._replace(state=CartState.MERGED, merged_into=key.name)
        return Change(
            touch(self._cart, self._now) if is_changed else target.cart,
            tuple(lines),
            releasing=releasing,
            itemless=tuple(self._itemless),
            adjustments=tuple(self._adjustments),
            others=(Change(touch(emptied, self._now), removed=tuple(self._removed)),),
        )

    def _choose_price(self, before: Line | None, line: Line) -> _Price:
        ours, theirs = before.item.unit_price if before else None, line.item.unit_price
        if theirs is None:
            return _Price(ours)
        if self._cart.currency_code not in ("", self._currency_code):
            return _Price(ours, Money(self._currency_code, theirs), AdjustmentType.PRICE_DROPPED)
        if before is None or ours is None or theirs == ours:
            return _Price(theirs)
        is_newer = line.item.update_time > before.item.update_time
        if is_newer and self._room.affords(self._cart, before, theirs):
            return _Price(theirs, Money(self._currency_code, ours))
        return _Price(ours, Money(self._currency_code, theirs))

    def _find_companions(self, row: Reservation) -> list[Reservation]:
        """The reservations without an item that move with `row`: those that it supersedes, or that it waits for."""
        waits = row.waiting or row.supersedes
        return [
            other
            for other in self._staying.values()
            if self._find_successor(other) == row.reservation_id or (waits and other.releasing and other.sku == row.sku)
        ]

    def _find_successor(self, row: Reservation) -> str:
        """The id of the reservation that has taken over, at the end of a chain of several merges; "" if none has."""
        while row.superseded_by in self._staying:
            row = self._staying[row.superseded_by]
        return row.superseded_by

    def _move_companions(self, companions: list[Reservation]) -> None:
        for row in companions:
            del self._staying[row.reservation_id]
            self._itemless.append(move(row, self._cart.key, self._now))

    def _move(self, line: Line, item: Item) -> Line:
        row = move(line.reservation, item.cart, self._now)
        if item.quantity != line.item.quantity and not row.is_closed:
            row = hold(row, item.quantity, self._now)
        if item.sku in self._target.releasing:
            row = ask_beside_release(row)
        self._removed.append(Line(line.item, row))
        return Line(item, row)

    def _join(self, before: Line, line: Line, item: Item) -> Line:
        """The line that both carts have. The reservation that certainly holds more is kept."""
        ours, theirs = before.reservation, line.reservation
        if theirs.finish_time is None:
            theirs = move(theirs, item.cart, self._now)
        our_held, their_held = held_quantity(ours, self._now), held_quantity(theirs, self._now)
        if ours.is_closed and theirs.is_closed:
            is_releasing = ours.releasing or theirs.releasing or item.sku in self._target.releasing
            after = hold_quantity(Line(item, ours), {item.sku} if is_releasing else frozenset(), self._given)
            kept, left = after.reservation, [ours, theirs]
        elif ours.is_closed or (their_held > our_held and not theirs.is_closed):
            kept, *left = take_over(theirs, their_held, ours, our_held, item.quantity, self._now)
        else:
            kept, *left = take_over(ours, our_held, theirs, their_held, item.quantity, self._now)
        if item.sku in self._target.releasing and kept != ours:
            kept = ask_beside_release(kept)
        (moved,) = (row for row in (kept, *left) if row.reservation_id == theirs.reservation_id)
        self._removed.append(Line(line.item, moved))
        self._itemless += [row for row in left if row.cart == item.cart]
        return Line(item._replace(reservation_id=kept.reservation_id), kept)

    def _put(self, before: Line | None, after: Line) -> None:
        if after.item.unit_price is not None and not self._cart.currency_code:
            self._cart = self._cart._replace(currency_code=self._currency_code)
        self._cart = recount(self._cart, before, after)
        self._lines[after.item.item_id] = after

    def _note_differences(self, line: Line, after: Line, quota: str, price: _Price) -> None:
        if quota:
            self._adjustments.append(self._adjustment(AdjustmentType.QUANTITY_CLAMPED, line, after, quota=quota))
        if price.lost:
            self._adjustments.append(self._adjustment(price.type, line, after, lost_price=price.lost))

    def _adjustment(
        self,
        type_: AdjustmentType,
        line: Line,
        after: Line | None = None,
        quota: str = "",
        lost_price: Money | None = None,
    ) -> Adjustment:
        name, quantity = (after.item.name, after.item.quantity) if after else ("", 0)
        return Adjustment(type_, line, self._currency_code, name, quantity, quota, lost_price)
