"""`serve --workers N`: processes share a port, dead ones are replaced, and none outlives its parent."""

import asyncio
import os
import re
import signal
from contextlib import AsyncExitStack

import psutil
import pytest
from cartgrpc.v1 import cart_pb2, cart_service_pb2

from cart_grpc.exposure import Port
from cart_grpc.startup import StartupError
from cart_grpc.workers import _reserve
from tests.postgres import PostgresServer
from tests.processes.harness import LISTENS, Program, Programs, connected
from tests.service.conftest import Replica
from tests.waiting import until

pytestmark = pytest.mark.timeout(120)
OPERATORS = re.compile(r"^cart-grpc listens for operators on (\S+:\d+)$", re.MULTILINE)
GRACE = 6.0
# No Reservation API listens here, so reservations stay pending.
NOWHERE = "grpc://127.0.0.1:1"


def workers(program: Program) -> dict[int, psutil.Process]:
    """Return the worker processes that listen, by pid."""
    return {child.pid: child for child in psutil.Process(program.pid).children() if listening(child)}


def listening(process: psutil.Process) -> set[int]:
    """Return the ports that a process listens on."""
    try:
        wires = process.net_connections("tcp")
    except psutil.Error:
        return set()
    return {wire.laddr.port for wire in wires if wire.status == psutil.CONN_LISTEN}


def connections(process: psutil.Process, port: int) -> int:
    """Return the number of clients connected to a process on `port`."""
    wires = process.net_connections("tcp")
    return sum(wire.laddr.port == port and wire.status == psutil.CONN_ESTABLISHED for wire in wires)


async def serve(programs: Programs, url: str, *options: str, **settings: str) -> tuple[Program, str]:
    """Start two workers, and return their parent and address."""
    settings = {"listen": "127.0.0.1:0", "database_url": url, "shutdown_grace": str(GRACE), **settings}
    program = programs.start("serve", "--workers", "2", *options, **settings)
    return program, (await program.says(LISTENS))[1]


async def add_and_wait(client: Replica, number: int) -> int:
    """Call AddItem with a max_wait that only the server's stop ends. Return the quantity."""
    request = cart_service_pb2.AddItemRequest(parent=cart_of(number), item=cart_pb2.Item(sku="espresso-beans"))
    request.max_wait.seconds = 50
    return (await client.stub.AddItem(request, timeout=60)).item.quantity


def cart_of(number: int) -> str:
    return f"users/u{number}/carts/default"


async def test_connections_spread_over_all_workers_and_all_drain(shared_url: str, programs: Programs) -> None:
    program, address = await serve(programs, shared_url, reservation_url=NOWHERE)
    children = workers(program)
    async with AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(connected(address)) for _ in range(20)]
        await asyncio.gather(*(client.add(cart=cart_of(number)) for number, client in enumerate(clients)))
        dealt = [connections(worker, int(address.rpartition(":")[2])) for worker in children.values()]
        assert sum(dealt) == 20
        # By chance, a worker gets none in one of half a million runs.
        assert len(dealt) == 2
        assert min(dealt) > 0
        waiting = [asyncio.create_task(add_and_wait(client, number)) for number, client in enumerate(clients)]
        for number, client in enumerate(clients):
            await client.eventually(lambda cart: cart.total_quantity == 2, cart_of(number))
        # A service manager may signal each process.
        for process in (*children.values(), psutil.Process(program.pid)):
            process.send_signal(signal.SIGTERM)
        assert await program.ended(GRACE + 5) == 0
        assert set(await asyncio.gather(*waiting)) == {2}
    assert not any(child.is_running() for child in children.values())
    assert programs.complaints() == []


