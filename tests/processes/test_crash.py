"""Servers and the database are killed at random moments under load.

No acknowledged write is lost, nothing is reserved twice, no hold is left behind, and each sale exists exactly once.
"""

import asyncio
import logging
import os
import random
from collections.abc import Callable, Coroutine

import pytest

from tests.postgres import running_postgres
from tests.processes import truth
from tests.processes.harness import Programs, Replicas, Simulated
from tests.processes.load import HOT_SKU, SCARCE, SKUS, Load
from tests.processes.shopper import GOODS

log = logging.getLogger(__name__)

STOCK = {**dict.fromkeys((*SKUS, HOT_SKU, *GOODS), 1_000_000), SCARCE: 12}
DUPLICATE_DELAY = 1.0
Killer = Callable[[Replicas, Load, int, random.Random], Coroutine[None, None, None]]
# More faults of each kind than a bad day brings. The checks are exact for any faults.
FAULTS = {
    "--latency": "20ms",
    "--slow": "0.05",
    "--slow-latency": "100ms",
    "--duplicated": "0.05",
    "--duplicate-delay": f"{DUPLICATE_DELAY}s",
    "--lost-before-effect": "0.05",
    "--lost-after-effect": "0.05",
    "--garbage": "0.05",
    "--throttled": "0.03",
}


@pytest.mark.timeout(240)
async def test_no_acknowledged_write_is_lost_when_servers_are_killed(
    backend: str, durable_url: str, programs: Programs
) -> None:
    await crash(backend, durable_url, programs, kills=6)


@pytest.mark.timeout(180)
async def test_no_acknowledged_write_is_lost_when_postgresql_is_killed(programs: Programs) -> None:
    await _crash_database(programs, kills=3)


@pytest.mark.night
async def test_no_acknowledged_write_is_lost_when_postgresql_is_killed_all_night(programs: Programs) -> None:
    await _crash_database(programs, kills=int(os.environ.get("CRASH_KILLS", "100")))


async def _crash_database(programs: Programs, *, kills: int) -> None:
    with running_postgres(durable=True) as postgres:

        async def kill(replicas: Replicas, load: Load, kills: int, numbers: random.Random) -> None:
            """Kill PostgreSQL, and every third time a replica with it."""
            for number in range(kills):
                await asyncio.sleep(numbers.uniform(0.5, 1.5))
                load.check()
                await asyncio.to_thread(postgres.kill)
                if number % 3 == 2:
                    replicas.kill(0)
                await asyncio.sleep(numbers.uniform(0.0, 0.3))
                await asyncio.to_thread(postgres.start)
                if number % 3 == 2:
                    await replicas.start(0)

        await crash("postgresql", postgres.create_database("killed"), programs, kills=kills, kill=kill)


@pytest.mark.night
async def test_no_acknowledged_write_is_lost_when_servers_are_killed_all_night(
    backend: str, durable_url: str, programs: Programs
) -> None:
    kills = int(os.environ.get("CRASH_KILLS", {"sqlite": 1000, "postgresql": 300}[backend]))
    await crash(backend, durable_url, programs, kills=kills)


async def crash(backend: str, database_url: str, programs: Programs, *, kills: int, kill: Killer | None = None) -> None:
    """Run `kill` under load, by default one that kills the servers, and compare callers, database and simulator."""
    programs.preloaded = True
    seed = os.environ.get("CRASH_SEED") or str(random.randrange(1 << 32))
    log.warning("CRASH_SEED=%s", seed)
    simulated = await simulate(programs, seed)
    settings = settings_for(database_url, simulated)
    if backend == "postgresql":
        assert await programs.start("migrate", **settings).ended(120) == 0
    replicas = Replicas(programs, settings, count=1 if backend == "sqlite" else 2)
    load = Load(replicas, seed, writers=6, shoppers=3, pause=0.03 if backend == "sqlite" else 0.1)
    try:
        await replicas.start_all()
        load.start()
        await (kill or _kill_at_random)(replicas, load, kills, random.Random(seed))
        await load.stop()
        assert load.sale_count
        await truth.replay(load)
        await truth.settled(load, simulated, silence=DUPLICATE_DELAY + 0.5)
        for index in range(len(replicas.servers)):
            assert await replicas.stop(index) == 0
        await truth.check(load, simulated, programs.folder / "journal.jsonl", database_url, STOCK)
    finally:
        counts = replicas.kills, len(load.history.calls), load.history.repeats(), load.sale_count
        log.warning("%d kills, %d calls, repeated %s, %d sales", *counts)
        await load.close()
    assert programs.complaints() == []


async def simulate(programs: Programs, seed: str) -> Simulated:
    """Start a simulator with STOCK and FAULTS."""
    stock = [argument for sku, quantity in STOCK.items() for argument in ("--stock", f"{sku}={quantity}")]
    faults = [argument for option in FAULTS.items() for argument in option]
    return await programs.simulate("--seed", str(int(seed) % 1000), *stock, *faults)


def settings_for(database_url: str, simulated: Simulated) -> dict[str, str]:
    """The settings of a server that notices soon what another one has left behind."""
    return {
        "listen": "127.0.0.1:0",
        "database_url": database_url,
        "reservation_url": simulated.url,
        "reservation_poll_interval": "0.1",
        "reservation_backoff_max": "0.5",
        "reservation_lease": "3",
        "max_quantity_per_item": "1000000",
        "max_units_per_user": "1000000000",
    }


async def _kill_at_random(replicas: Replicas, load: Load, kills: int, numbers: random.Random) -> None:
    """Kill a replica and start it again, `kills` times. One kill in five hits a server that is still starting."""
    starting = None
    while replicas.kills < kills:
        if starting and numbers.random() < 0.8:
            await starting
        await asyncio.sleep(numbers.uniform(0.0, 0.5))
        load.check()
        index = numbers.randrange(len(replicas.servers))
        replicas.kill(index)
        starting = replicas.start(index)
    assert starting is not None
    await starting
