"""The one place where everything is wired, started and stopped. Real time and real ids enter here.

Read it top to bottom: `running` starts the parts of a process in order, and the parts stand below it in that order.
"""

import asyncio
import random
import time
from collections.abc import AsyncIterator, Collection, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import asdict, dataclass
from importlib.metadata import version
from typing import Any, Literal, TypeAlias

import grpc
import uuid_utils
from sqlalchemy.exc import SQLAlchemyError

from cart_grpc import database_setup, otel, parts
from cart_grpc.background.clock_watcher import ClockWatcher
from cart_grpc.background.pause_watcher import PauseWatcher
from cart_grpc.background.readiness import ReadinessWatcher
from cart_grpc.background.reconciler import Reconciler
from cart_grpc.background.sampling import DatabaseSampler, Sampled, Sampler
from cart_grpc.background.sweeper import Sweeper
from cart_grpc.database_setup import show_unusable, unusable
from cart_grpc.exposure import SHARED, Port, find_ports, find_risks
from cart_grpc.logs import events, output
from cart_grpc.logs.log import Log
from cart_grpc.metrics import BUILD_INFO, READY
from cart_grpc.process import running_task
from cart_grpc.reservation_api import transports
from cart_grpc.reservation_api.api import ReservationApi
from cart_grpc.reservation_api.traced_api import TracedApi
from cart_grpc.rpc.endpoint import Observers
from cart_grpc.rpc.server import Server
from cart_grpc.servers import make_servers, open_identities
from cart_grpc.settings import Settings, find_file, variable_of
from cart_grpc.startup import NotYet, StartupError
from cart_grpc.store.engine import Engine, connect
from cart_grpc.store.failure_log import FailureLog
from cart_grpc.store.revisions import LATEST
from cart_grpc.store.store import Store
from cart_grpc.telemetry.publishing import measures, publishing, tolerate
from cart_grpc.tls.reloaded_files import FileError
from cart_grpc.tracing import Tracer
from cart_grpc.units import to_us

log = Log(__name__)
# The reconciler's calls take up to two minutes, so a stop does not wait for all of them: at most this long.
MAX_RECONCILER_GRACE_SECONDS = 1.0
# The pauses between attempts to open a database that is away double from the first value to the last.
FIRST_RETRY_SECONDS = 0.1
MAX_RETRY_SECONDS = 2.0
# Whether a process is alone, or the first of several workers, or another one.
Sharing: TypeAlias = Literal["", "first", "other"]


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
    """The ports that a process listens on: for callers, operators, services, health checks and metrics. 0: none."""

    port: int = 0
    admin_port: int = 0
    service_port: int = 0
    health_port: int = 0
    metrics_port: int = 0


@asynccontextmanager
async def running(
    settings: Settings,
    *,
    serve: bool,
    reconcile: bool,
    sharing: Sharing = "",
    stopped: asyncio.Event | None = None,
) -> AsyncIterator[Ports]:
    """Run one process: the servers, the store, then the loops, as far as configured.

    The servers listen at once, but they refuse calls and are not ready until the store is open. The block begins then,
    or when `stopped` is set while the process still waits for its database. With `sharing`, other processes serve on
    the same ports, and only the first one serves operators. On exit the servers drain, then the parts stop in reverse
    order. Raises StartupError.
    """
    ports = [port for port in find_ports(settings, serve=serve) if sharing != "other" or port.setting in SHARED]
    for risk in find_risks(ports):
        log(events.SETTING_RISKY, "%s", risk)
    measured = measures(settings)
    BUILD_INFO.labels(version("cart-grpc"), LATEST).set(1)
    async with AsyncExitStack() as stack:
        # The parent of workers publishes their metrics.
        metrics_port = 0 if sharing else stack.enter_context(publishing(settings))
        # Before all parts that make spans, so that the last spans are exported when these parts have stopped.
        tracer = await stack.enter_async_context(running_traces(settings))
        await stack.enter_async_context(running_task(output.keep_reporting(), "suppressed-lines"))
        identities = await stack.enter_async_context(open_identities(settings, ports))
        engine = await stack.enter_async_context(open_engine(settings))
        store = await stack.enter_async_context(_closing_store(settings, engine, tracer))
        clock_watcher = ClockWatcher(store.clock(monotonic_us, parts.reconciler_config(settings).longest_attempt_us))
        reconciler = None
        if reconcile:
            reconciler = await stack.enter_async_context(_idle_reconciler(settings, store, clock_watcher, tracer))
        # Entered before the servers, so that the loops stop after them.
        loops = await stack.enter_async_context(AsyncExitStack())
        servers = make_servers(
            settings,
            ports,
            identities,
            store,
            reconciler,
            shares_ports=bool(sharing),
            observers=Observers(tracer, measured, parts.call_log(settings)),
        )
        if measured:
            sampled: list[Sampled] = [*servers.values(), store, *([reconciler] if reconciler else [])]
            await stack.enter_async_context(running_task(Sampler(sampled).run(), "sampler"))
        for port, server in servers.items():
            await stack.enter_async_context(running_server(server, port, identities.credentials(port), settings))
        opening = _open_with_retries(settings, engine, store, clock_watcher)
        if is_open := await _ended_before(stopped or asyncio.Event(), opening):
            samples_database = measured and sharing != "other"
            running_loops = _running_loops(
                settings, store, clock_watcher, reconciler, samples_database=samples_database
            )
            await loops.enter_async_context(running_loops)
            for server in servers.values():
                await server.open()
        bound = {port.setting.replace("listen", "port"): server.port for port, server in servers.items()}
        listening = Ports(**bound, metrics_port=metrics_port)
        async with AsyncExitStack() as watching:
            if is_open:
                _log_start(listening, store.name)
                set_ready = [server.set_ready for server in servers.values()]
                watcher = ReadinessWatcher(store.ping, set_ready, store.find_failing)
                await watching.enter_async_context(running_task(watcher.run(), "readiness"))
            yield listening
        await drain(servers.values(), settings, lame_duck=settings.lame_duck if serve and is_open else 0.0)


