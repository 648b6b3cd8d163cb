"""Fills a migrated database in bulk with what a long life would have left there: a million rows in a minute or so.

`python -m benchmarks.fill URL --carts 1000000 --pending 1000000` does it to a database of yours.
"""

import argparse
import asyncio
import sqlite3
import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

from sqlalchemy import Connection, create_engine, insert, make_url, text
from sqlalchemy.ext.asyncio import create_async_engine

from cart_grpc.carts.names import SLICES, item_id_of
from cart_grpc.store.schema import RESERVATIONS_PAUSE, pauses

DAY = 86_400_000_000


@dataclass(frozen=True)
class Filling:
    """How much there should be. The names are those that the load generator uses, so that it meets these rows.

    `carts` carts of `items` items, each held by the Reservation API, the users `u0000000` and on, the skus
    `sku-000000` and on; `pending` carts of one item that the Reservation API was never asked for, of the users
    `p0000000` and on; `finished` reservations that were released a moment ago, of the users `f0000000` and on.
    `is_paused`: the operator has stopped the reconciler before its start.
    """

    carts: int = 0
    items: int = 1
    pending: int = 0
    finished: int = 0
    is_paused: bool = False


def fill(url: str, filling: Filling) -> None:
    """Write it, in one transaction."""

    def write(connection: Connection) -> None:
        connection.execute(text("CREATE TEMPORARY TABLE skus (n integer, sku text, item_id text)"))
        skus = [f"sku-{n:06}" for n in range(max(filling.items, 1))]
        rows = [{"n": n, "sku": sku, "item_id": item_id_of(sku, {})} for n, sku in enumerate(skus)]
        connection.execute(text("INSERT INTO skus VALUES (:n, :sku, :item_id)"), rows)
        now = time.time_ns() // 1000
        if filling.carts:
            _write_carts(connection, "u", filling.carts, filling.items, now, is_held=True)
        if filling.pending:
            _write_carts(connection, "p", filling.pending, 1, now, is_held=False)
        if filling.finished:
            _write_finished(connection, filling.finished, now)
        if filling.is_paused:
            pause = insert(pauses).values(slice=0, name=RESERVATIONS_PAUSE, reason="benchmark", create_time=now)
            connection.execute(pause)

    _in_transaction(url, write)


def _in_transaction(url: str, write: Callable[[Connection], None]) -> None:
    parsed = make_url(url)
    if parsed.get_backend_name() == "sqlite":
        _in_sqlite(url, write)
        return

    async def in_postgresql() -> None:
        engine = create_async_engine(parsed.set(drivername="postgresql+asyncpg"))
        async with engine.begin() as connection:
            await connection.run_sync(write)
        # What autovacuum would have done by the time that there was so much.
        async with engine.execution_options(isolation_level="AUTOCOMMIT").connect() as connection:
            await connection.execute(text("VACUUM ANALYZE"))
            await connection.execute(text("CHECKPOINT"))
        await engine.dispose()

    asyncio.run(in_postgresql())


def _in_sqlite(url: str, write: Callable[[Connection], None]) -> None:
    engine = create_engine(url)
    with engine.begin() as connection:
        driver: Any = connection.connection.driver_connection
        assert isinstance(driver, sqlite3.Connection)  # noqa: S101 - for mypy
        driver.create_function("crc32", 1, zlib.crc32, deterministic=True)
        write(connection)
    with engine.connect() as connection:
        connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)")
    engine.dispose()


# One statement does for both databases: a number with leading zeros, the numbers from 0 on, a slice (where the bytes
# of a text are called differently).
def _digits(number: str, width: int) -> str:
    return f"substr(CAST({10**width} + {number} AS text), 2)"


_SERIES = (
    "WITH RECURSIVE series(n) AS (SELECT CAST(0 AS bigint) UNION ALL SELECT n + 1 FROM series WHERE n + 1 < :count)"
)


def _slice(connection: Connection) -> str:
    of = "CAST(user_id AS blob)" if connection.dialect.name == "sqlite" else "convert_to(user_id, 'UTF8')"
    return f"CAST(crc32({of}) % {SLICES} AS smallint)"


def _id(kind: int, number: str) -> str:
    """A UUIDv7 from long ago."""
    return f"'0190000{kind}-0000-7000-8000-' || {_digits(number, 12)}"


