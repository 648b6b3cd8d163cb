"""A server whose database fails returns one documented error, is not ready, loses nothing, and recovers by itself."""

import asyncio
import resource
import sqlite3
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, closing, contextmanager
from pathlib import Path

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_status import rpc_status

from tests.postgres import PostgresServer
from tests.processes.harness import LISTENS, Program, Programs, connected
from tests.service.conftest import Replica

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


def start(programs: Programs, url: str) -> Program:
    # No Reservation API listens on port 1: these tests need none.
    return programs.start("serve", listen="127.0.0.1:0", database_url=url, reservation_url="grpc://127.0.0.1:1")


@asynccontextmanager
async def serving(programs: Programs, url: str) -> AsyncIterator[tuple[Program, Replica]]:
    """Yield a running server and its client."""
    program = start(programs, url)
    async with connected((await program.says(LISTENS))[1]) as client:
        yield program, client


async def refused(client: Replica, cart: str) -> tuple[grpc.StatusCode, str]:
    """Call AddItem, which must fail, and return its code and reason."""
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await client.add(cart=cart)
    status = rpc_status.from_call(failed.value)  # type: ignore[arg-type]
    assert status is not None
    info = error_details_pb2.ErrorInfo()
    assert status.details[0].Unpack(info)
    return failed.value.code(), info.reason


async def until_health(client: Replica, wanted: int) -> None:
    """Wait until the server's health is `wanted`."""
    stub = health_pb2_grpc.HealthStub(client.channel)
    request = health_pb2.HealthCheckRequest(service="cartgrpc.v1.CartService")
    async with asyncio.timeout(20):
        while (await stub.Check(request)).status != wanted:  # type: ignore[attr-defined]
            await asyncio.sleep(0.02)


