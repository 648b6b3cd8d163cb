"""The one place where everything is wired, started and stopped: real time and real ids enter here."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import uuid_utils
from filelock import FileLock, Timeout
from sqlalchemy import Connection, make_url
from sqlalchemy.exc import SQLAlchemyError

from cart_grpc.admin import Operator
from cart_grpc.background.reconciler import Reconciler, ReconcilerConfig
from cart_grpc.background.sweeper import Retention, Sweeper
from cart_grpc.carts.calls import Limits
from cart_grpc.carts.refusals import DatabaseDamaged, DatabaseUnavailable
from cart_grpc.reservation_api import transports
from cart_grpc.rpc.admission import Admission
from cart_grpc.rpc.server import Server, admin_server, cart_server
from cart_grpc.settings import Settings
from cart_grpc.store import migrate, restore
from cart_grpc.store.engine import Engine, connect
from cart_grpc.store.store import Store
from cart_grpc.units import to_us

log = logging.getLogger(__name__)


class StartupError(Exception):
    """The program cannot start. Its text is one line that says why and what would help."""


def new_id() -> str:
    """A UUIDv7 (RFC 9562): ids made later sort later, and their age can be read."""
    return str(uuid_utils.uuid7())


def clock() -> int:
    """This machine's time, in microseconds since the Unix epoch."""
    return time.time_ns() // 1000


@asynccontextmanager
async def open_engine(settings: Settings) -> AsyncIterator[Engine]:
    """The database, connected; a SQLite file is ours alone meanwhile. Raises StartupError."""
    with _lock_file(settings) if settings.is_embedded else _nothing():
        try:
            engine = connect(settings.database_url, clock)
        except (TypeError, ValueError, SQLAlchemyError) as error:
            raise _unusable(settings.shown()["CART_DATABASE_URL"], error) from error
        try:
            yield engine
        finally:
            await engine.close()


@contextmanager
def _lock_file(settings: Settings) -> Iterator[None]:
    """Two processes on one file would each believe that they were its only writer."""
    path = Path(make_url(settings.database_url).database or "")
    if not path.parent.is_dir():
        raise StartupError(f"CART_DATABASE_URL: there is no folder {path.parent}")
    lock = FileLock(f"{path}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise StartupError(f"{path} is in use by another process; several need PostgreSQL") from None
    except OSError as error:
        raise StartupError(f"CART_DATABASE_URL: {path} cannot be locked: {error.strerror}") from None
    try:
        yield
    finally:
        lock.release()


@contextmanager
def _nothing() -> Iterator[None]:
    yield


async def migrate_database(engine: Engine) -> tuple[str | None, str]:
    """Bring the database to this release's schema. Returns the revisions before and after. Raises StartupError."""
    try:
        return await engine.transact(migrate.upgrade)
    except Exception as error:
        raise _unusable(engine.name, error) from error


async def raise_revisions(engine: Engine) -> int:
    """Raise what is unfinished in a restored database above all that was ever said. Returns how many there are.

    Raises StartupError where the database is in use, does not answer or has not been migrated.
    """
    await check_database(engine)
    try:
        return await engine.transact(restore.raise_revisions)
    except restore.InUse as error:
        raise StartupError(f"CART_DATABASE_URL: the database {engine.name} {error}") from None
    except Exception as error:
        raise _unusable(engine.name, error) from error


async def check_database(engine: Engine) -> None:
    """Raises StartupError where the database does not answer or has not been migrated."""

    def look(connection: Connection) -> tuple[str | None, str | None]:
        fsync = None
        if connection.dialect.name == "postgresql":
            fsync = str(connection.exec_driver_sql("SHOW fsync").scalar_one())
        return migrate.current_revision(connection), fsync

    try:
        current, fsync = await engine.transact(look)
    except Exception as error:
        raise _unusable(engine.name, error) from error
    if fsync == "off":
        log.warning("PostgreSQL runs with fsync=off: what was acknowledged is lost when the power goes")
    if current is None or (migrate.is_known(current) and current != migrate.latest_revision()):
        raise StartupError(f"the database is at schema {current or '(none)'}; run `cart-grpc migrate` first")


def _unusable(database: str, error: BaseException) -> StartupError:
    """Names the database, its password hidden, and says what the driver said, its first line."""
    origin = getattr(error, "orig", None) or error
    lines = str(origin).strip().splitlines()
    log.debug("the database cannot be used", exc_info=error)
    reason = lines[0][:300] if lines else "it does not answer"
    return StartupError(f"CART_DATABASE_URL: the database {database} cannot be used: {reason}")


@asynccontextmanager
async def running_store(settings: Settings) -> AsyncIterator[Store]:
    """The store, open for reading and writing. The embedded database is migrated first."""
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
async def running_reconciler(settings: Settings, store: Store) -> AsyncIterator[Reconciler]:
    """The reconciler at work; at the end its calls are given the grace, and its claims handed back."""
    api = transports.connect(settings.reservation_url)
    config = ReconcilerConfig(
        call_timeout=settings.reservation_timeout,
        grace=settings.reservation_grace,
        max_in_flight=settings.reservation_max_in_flight,
        poll_interval=settings.reservation_poll_interval,
        lease=settings.reservation_lease,
        backoff_max=settings.reservation_backoff_max,
    )
    reconciler = Reconciler(store, api, config, time.monotonic)
    running = asyncio.create_task(reconciler.run(), name="reconciler")
    try:
        yield reconciler
    finally:
        try:
            await reconciler.stop(min(1.0, settings.shutdown_grace))
            await running
        finally:
            await api.close()


@asynccontextmanager
async def running_housekeeping(settings: Settings, store: Store) -> AsyncIterator[None]:
    """Sweeper at work; it leaves nothing half done."""
    retention = Retention(
        replies=to_us(settings.reply_retention),
        reservations=to_us(settings.reservation_retention),
        carts=to_us(settings.cart_retention),
    )
    keeping = asyncio.create_task(Sweeper(store, retention, settings.housekeeping_interval).run(), name="housekeeping")
    try:
        yield
    finally:
        keeping.cancel()
        await asyncio.gather(keeping, return_exceptions=True)


@asynccontextmanager
async def running_server(server: Server, setting: str, settings: Settings, store: Store) -> AsyncIterator[int]:
    """A gRPC server, listening as `setting` says, on the port that is yielded; at the end it drains.

    Raises StartupError where it cannot listen.
    """
    try:
        await server.start(getattr(settings, setting))
    except OSError as error:
        raise StartupError(f"CART_{setting.upper()}: {error}") from None
    watching = asyncio.create_task(_watch_readiness(server, store), name="readiness")
    try:
        yield server.port
    finally:
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)
        await server.stop(settings.shutdown_grace)


