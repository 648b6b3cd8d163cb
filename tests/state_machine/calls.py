"""The effect of each call on the model.

Each rule takes the model, the request and the outcome. It raises Refused, and AssertionError if the reply is wrong.
"""

from collections.abc import Callable, Iterable
from copy import deepcopy
from typing import TYPE_CHECKING, Any

from cart_grpc.names import item_id_of
from tests.state_machine.carts import (
    DEFAULT_TTL_SECONDS,
    ENDED,
    MAX_ITEMS,
    MAX_QUANTITY,
    MOST,
    SOLD_OUT,
    Cart,
    Checkout,
    Line,
    Price,
    Refused,
    check_item,
    price_of,
)

if TYPE_CHECKING:
    from tests.state_machine.model import Model

Rule = Callable[["Model", Any, Any], None]


def add_item(model: "Model", request: Any, reply: Any) -> None:
    before, after = open_or_new(model, request.parent, request.etag)
    _add(after, [request.item])
    conclude(model, before, after, reply)
    _check_items(after, [reply.item], 1)
    replaced = price_of(reply, "previous_unit_price")
    assert replaced == _replaced_prices(before, after).get(reply.item.name)


def batch_add_items(model: "Model", request: Any, reply: Any) -> None:
    before, after = open_or_new(model, request.parent, request.etag)
    items = [one.item for one in request.requests]
    _add(after, items)
    conclude(model, before, after, reply)
    _check_items(after, reply.items, len({item_id_of(item.sku, item.options) for item in items}))
    _check_price_changes(before, after, reply)


def replace_items(model: "Model", request: Any, reply: Any) -> None:
    before, after = open_or_new(model, request.name, request.etag)
    additions, labelled = _sum_up(request.items)
    if any(one.quantity > MAX_QUANTITY for one in additions.values()):
        raise Refused("LIMIT_EXCEEDED")
    had, after.lines = after.lines, {}
    _check_prices(after, {item_id: one.price for item_id, one in additions.items() if one.price})
    for item_id in (*(item_id for item_id in had if item_id in additions), *additions):
        one = additions[item_id]
        held = had[item_id].held if item_id in had else None
        after.lines[item_id] = Line(one.sku, one.options, one.quantity, one.price, labelled.get(item_id, {}), held)
    if len(after.lines) > MAX_ITEMS:
        raise Refused("LIMIT_EXCEEDED")
    is_new = before is None or before.state in ENDED
    conclude(model, before, after, reply, is_change=before is None or is_new or before.contents != after.contents)
    gone = [] if before is None or is_new else [item_id for item_id in before.lines if item_id not in additions]
    _check_removed(before or after, reply.removed_items, gone)
    _check_price_changes(before, after, reply)


def _add(cart: Cart, items: Iterable[Any]) -> None:
    additions, labelled = _sum_up(items)
    _check_prices(cart, {item_id: one.price for item_id, one in additions.items() if one.price})
    for item_id, one in additions.items():
        line = cart.lines.setdefault(item_id, Line(one.sku, one.options, 0))
        line.quantity += one.quantity
        line.price = one.price or line.price
        line.labels = labelled.get(item_id, line.labels)
        if line.quantity > MAX_QUANTITY:
            raise Refused("LIMIT_EXCEEDED")
    if len(cart.lines) > MAX_ITEMS:
        raise Refused("LIMIT_EXCEEDED")


def _sum_up(items: Iterable[Any]) -> tuple[dict[str, Line], dict[str, dict[str, str]]]:
    """The items by item id, equal ones summed, and the labels of those that have any. Later prices and labels win."""
    additions: dict[str, Line] = {}
    labelled = {}
    for item in items:
        item_id = item_id_of(item.sku, item.options)
        one = additions.setdefault(item_id, Line(item.sku, dict(item.options), 0))
        one.quantity += item.quantity if item.HasField("quantity") else 1
        one.price = price_of(item, "unit_price") or one.price
        if item.labels:
            labelled[item_id] = dict(item.labels)
    return additions, labelled


def _check_prices(cart: Cart, prices: dict[str, Price]) -> None:
    """Refuse prices in several currencies. The prices that they replace do not count."""
    others = {line.price[0] for item_id, line in cart.lines.items() if line.price and item_id not in prices}
    currencies = others | {price[0] for price in prices.values()} | {cart.own_currency} - {""}
    if prices and len(currencies) > 1:
        raise Refused("CURRENCY_MISMATCH")


