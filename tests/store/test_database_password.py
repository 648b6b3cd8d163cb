"""The password of PostgreSQL in a file, which each new session reads."""

import asyncio
import logging
from collections.abc import AsyncIterator
from pathlib import Path

import asyncpg
import pytest

from cart_grpc import app
from cart_grpc.cli import program as cli
from cart_grpc.settings import Settings
from cart_grpc.startup import StartupError
from cart_grpc.store.database_connection import Connector
from cart_grpc.store.database_parameters import DatabaseUrlError
from cart_grpc.store.database_url import parse
from cart_grpc.store.engine import connect
from cart_grpc.tls.reloaded_files import FileError, NamedFile
from tests.pem import PemFolder
from tests.postgres import PostgresServer, running_postgres
from tests.tls import SECRET, ask, prepare

ACCESS = "local all postgres trust\nlocal all all scram-sha-256\n"
END_SESSIONS = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE usename = 'cart'"
NEW = "p@ss:wörd/ 2"


@pytest.fixture(scope="module")
async def server() -> AsyncIterator[PostgresServer]:
    with running_postgres() as server:
        await prepare(server, ACCESS)
        yield server


@pytest.fixture
def folder(tmp_path: Path) -> PemFolder:
    return PemFolder(tmp_path)


@pytest.fixture
async def file(server: PostgresServer, folder: PemFolder) -> NamedFile:
    """The file with the role's password."""
    await ask(server, f"ALTER ROLE cart PASSWORD '{SECRET}'", "SELECT 1")
    return folder.write("CART_DATABASE_PASSWORD_FILE", f"{SECRET}\n")


def url(server: PostgresServer) -> str:
    return f"postgresql://cart@/cart?host={server.directory}"


async def rotate(server: PostgresServer, folder: PemFolder, file: NamedFile) -> None:
    await ask(server, f"ALTER ROLE cart PASSWORD '{NEW}'", "SELECT 1")
    folder.write(file.name, f"{NEW}\r\n")


async def test_a_rotated_password_works_for_new_sessions_and_old_ones_go_on(
    server: PostgresServer, folder: PemFolder, file: NamedFile
) -> None:
    connector = Connector(parse(url(server), {}), file)
    old = await connector.connect()
    await rotate(server, folder, file)
    new = await connector.connect()
    for connection in (old, new):
        assert await connection.fetchval("SELECT 1") == 1
        await connection.close()


async def test_an_engine_whose_sessions_end_goes_on_with_the_rotated_password(
    server: PostgresServer, folder: PemFolder, file: NamedFile, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    engine = connect(url(server), app.clock, file)
    try:
        assert await engine.transact(lambda connection: connection.exec_driver_sql("SELECT 1").scalar()) == 1
        await rotate(server, folder, file)
        ended = await ask(
            server, "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE usename = 'cart'"
        )
        assert ended > 0
        assert await engine.query(lambda connection: connection.exec_driver_sql("SELECT 1").scalar()) == 1
    finally:
        await engine.close()
    assert SECRET not in f"{caplog.text} {engine!r} {vars(engine)}"
    assert NEW not in f"{caplog.text} {engine!r} {vars(engine)}"


async def test_a_session_with_the_old_password_is_refused(server: PostgresServer, file: NamedFile) -> None:
    connector = Connector(parse(url(server), {}), file)
    await ask(server, f"ALTER ROLE cart PASSWORD '{NEW}'", "SELECT 1")
    with pytest.raises(asyncpg.InvalidPasswordError) as refused:
        await connector.connect()
    assert SECRET not in str(refused.value)


async def test_a_file_that_is_gone_for_a_moment_means_that_the_database_is_away(
    server: PostgresServer, folder: PemFolder, file: NamedFile
) -> None:
    connector = Connector(parse(url(server), {}), file)
    folder.remove(file)
    with pytest.raises(ConnectionError, match=r"^CART_DATABASE_PASSWORD_FILE: the file cannot be read: No such file"):
        await connector.connect()


async def test_migrate_uses_the_file(
    server: PostgresServer,
    folder: PemFolder,
    file: NamedFile,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("CART_DATABASE_URL", url(server))
    monkeypatch.setenv("CART_DATABASE_PASSWORD_FILE", file.path)
    assert await asyncio.to_thread(cli.main, ["migrate"]) == 0
    assert "is now at" in capsys.readouterr().out
    folder.remove(file)
    assert await asyncio.to_thread(cli.main, ["migrate"]) == 2
    said = capsys.readouterr()
    assert said.err == ("cart-grpc: CART_DATABASE_PASSWORD_FILE: the file cannot be read: No such file or directory\n")
    assert said.out == ""


@pytest.mark.parametrize(
    ("written", "environ"),
    [("postgresql://cart:hunter2@/cart", {}), ("postgresql://cart@/cart", {"PGPASSWORD": SECRET})],
)
def test_two_passwords_are_refused(written: str, environ: dict[str, str]) -> None:
    file = NamedFile("CART_DATABASE_PASSWORD_FILE", "password")
    with pytest.raises(DatabaseUrlError, match="CART_DATABASE_PASSWORD_FILE needs neither") as refused:
        Connector(parse(written, environ), file)
    assert SECRET not in str(refused.value)


async def test_a_password_for_sqlite_is_refused(tmp_path: Path) -> None:
    settings = Settings(database_url=f"sqlite:///{tmp_path}/cart.db", database_password_file="password")
    with pytest.raises(StartupError, match=r"^CART_DATABASE_PASSWORD_FILE: SQLite has no password$"):
        async with app.open_engine(settings):
            pass
    with pytest.raises(FileError):
        connect(f"sqlite:///{tmp_path}/cart.db", app.clock, NamedFile("CART_DATABASE_PASSWORD_FILE", "password"))
