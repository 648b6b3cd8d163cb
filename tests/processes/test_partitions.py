"""Connections from the replicas to PostgreSQL and to the Reservation API are cut under load.

No acknowledged write is lost and nothing is reserved twice.
"""

import asyncio
import logging
import os
import random
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest
from sqlalchemy import make_url

from tests.postgres import PostgresServer
from tests.processes import truth
from tests.processes.harness import Programs, Replicas, Simulated
from tests.processes.load import HOT_SKU, SKUS, Load
from tests.processes.proxy import Wire, wired

log = logging.getLogger(__name__)
STOCK = dict.fromkeys((*SKUS, HOT_SKU), 1_000_000)
LEASE = 1.0


@dataclass(frozen=True)
class Service:
    """Two replicas whose connections pass through proxies, and the load on them."""

    replicas: Replicas
    simulated: Simulated
    load: Load
    to_database: Wire
    to_api: Wire
    database_url: str
    journal: Path


@pytest.fixture
async def service(durable_postgres: PostgresServer, durable_url: str, programs: Programs) -> AsyncIterator[Service]:
    stock = [argument for sku, quantity in STOCK.items() for argument in ("--stock", f"{sku}={quantity}")]
    simulated = await programs.simulate("--seed", "1", *stock, "--latency", "50ms")
    socket = str(durable_postgres.directory / ".s.PGSQL.5432")
    async with AsyncExitStack() as stack:
        to_database = await stack.enter_async_context(wired(partial(asyncio.open_unix_connection, socket)))
        host, _, port = simulated.address.rpartition(":")
        to_api = await stack.enter_async_context(wired(partial(asyncio.open_connection, host, int(port))))
        url = make_url(durable_url).set(query={}, host="127.0.0.1", port=to_database.port)
        settings = {
            "listen": "127.0.0.1:0",
            "database_url": url.render_as_string(hide_password=False),
            "reservation_url": f"grpc://127.0.0.1:{to_api.port}",
            "reservation_poll_interval": "0.05",
            "reservation_backoff_max": "0.2",
            "reservation_lease": str(LEASE),
            "max_quantity_per_item": "1000000",
            "max_units_per_user": "1000000000",
        }
        assert await programs.start("migrate", **settings).ended(60) == 0
        replicas = Replicas(programs, settings, count=2)
        await replicas.start_all()
        load = Load(replicas, 1, writers=4, adders=2, pause=0.05)
        stack.push_async_callback(load.close)
        yield Service(replicas, simulated, load, to_database, to_api, durable_url, programs.folder / "journal.jsonl")
    assert programs.complaints() == []


@pytest.mark.parametrize("backend", ["postgresql"])
@pytest.mark.timeout(180)
async def test_no_acknowledged_write_is_lost_when_connections_are_cut_and_replicas_killed(service: Service) -> None:
    await _cut_connections(service, rounds=8)


@pytest.mark.parametrize("backend", ["postgresql"])
@pytest.mark.night
async def test_no_acknowledged_write_is_lost_when_connections_are_cut_all_night(service: Service) -> None:
    await _cut_connections(service, rounds=int(os.environ.get("CRASH_KILLS", "200")))


async def _cut_connections(service: Service, *, rounds: int) -> None:
    seed = os.environ.get("CRASH_SEED") or str(random.randrange(1 << 32))
    log.warning("CRASH_SEED=%s", seed)
    numbers = random.Random(seed)
    load, replicas = service.load, service.replicas
    load.start()
    for number in range(rounds):
        await asyncio.sleep(numbers.uniform(0.1, 0.5))
        # In turn the database, the Reservation API and both. A hang is shorter than every time-out of the server.
        wires = ([service.to_database], [service.to_api], [service.to_database, service.to_api])[number % 3]
        for wire in wires:
            numbers.choice((wire.cut, wire.hang))()
        await asyncio.sleep(numbers.uniform(0.05, 0.5))
        if number % 4 == 3:
            replicas.kill(number % 2)
        for wire in wires:
            wire.mend()
        if number % 4 == 3:
            await replicas.start(number % 2)
        load.check()
    await load.stop()
    await truth.replay(load, most=50)
    await truth.settled(load, service.simulated, silence=0.5)
    for index in range(2):
        assert await replicas.stop(index) == 0
    await truth.check(load, service.simulated, service.journal, service.database_url, STOCK)