def update_item(model: "Model", request: Any, reply: Any) -> None:
    item, item_id = request.item, request.item.name.rpartition("/")[2]
    before, after = find_open(model, request.item.name, request.etag)
    line = _get_line(after, item_id)
    paths = set(request.update_mask.paths)
    if "quantity" in paths:
        line.quantity = item.quantity
    if "unit_price" in paths:
        price = price_of(item, "unit_price")
        _check_prices(after, {item_id: price} if price else {})
        line.price = price
    if "labels" in paths:
        line.labels = dict(item.labels)
    conclude(model, before, after, reply, is_change=before.contents != after.contents)
    _check_items(after, [reply.item], 1)


def remove_item(model: "Model", request: Any, reply: Any) -> None:
    before, after = find_open(model, request.name, request.etag)
    item_id = request.name.rpartition("/")[2]
    _get_line(after, item_id)
    del after.lines[item_id]
    conclude(model, before, after, reply)
    _check_removed(before, [reply.item], [item_id])


def clear_cart(model: "Model", request: Any, reply: Any) -> None:
    before, after = find_open(model, request.name, request.etag)
    after.lines.clear()
    conclude(model, before, after, reply, is_change=bool(before.lines))
    _check_removed(before, reply.removed_items, before.lines)


def delete_cart(model: "Model", request: Any, reply: Any) -> None:
    before, after = find_open(model, request.name, request.etag)
    after.lines.clear()
    after.state = "DELETED"
    conclude(model, before, after, reply)
    _check_removed(before, reply.removed_items, before.lines)


def create_cart(model: "Model", request: Any, reply: Any) -> None:
    name = f"{request.parent}/carts/{request.cart_id}"
    before = model.carts.get(name)
    check_etag(before, request.etag)
    if before and before.state not in ENDED:
        raise Refused("CART_FROZEN" if before.state == "CHECKING_OUT" else "CART_EXISTS")
    _, after = open_or_new(model, name, "")
    _set_values(after, request.cart, {"labels", "currency_code", "ttl"})
    conclude(model, before, after, reply)


def update_cart(model: "Model", request: Any, reply: Any) -> None:
    before, after = find_open(model, request.cart.name, request.etag)
    paths = set(request.update_mask.paths)
    priced = any(line.price for line in before.lines.values())
    if "currency_code" in paths and priced and request.cart.currency_code not in ("", before.currency):
        raise Refused("CURRENCY_MISMATCH")
    _set_values(after, request.cart, paths)
    conclude(model, before, after, reply, is_change=before.contents != after.contents)


def _set_values(cart: Cart, values: Any, paths: set[str]) -> None:
    if "labels" in paths:
        cart.labels = dict(values.labels)
    if "currency_code" in paths:
        cart.own_currency = values.currency_code
    if "ttl" in paths:
        cart.ttl_seconds = values.ttl.seconds if values.HasField("ttl") else DEFAULT_TTL_SECONDS


def retry_reservation(model: "Model", request: Any, reply: Any) -> None:
    before, after = find_open(model, request.name, request.etag)
    line = _get_line(after, request.name.rpartition("/")[2])
    # Whether the item that is sold out has been rejected yet, only the reply can tell.
    is_change = line.sku == SOLD_OUT and not isinstance(reply, str) and reply.etag != before.etag
    conclude(model, before, after, reply, is_change=is_change)
    _check_items(after, [reply.item], 1)


def get_cart(model: "Model", request: Any, reply: Any) -> None:
    cart = model.carts.get(request.name)
    if cart is None:
        raise Refused("CART_NOT_FOUND")
    conclude(model, cart, deepcopy(cart), reply, is_change=False)


def list_carts(model: "Model", request: Any, reply: Any) -> None:
    assert not isinstance(reply, str), f"ListCarts was refused: {reply}"
    prefix = f"{request.parent}/carts/"
    mine = [cart for name, cart in sorted(model.carts.items()) if name.startswith(prefix) and cart.state != "DELETED"]
    assert [cart.name for cart in reply.carts] == [cart.name for cart in mine]
    for seen, cart in zip(reply.carts, mine, strict=True):
        assert not seen.items
        cart.check_totals(seen)


# Steps that the rules share.


def check_etag(found: Cart | Checkout | None, sent: str) -> None:
    if sent and sent != (found.etag if found else ""):
        raise Refused("ETAG_MISMATCH")


def find_open(model: "Model", name: str, etag: str) -> tuple[Cart, Cart]:
    """The open cart of that name, or of the item of that name, and a copy to change."""
    cart = model.carts.get(name.partition("/items/")[0])
    if cart is None:
        raise Refused("CART_NOT_FOUND")
    check_etag(cart, etag)
    _check_open(cart)
    return cart, deepcopy(cart)


def open_or_new(model: "Model", name: str, etag: str) -> tuple[Cart | None, Cart]:
    """The cart of that name, if any, and a copy to change. An ended cart is followed by a new one."""
    cart = model.carts.get(name)
    check_etag(cart, etag)
    if cart is None:
        return None, Cart(name)
    if cart.state in ENDED:
        return cart, Cart(name, etag=cart.etag, revision=cart.revision, etags=set(cart.etags))
    _check_open(cart)
    return cart, deepcopy(cart)


