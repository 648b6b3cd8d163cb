"""Fills a migrated database in bulk, as if it had been used for long: a million rows in about a minute.

`python -m benchmarks.fill URL --carts 1000000 --pending 1000000` fills any migrated database.
"""

import argparse
import asyncio
import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

from sqlalchemy import Connection, create_engine, insert, make_url, text
from sqlalchemy.ext.asyncio import create_async_engine

from cart_grpc.carts.sizes import RESERVATION_BYTES
from cart_grpc.names import SLICES, item_id_of
from cart_grpc.store.schema import RESERVATIONS_PAUSE, pauses

DAY = 86_400_000_000


@dataclass(frozen=True)
class Filling:
    """How many rows to write. The load generator uses the same names, so its calls reach these rows.

    carts: carts with `items` held items each, for users from `u0000000` and skus from `sku-000000`.
    pending: carts with one item that was never sent to the Reservation API, for users from `p0000000`.
    finished: reservations that were released just now, for users from `f0000000`.
    is_paused: whether the operator's pause stops the reconciler.
    """

    carts: int = 0
    items: int = 1
    pending: int = 0
    finished: int = 0
    is_paused: bool = False


def fill(url: str, filling: Filling) -> None:
    """Write the rows in one transaction."""

    def write(connection: Connection) -> None:
        connection.execute(text("CREATE TEMPORARY TABLE skus (n integer, sku text, item_id text)"))
        skus = [f"sku-{n:06}" for n in range(max(filling.items, 1))]
        rows = [{"n": n, "sku": sku, "item_id": item_id_of(sku, {})} for n, sku in enumerate(skus)]
        connection.execute(text("INSERT INTO skus VALUES (:n, :sku, :item_id)"), rows)
        now = time.time_ns() // 1000
        if filling.carts:
            _write_carts(connection, "u", filling.carts, filling.items, now)
        if filling.pending:
            _write_carts(connection, "p", filling.pending, 1, now)
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
        # With so many rows, autovacuum would have run by now.
        async with engine.execution_options(isolation_level="AUTOCOMMIT").connect() as connection:
            await connection.execute(text("VACUUM ANALYZE"))
            await connection.execute(text("CHECKPOINT"))
        await engine.dispose()

    asyncio.run(in_postgresql())


def _in_sqlite(url: str, write: Callable[[Connection], None]) -> None:
    engine = create_engine(url)
    with engine.begin() as connection:
        driver: Any = connection.connection.driver_connection
        driver.create_function("crc32", 1, zlib.crc32, deterministic=True)
        write(connection)
    with engine.connect() as connection:
        connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)")
    engine.dispose()


def _digits(number: str, width: int) -> str:
    """Return SQL for a number with leading zeros, for both databases."""
    return f"substr(CAST({10**width} + {number} AS text), 2)"


def _id(kind: int, number: str) -> str:
    """Return SQL for an old UUIDv7."""
    return f"'0190000{kind}-0000-7000-8000-' || {_digits(number, 12)}"


def _make_users(connection: Connection, prefix: str, count: int) -> str:
    """Create a temporary table of users (n, slice, user_id) and return its name."""
    of = "CAST(user_id AS blob)" if connection.dialect.name == "sqlite" else "convert_to(user_id, 'UTF8')"
    connection.exec_driver_sql(
        f"CREATE TEMPORARY TABLE filled_{prefix} AS WITH RECURSIVE"
        " series(n) AS (SELECT CAST(0 AS bigint) UNION ALL SELECT n + 1 FROM series"
        f" WHERE n + 1 < {count}), named AS (SELECT n, '{prefix}' || {_digits('n', 7)} AS user_id FROM series)"
        f" SELECT n, CAST(crc32({of}) % {SLICES} AS smallint) AS slice, user_id FROM named"
    )
    return f"filled_{prefix}"


def _insert(connection: Connection, table: str, source: str, **columns: object) -> None:
    """Run one INSERT … SELECT in the order of the primary keys. `columns` are SQL expressions."""
    names, values = ", ".join(columns), ", ".join(map(str, columns.values()))
    connection.exec_driver_sql(
        f"INSERT INTO {table} (slice, user_id, {names}) SELECT slice, user_id, {values} FROM {source} ORDER BY 1, 2"
    )


_RESERVATION = {
    "quantity": 1,
    "ttl_us": 900_000_000,
    "reserved_cap": 1,
    "reason": "''",
    "seal_reason": "''",
    "waiting": "false",
    "last_error": "''",
    "set_aside_reason": "''",
    "checkout_id": "''",
    "superseded_by": "''",
    "supersedes": "false",
}


def _write_carts(connection: Connection, prefix: str, count: int, items: int, now: int) -> None:
    is_held, kind = prefix == "u", 1 if prefix == "u" else 2
    users = _make_users(connection, prefix, count)
    _insert(connection, "users", users, stored_bytes=1_500 * items, cart_count=1, item_count=items, unit_count=items)
    times = {"create_time": now, "update_time": now}
    cart = {"cart_id": "'default'", "uid": _id(kind + 2, "n"), "state": 1, "labels": "'{}'", "currency_code": "''"}
    cart |= {"owns_currency": "false", "priced_count": 0, "byte_size": 1_000 * items}
    cart |= {"checkout_id": "''", "merged_into": "''"}
    totals = {"item_count": items, "total_quantity": items, "subtotal": 0, "revision": items, "etag_revision": items}
    _insert(connection, "carts", users, **cart, **totals, **times, expire_time=now + 7 * DAY)
    number, each = f"users.n * {items} + skus.n", f"{users} users CROSS JOIN skus WHERE skus.n < {items}"
    item = {"cart_id": "'default'", "item_id": "item_id", "sku": "sku", "reservation_id": _id(kind, number)}
    facts = {"uid": _id(kind + 4, number), "options": "'{}'", "labels": "'{}'", "quantity": 1}
    _insert(connection, "items", each, **item, **facts, **times)
    intent = {**_RESERVATION, "disposition": 1, "revision": 1, "intent_revision": 1, "create_time": now}
    done = int(is_held)
    work = {"attempt_count": done, "lease_epoch": done, "due_time": now + DAY if is_held else now}
    expire_time = now + DAY if is_held else "NULL"
    observed = {"state": done, "granted_quantity": done, "observed_revision": done, "expire_time": expire_time}
    _insert(connection, "reservations", each, **item, **intent, **work, **observed)


def _write_finished(connection: Connection, count: int, now: int) -> None:
    users = _make_users(connection, "f", count)
    _insert(connection, "users", users, stored_bytes=RESERVATION_BYTES, cart_count=0, item_count=0, unit_count=0)
    item = {"cart_id": "'default'", "item_id": "item_id", "sku": "sku", "reservation_id": _id(7, "users.n")}
    intent = {**_RESERVATION, "disposition": 3, "revision": 2, "intent_revision": 2, "create_time": now}
    observed = {"state": 4, "granted_quantity": 0, "observed_revision": 2, "finish_time": now}
    each = f"{users} users CROSS JOIN skus WHERE skus.n = 0"
    _insert(connection, "reservations", each, **item, **intent, **observed, attempt_count=1, lease_epoch=2)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fill", description="Fill a migrated database in bulk.")
    parser.add_argument("url")
    for field in fields(Filling):
        parser.add_argument(f"--{field.name}", type=int, default=field.default)
    options = vars(parser.parse_args())
    fill(options.pop("url"), Filling(**options))


if __name__ == "__main__":
    main()
