"""Compares shoppers with the database and the simulator: every acknowledged sale exists exactly once."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence

from cart_grpc.carts.model import ENDED, CheckoutState, Item
from cart_grpc.protocol.reservation import Observed
from tests.invariants.history import ApiEffect, Dump
from tests.processes.shopper import Shopper


def check_sales(shoppers: Sequence[Shopper], effects: Iterable[ApiEffect], dump: Dump) -> list[str]:
    """Every unit is sold, held by a cart's item, or released. All is settled.

    `effects` and `dump` are those of the shoppers' goods and users.
    """
    last = {effect.reservation_id: effect for effect in effects}
    sales = {name: sale for shopper in shoppers for name, sale in shopper.sales.items()}
    sold = {key.name: items for key, items in dump.sold_items.items()}
    violations = []
    for checkout in dump.checkouts:
        name, items, sale = checkout.key.name, sold.get(checkout.key.name, ()), sales.pop(checkout.key.name, None)
        if sale is None:
            if (
                items
                or checkout.order_reference
                or checkout.state not in (CheckoutState.CANCELLED, CheckoutState.EXPIRED)
            ):
                violations.append(f"nobody completed {checkout}, which has {items}")
        elif (checkout.state, checkout.order_reference) != (CheckoutState.COMPLETED, sale.order_reference):
            violations.append(f"{sale} was acknowledged, but there is {checkout}")
        elif _quantities(items) != sale.quantities:
            violations.append(f"{sale} was acknowledged, but {name} has {items}")
    violations += [f"{sale} was acknowledged, but {name} does not exist" for name, sale in sales.items()]
    violations += _check_carts(shoppers, dump)
    owned = [item for items in sold.values() for item in items]
    return [
        *violations,
        *_check_owners(last, owned, Observed.COMMITTED),
        *_check_owners(last, dump.items, Observed.HELD),
        *_check_others(last, [*owned, *dump.items]),
    ]


def _check_carts(shoppers: Iterable[Shopper], dump: Dump) -> Iterator[str]:
    ended = {cart.key.name for cart in dump.carts if cart.state in ENDED}
    for shopper in shoppers:
        for cart, quantities in shopper.quantities.items():
            items = [item for item in dump.items if item.cart.name == cart]
            if _quantities(items) != quantities or (cart in ended and items):
                yield f"{cart} should have {quantities}, but has {items}"


def _check_owners(last: Mapping[str, ApiEffect], items: Iterable[Item], state: Observed) -> Iterator[str]:
    for item in items:
        effect = last.get(item.reservation_id)
        if effect is None or (effect.state, effect.sku, effect.granted_quantity) != (state, item.sku, item.quantity):
            yield f"{item} should be {state.name}, but the API has {effect}"


def _check_others(last: Mapping[str, ApiEffect], owned: Iterable[Item]) -> Iterator[str]:
    owners = Counter(item.reservation_id for item in owned)
    yield from (f"{count} items have the reservation {name}" for name, count in owners.items() if count > 1)
    for reservation_id, effect in last.items():
        if reservation_id not in owners and effect.granted_quantity:
            yield f"no item has the units of {effect}"


def _quantities(items: Iterable[Item]) -> Counter[str]:
    found: Counter[str] = Counter()
    for item in items:
        found[item.sku] += item.quantity
    return found
