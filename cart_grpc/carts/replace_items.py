"""The rule of ReplaceItems."""

from collections.abc import Set as AbstractSet

from cart_grpc.carts.calls import Addition, Change, Given, OpenCart, ReplaceItems
from cart_grpc.carts.lines import check_item_count, check_quantity, create_line, hold_quantity, release_line, sum_up
from cart_grpc.carts.model import Line
from cart_grpc.carts.totals import adopt_currency, recount, touch


def replace_items(loaded: OpenCart, call: ReplaceItems, given: Given) -> Change:
    """Make the cart contain exactly the lines of the call. A line that stays the same keeps its reservation."""
    wanted = {addition.item_id: addition for addition in sum_up(call.additions)}
    for item_id, addition in wanted.items():
        check_quantity(loaded.cart.key, item_id, addition.quantity, given)
    gone = (line for item_id, line in loaded.lines.items() if item_id not in wanted)
    removed = tuple(release_line(line, given.now) for line in gone)
    cart = loaded.cart
    # All old prices go first: only the new ones decide the currency.
    for line in loaded.lines.values():
        cart = recount(cart, line, None)
    cart = adopt_currency(cart, (addition.unit_price for addition in wanted.values()))
    # A new line can have the sku of a removed one, with other options.
    releasing = loaded.releasing | {line.item.sku for line in removed if line.reservation.releasing}
    is_repriced = cart.currency_code != loaded.cart.currency_code
    kept = [line for item_id, line in loaded.lines.items() if item_id in wanted]
    lines = [_set(line, wanted[line.item.item_id], releasing, given, is_repriced=is_repriced) for line in kept]
    for item_id, addition in wanted.items():
        if item_id not in loaded.lines:
            lines.append(create_line(cart.key, addition, releasing, given))
    if lines == list(loaded.lines.values()) and not is_repriced and not loaded.is_new:
        return Change(loaded.cart, tuple(lines), releasing=loaded.releasing)
    for line in lines:
        cart = recount(cart, None, line)
    check_item_count(loaded.cart, cart, given)
    return Change(touch(cart, given.now), tuple(lines), removed, loaded.releasing)


def _set(before: Line, addition: Addition, releasing: AbstractSet[str], given: Given, *, is_repriced: bool) -> Line:
    """The line with exactly the values of `addition`. `is_repriced`: prices have another currency than before."""
    price = addition.unit_price.minor_units if addition.unit_price else None
    item = before.item._replace(quantity=addition.quantity, unit_price=price, labels=addition.labels or {})
    if item == before.item and not (is_repriced and price is not None):
        return before
    after = Line(item._replace(update_time=given.now), before.reservation)
    return after if item.quantity == before.item.quantity else hold_quantity(after, releasing, given)
