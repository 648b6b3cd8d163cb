"""`serve --workers N`: one port, several processes, each of which may die, and none of which outlives its parent."""

import asyncio
import re
import signal
import socket
import time
from collections.abc import Callable
from contextlib import AsyncExitStack, closing
from pathlib import Path

import psutil
import pytest
from cart.v1 import cart_pb2, cart_service_pb2

from tests.postgres import PostgresServer
from tests.processes.harness import LISTENS, SIMULATES, Program, Programs, connected
from tests.service.conftest import CART, Replica

pytestmark = pytest.mark.timeout(120)
OPERATORS = re.compile(r"^operators are listened to on (\S+:\d+)$", re.MULTILINE)
GRACE = 6.0


async def eventually(holds: Callable[[], object], seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, "it never came to be"
        await asyncio.sleep(0.02)


def workers(program: Program) -> dict[int, psutil.Process]:
    """The processes that listen for it, by their pid."""
    children = psutil.Process(program.pid).children()
    return {child.pid: child for child in children if listens(child)}


def listens(process: psutil.Process) -> bool:
    try:
        return any(wire.status == psutil.CONN_LISTEN for wire in process.net_connections("tcp"))
    except psutil.NoSuchProcess:
        return False


def connections(process: psutil.Process, port: int) -> int:
    """How many clients of `port` it has."""
    wires = process.net_connections("tcp")
    return sum(wire.laddr.port == port and wire.status == psutil.CONN_ESTABLISHED for wire in wires)


async def serve(programs: Programs, url: str, *options: str, **settings: str) -> tuple[Program, str]:
    """Three workers, and where they listen."""
    settings = {"listen": "127.0.0.1:0", "database_url": url, "shutdown_grace": str(GRACE), **settings}
    program = programs.start("serve", "--workers", "3", *options, **settings)
    return program, (await program.says(LISTENS))[1]


async def add_to(address: str, user: str) -> None:
    """AddItem through a new connection."""
    async with connected(address) as client:
        assert (await client.add(cart=f"users/{user}/carts/default")).quantity == 1


async def test_connections_are_dealt_to_several_processes(shared_url: str, programs: Programs) -> None:
    program, address = await serve(programs, shared_url, "--no-reconciler")
    port = int(address.rpartition(":")[2])
    async with AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(connected(address)) for _ in range(30)]
        await asyncio.gather(*(client.add(cart=f"users/u{n}/carts/c") for n, client in enumerate(clients)))
        dealt = [connections(worker, port) for worker in workers(program).values()]
    assert sum(dealt) == 30
    assert len(dealt) == 3
    # None for one of them is one in 60,000.
    assert min(dealt) > 0
    program.send(signal.SIGTERM)
    assert await program.ended(GRACE + 5) == 0
    assert programs.complaints() == []


@pytest.mark.parametrize("by", [signal.SIGTERM, signal.SIGINT], ids=lambda by: by.name)
async def test_each_of_them_drains(by: signal.Signals, shared_url: str, programs: Programs) -> None:
    simulator = programs.start("simulate", "--listen", "127.0.0.1:0", "--http-listen", "127.0.0.1:0", "--latency", "1h")
    url = f"grpc://{(await simulator.says(SIMULATES))[1]}"
    program, address = await serve(programs, shared_url, reservation_url=url)
    children = list(workers(program).values())
    async with AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(connected(address)) for _ in range(12)]
        waiting = [asyncio.create_task(_add_and_wait(client, n)) for n, client in enumerate(clients)]
        for number, client in enumerate(clients):
            await client.eventually(lambda cart: cart.total_quantity == 1, f"users/u{number}/carts/c")
        # As a service manager may: to each of them, and then again.
        for process in (*children, psutil.Process(program.pid)):
            process.send_signal(by)
        assert await program.ended(GRACE + 5) == 0
        assert set(await asyncio.gather(*waiting)) == {1}
    assert not any(child.is_running() for child in children)
    assert programs.complaints() == []


async def _add_and_wait(client: Replica, number: int) -> int:
    request = cart_service_pb2.AddItemRequest(
        parent=f"users/u{number}/carts/c", item=cart_pb2.Item(sku="espresso-beans")
    )
    request.max_wait.seconds = 50
    return (await client.stub.AddItem(request, timeout=60)).item.quantity


