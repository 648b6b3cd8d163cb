"""The one place where everything is wired, started and stopped. Real time and real ids enter here.

Read it top to bottom: `running` starts the parts of a process in order, and the parts stand below it in that order.
"""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Coroutine, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any

import uuid_utils
from sqlalchemy import Connection
from sqlalchemy.exc import SQLAlchemyError

from cart_grpc.admin import OperatorActions
from cart_grpc.background.clock_watcher import ClockWatcher
from cart_grpc.background.config import ReconcilerConfig
from cart_grpc.background.readiness import ReadinessWatcher
from cart_grpc.background.reconciler import Reconciler
from cart_grpc.background.sweeper import Retention, Sweeper
from cart_grpc.carts.calls import Limits
from cart_grpc.reservation_api import transports
from cart_grpc.rpc.admission import Admission
from cart_grpc.rpc.server import Server, admin_server, cart_server
from cart_grpc.settings import Settings, variable_of
from cart_grpc.store import migrate, restore, surroundings
from cart_grpc.store.engine import Engine, connect
from cart_grpc.store.store import Store
from cart_grpc.units import to_us

log = logging.getLogger(__name__)
# The reconciler's calls take up to two minutes, so a stop does not wait for all of them: at most this long.
MAX_RECONCILER_GRACE_SECONDS = 1.0


class StartupError(Exception):
    """The program cannot start. The text is one line: the cause and, if there is one, the remedy."""


def new_id() -> str:
    """Return a UUIDv7 (RFC 9562): later ids sort later, and an id shows its age."""
    return str(uuid_utils.uuid7())


def clock() -> int:
    """Return this machine's time in microseconds since the Unix epoch."""
    return time.time_ns() // 1000


def monotonic_us() -> int:
    """Return this machine's monotonic clock in microseconds."""
    return time.monotonic_ns() // 1000


@dataclass(frozen=True, slots=True)
class Ports:
    """The ports that a process listens on, for callers and for operators; 0 if it does not listen."""

    port: int = 0
    admin_port: int = 0


@asynccontextmanager
async def running(
    settings: Settings, *, serve: bool, reconcile: bool, shares_port: bool = False
) -> AsyncIterator[Ports]:
    """Run one process: the store, then the loops, the admin server and the callers' server, as far as configured.

    `shares_port`: other processes serve on the callers' port too. On exit the servers drain, then the parts stop in
    reverse order. Raises StartupError.
    """
    async with AsyncExitStack() as stack:
        store = await stack.enter_async_context(running_store(settings))
        await stack.enter_async_context(running_clock_watcher(settings, store))
        limits, timeout, reconciler = _limits(settings), settings.call_timeout, None
        port = admin_port = 0
        servers = []
        if reconcile:
            reconciler = await stack.enter_async_context(running_reconciler(settings, store))
            await stack.enter_async_context(running_sweeper(settings, store))
        if settings.admin_listen:
            server = admin_server(OperatorActions(store, limits, reconciler), timeout)
            admin_port = await stack.enter_async_context(running_server(server, "admin_listen", settings, store))
            servers.append(server)
        if serve:
            server = cart_server(store, limits, timeout, _admission(settings), shares_port=shares_port)
            port = await stack.enter_async_context(running_server(server, "listen", settings, store))
            servers.append(server)
        yield Ports(port, admin_port)
        await drain(servers, settings, lame_duck=settings.lame_duck if serve else 0.0)


async def drain(servers: Sequence[Server], settings: Settings, *, lame_duck: float) -> None:
    """Stop the servers without failing a call: callers first have `lame_duck` seconds to see that they should leave."""
    for server in servers:
        server.announce_stop()
    await asyncio.sleep(lame_duck)
    await asyncio.gather(*(server.stop(settings.shutdown_grace) for server in servers))


@asynccontextmanager
async def running_store(settings: Settings) -> AsyncIterator[Store]:
    """Open the store for reading and writing. Migrates a SQLite file first. Raises StartupError."""
    async with open_engine(settings) as engine:
        if settings.is_embedded:
            await migrate_database(engine)
        await check_database(engine)
        await open_readers(engine)
        store = Store(engine, new_id, queue_size=settings.write_queue_size)
        try:
            await store.start()
        except Exception as error:
            raise _unusable(engine.name, error) from error
        try:
            yield store
        finally:
            await store.close()


@asynccontextmanager
async def running_clock_watcher(settings: Settings, store: Store) -> AsyncIterator[None]:
    """Watch the database's clock. If it was set back before, the stored times are moved first. Raises StartupError."""
    config = _reconciler_config(settings)
    watcher = ClockWatcher(store.clock(monotonic_us), config.longest_attempt_us)
    try:
        await watcher.run_once()
    except Exception as error:
        raise _unusable(store.name, error) from error
    async with _running_task(watcher.run(), "clock-watcher"):
        yield


@asynccontextmanager
async def running_reconciler(settings: Settings, store: Store) -> AsyncIterator[Reconciler]:
    """Run the reconciler. On exit its calls get a short grace, and it hands back the claims of unfinished calls."""
    api = transports.connect(settings.reservation_url.get_secret_value())
    reconciler = Reconciler(store, api, _reconciler_config(settings), monotonic_us)
    running = asyncio.create_task(reconciler.run(), name="reconciler")
    try:
        yield reconciler
    finally:
        try:
            await reconciler.stop(to_us(min(MAX_RECONCILER_GRACE_SECONDS, settings.shutdown_grace)))
            await running
        finally:
            await api.close()


