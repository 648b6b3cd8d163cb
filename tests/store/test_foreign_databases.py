"""A database that is not as this release needs it is refused at start, in one line that says why."""

import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from sqlalchemy import Connection, make_url

from cart_grpc import app, database_setup
from cart_grpc.startup import StartupError
from cart_grpc.store import revisions
from cart_grpc.store.engine import connect
from tests.postgres import SUPERUSER, PostgresServer
from tests.store.test_migrations import make_empty, migrated, opened, read_catalogue


@pytest.fixture
def empty_url(backend: str, request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty database."""
    return make_empty(backend, request, tmp_path, "foreign")


async def test_the_tables_of_another_program_with_alembic_do_not_count(empty_url: str) -> None:
    async with opened(empty_url) as engine:
        await engine.transact(run("CREATE TABLE alembic_version (version_num text)"))
        await engine.transact(run("INSERT INTO alembic_version VALUES ('1975ea83b712')"))
        assert await database_setup.upgrade(engine) == (None, revisions.LATEST)
        await database_setup.check(engine)


@pytest.mark.parametrize("revision", ["1975ea83b712", "0000", "", "99999"])
async def test_a_revision_that_is_not_ours_is_an_error(empty_url: str, revision: str) -> None:
    await migrated(empty_url)
    async with opened(empty_url) as engine:
        await engine.transact(run("UPDATE cart_grpc_version SET version_num = '?'".replace("?", revision)))
        for start in (database_setup.upgrade, database_setup.check):
            with pytest.raises(StartupError, match=f"contains {revision or 'no revision'}, which is not a rev"):
                await start(engine)


async def test_tables_that_are_missing_are_named_at_start(empty_url: str) -> None:
    await migrated(empty_url)
    async with opened(empty_url) as engine:
        await engine.transact(run("DROP TABLE pauses"))
        await engine.transact(run("DROP TABLE commit_markers"))
    # Opened anew: SQLite's log is gone then, which `raise_revisions` would refuse before it looks at the tables.
    for start in (database_setup.upgrade, database_setup.check, database_setup.raise_revisions):
        async with opened(empty_url) as engine:
            with pytest.raises(StartupError, match="it lacks the tables commit_markers, pauses; restore a backup"):
                await start(engine)


async def test_a_table_of_another_program_with_the_name_of_ours_is_an_error(empty_url: str) -> None:
    async with opened(empty_url) as engine:
        await engine.transact(run("CREATE TABLE users (name text)"))
        before = await engine.transact(read_catalogue)
        with pytest.raises(StartupError, match="another program has made the table users in it"):
            await database_setup.upgrade(engine)
        assert await engine.transact(read_catalogue) == before


async def test_a_sqlite_file_in_another_encoding_is_refused(tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "cart.db")) as connection:
        connection.execute("PRAGMA encoding = 'UTF-16le'")
        connection.execute("CREATE TABLE others (name text)")
    async with opened(f"sqlite:///{tmp_path}/cart.db") as engine:
        with pytest.raises(StartupError, match="its encoding is UTF-16le; create a database with the enc"):
            await database_setup.upgrade(engine)


def run(statement: str) -> Callable[[Connection], object]:
    """Return a function that runs a statement."""
    return lambda connection: connection.exec_driver_sql(statement)


@pytest.mark.parametrize("encoding", ["LATIN1", "SQL_ASCII"])
async def test_a_postgresql_database_that_cannot_store_every_text_is_refused(
    postgres: PostgresServer, encoding: str
) -> None:
    name = f"cart_{encoding.lower()}"
    options = ("--encoding", encoding, "--template", "template0", "--locale", "C", "--locale-provider", "libc")
    address = ("--host", str(postgres.directory), "--username", SUPERUSER)
    postgres._run("createdb", *address, *options, name)
    engine = connect(make_url(postgres.url).set(database=name).render_as_string(), app.clock)
    for start in (database_setup.upgrade, database_setup.check):
        with pytest.raises(StartupError, match=f"its encoding is {encoding}; create a database with the encoding"):
            await start(engine)
    await engine.close()
