"""A process that starts before its database listens at once, is not ready, refuses calls, and begins later."""

import asyncio
import re
import signal
from collections.abc import Iterator

import grpc
import psutil
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.ports import free_port
from tests.postgres import PostgresServer, running_postgres
from tests.processes.harness import LISTENS, Program, Programs, connected
from tests.processes.test_surroundings import refused
from tests.service.conftest import Replica

pytestmark = pytest.mark.timeout(120)
WAITS = re.compile(r"waiting for the database .*")
OPENED = re.compile(r"the database is there")
CARTS = "cartgrpc.v1.CartService"
COMMANDS = (["serve"], ["serve", "--workers", "2"], ["reconcile"])


@pytest.fixture(scope="module")
def late() -> Iterator[PostgresServer]:
    """A server of its own, which the tests stop and start."""
    with running_postgres() as server:
        yield server


@pytest.fixture
def away(late: PostgresServer, request: pytest.FixtureRequest) -> str:
    """The URL of an empty database on `late`, which is down."""
    late.start()
    url = late.create_database(f"late_{abs(hash(request.node.name))}")
    late.stop()
    return url


def start(programs: Programs, command: list[str], url: str, port: int = 0, *, drain: str = "0") -> Program:
    """Start a program whose lame-duck time and grace are both `drain`."""
    settings = {"database_url": url, "listen": f"127.0.0.1:{port}", "reservation_url": "grpc://127.0.0.1:1"}
    return programs.start(*command, lame_duck=drain, shutdown_grace=drain, **settings)


async def until_logged(program: Program, *patterns: str) -> None:
    async with asyncio.timeout(60):
        while not all(re.search(pattern, program.errors) for pattern in patterns):
            assert program.is_running, program.errors
            await asyncio.sleep(0.02)


async def health(client: Replica, service: str) -> int:
    stub = health_pb2_grpc.HealthStub(client.channel)
    answer = await stub.Check(  # type: ignore[attr-defined]
        health_pb2.HealthCheckRequest(service=service), wait_for_ready=True, timeout=30
    )
    return int(answer.status)


async def test_a_server_listens_before_its_database_is_there_and_serves_once_it_is_there_and_migrated(
    late: PostgresServer, away: str, programs: Programs
) -> None:
    port = free_port()
    server = start(programs, ["serve"], away, port)
    async with connected(f"127.0.0.1:{port}") as client:
        assert await health(client, "") == health_pb2.HealthCheckResponse.SERVING
        assert await health(client, CARTS) == health_pb2.HealthCheckResponse.NOT_SERVING
        unavailable = (grpc.StatusCode.UNAVAILABLE, "DATABASE_UNAVAILABLE")
        assert await refused(client, "users/u/carts/default") == unavailable
        late.start()
        await until_logged(server, "run `cart-grpc migrate` first")
        assert await health(client, CARTS) == health_pb2.HealthCheckResponse.NOT_SERVING
        assert await refused(client, "users/u/carts/default") == unavailable
        assert server.output == ""
        assert await programs.start("migrate", database_url=away).ended(60) == 0
        await server.says(LISTENS)
        assert await health(client, CARTS) == health_pb2.HealthCheckResponse.SERVING
        assert (await client.add()).quantity == 1
    server.send(signal.SIGTERM)
    assert await server.ended(20) == 0
    causes = WAITS.findall(server.errors)
    assert len(causes) == len(set(causes)), "a cause is logged once"
    assert "No such file" in causes[0]
    assert len(OPENED.findall(server.errors)) == 1
    assert server.errors.count("a power failure can lose") == 1
    assert "Traceback" not in server.errors


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
async def test_sigterm_ends_a_process_that_waits_for_its_database(
    command: list[str], away: str, programs: Programs
) -> None:
    # A server that never served does not wait for callers to leave.
    program = start(programs, command, away, drain="60s")
    await until_logged(program, WAITS.pattern)
    children = psutil.Process(program.pid).children()
    program.send(signal.SIGTERM)
    assert await program.ended(20) == 0
    _, alive = psutil.wait_procs(children, timeout=20)
    assert not alive
    assert program.output == ""
    assert "Traceback" not in program.errors


async def test_workers_begin_when_their_database_is_there(late: PostgresServer, away: str, programs: Programs) -> None:
    program = start(programs, COMMANDS[1], away)
    await until_logged(program, WAITS.pattern)
    late.start()
    assert await programs.start("migrate", database_url=away).ended(60) == 0
    async with connected((await program.says(LISTENS))[1]) as client:
        assert (await client.add()).quantity == 1
    program.send(signal.SIGTERM)
    assert await program.ended(20) == 0
