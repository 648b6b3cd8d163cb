"""PostgreSQL: a database that several replicas share, through asyncpg."""

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Any, Final, TypeVar

import asyncpg
from sqlalchemy import Connection
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine
from sqlalchemy.util import await_only

from cart_grpc.store.database_connection import Connector
from cart_grpc.store.database_parameters import refusal
from cart_grpc.store.database_url import ConnectArguments
from cart_grpc.store.dialects import Dialect, PostgresqlDialect
from cart_grpc.store.failures import READ_ONLY, CommitFailed, find_refusal, get_sqlstate

T = TypeVar("T")

_SETTINGS: Final = {
    "application_name": "cart-grpc",
    "statement_timeout": "30s",
    "lock_timeout": "10s",
    "idle_in_transaction_session_timeout": "30s",
    # Compiling takes longer than these statements run.
    "jit": "off",
}
# Planning a batch takes 1 ms, half of the time of one call, so plans are kept. A kept plan does not change until
# ANALYZE runs, and the tables may have been empty when it was made. So every kept plan must find its rows by an index,
# even if the statistics were wrong. Other statements run after `Dialect.force_custom_plan`.
_KEEP_PLANS: Final = {**_SETTINGS, "plan_cache_mode": "force_generic_plan", "enable_seqscan": "off"}
_READ_ONLY_SESSION: Final = {"default_transaction_read_only": "on"}


class PostgresqlEngine:
    """One writer connection, up to four for `read`, up to four for other reads."""

    locks_users = True
    is_shared = True

    def __init__(self, arguments: ConnectArguments) -> None:
        if taken := arguments.settings.keys() & _KEEP_PLANS.keys() - {"application_name"}:
            raise refusal("options", f"must not set {min(taken)}: cart-grpc sets it")
        self.name = arguments.name
        self.dialect: Dialect = PostgresqlDialect()
        connector = Connector(arguments)
        self._writer = _create_engine(connector, 1, _KEEP_PLANS)
        self._read_engine = _create_engine(connector, 4, {**_KEEP_PLANS, **_READ_ONLY_SESSION})
        self.reader = _create_engine(
            connector, 4, {**_SETTINGS, **_READ_ONLY_SESSION, "plan_cache_mode": "force_custom_plan"}
        )

    async def transact(self, work: Callable[[Connection], T]) -> T:
        # A separate task: cancelling the driver in the middle of a statement makes the connection unusable.
        return await asyncio.shield(asyncio.create_task(self._transact(work)))

    async def _transact(self, work: Callable[[Connection], T]) -> T:
        async with self._writer.connect() as connection:
            driver: Any = (await connection.get_raw_connection()).driver_connection
            try:
                await driver.execute("BEGIN")
                result = await connection.run_sync(work)
            except BaseException as error:
                await _roll_back(connection, driver, error)
                raise
            try:
                await connection.run_sync(self._commit)
            except Exception as error:
                await connection.invalidate()
                raise CommitFailed(result) from error
            return result

    def _commit(self, connection: Connection) -> None:
        driver: Any = connection.connection.driver_connection
        await_only(driver.execute("COMMIT"))

    async def read(self, work: Callable[[Connection], T]) -> T:
        async with self._read_engine.connect() as connection:
            try:
                return await connection.run_sync(work)
            except Exception as error:
                if find_refusal(error):
                    # SQLAlchemy does not see errors of statements that `prepared` runs on the driver. It would hand out
                    # the broken connection again.
                    await connection.invalidate()
                raise

    async def close(self) -> None:
        await self.reader.dispose()
        await self._read_engine.dispose()
        await self._writer.dispose()


def _create_engine(connector: Connector, size: int, settings: dict[str, str]) -> AsyncEngine:
    """Return a pool of up to `size` connections, each with `settings`, in AUTOCOMMIT mode.

    We send BEGIN and COMMIT: SQLAlchemy would not begin a transaction for statements that `prepared` runs on the
    driver. Each read is one statement, so a transaction around it would only add two round trips.
    """
    return create_async_engine(
        # The engine does not know the URL, so no text of SQLAlchemy's can contain the password.
        "postgresql+asyncpg://",
        async_creator=partial(connector.connect, settings),
        isolation_level="AUTOCOMMIT",
        pool_size=size,
        max_overflow=0,
    )


async def _roll_back(connection: AsyncConnection, driver: asyncpg.Connection, error: BaseException) -> None:
    # A primary that became a standby keeps its connections; a new connection may find the new primary.
    if driver.is_closed() or get_sqlstate(error) == READ_ONLY:
        await connection.invalidate()
        return
    try:
        await driver.execute("ROLLBACK")
    except Exception:  # noqa: BLE001 - the caller raises the first error, not this one
        await connection.invalidate()
