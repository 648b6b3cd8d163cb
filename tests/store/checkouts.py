"""Commands about checkouts for the tests of the store, and functions that read the result."""

import json
from typing import Any

from sqlalchemy import select

from cart_grpc.carts.calls import Limits
from cart_grpc.carts.checkout_calls import BeginCheckout, CancelCheckout, CheckoutView, CompleteCheckout
from cart_grpc.carts.model import Checkout, CheckoutState, Money
from cart_grpc.commands.checkout import CheckoutMutation
from cart_grpc.names import CartKey, CheckoutKey
from cart_grpc.protocol.lanes import CHECKOUT_LANE
from cart_grpc.protocol.reservation import Observed, Reservation
from cart_grpc.store import schema
from cart_grpc.store.engine import Engine
from cart_grpc.store.rows import CHECKOUTS, to_reservation
from cart_grpc.store.store import Store
from tests.store.writes import KEY, SECOND, add, answered, claim, snapshot

LIMITS = Limits()
# Shorter than the ttl of holds, so that a checkout of fresh holds is ready at once. LONG is longer.
WINDOW = 300 * SECOND
LONG = 1200 * SECOND
ORDER = "order-1"


def encode(view: CheckoutView, now: int) -> bytes:
    """A reply with the checkout's id, its state, and the skus of its lines."""
    skus = sorted(line.item.sku for line in view.lines)
    return json.dumps([view.checkout.key.checkout_id, view.checkout.state.name, skus, now]).encode()


def begin(key: CartKey = KEY, window: int = WINDOW, expected: Money | None = None, **more: Any) -> CheckoutMutation:
    """BeginCheckout."""
    call = BeginCheckout(key, window_us=window, expected_subtotal=expected, **more)
    return CheckoutMutation(call, encode, LIMITS)


def complete(key: CheckoutKey, order: str = ORDER, **more: Any) -> CheckoutMutation:
    """CompleteCheckout."""
    return CheckoutMutation(CompleteCheckout(key, order_reference=order, **more), encode, LIMITS)


def cancel(key: CheckoutKey, **more: Any) -> CheckoutMutation:
    """CancelCheckout."""
    return CheckoutMutation(CancelCheckout(key, **more), encode, LIMITS)


def id_in(reply: bytes) -> str:
    """The id of the checkout in a reply."""
    found: str = json.loads(reply)[0]
    return found


def key_in(reply: bytes) -> CheckoutKey:
    """The key of the checkout of KEY's user in a reply."""
    return KEY.checkout(id_in(reply))


async def hold_items(store: Store, *skus: str, key: CartKey = KEY) -> None:
    """Add items, and hold them for the ttl of holds."""
    for sku in skus:
        await store.mutate(add(sku, key=key))
    for claimed in await claim(store):
        await store.record(answered(claimed))


async def begun(store: Store, *skus: str, window: int = WINDOW) -> CheckoutKey:
    """Begin a checkout of a cart with items."""
    await hold_items(store, *skus)
    return key_in(await store.mutate(begin(window=window)))


async def claim_of_checkout(store: Store) -> list[Reservation]:
    """Claim the due rows of the checkouts' lane."""
    return await claim(store, CHECKOUT_LANE)


def sold(claimed: Reservation) -> Any:
    """The record of a commit that was granted."""
    return answered(claimed, state=Observed.COMMITTED, expire_time=None)


def refused(claimed: Reservation) -> Any:
    """The record of a commit that was refused."""
    return answered(claimed, state=Observed.REJECTED, granted_quantity=0, expire_time=None, reason="OUT_OF_STOCK")


async def completing(store: Store, *skus: str) -> tuple[CheckoutKey, list[Reservation]]:
    """Complete a checkout, and claim its commits."""
    key = await begun(store, *skus)
    await store.mutate(complete(key))
    return key, await claim_of_checkout(store)


async def failed(store: Store, *skus: str) -> CheckoutKey:
    """Complete a checkout of which all items but the last are refused."""
    key, claimed = await completing(store, *skus)
    *first, last = sorted(claimed, key=lambda row: row.sku)
    for row in first:
        await store.record(refused(row))
    await store.record(sold(last))
    return key


async def checkout_of(engine: Engine, key: CheckoutKey) -> Checkout:
    """Read a checkout."""
    table = schema.checkouts
    statement = select(table).where(table.c.checkout_id == key.checkout_id)
    return CHECKOUTS.to_value(await engine.transact(lambda connection: connection.execute(statement).one()))


async def state_of(engine: Engine, key: CheckoutKey) -> CheckoutState:
    return (await checkout_of(engine, key)).state


async def rows_of(store: Store) -> list[Reservation]:
    """The reservations of the cart's items."""
    return [line.reservation for line in (await snapshot(store)).lines]


async def all_rows(engine: Engine) -> list[Reservation]:
    """All reservations."""
    rows = await engine.transact(lambda connection: connection.execute(select(schema.reservations)).all())
    return [to_reservation(row) for row in rows]
