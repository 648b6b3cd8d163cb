"""The one place where everything is wired, started and stopped. Real time and real ids enter here.

Read it top to bottom: `running` starts the parts of a process in order, and the parts stand below it in that order.
"""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Coroutine, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import uuid_utils
from filelock import FileLock, Timeout
from sqlalchemy import Connection, make_url
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
from cart_grpc.store import migrate, restore
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

    `shares_port`: other processes serve on the callers' port too. On exit the parts stop in reverse order. Raises
    StartupError.
    """
    async with AsyncExitStack() as stack:
        store = await stack.enter_async_context(running_store(settings))
        await stack.enter_async_context(running_clock_watcher(settings, store))
        limits, timeout, reconciler = _limits(settings), settings.call_timeout, None
        port = admin_port = 0
        if reconcile:
            reconciler = await stack.enter_async_context(running_reconciler(settings, store))
            await stack.enter_async_context(running_sweeper(settings, store))
        if settings.admin_listen:
            server = admin_server(OperatorActions(store, limits, reconciler), timeout)
            admin_port = await stack.enter_async_context(running_server(server, "admin_listen", settings, store))
        if serve:
            server = cart_server(store, limits, timeout, _admission(settings), shares_port=shares_port)
            port = await stack.enter_async_context(running_server(server, "listen", settings, store))
        yield Ports(port, admin_port)


@asynccontextmanager
async def running_store(settings: Settings) -> AsyncIterator[Store]:
    """Open the store for reading and writing. Migrates a SQLite file first. Raises StartupError."""
    async with open_engine(settings) as engine:
        if settings.is_embedded:
            await migrate_database(engine)
        await check_database(engine)
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
    watcher = ClockWatcher(store.clock(monotonic_us, config.longest_attempt_us))
    try:
        await watcher.run_once()
    except Exception as error:
        raise _unusable(store.name, error) from error
    async with _running_task(watcher.run(), "clock-watcher"):
        yield


@asynccontextmanager
async def running_reconciler(settings: Settings, store: Store) -> AsyncIterator[Reconciler]:
    """Run the reconciler. On exit its calls get a short grace, and it hands back the claims of unfinished calls."""
    api = transports.connect(settings.reservation_url)
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
    with _locked_file(settings) if settings.is_embedded else nullcontext():
        try:
            engine = connect(settings.database_url, clock)
        except (TypeError, ValueError, SQLAlchemyError) as error:
            raise _unusable(settings.shown()["CART_DATABASE_URL"], error) from error
        try:
            yield engine
        finally:
            await engine.close()


@contextmanager
def _locked_file(settings: Settings) -> Iterator[None]:
    """Lock the SQLite file: two processes on one file would each act as its only writer."""
    path = Path(make_url(settings.database_url).database or "")
    if not path.parent.is_dir():
        raise StartupError(f"CART_DATABASE_URL: there is no directory {path.parent}")
    lock = FileLock(f"{path}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise StartupError(f"{path} is in use by another process; several processes need PostgreSQL") from None
    except OSError as error:
        raise StartupError(f"CART_DATABASE_URL: {path} cannot be locked: {error.strerror}") from None
    try:
        yield
    finally:
        lock.release()


async def migrate_database(engine: Engine) -> tuple[str | None, str]:
    """Migrate the database to the schema of this release. Returns the revisions before and after.

    Raises StartupError.
    """
    try:
        return await engine.transact(migrate.upgrade)
    except Exception as error:
        raise _unusable(engine.name, error) from error


async def check_database(engine: Engine) -> None:
    """Raise StartupError if the database does not answer or has another schema."""

    def read(connection: Connection) -> tuple[str | None, str | None]:
        fsync = None
        if connection.dialect.name == "postgresql":
            fsync = str(connection.exec_driver_sql("SHOW fsync").scalar_one())
        return migrate.current_revision(connection), fsync

    try:
        current, fsync = await engine.transact(read)
    except Exception as error:
        raise _unusable(engine.name, error) from error
    if fsync == "off":
        log.warning("PostgreSQL runs with fsync=off: a power failure loses acknowledged writes")
    if current is None or (migrate.is_known(current) and current != migrate.latest_revision()):
        raise StartupError(f"the database is at schema {current or '(none)'}; run `cart-grpc migrate` first")


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