async def test_a_worker_that_is_killed_is_replaced_and_others_answer_meanwhile(
    shared_url: str, programs: Programs
) -> None:
    program, address = await serve(programs, shared_url, "--no-reconciler", admin_listen="127.0.0.1:0")
    assert await program.says(OPERATORS)
    before = workers(program)
    victim = max(before.values(), key=lambda worker: worker.pid)
    victim.kill()
    await eventually(lambda: victim.pid not in workers(program))
    for number in range(20):
        await add_to(address, f"during{number}")
    await eventually(lambda: len(workers(program)) == 3)
    assert len(workers(program).keys() & before.keys()) == 2
    for number in range(20):
        await add_to(address, f"after{number}")
    assert re.search(r"ERROR cart_grpc.workers worker-\d ended with status -9; another one", program.errors)
    program.send(signal.SIGTERM)
    assert await program.ended(GRACE + 5) == 0


async def test_the_operator_port_is_in_one_process_and_comes_back(shared_url: str, programs: Programs) -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as free:
        port = free.getsockname()[1]
    program, _ = await serve(programs, shared_url, "--no-reconciler", admin_listen=f"127.0.0.1:{port}")

    def operators() -> list[psutil.Process]:
        found = workers(program).values()
        return [each for each in found if any(wire.laddr.port == port for wire in each.net_connections("tcp"))]

    (first,) = operators()
    first.kill()
    await eventually(lambda: [each for each in operators() if each.pid != first.pid])
    assert len(operators()) == 1


@pytest.mark.parametrize("draining", [False, True], ids=["serving", "draining"])
async def test_workers_end_when_their_parent_is_killed(draining: bool, shared_url: str, programs: Programs) -> None:
    program, address = await serve(programs, shared_url, reservation_url="grpc://127.0.0.1:1")
    children = psutil.Process(program.pid).children(recursive=True)
    async with connected(address) as client:
        waiting = asyncio.create_task(_add_and_wait(client, 0))
        await client.eventually(lambda cart: cart.total_quantity == 1, "users/u0/carts/c")
        if draining:
            program.send(signal.SIGTERM)
            await eventually(lambda: "stopping" in program.errors)
        program.kill()
        await eventually(lambda: not any(child.is_running() for child in children), GRACE + 5)
        if draining:
            waiting.cancel()
        else:
            # They have drained.
            assert await waiting == 1


async def test_a_second_ctrl_c_ends_all_at_once(shared_url: str, programs: Programs) -> None:
    program, address = await serve(programs, shared_url, "--no-reconciler", shutdown_grace="3600")
    children = psutil.Process(program.pid).children(recursive=True)
    async with connected(address) as client:
        watching = asyncio.create_task(client.get(CART))
        await asyncio.wait((watching,))
        program.send(signal.SIGINT)
        await eventually(lambda: "stopping" in program.errors)
        program.send(signal.SIGINT)
        await program.ended(5)
        await eventually(lambda: not any(child.is_running() for child in children), 5)


async def refused(programs: Programs, **settings: str) -> str:
    """What it says, in one line, when it cannot start."""
    program = programs.start("serve", "--workers", "2", **settings)
    assert await program.ended(60) == 2
    lines = program.errors.splitlines()
    said = [line for line in lines if " INFO " not in line]
    assert len(said) == 1, program.errors
    assert said[0].startswith("cart-grpc: ")
    assert program.output == ""
    return said[0].removeprefix("cart-grpc: ")


async def test_sqlite_has_no_room_for_them(programs: Programs, tmp_path: Path) -> None:
    said = await refused(programs, database_url=f"sqlite:///{tmp_path}/cart.db")
    assert said == "--workers needs PostgreSQL: a SQLite file has room for one process"


async def test_what_keeps_all_of_them_from_starting_is_told_once(postgres: PostgresServer, programs: Programs) -> None:
    url = postgres.create_database("workers_of_nothing")
    assert "run `cart-grpc migrate` first" in await refused(programs, database_url=url, listen="127.0.0.1:0")


async def test_a_port_that_somebody_else_has_is_refused(shared_url: str, programs: Programs) -> None:
    with closing(socket.create_server(("127.0.0.1", 0), reuse_port=True)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        said = await refused(programs, database_url=shared_url, listen=address)
    assert said.startswith(f"CART_LISTEN: cannot listen on {address}: it is taken")


async def test_nobody_else_gets_their_port(shared_url: str, programs: Programs) -> None:
    _, address = await serve(programs, shared_url, "--no-reconciler")
    assert "it is taken" in await refused(programs, database_url=shared_url, listen=address)
    alone = programs.start("serve", "--no-reconciler", database_url=shared_url, listen=address)
    assert await alone.ended(60) == 2
    assert "it is taken" in alone.errors