def _check_open(cart: Cart) -> None:
    if cart.state == "CHECKING_OUT":
        raise Refused("CART_FROZEN")
    if cart.state in ENDED:
        raise Refused("CART_CLOSED")


def _get_line(cart: Cart, item_id: str) -> Line:
    if item_id not in cart.lines:
        raise Refused("ITEM_NOT_FOUND")
    return cart.lines[item_id]


def conclude(
    model: "Model", before: Cart | None, after: Cart, reply: Any, *, is_change: bool = True, is_limited: bool = True
) -> None:
    """Check what the reply says about the cart, and keep `after`, unless the call was refused.

    Each change has an etag of its own and a higher revision. Without a change, the etag stays.
    """
    if is_change and is_limited:
        _check_limits(model, before, after)
    assert not isinstance(reply, str), f"the call was refused: {reply}"
    has_cart = "cart" in reply.DESCRIPTOR.fields_by_name
    seen = reply.cart if has_cart else reply
    known = before or Cart(after.name)
    if is_change:
        assert seen.etag not in known.etags, f"the cart changed, but its etag is again {seen.etag}"
        assert seen.revision > known.revision, f"revision {seen.revision} follows {known.revision}"
    else:
        is_known = seen.etag == known.etag if known.etag else seen.etag not in known.etags
        assert is_known, f"nothing changed, but {seen.etag} follows {known.etag or known.etags}"
        assert seen.revision >= known.revision, f"revision {seen.revision} follows {known.revision}"
    after.etag, after.revision, after.etags = seen.etag, seen.revision, known.etags | {seen.etag}
    if has_cart:
        after.check(seen)
    model.carts[after.name] = after


def _check_limits(model: "Model", before: Cart | None, after: Cart) -> None:
    """Refuse a change that raises a total of the user beyond its limit."""
    old, new = counts(before) if before else [0, 0, 0], counts(after)
    totals = zip(counts(*others_of(model, after)), new, strict=True)
    for had, has, total, most in zip(old, new, map(sum, totals), MOST, strict=True):
        if has > had and total > most:
            raise Refused("LIMIT_EXCEEDED")


def others_of(model: "Model", cart: Cart) -> list[Cart]:
    """The other carts of the cart's user."""
    user = cart.name.partition("/carts/")[0] + "/"
    return [other for name, other in model.carts.items() if name.startswith(user) and name != cart.name]


def counts(*carts: Cart) -> list[int]:
    """The numbers of carts, items and units that count for the limits of a user: those of carts that have not ended."""
    live = [cart for cart in carts if cart.state not in ENDED]
    return [len(live), sum(len(cart.lines) for cart in live), sum(cart.total_quantity for cart in live)]


def _replaced_prices(before: Cart | None, after: Cart) -> dict[str, Price]:
    """The previous prices by item name, of the lines whose price changed."""
    had = before.lines if before and before.state not in ENDED else {}
    return {
        f"{after.name}/items/{item_id}": price
        for item_id, line in after.lines.items()
        if item_id in had and (price := had[item_id].price) and price != line.price
    }


def _check_price_changes(before: Cart | None, after: Cart, reply: Any) -> None:
    shown = {one.item: price_of(one, "previous_unit_price") for one in reply.price_changes}
    assert shown == _replaced_prices(before, after)


def _check_items(cart: Cart, seen: Iterable[Any], count: int) -> None:
    items = list(seen)
    assert len(items) == count
    for item in items:
        item_id = item.name.rpartition("/")[2]
        assert item.name == f"{cart.name}/items/{item_id}"
        check_item(item, cart.lines[item_id])


def _check_removed(before: Cart, seen: Iterable[Any], item_ids: Iterable[str]) -> None:
    items = list(seen)
    assert [item.name for item in items] == [f"{before.name}/items/{item_id}" for item_id in item_ids]
    for item in items:
        check_item(item, before.lines[item.name.rpartition("/")[2]])


RULES: dict[str, Rule] = {
    "AddItem": add_item,
    "BatchAddItems": batch_add_items,
    "ReplaceItems": replace_items,
    "UpdateItem": update_item,
    "RemoveItem": remove_item,
    "ClearCart": clear_cart,
    "DeleteCart": delete_cart,
    "CreateCart": create_cart,
    "UpdateCart": update_cart,
    "RetryReservation": retry_reservation,
    "GetCart": get_cart,
    # The first message shows the cart as GetCart does.
    "WatchCart": get_cart,
    "ListCarts": list_carts,
}