@asynccontextmanager
async def _running_loops(
    settings: Settings,
    store: Store,
    clock_watcher: ClockWatcher,
    reconciler: Reconciler | None,
    *,
    samples_database: bool,
) -> AsyncIterator[None]:
    """Run the loops that need an open store."""
    async with AsyncExitStack() as loops:
        await loops.enter_async_context(running_task(clock_watcher.run(), "clock-watcher"))
        if reconciler:
            await loops.enter_async_context(running_reconciler(settings, reconciler))
            await loops.enter_async_context(running_sweeper(settings, store))
            pause_watcher = PauseWatcher(store.operator_reads.find_pause)
            await loops.enter_async_context(running_task(pause_watcher.run(), "pause-watcher"))
        if samples_database:
            sampler = DatabaseSampler(store.backlog_gauges.sample)
            await loops.enter_async_context(running_task(sampler.run(), "database-sampler"))
        yield


def _log_start(ports: Ports, database: str) -> None:
    release, schema = version("cart-grpc"), LATEST
    open_ports: dict[str, Any] = {name: number for name, number in asdict(ports).items() if number}
    text = "cart-grpc %s has started with the database %s at schema %s"
    log(
        events.STARTED, text, release, database, schema, version=release, database=database, schema=schema, **open_ports
    )


async def drain(servers: Collection[Server], settings: Settings, *, lame_duck: float) -> None:
    """Stop the servers without failing a call: callers first have `lame_duck` seconds to see that they should leave."""
    READY.set(0)
    for server in servers:
        server.announce_stop()
    await asyncio.sleep(lame_duck)
    cut_off = sum(await asyncio.gather(*(server.stop(settings.shutdown_grace) for server in servers)))
    if servers:
        log(events.DRAINED, "the servers have stopped; %d calls were cut off", cut_off, cut_off=cut_off)


@asynccontextmanager
async def running_traces(settings: Settings) -> AsyncIterator[Tracer | None]:
    """Return the tracer, None if the environment does not ask for traces. Raises StartupError."""
    async with AsyncExitStack() as stack:
        tracer = None
        try:
            if otel.is_exported("traces"):
                # Imported here: it takes time and memory, and few processes of the tests and of a trial need it.
                from cart_grpc.telemetry.span_export import exporting  # noqa: PLC0415

                reservation_url = settings.reservation_url.get_secret_value()
                tracer = await stack.enter_async_context(exporting(reservation_url))
        except (otel.OtelError, StartupError) as error:
            tolerate(settings, error)
        yield tracer


@asynccontextmanager
async def running_store(settings: Settings) -> AsyncIterator[Store]:
    """Open a store by itself. Raises StartupError."""
    async with open_engine(settings) as engine, _closing_store(settings, engine) as store:
        await open_store(settings, engine, store)
        yield store


@asynccontextmanager
async def _closing_store(settings: Settings, engine: Engine, tracer: Tracer | None = None) -> AsyncIterator[Store]:
    """Return a store that is not open yet. On exit it closes."""
    retention_us = to_us(settings.marker_retention)
    store = Store(engine, new_id, queue_size=settings.write_queue_size, marker_retention_us=retention_us, tracer=tracer)
    try:
        yield store
    finally:
        await store.close()


