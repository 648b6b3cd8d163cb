"""The rule of AddItem and BatchAddItems."""

from cart_grpc.carts.calls import AddItems, Addition, Change, Given, OpenCart
from cart_grpc.carts.lines import check_item_count, check_quantity, create_line, hold_quantity, sum_up
from cart_grpc.carts.model import Line
from cart_grpc.carts.totals import adopt_currency, recount, touch, without_price


def add_items(loaded: OpenCart, call: AddItems, given: Given) -> Change:
    """Add to the lines with the same sku and options, or create them. The newest price of a line wins."""
    additions = sum_up(call.additions)
    cart, replaced = loaded.cart, {}
    for addition in additions:
        before = loaded.lines.get(addition.item_id)
        if before and addition.unit_price:
            # The old price does not count against the new one's currency.
            replaced[addition.item_id] = without_price(before)
            cart = recount(cart, before, replaced[addition.item_id])
    cart = adopt_currency(cart, (addition.unit_price for addition in additions))
    lines = []
    for addition in additions:
        before = loaded.lines.get(addition.item_id)
        after = _add(loaded, before, addition, given)
        cart = recount(cart, replaced.get(addition.item_id, before), after)
        lines.append(after)
    check_item_count(loaded.cart, cart, given)
    return Change(touch(cart, given.now), tuple(lines))


def _add(loaded: OpenCart, before: Line | None, addition: Addition, given: Given) -> Line:
    quantity = addition.quantity + (before.item.quantity if before else 0)
    check_quantity(loaded.cart.key, addition.item_id, quantity, given)
    if before is None:
        return create_line(loaded.cart.key, addition, loaded.releasing, given)
    item = before.item._replace(
        quantity=quantity,
        unit_price=addition.unit_price.minor_units if addition.unit_price else before.item.unit_price,
        labels=before.item.labels if addition.labels is None else addition.labels,
        update_time=given.now,
    )
    return hold_quantity(Line(item, before.reservation), loaded.releasing, given)
