"""How much PostgreSQL writes to its log."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

import asyncpg
from sqlalchemy import make_url

from benchmarks.programs import Product


class Wal(NamedTuple):
    """The bytes of PostgreSQL's write-ahead log, and how many of them are images of whole pages after a checkpoint."""

    total: int = 0
    images: int = 0


class WalMeter:
    """Measures the log of a product's PostgreSQL from now on. On SQLite there is none."""

    def __init__(self, product: Product) -> None:
        self._url = product.database_url if product.is_on_postgresql else ""
        self._start = asyncio.run(self._read_position()) if self._url else ""

    def read(self) -> Wal:
        return asyncio.run(self._read_since_start()) if self._url else Wal()

    @asynccontextmanager
    async def _connect(self) -> AsyncIterator[Any]:
        url = make_url(self._url)
        connection = await asyncpg.connect(user=url.username, database=url.database, host=str(url.query["host"]))
        try:
            yield connection
        finally:
            await connection.close()

    async def _read_position(self) -> str:
        async with self._connect() as connection:
            await connection.execute("CREATE EXTENSION IF NOT EXISTS pg_walinspect")
            return str(await connection.fetchval("SELECT pg_current_wal_insert_lsn()::text"))

    async def _read_since_start(self) -> Wal:
        async with self._connect() as connection:
            row = await connection.fetchrow(
                "SELECT pg_wal_lsn_diff(pg_current_wal_flush_lsn(), $1::text::pg_lsn) AS total, sum(fpi_size) AS images"
                " FROM pg_get_wal_stats($1::text::pg_lsn, pg_current_wal_flush_lsn())",
                self._start,
            )
            return Wal(int(row["total"]), int(row["images"] or 0))
