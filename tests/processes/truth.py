"""Waits until the service is settled, and compares callers, database and simulator."""

import asyncio
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

from cart_grpc import app
from cart_grpc.settings import Settings
from cart_grpc.simulator.journal import read_entries
from cart_grpc.simulator.stock import Levels
from tests.databases import shards_of
from tests.invariants.callers import check_kept, check_replays
from tests.invariants.dump import merge_dumps, read_dump
from tests.invariants.effects import check_decisions, check_granted, check_stock
from tests.invariants.history import ApiEffect, CallOutcome, Dump, effects_of
from tests.invariants.rows import check_settled, check_tables
from tests.invariants.run import Run, check_run
from tests.processes.harness import Simulated
from tests.processes.load import SCARCE, Load
from tests.processes.sales import check_sales
from tests.processes.shopper import GOODS


async def settled(load: Load, simulated: Simulated, *, silence: float, timeout: float = 90) -> None:
    """Wait until no cart and no sale is reconciling and no message has arrived for `silence` seconds."""
    deadline = time.monotonic() + timeout
    for name in load.carts:
        while (cart := await load.reader.get(name)).reconciling:
            assert time.monotonic() < deadline, f"still reconciling: {cart}"
            await asyncio.sleep(0.1)
    for shopper in load.shoppers:
        for name in shopper.sales:
            while (checkout := await shopper.read(name)).reconciling:
                assert time.monotonic() < deadline, f"still reconciling: {checkout}"
                await asyncio.sleep(0.1)
    await simulated.until_silent(silence)


async def replay(load: Load, most: int = 150) -> None:
    """Repeat up to `most` answered calls under their request_ids. The history records the replies, for `check`."""
    calls = [call for call in load.history.calls if call.outcome is CallOutcome.OK and call.request_id]
    for call in load.reader.numbers.sample(calls, min(most, len(calls))):
        await load.reader.send(call.cart, call.rpc, call.request, call.request_id)


async def dump(database_url: str) -> tuple[Dump, int]:
    """Return the whole database and its time in microseconds. No server may be running."""
    async with app.open_engine(Settings(database_url=database_url, database_shards=shards_of(database_url))) as engine:
        found = merge_dumps([await shard.transact(read_dump) for shard in engine.shards])
        return found, int(await engine.transact(engine.dialect.read_now))


async def check(load: Load, simulated: Simulated, journal: Path, database_url: str, stock: Mapping[str, int]) -> None:
    """Fail if callers, simulator and database contradict each other. All is settled and no server is running.

    `stock` is the number of pieces of each sku at the start. Only SCARCE may be rejected.
    """
    left = {sku: await simulated.stock(sku) for sku in stock}
    levels = {
        sku: Levels(found.available_quantity, found.held_quantity, found.committed_quantity)
        for sku, found in left.items()
    }
    found, now = await dump(database_url)
    run = Run(load.history.calls, read_effects(journal), found, now, stock, levels)
    users = {user for shopper in load.shoppers for user in shopper.users}
    writing = _part(run, lambda user: user not in users, lambda sku: sku not in GOODS)
    shopping = _part(run, lambda user: user in users, lambda sku: sku in GOODS)
    violations = check_run(writing, lambda sku, reason: (sku, reason) == (SCARCE, "OUT_OF_STOCK"))
    violations += _check_shopping(load, shopping)
    assert not violations, "\n".join(violations)


def _check_shopping(load: Load, run: Run) -> list[str]:
    return [
        *check_kept(run.calls, run.dump),
        *check_replays(run.calls, run.dump),
        *check_decisions(run.effects),
        *check_granted(run.effects, run.dump, run.now, lambda *_: False),
        *check_stock(run.effects, run.stock, run.levels),
        *check_tables(run.dump),
        *check_settled(run.dump),
        *check_sales(load.shoppers, run.effects, run.dump),
    ]


def _part(run: Run, is_user: Callable[[str], bool], is_sku: Callable[[str], bool]) -> Run:
    """The part of `run` that belongs to these users, who share no sku with the others."""
    found = run.dump
    return replace(
        run,
        calls=[call for call in run.calls if is_user(call.user)],
        effects=[effect for effect in run.effects if is_sku(effect.sku)],
        dump=Dump(
            carts=[cart for cart in found.carts if is_user(cart.key.user.name)],
            items=[item for item in found.items if is_user(item.cart.user.name)],
            reservations=[row for row in found.reservations if is_user(row.cart.user.name)],
            replies={key: reply for key, reply in found.replies.items() if is_user(key[0])},
            totals={user: totals for user, totals in found.totals.items() if is_user(user)},
            checkouts=[checkout for checkout in found.checkouts if is_user(checkout.key.user.name)],
            sold_items={key: items for key, items in found.sold_items.items() if is_user(key.user.name)},
        ),
        stock={sku: quantity for sku, quantity in run.stock.items() if is_sku(sku)},
        levels={sku: levels for sku, levels in run.levels.items() if is_sku(sku)},
    )


def read_effects(journal: Path) -> list[ApiEffect]:
    """Return the effects in a simulator's journal. It must not be writing."""
    entries, _ = read_entries(journal)
    return effects_of(entries)