@asynccontextmanager
async def _idle_reconciler(
    settings: Settings, store: Store, clock_watcher: ClockWatcher, tracer: Tracer | None
) -> AsyncIterator[Reconciler]:
    """Return a reconciler that does not run yet. Raises StartupError if a file for the Reservation API is unusable."""
    try:
        api: ReservationApi = transports.connect(
            settings.reservation_url.get_secret_value(), parts.reservation_files(settings)
        )
    except (FileError, ValueError) as error:
        raise StartupError(str(error)) from None
    if tracer:
        api = TracedApi(api, tracer)
    try:
        yield Reconciler(store, api, parts.reconciler_config(settings), monotonic_us, clock_watcher.run_once)
    finally:
        await api.close()


async def _ended_before(stopped: asyncio.Event, work: Coroutine[Any, Any, None]) -> bool:
    """Do `work`, but cancel it if `stopped` is set first. Return whether it ended. Raises what `work` raises."""
    working, stopping = asyncio.create_task(work), asyncio.create_task(stopped.wait())
    try:
        await asyncio.wait((working, stopping), return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            working.result()
        return working.done()
    finally:
        working.cancel()
        stopping.cancel()
        await asyncio.gather(working, stopping, return_exceptions=True)


async def _open_with_retries(settings: Settings, engine: Engine, store: Store, clock_watcher: ClockWatcher) -> None:
    """Open the store as soon as its database is there. Raises StartupError if it cannot be used."""
    failures = FailureLog(
        events.DATABASE_AWAITED,
        events.DATABASE_FOUND,
        f"waiting for the database {engine.name}",
        "the database is there",
        quiet_seconds=0,
    )
    pause = FIRST_RETRY_SECONDS
    while True:
        try:
            await open_store(settings, engine, store, clock_watcher)
        except NotYet as error:
            failures.note_failure(error.__cause__ or error)
        else:
            failures.note_success()
            return
        # Jitter: replicas that wait for one database should not come all at once.
        await asyncio.sleep(pause * random.uniform(0.8, 1.2))  # noqa: S311 - jitter
        pause = min(2 * pause, MAX_RETRY_SECONDS)


async def open_store(
    settings: Settings, engine: Engine, store: Store, clock_watcher: ClockWatcher | None = None
) -> None:
    """Open the store for reading and writing. Migrates a SQLite file first. Raises StartupError.

    With `clock_watcher`, the stored times are moved if the database's clock was set back before.
    """
    if settings.is_embedded:
        await database_setup.upgrade(engine)
    await database_setup.check(engine)
    try:
        await store.start()
        await store.ping()
        if clock_watcher:
            await clock_watcher.run_once()
        # Last, so that it is logged once, however often the process has to try.
        await database_setup.warn_of_risks(engine)
    except Exception as error:
        raise unusable(engine, error) from error


@asynccontextmanager
async def running_reconciler(settings: Settings, reconciler: Reconciler) -> AsyncIterator[None]:
    """Run the reconciler. On exit its calls get a short grace, and it hands back the claims of unfinished calls."""
    running = asyncio.create_task(reconciler.run(), name="reconciler")
    try:
        yield
    finally:
        await reconciler.stop(to_us(min(MAX_RECONCILER_GRACE_SECONDS, settings.shutdown_grace)))
        await running


@asynccontextmanager
async def running_sweeper(settings: Settings, store: Store) -> AsyncIterator[None]:
    """Run the sweeper. Cancelling it is safe: the store finishes a commit that has begun."""
    sweeper = Sweeper(store, parts.retention(settings), to_us(settings.housekeeping_interval))
    async with running_task(sweeper.run(), "sweeper"):
        yield


@asynccontextmanager
async def running_server(
    server: Server, port: Port, credentials: grpc.ServerCredentials | None, settings: Settings
) -> AsyncIterator[None]:
    """Run a gRPC server on a port. On exit it drains. Raises StartupError if it cannot listen."""
    try:
        await server.start(port.address, credentials)
    except OSError as error:
        raise StartupError(f"{variable_of(port.setting)}: {error}") from None
    try:
        yield
    finally:
        await server.stop(settings.shutdown_grace)


@asynccontextmanager
async def open_engine(settings: Settings) -> AsyncIterator[Engine]:
    """Connect to the database. A SQLite file is locked against other processes. Raises StartupError."""
    try:
        password = find_file(settings, "database_password_file")
        engine = connect(
            settings.database_url.get_secret_value(), clock, password, shard_count=settings.database_shards
        )
    except FileError as error:
        raise StartupError(str(error)) from None
    except OSError as error:
        raise StartupError(f"CART_DATABASE_URL: {error.filename} cannot be used: {error.strerror}") from None
    except (TypeError, ValueError, SQLAlchemyError) as error:
        raise StartupError(show_unusable(settings.shown()["CART_DATABASE_URL"], error)) from error
    try:
        yield engine
    finally:
        await engine.close()
