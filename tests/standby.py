"""A primary and its hot standby, both on 127.0.0.1 too."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import asyncpg

from tests.ports import free_port
from tests.postgres import SUPERUSER, PostgresServer, running_postgres

CATCH_UP_TIMEOUT_S = 30.0


@dataclass(frozen=True)
class Pair:
    primary: PostgresServer
    standby: PostgresServer

    def url(self, database: str, *, standby_first: bool = False) -> str:
        """Return a URL with both hosts."""
        servers = (self.standby, self.primary) if standby_first else (self.primary, self.standby)
        hosts = ",".join(f"127.0.0.1:{server.port}" for server in servers)
        return f"postgresql://{SUPERUSER}@{hosts}/{database}?target_session_attrs=read-write"

    async def catch_up(self) -> None:
        """Wait until the standby has replayed all that the primary has written so far."""
        written = await ask(self.primary, "SELECT pg_current_wal_lsn()::text")
        async with asyncio.timeout(CATCH_UP_TIMEOUT_S):
            while not await ask(self.standby, f"SELECT pg_last_wal_replay_lsn() >= '{written}'"):
                await asyncio.sleep(0.01)


@contextmanager
def running_pair() -> Iterator[Pair]:
    """Yield a primary and its standby, and destroy both afterwards."""
    with running_postgres(port=free_port()) as primary, running_postgres(port=free_port(), primary=primary) as standby:
        yield Pair(primary, standby)


async def ask(server: PostgresServer, query: str) -> Any:
    """Return the value that a query returns."""
    connection = await asyncpg.connect(server.url.replace("+asyncpg", ""))
    try:
        return await connection.fetchval(query)
    finally:
        await connection.close()
