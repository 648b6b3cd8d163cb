"""For the tests of sessions: roles of PostgreSQL, statements that its administrator runs, and open connections."""

import itertools

import asyncpg
from sqlalchemy import make_url

from cart_grpc.store.engine import Engine
from cart_grpc.store.shards import schema_names
from tests.databases import shards_of

_numbers = itertools.count()


async def administer(url: str, *statements: str) -> None:
    """Run each statement as a superuser in the database at `url`, on a connection of its own."""
    parsed = make_url(url)
    connection = await asyncpg.connect(host=str(parsed.query["host"]), user="postgres", database=parsed.database)
    try:
        for statement in statements:
            await connection.execute(statement)
    finally:
        await connection.close()


async def as_plain_role(url: str, options: str = "") -> tuple[str, str]:
    """Create a role that is no superuser and may use the tables. Return its name, and `url` with it."""
    role = f"plain_{next(_numbers)}"
    await administer(
        url,
        f"CREATE ROLE {role} LOGIN {options}",
        f"GRANT ALL ON ALL TABLES IN SCHEMA public TO {role}",
        f"GRANT ALL ON SCHEMA public TO {role}",
        *(
            f"GRANT ALL ON {what} {schema} TO {role}"
            for schema in schema_names(shards_of(url))
            if shards_of(url) > 1
            for what in ("SCHEMA", "ALL TABLES IN SCHEMA")
        ),
    )
    return role, make_url(url).set(username=role).render_as_string()


async def open_readers(engine: Engine) -> None:
    """Open one connection for each kind of read, as a start does."""
    for run in (engine.read, engine.query):
        await run(lambda connection: connection.exec_driver_sql("SELECT 1").scalar_one())