@contextmanager
def files_limited(program: Program, size: int) -> Iterator[None]:
    """Keep the program's files from growing beyond `size` bytes."""
    pid = program.pid
    before = resource.prlimit(pid, resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
    try:
        yield
    finally:
        resource.prlimit(pid, resource.RLIMIT_FSIZE, before)


async def test_a_server_with_a_full_disk_is_unavailable_and_recovers_when_there_is_room(programs: Programs) -> None:
    file = programs.folder / "cart.db"
    async with serving(programs, f"sqlite:///{file}") as (program, client):
        await client.add()
        with files_limited(program, (programs.folder / "cart.db-wal").stat().st_size):
            code = await refused(client, "users/u/carts/default")
            assert code == (grpc.StatusCode.UNAVAILABLE, "DATABASE_UNAVAILABLE")
            await until_health(client, NOT_SERVING)
            assert (await client.get()).total_quantity == 1
        await until_health(client, SERVING)
        assert (await client.add()).quantity == 2
        program.kill()
    async with serving(programs, f"sqlite:///{file}") as (_, client):
        assert (await client.get()).total_quantity == 2


async def test_a_server_whose_file_is_locked_is_unavailable_and_recovers_when_it_is_unlocked(
    programs: Programs,
) -> None:
    file = programs.folder / "cart.db"
    async with serving(programs, f"sqlite:///{file}") as (_, client):
        await client.add()
        with closing(sqlite3.connect(file, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            adding = asyncio.create_task(refused(client, "users/u/carts/default"))
            await until_health(client, NOT_SERVING)
            assert (await client.get()).total_quantity == 1
            assert await adding == (grpc.StatusCode.UNAVAILABLE, "DATABASE_UNAVAILABLE")
        await until_health(client, SERVING)
        assert (await client.add()).quantity == 2


async def _abandoned(programs: Programs, adds: int) -> Path:
    """Return the database file of a killed server, with its WAL beside it."""
    file = programs.folder / "cart.db"
    async with serving(programs, f"sqlite:///{file}") as (program, client):
        for _ in range(adds):
            await client.add()
        program.kill()
    return file


def _overwrite(file: Path, page: int) -> None:
    with file.open("r+b") as opened:
        opened.seek((page - 1) * 4096)
        opened.write(b"\xff" * 4096)


async def _cannot_start(programs: Programs, file: Path) -> str:
    program = start(programs, f"sqlite:///{file}")
    assert await program.ended(20) == 2
    (line,) = program.errors.splitlines()
    return line


def _page_of(file: Path, table: str) -> int:
    """Checkpoint the file, and return the number of a table's first page."""
    with closing(sqlite3.connect(file)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        select = "SELECT rootpage FROM sqlite_master WHERE name = ?"
        return int(connection.execute(select, (table,)).fetchone()[0])


@pytest.mark.parametrize("table", ["", "cart_grpc_version", "commit_markers"])
async def test_a_start_on_a_damaged_file_fails_with_one_line(programs: Programs, table: str) -> None:
    file = await _abandoned(programs, adds=1)
    page = _page_of(file, table) if table else 1
    (programs.folder / "cart.db-wal").unlink(missing_ok=True)
    _overwrite(file, page)
    line = await _cannot_start(programs, file)
    assert line.startswith(f"cart-grpc: CART_DATABASE_URL: the database sqlite:///{file} cannot be used: ")


async def test_damage_found_while_running_is_reported_and_makes_the_server_not_ready(programs: Programs) -> None:
    file = await _abandoned(programs, adds=1)
    _overwrite(file, _page_of(file, "carts"))
    async with serving(programs, f"sqlite:///{file}") as (program, client):
        for cart in ("users/alice/carts/default", "users/bob/carts/default"):
            assert await refused(client, cart) == (grpc.StatusCode.DATA_LOSS, "DATABASE_DAMAGED")
        await until_health(client, NOT_SERVING)
        assert program.errors.count("restore a backup") == 1
        assert "Traceback" not in program.errors


async def test_a_truncated_wal_keeps_the_commits_before_the_cut(programs: Programs) -> None:
    file = await _abandoned(programs, adds=9)
    log = programs.folder / "cart.db-wal"
    with log.open("r+b") as opened:
        opened.truncate(log.stat().st_size - 5000)
    async with serving(programs, f"sqlite:///{file}") as (_, client):
        kept = (await client.get()).total_quantity
        assert 0 < kept < 9
        assert (await client.add()).quantity == kept + 1
    with closing(sqlite3.connect(file)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)


def _psql(server: PostgresServer, database: str, *statements: str) -> None:
    for statement in statements:
        server._run("psql", "--host", str(server.directory), "--username", "postgres", "-c", statement, database)


@pytest.mark.parametrize(
    ("worse", "better"),
    [
        ("ALTER ROLE {0} CONNECTION LIMIT 0", "ALTER ROLE {0} CONNECTION LIMIT -1"),
        ("ALTER ROLE {0} SET default_transaction_read_only = on", "ALTER ROLE {0} RESET default_transaction_read_only"),
        ("ALTER ROLE {0} NOLOGIN", "ALTER ROLE {0} LOGIN"),
    ],
    ids=["too many connections", "read-only", "no login"],
)
@pytest.mark.one_shard
async def test_a_server_refused_by_postgresql_is_unavailable_and_recovers_when_it_is_admitted(
    programs: Programs, postgres: PostgresServer, shared_url: str, worse: str, better: str
) -> None:
    role = database = shared_url.partition("?")[0].rpartition("/")[2]
    owned = f"CREATE ROLE {role} LOGIN; GRANT ALL ON ALL TABLES IN SCHEMA public TO {role}"
    cut = f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = '{role}'"  # noqa: S608 - the test chose the name
    _psql(postgres, database, owned)
    async with serving(programs, shared_url.replace("postgres@", f"{role}@")) as (program, client):
        await client.add()
        _psql(postgres, database, worse.format(role), cut)
        assert await refused(client, "users/u/carts/default") == (grpc.StatusCode.UNAVAILABLE, "DATABASE_UNAVAILABLE")
        await until_health(client, NOT_SERVING)
        _psql(postgres, database, better.format(role), cut)
        await until_health(client, SERVING)
        assert (await client.add()).quantity == 2
        assert "Traceback" not in program.errors
