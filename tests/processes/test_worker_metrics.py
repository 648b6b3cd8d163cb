"""One scrape shows all workers, also after one was killed, and a metrics port is there before the database."""

import asyncio
import re
import socket

import psutil
import pytest

from tests.ports import free_port
from tests.processes.harness import LISTENS, Program, Programs, connected
from tests.processes.test_workers import NOWHERE, cart_of, workers
from tests.telemetry.scrapes import Scrape, scrape, series, until

pytestmark = pytest.mark.timeout(120)
SHOWS = re.compile(r"^cart-grpc shows metrics on (\S+:\d+)$", re.MULTILINE)
CALLS = 20


async def port_of(program: Program) -> int:
    return int((await program.says(SHOWS))[1].rpartition(":")[2])


def answered(seen: Scrape) -> float:
    """The number of AddItem calls that were answered."""
    method = "cartgrpc.v1.CartService/AddItem"
    name = "rpc_server_call_duration_seconds_count"
    labels = {"rpc_method": method, "rpc_response_status_code": "OK", "rpc_system_name": "grpc"}
    return seen[series(name, **labels)]


def shown_workers(seen: Scrape) -> set[str]:
    """The workers whose CPU a scrape shows."""
    return {dict(labels)["worker"] for name, labels in seen if name == "process_cpu_seconds_total"}


async def add_items(address: str, count: int) -> None:
    """Add items, each on a connection of its own, so that all workers get some."""
    for number in range(count):
        async with connected(address) as client:
            await client.add(cart=cart_of(number))


async def test_a_scrape_adds_up_the_workers_also_after_one_was_killed(shared_url: str, programs: Programs) -> None:
    settings = {"listen": "127.0.0.1:0", "database_url": shared_url, "reservation_url": NOWHERE}
    program = programs.start("serve", "--workers", "2", metrics_listen="127.0.0.1:0", **settings)
    address, port = (await program.says(LISTENS))[1], await port_of(program)
    await add_items(address, CALLS)
    await until(port, lambda seen: answered(seen) == CALLS and seen[series("cart_ready")] == 2)
    limits = (await scrape(port))[series("cart_calls_limit", state="running")]
    assert shown_workers(await scrape(port)) == {"worker-1", "worker-2"}
    victim = min(workers(program).values(), key=lambda each: each.pid)
    psutil.Process(victim.pid).kill()
    # Its gauges vanish with it, and its counters remain.
    await until(port, lambda seen: seen.get(series("cart_calls_limit", state="running")) == limits / 2)
    assert answered(await scrape(port)) == CALLS
    await until(port, lambda seen: seen.get(series("cart_calls_limit", state="running")) == limits)
    await until(port, lambda seen: seen[series("cart_ready")] == 2)
    await add_items(address, CALLS)
    await until(port, lambda seen: answered(seen) == 2 * CALLS)
    assert shown_workers(await scrape(port)) == {"worker-1", "worker-2"}


async def test_metrics_are_there_before_the_database(programs: Programs) -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        url = f"postgresql://cart@127.0.0.1:{nobody.getsockname()[1]}/cart"
        port = free_port()
        address = f"127.0.0.1:{port}"
        program = programs.start("reconcile", database_url=url, reservation_url=NOWHERE, metrics_listen=address)
        await until_open(port)
        assert program.is_running
        assert (await scrape(port))[series("cart_ready")] == 0
        again = programs.start("reconcile", database_url=url, reservation_url=NOWHERE, metrics_listen=address)
        assert await again.ended(60) == 2
        fault = f"cannot listen on {address}: it is taken, or not an address of this machine"
        assert again.errors.splitlines() == [f"cart-grpc: CART_METRICS_LISTEN: {fault}"]


async def until_open(port: int) -> None:
    """Wait until somebody listens on a port."""
    async with asyncio.timeout(60):
        while True:
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", port)
            except OSError:
                await asyncio.sleep(0.05)
                continue
            writer.close()
            await writer.wait_closed()
            return