@asynccontextmanager
async def running_sweeper(settings: Settings, store: Store) -> AsyncIterator[None]:
    """Run the sweeper. Cancelling it is safe: the store finishes a commit that has begun."""
    sweeper = Sweeper(store, _retention(settings), to_us(settings.housekeeping_interval))
    async with _running_task(sweeper.run(), "sweeper"):
        yield


@asynccontextmanager
async def running_server(server: Server, setting: str, settings: Settings, store: Store) -> AsyncIterator[int]:
    """Run a gRPC server on the address in `setting` and yield its port. On exit it drains.

    Raises StartupError if it cannot listen.
    """
    try:
        await server.start(getattr(settings, setting))
    except OSError as error:
        raise StartupError(f"{variable_of(setting)}: {error}") from None
    try:
        async with _running_task(ReadinessWatcher(store.ping, server.set_ready).run(), "readiness"):
            yield server.port
    finally:
        await server.stop(settings.shutdown_grace)


@asynccontextmanager
async def _running_task(work: Coroutine[Any, Any, None], name: str) -> AsyncIterator[None]:
    """Run `work` as a task and cancel it on exit."""
    task = asyncio.create_task(work, name=name)
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


@asynccontextmanager
async def open_engine(settings: Settings) -> AsyncIterator[Engine]:
    """Connect to the database. A SQLite file is locked against other processes. Raises StartupError."""
    try:
        engine = connect(settings.database_url.get_secret_value(), clock)
    except OSError as error:
        raise StartupError(f"CART_DATABASE_URL: {error.filename} cannot be used: {error.strerror}") from None
    except (TypeError, ValueError, SQLAlchemyError) as error:
        raise _unusable(settings.shown()["CART_DATABASE_URL"], error) from error
    try:
        yield engine
    finally:
        await engine.close()


async def migrate_database(engine: Engine) -> tuple[str | None, str]:
    """Migrate the database to the schema of this release. Returns the revisions before and after.

    Raises StartupError.
    """
    try:
        return await engine.transact(migrate.upgrade)
    except Exception as error:
        raise _unusable(engine.name, error) from error


async def check_database(engine: Engine) -> None:
    """Raise StartupError if the database does not answer, or cannot be used as it is. Warns of risks in one line."""

    def check(connection: Connection) -> list[str]:
        surroundings.check_encoding(connection)
        migrate.check_revision(connection)
        return surroundings.find_risks(connection)

    try:
        risks = await engine.transact(check)
    except Exception as error:
        raise _unusable(engine.name, error) from error
    if risks:
        log.warning("PostgreSQL runs with %s: a power failure can lose acknowledged writes", " and ".join(risks))


async def open_readers(engine: Engine) -> None:
    """Open one connection for each kind of read: with one of each, every call can be served. Raises StartupError."""
    for run in (engine.read, engine.query):
        try:
            await run(lambda connection: connection.exec_driver_sql("SELECT 1").scalar_one())
        except Exception as error:
            raise _unusable(engine.name, error) from error


async def raise_revisions(engine: Engine) -> int:
    """Raise the revision of every unfinished reservation above any that was ever sent. For a restored database.

    Returns the number of reservations. Raises StartupError if the database is in use, does not answer or has another
    schema.
    """
    await check_database(engine)
    try:
        return await engine.transact(restore.raise_revisions)
    except restore.InUse as error:
        raise StartupError(f"CART_DATABASE_URL: the database {engine.name} {error}") from None
    except Exception as error:
        raise _unusable(engine.name, error) from error


def _unusable(database: str, error: BaseException) -> StartupError:
    """Return the error that names the database, without its password, and quotes the driver's first line."""
    origin = getattr(error, "orig", None) or error
    lines = str(origin).strip().splitlines()
    log.debug("the database cannot be used", exc_info=error)
    reason = lines[0][:300] if lines else "it does not answer"
    return StartupError(f"CART_DATABASE_URL: the database {database} cannot be used: {reason}")


def _admission(settings: Settings) -> Admission:
    return Admission(
        max_calls=settings.max_calls,
        max_calls_per_user=settings.max_calls_per_user,
        max_waiting=settings.max_waiting_calls,
        max_waiting_per_user=settings.max_waiting_calls_per_user,
    )


def _limits(settings: Settings) -> Limits:
    return Limits(
        max_quantity_per_add=settings.max_quantity_per_add,
        max_quantity_per_item=settings.max_quantity_per_item,
        max_items_per_cart=settings.max_items_per_cart,
        max_cart_bytes=settings.max_cart_bytes,
        max_user_bytes=settings.max_user_bytes,
        hold_ttl_us=to_us(settings.hold_ttl),
        cart_ttl_us=to_us(settings.cart_ttl),
    )


def _reconciler_config(settings: Settings) -> ReconcilerConfig:
    return ReconcilerConfig(
        call_timeout_us=to_us(settings.reservation_timeout),
        grace_us=to_us(settings.reservation_grace),
        max_in_flight=settings.reservation_max_in_flight,
        poll_interval_us=to_us(settings.reservation_poll_interval),
        lease_us=to_us(settings.reservation_lease),
        backoff_initial_us=to_us(settings.reservation_backoff_initial),
        backoff_max_us=to_us(settings.reservation_backoff_max),
        breaker_threshold=settings.reservation_breaker_threshold,
        probe_interval_us=to_us(settings.reservation_probe_interval),
    )


def _retention(settings: Settings) -> Retention:
    return Retention(
        replies_us=to_us(settings.reply_retention),
        reservations_us=to_us(settings.reservation_retention),
        carts_us=to_us(settings.cart_retention),
    )