def _write_carts(connection: Connection, prefix: str, count: int, items: int, now: int, *, is_held: bool) -> None:  # noqa: PLR0913
    kind = "1" if is_held else "2"
    values = {"count": count, "items": items, "now": now, "later": now + DAY, "expire": now + 7 * DAY}
    make = text(
        f"CREATE TEMPORARY TABLE filled_{prefix} AS {_SERIES}, named AS "  # noqa: S608 - only names of ours
        f"(SELECT n, '{prefix}' || {_digits('n', 7)} AS user_id FROM series) "
        f"SELECT n, {_slice(connection)} AS slice, user_id FROM named"
    )
    connection.execute(make, {"count": count})
    statements = [
        f"INSERT INTO users SELECT slice, user_id, 1 FROM filled_{prefix} ORDER BY 1, 2",
        f"INSERT INTO carts (slice, user_id, cart_id, uid, state, labels, currency_code, expire_time, item_count,"
        f" total_quantity, subtotal, revision, etag_revision, create_time, update_time)"
        f" SELECT slice, user_id, 'default', {_id(int(kind) + 2, 'n')}, 1, '{{}}', '', :expire, :items, :items, 0, :items,"
        f" :items, :now, :now FROM filled_{prefix} ORDER BY 1, 2",
        f"INSERT INTO items (slice, user_id, cart_id, item_id, uid, sku, options, quantity, labels, reservation_id,"
        f" create_time, update_time) SELECT slice, user_id, 'default', item_id, {_id(int(kind) + 4, 'c.n * :items + s.n')}, sku,"
        f" '{{}}', 1, '{{}}', {_id(int(kind), 'c.n * :items + s.n')}, :now, :now"
        f" FROM filled_{prefix} c CROSS JOIN skus s WHERE s.n < :items ORDER BY 1, 2",
        _reservations(
            f"filled_{prefix} c CROSS JOIN skus s WHERE s.n < :items", int(kind), "c.n * :items + s.n", is_held
        ),
    ]
    for statement in statements:
        connection.execute(text(statement), {k: v for k, v in values.items() if f":{k}" in statement})


def _reservations(source: str, kind: int, number: str, is_held: bool) -> str:  # noqa: FBT001
    observed = "1, 1, :later, 1, :later" if is_held else "0, 0, NULL, 0, :now"
    return (
        f"INSERT INTO reservations (slice, reservation_id, user_id, cart_id, item_id, sku, quantity, disposition, ttl,"  # noqa: S608
        f" labels, revision, intent_revision, least_quantity, create_time, reason, refused_reason, waiting, attempt,"
        f" lease_epoch, last_error, state, granted_quantity, expire_time, observed_revision, due_at)"
        f" SELECT slice, {_id(kind, number)}, user_id, 'default', item_id, sku, 1, 1, 900000000,"
        f" '{{}}', 1, 1, 1, :now, '', '', false, {int(is_held)}, {int(is_held)}, '', {observed} FROM {source} ORDER BY 1, 2"
    )


def _write_finished(connection: Connection, count: int, now: int) -> None:
    connection.execute(
        text(
            f"{_SERIES}, named AS (SELECT n, 'f' || {_digits('n', 7)} AS user_id FROM series)"  # noqa: S608
            f" INSERT INTO reservations (slice, reservation_id, user_id, cart_id, item_id, sku, quantity, disposition,"
            f" ttl, labels, revision, intent_revision, least_quantity, create_time, reason, refused_reason, waiting,"
            f" attempt, lease_epoch, last_error, state, granted_quantity, observed_revision, finish_time)"
            f" SELECT {_slice(connection)}, {_id(7, 'named.n')}, user_id, 'default', item_id, sku, 1, 3, 900000000,"
            f" '{{}}', 2, 2, 1, :now, '', '', false, 1, 2, '', 4, 0, 2, :now"
            f" FROM named CROSS JOIN skus WHERE skus.n = 0 ORDER BY 1, 2"
        ),
        {"count": count, "now": now},
    )


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fill", description="Fill a migrated database in bulk.")
    parser.add_argument("url")
    for field in fields(Filling):
        parser.add_argument(f"--{field.name}", type=int, default=field.default)
    options = vars(parser.parse_args())
    fill(options.pop("url"), Filling(**options))


if __name__ == "__main__":
    main()
