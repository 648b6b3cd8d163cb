"""Waits until the service is settled, and compares callers, database and simulator."""

import asyncio
import time
from collections.abc import Mapping
from pathlib import Path

from sqlalchemy import Connection, select

from cart_grpc import app
from cart_grpc.settings import Settings
from cart_grpc.simulator.journal import read_entries
from cart_grpc.simulator.stock import Levels
from tests.invariants.dump import read_dump
from tests.invariants.history import ApiEffect, CallOutcome, Dump, effects_of
from tests.invariants.run import Run, check_run
from tests.processes.harness import Simulated
from tests.processes.load import SCARCE, Load


async def settled(load: Load, simulated: Simulated, *, silence: float, timeout: float = 90) -> None:
    """Wait until no cart is reconciling and no message has arrived for `silence` seconds."""
    deadline = time.monotonic() + timeout
    while True:
        carts = [await load.reader.get(name) for name in load.carts]
        unsettled = [cart for cart in carts if cart.reconciling]
        if not unsettled:
            break
        assert time.monotonic() < deadline, f"still reconciling: {unsettled}"
        await asyncio.sleep(0.1)
    await simulated.until_silent(silence)


async def replay(load: Load, most: int = 150) -> None:
    """Repeat up to `most` answered calls under their request_ids. The history records the replies, for `check`."""
    calls = [call for call in load.history.calls if call.outcome is CallOutcome.OK and call.request_id]
    for call in load.reader.numbers.sample(calls, min(most, len(calls))):
        await load.reader.send(call.cart, call.rpc, call.request, call.request_id)


async def dump(database_url: str) -> tuple[Dump, int]:
    """Return the whole database and its time in microseconds. No server may be running."""
    async with app.open_engine(Settings(database_url=database_url)) as engine:

        def read(connection: Connection) -> tuple[Dump, int]:
            return read_dump(connection), int(connection.execute(select(engine.dialect.now())).scalar_one())

        return await engine.transact(read)


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
    violations = check_run(run, lambda sku, reason: (sku, reason) == (SCARCE, "OUT_OF_STOCK"))
    assert not violations, "\n".join(violations)


def read_effects(journal: Path) -> list[ApiEffect]:
    """Return the effects in a simulator's journal. It must not be writing."""
    entries, _ = read_entries(journal)
    return effects_of(entries)
