"""What must be true once nothing moves any more: of the carts, of the database, and of what was really reserved."""

import asyncio
import time
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cart.v1 import cart_pb2
from reservation.v1 import reservation_pb2, simulator_pb2
from sqlalchemy import Connection, select

from cart_grpc import app
from cart_grpc.settings import Settings
from cart_grpc.store import schema
from tests.processes.harness import Simulated
from tests.processes.load import HOT_CART, HOT_SKU, SCARCE, SKUS, Call, Caller, Held, Load

State = cart_pb2.Reservation.State
Carts = Mapping[str, cart_pb2.Cart]
RELEASE = reservation_pb2.Reservation.Disposition.DISPOSITION_RELEASE


async def settled(load: Load, simulated: Simulated, *, silence: float, timeout: float = 90) -> dict[str, cart_pb2.Cart]:
    """The carts once none is reconciling and no message is on its way for `silence` seconds."""
    deadline = time.monotonic() + timeout
    while True:
        carts = {name: await load.reader.get(name) for name in load.expected}
        unsettled = [name for name, cart in carts.items() if cart.reconciling]
        if not unsettled:
            break
        assert time.monotonic() < deadline, f"still reconciling: {[carts[name] for name in unsettled]}"
        await asyncio.sleep(0.1)
    await simulated.until_silent(silence)
    again = {name: await load.reader.get(name) for name in load.expected}
    assert again == carts, "a late message changed what had settled"
    return carts


def check_acknowledged(carts: Carts, expected: Mapping[str, Mapping[str, Held]]) -> None:
    """Every acknowledged effect is there, and nothing else."""
    for name, items in expected.items():
        found = {HOT_SKU if name == HOT_CART else item.name: (item.sku, item.quantity) for item in carts[name].items}
        assert found == {key: (held.sku, held.quantity) for key, held in items.items()}, name
        assert carts[name].total_quantity == sum(held.quantity for held in items.values()), name
        assert carts[name].item_count == len(items), name


async def check_replays(caller: Caller, calls: Sequence[Call], most: int = 150) -> None:
    """Calls repeated under their request_ids are answered with the same bytes."""
    for call in caller.numbers.sample(calls, min(most, len(calls))):
        reply = await caller.send(call.method, call.request)
        assert reply == call.reply, f"{call} was answered {reply!r} when it was repeated"


def check_effects(carts: Carts, effects: Sequence[simulator_pb2.Effect], behind: Mapping[str, str]) -> None:
    """What is held is what the carts say; `behind` tells which item each reservation was made for."""
    held = {effect.reservation_id: (effect.sku, effect.quantity_after) for effect in effects}
    held = {name: holding for name, holding in held.items() if holding[1]}
    for cart in carts.values():
        for item in cart.items:
            seen = item.reservation
            _check_reserved(item)
            holding = held.pop(seen.reservation_id, (item.sku, 0))
            assert holding == (item.sku, seen.reserved_quantity), f"{holding} is held for {item}"
    assert not held, f"held for nobody: {held}"
    unknown = {effect.reservation_id for effect in effects} - behind.keys()
    assert not unknown, f"reservations that no answer ever named: {unknown}"
    _check_one_at_a_time(effects, behind)


def _check_reserved(item: cart_pb2.Item) -> None:
    seen = item.reservation
    assert seen.state in (State.STATE_RESERVED, State.STATE_REJECTED), f"not at its end: {item}"
    if seen.state == State.STATE_RESERVED:
        assert seen.reserved_quantity == item.quantity, f"reserved in part: {item}"
    else:
        assert (item.sku, seen.reason) == (SCARCE, "OUT_OF_STOCK"), f"rejected for no reason: {item}"


def _check_one_at_a_time(effects: Sequence[simulator_pb2.Effect], behind: Mapping[str, str]) -> None:
    live: defaultdict[str, set[str]] = defaultdict(set)
    for effect in effects:
        holders = live[behind[effect.reservation_id]]
        holders.discard(effect.reservation_id)
        if effect.quantity_after:
            holders.add(effect.reservation_id)
        assert len(holders) <= 1, f"two reservations at once for {behind[effect.reservation_id]}: {holders}"


async def check_stock(simulated: Simulated, effects: Sequence[simulator_pb2.Effect], totals: Mapping[str, int]) -> None:
    """No piece is made or lost, and none is ever held twice."""
    held: Counter[str] = Counter()
    for effect in effects:
        held[effect.sku] += effect.quantity_after - effect.quantity_before
        assert 0 <= held[effect.sku] <= totals[effect.sku], f"{effect}"
    for sku in (*SKUS, HOT_SKU):
        stock = await simulated.stock(sku)
        assert stock.held_quantity == held[sku]
        assert stock.available_quantity + stock.held_quantity + stock.committed_quantity == totals[sku]


@dataclass(frozen=True)
class Dump:
    """The rows of a database that nobody writes to."""

    items: Sequence[Any]
    reservations: Sequence[Any]
    request_ids: frozenset[str]


async def dump(database_url: str) -> Dump:
    """Everything, once the servers have stopped."""

    def read(connection: Connection) -> Dump:
        return Dump(
            connection.execute(select(schema.items)).all(),
            connection.execute(select(schema.reservations)).all(),
            frozenset(connection.execute(select(schema.replies.c.request_id)).scalars()),
        )

    async with app.open_engine(Settings(database_url=database_url)) as engine:
        return await engine.transact(read)


def check_rows(found: Dump, calls: Sequence[Call], behind: Mapping[str, str]) -> None:
    """Every reservation is settled and known, and held only for the item that has it; every reply is there once."""
    of_items = {row.reservation_id for row in found.items}
    for row in found.reservations:
        assert row.observed_revision == row.revision, f"never settled: {row}"
        # What holds something is due once more, to be renewed.
        assert row.due_at is None or row.granted_quantity, f"something is left to do: {row}"
        assert row.lease_until is None, f"still claimed: {row}"
        assert (row.disposition != RELEASE) == (row.reservation_id in of_items), f"an item's, or released: {row}"
    assert {row.reservation_id for row in found.reservations} == behind.keys()
    assert len(of_items) == len(found.items)
    assert len(found.request_ids) == len(calls)