async def _watch_readiness(server: Server, store: Store) -> None:
    """Ready while the database answers; never not ready because the Reservation API is down."""
    told = False
    while True:
        try:
            async with asyncio.timeout(2):
                await store.ping()
            await server.set_ready(ready=True)
        except (DatabaseUnavailable, TimeoutError) as error:
            await server.set_ready(ready=False)
            if isinstance(error, DatabaseDamaged) and not told:
                message = "the database is damaged: stop, keep a copy of its files, and restore a backup (see README)"
                log.error(message)  # noqa: TRY400 - how it was found says nothing
                told = True
        except Exception:
            log.exception("whether the database answers could not be found out")
            await server.set_ready(ready=False)
        await asyncio.sleep(0.5)


@dataclass(frozen=True, slots=True)
class Ports:
    """Where a process listens for callers and for operators; 0 where it does not."""

    port: int = 0
    admin_port: int = 0


@asynccontextmanager
async def running(
    settings: Settings, *, serve: bool, reconcile: bool, shares_port: bool = False
) -> AsyncIterator[Ports]:
    """All that one process does: the callers' server, the reconciler, or both, over one store; and the operator's.

    `shares_port` where other processes serve on the callers' port, too.
    """
    async with AsyncExitStack() as stack:
        store = await stack.enter_async_context(running_store(settings))
        limits, timeout, reconciler = _limits(settings), settings.call_timeout, None
        port = admin_port = 0
        if reconcile:
            reconciler = await stack.enter_async_context(running_reconciler(settings, store))
            await stack.enter_async_context(running_housekeeping(settings, store))
        if settings.admin_listen:
            server = admin_server(Operator(store, limits, reconciler), timeout)
            admin_port = await stack.enter_async_context(running_server(server, "admin_listen", settings, store))
        if serve:
            server = cart_server(store, limits, timeout, _admission(settings), shares_port=shares_port)
            port = await stack.enter_async_context(running_server(server, "listen", settings, store))
        yield Ports(port, admin_port)


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