async def test_a_killed_worker_is_replaced_and_the_other_answers_in_the_meantime(
    shared_url: str, programs: Programs
) -> None:
    program, address = await serve(programs, shared_url, "--no-reconciler", admin_listen="127.0.0.1:0")
    await program.says(OPERATORS)
    before = workers(program)
    # The victim is the worker that also listens for operators.
    (victim,) = (worker for worker in before.values() if len(listening(worker)) == 2)
    victim.kill()
    # The kernel closes its socket with its last thread. Until then, new connections may reach it and be reset.
    await until(lambda: not victim.is_running())
    for number in range(10):
        async with connected(address) as client:
            await client.add(cart=cart_of(number))
    await until(lambda: len(workers(program)) == 2)
    after = workers(program)
    assert len(after.keys() & before.keys()) == 1
    await until(lambda: sorted(len(listening(worker)) for worker in after.values()) == [1, 2])
    assert re.search(r"ERROR worker_ended worker-1 ended with status -9; restarting it", program.errors)
    program.send(signal.SIGTERM)
    assert await program.ended(GRACE + 5) == 0


async def test_workers_drain_and_end_when_their_parent_is_killed(shared_url: str, programs: Programs) -> None:
    program, address = await serve(programs, shared_url, reservation_url=NOWHERE)
    children = psutil.Process(program.pid).children(recursive=True)
    async with connected(address) as client:
        await client.add(cart=cart_of(0))
        waiting = asyncio.create_task(add_and_wait(client, 0))
        await client.eventually(lambda cart: cart.total_quantity == 2, cart_of(0))
        program.kill()
        await until(lambda: not any(child.is_running() for child in children), GRACE + 5)
        assert await waiting == 2


async def test_a_second_ctrl_c_ends_all_workers_at_once(shared_url: str, programs: Programs) -> None:
    program, address = await serve(programs, shared_url, "--no-reconciler", lame_duck="3600")
    children = psutil.Process(program.pid).children(recursive=True)
    async with connected(address) as client:
        for process in (*children, psutil.Process(program.pid)):
            process.send_signal(signal.SIGINT)
        # The parent and each worker say it.
        await until(lambda: program.errors.count("INFO stopping ") == 3)
        await client.add(cart=cart_of(0))
        assert program.is_running
        program.send(signal.SIGINT)
        assert await program.ended(5) == -signal.SIGINT
        await until(lambda: not any(child.is_running() for child in children), 5)


async def test_ctrl_c_while_the_workers_still_start_is_silent(shared_url: str, programs: Programs) -> None:
    programs.preloaded = False
    program = programs.start("serve", "--workers", "2", listen="127.0.0.1:0", database_url=shared_url, lame_duck="0")
    await until(lambda: program.errors.count(" is process ") == 2)
    # As a terminal does, to all processes of the group.
    os.killpg(program.pid, signal.SIGINT)
    assert await program.ended(30) == 0
    assert programs.complaints() == []


async def test_an_error_that_keeps_all_workers_from_starting_is_printed_once(
    postgres: PostgresServer, programs: Programs
) -> None:
    url = postgres.url.replace("/postgres?", "/missing?")
    program = programs.start("serve", "--workers", "2", database_url=url, listen="127.0.0.1:0")
    assert await program.ended(60) == 2
    said = [line for line in program.errors.splitlines() if " INFO " not in line and " WARNING " not in line]
    (line,) = said
    assert line.startswith("cart-grpc: CART_DATABASE_URL: ")
    assert '"missing" does not exist' in line
    assert program.output == ""


def test_the_workers_port_is_reserved_before_any_worker_listens() -> None:
    with _reserve(Port("listen", "127.0.0.1:0")) as held:
        taken = Port("service_listen", f"127.0.0.1:{held.getsockname()[1]}")
        with pytest.raises(StartupError, match=r"^CART_SERVICE_LISTEN: cannot listen on .* it is taken"):
            _reserve(taken)


async def test_no_other_server_gets_the_workers_port(shared_url: str, programs: Programs) -> None:
    _, address = await serve(programs, shared_url, "--no-reconciler")
    for options in ((), ("--workers", "2")):
        other = programs.start("serve", "--no-reconciler", *options, database_url=shared_url, listen=address)
        assert await other.ended(60) == 2
        assert f"cart-grpc: CART_LISTEN: cannot listen on {address}: it is taken" in other.errors
