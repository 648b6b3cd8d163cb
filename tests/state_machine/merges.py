"""The effect of MergeCarts on the model."""

from copy import deepcopy
from typing import TYPE_CHECKING, Any

from cartgrpc.v1 import cart_service_pb2 as pb

from cart_grpc.names import item_id_of
from tests.state_machine.calls import Rule, check_etag, conclude, counts, open_or_new, others_of
from tests.state_machine.carts import (
    ENDED,
    MAX_ITEMS,
    MAX_QUANTITY,
    MOST,
    SOLD_OUT,
    Cart,
    Line,
    Price,
    Refused,
    price_of,
)

if TYPE_CHECKING:
    from tests.state_machine.model import Model

# Its type, the id of the source's item, the name of the target's item, its quantity, the quota and the lost price.
Adjustment = tuple[str, str, str, int, str, Price | None]


def merge_carts(model: "Model", request: Any, reply: Any) -> None:
    before, source = model.carts.get(request.name), model.carts.get(request.source)
    if before and source and source.state == "MERGED" and source.merged_into == request.name:
        check_etag(before, request.etag)
        conclude(model, before, deepcopy(before), reply, is_change=False)
        assert not reply.adjustments
        return
    before, after = open_or_new(model, request.name, request.etag)
    if source is None:
        raise Refused("CART_NOT_FOUND")
    if source.state != "ACTIVE":
        raise Refused("CART_FROZEN" if source.state == "CHECKING_OUT" else "CART_CLOSED")
    assert not isinstance(reply, str), f"a merge was refused: {reply}"
    merge = Merge(model, before, after, source)
    for item_id, line in source.lines.items():
        merge.add(item_id, line)
    after.lines = dict(sorted(after.lines.items(), key=lambda each: each[1].since))
    is_new = before is None or before.state in ENDED
    # The reservation of an item may change although its quantity does not. Only the reply can tell.
    may_change = bool(source.lines) and before is not None and reply.cart.etag != before.etag
    is_change = may_change or is_new or before is None or before.contents != after.contents
    conclude(model, before, after, reply, is_change=is_change, is_limited=False)
    _check_adjustments(merge.adjustments, reply, source)
    for item in reply.cart.items:
        ids = merge.joined.get(item.name, ())
        assert not ids or item.reservation.reservation_id in ids, f"{item} is reserved anew, not as one of {ids}"
    model.carts[source.name] = _merged(source, after.name)


def _merged(source: Cart, target: str) -> Cart:
    merged = deepcopy(source)
    merged.lines.clear()
    merged.state, merged.merged_into, merged.etag = "MERGED", target, ""
    return merged


def _check_adjustments(expected: list[Adjustment], reply: Any, source: Cart) -> None:
    found = []
    for one in reply.adjustments:
        kind = pb.MergeAdjustment.Type.Name(one.type).removeprefix("TYPE_")
        item_id = item_id_of(one.source_item.sku, dict(one.source_item.options))
        found.append((kind, item_id, one.item, one.quantity, one.quota, price_of(one, "lost_unit_price")))
        assert one.source_item.quantity == source.lines[item_id].quantity
    assert found == expected, f"the adjustments are {found}, not {expected}"


class Merge:
    """The merge of `source` into `after`, line by line."""

    def __init__(self, model: "Model", before: Cart | None, after: Cart, source: Cart) -> None:
        is_new = before is None or before.state in ENDED
        rest = counts(*others_of(model, after))
        total = [sum(each) for each in zip(rest, counts(after), strict=True)]
        if source in others_of(model, after):
            rest = [count - own for count, own in zip(rest, counts(source), strict=True)]
        self._target, self._currency = after, source.currency
        self._has_room = not is_new or rest[0] < MOST[0]
        self._most_items, self._most_units = (max(MOST[at], total[at]) - rest[at] for at in (1, 2))
        self.adjustments: list[Adjustment] = []
        # The reservations of the lines that both carts have, by the name of the item.
        self.joined: dict[str, tuple[str, str]] = {}

    def add(self, item_id: str, line: Line) -> None:
        target, name = self._target, f"{self._target.name}/items/{item_id}"
        before = target.lines.get(item_id)
        kind, price, lost = self._choose_price(before, line)
        quantity, quota = self._fit(before, line.quantity)
        if not quantity:
            self.adjustments.append(("DROPPED", item_id, "", 0, quota, None))
            return
        if before:
            if before.held and line.held and line.sku != SOLD_OUT:
                self.joined[name] = (before.held[1], line.held[1])
            before.held, before.quantity, before.price = None, quantity, price
        else:
            target.lines[item_id] = moved = deepcopy(line)
            moved.quantity, moved.price = quantity, price
        if quota:
            self.adjustments.append(("QUANTITY_CLAMPED", item_id, name, quantity, quota, None))
        if lost:
            self.adjustments.append((kind, item_id, name, quantity, "", lost))

    def _choose_price(self, before: Line | None, line: Line) -> tuple[str, Price | None, Price | None]:
        """The kind of the adjustment, the line's price after the merge, and the price that is lost."""
        ours, theirs = before.price if before else None, line.price
        if theirs is None:
            return "", ours, None
        if self._target.currency not in ("", self._currency):
            return "PRICE_DROPPED", ours, theirs
        if before is None or ours is None or ours == theirs:
            return "", theirs, None
        is_newer = line.updated > before.updated
        return "PRICE_REPLACED", theirs if is_newer else ours, ours if is_newer else theirs

    def _fit(self, before: Line | None, units: int) -> tuple[int, str]:
        """The quantity of the line after the merge, and the limit that it did not fit into, or ""."""
        if before is None and (full := self._find_full()):
            return 0, full
        least = before.quantity if before else 0
        left = self._most_units - self._target.total_quantity + least
        most, quota = (left, "units_per_user") if left < MAX_QUANTITY else (MAX_QUANTITY, "quantity_per_item")
        quantity = max(least, min(least + units, most))
        return quantity, quota if quantity < least + units else ""

    def _find_full(self) -> str:
        if not self._has_room:
            return "carts_per_user"
        if len(self._target.lines) >= MAX_ITEMS:
            return "items_per_cart"
        return "items_per_user" if len(self._target.lines) >= self._most_items else ""


RULES: dict[str, Rule] = {"MergeCarts": merge_carts}
