"""PostgreSQL fails over under load: the primary is killed and its standby promoted.

Every call succeeds or is UNAVAILABLE. The service goes on by itself, and nothing acknowledged is lost: replication is
synchronous here, so what the old primary acknowledged is on the new one.
"""

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.invariants.history import CallOutcome
from tests.ports import free_port
from tests.postgres import running_postgres
from tests.processes import truth
from tests.processes.harness import Programs, Replicas, Simulated
from tests.processes.load import HOT_SKU, SKUS, Load
from tests.standby import Pair

STOCK = dict.fromkeys((*SKUS, HOT_SKU), 1_000_000)


@dataclass(frozen=True)
class Service:
    """Two replicas on a pair of servers, and the load on them."""

    replicas: Replicas
    simulated: Simulated
    load: Load
    ports: tuple[int, int]
    journal: Path

    def answered(self) -> int:
        return sum(call.outcome is CallOutcome.OK for call in self.load.history.calls)

    async def until_answered(self, more: int) -> None:
        """Wait until `more` further calls are answered."""
        enough = self.answered() + more
        async with asyncio.timeout(60):
            while self.answered() < enough:
                self.load.check()
                await asyncio.sleep(0.02)


@pytest.fixture
async def servers() -> AsyncIterator[AsyncExitStack]:
    async with AsyncExitStack() as stack:
        yield stack


def url_of(ports: tuple[int, int]) -> str:
    hosts = ",".join(f"127.0.0.1:{port}" for port in ports)
    return f"postgresql://postgres@{hosts}/cart?target_session_attrs=read-write"


async def add_standby(pair: Pair) -> None:
    """Wait for the standby. From now on, no commit is acknowledged before the standby has it."""
    await pair.catch_up()
    pair.primary.configure(synchronous_standby_names="*")


@pytest.fixture
async def pair(servers: AsyncExitStack) -> Pair:
    primary = servers.enter_context(running_postgres(port=free_port()))
    primary.create_database("cart")
    standby = servers.enter_context(running_postgres(port=free_port(), primary=primary))
    pair = Pair(primary, standby)
    await add_standby(pair)
    return pair


@pytest.fixture
async def service(pair: Pair, programs: Programs) -> AsyncIterator[Service]:
    stock = [argument for sku, quantity in STOCK.items() for argument in ("--stock", f"{sku}={quantity}")]
    simulated = await programs.simulate("--seed", "1", *stock, "--latency", "50ms")
    ports = (pair.primary.port, pair.standby.port)
    settings = {
        "listen": "127.0.0.1:0",
        "database_url": url_of(ports),
        "reservation_url": simulated.url,
        "reservation_poll_interval": "50ms",
        "reservation_backoff_max": "200ms",
        "reservation_lease": "1s",
        "lame_duck": "0",
        "max_quantity_per_item": "1000000",
        "max_units_per_user": "1000000000",
    }
    assert await programs.start("migrate", **settings).ended(60) == 0
    replicas = Replicas(programs, settings, count=2)
    await replicas.start_all()
    load = Load(replicas, 1, writers=4, adders=2, pause=0.05)
    try:
        yield Service(replicas, simulated, load, ports, programs.folder / "journal.jsonl")
    finally:
        await load.close()
    assert programs.complaints() == []


@pytest.mark.timeout(180)
async def test_a_failover_fails_no_call_but_with_unavailable_and_loses_nothing(
    service: Service, pair: Pair, servers: AsyncExitStack
) -> None:
    await fail_over(service, pair, servers, rounds=1)


@pytest.mark.night
async def test_failovers_all_night(service: Service, pair: Pair, servers: AsyncExitStack) -> None:
    await fail_over(service, pair, servers, rounds=int(os.environ.get("CRASH_KILLS", "20")))


async def fail_over(service: Service, pair: Pair, servers: AsyncExitStack, *, rounds: int) -> None:
    load = service.load
    load.start()
    for number in range(rounds):
        await service.until_answered(20)
        pair.primary.kill()
        # Sometimes calls meet no primary for a while, sometimes the new one is there at once.
        await asyncio.sleep((1, 0, 4)[number % 3])
        pair.standby.promote()
        # Every caller is served again.
        await service.until_answered(50)
        if number < rounds - 1:
            old, new = pair.primary, pair.standby
            pair = Pair(new, servers.enter_context(running_postgres(port=old.port, primary=new)))
            await add_standby(pair)
    await load.stop()
    assert set(load.history.repeats()) <= {"UNAVAILABLE"}, load.history.repeats()
    await truth.replay(load, most=50)
    await truth.settled(load, service.simulated, silence=0.5)
    for index in range(2):
        assert await service.replicas.stop(index) == 0
    await truth.check(load, service.simulated, service.journal, url_of(service.ports), STOCK)
