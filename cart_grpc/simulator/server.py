"""Starts and stops the simulator: its configuration, its sockets, its end."""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import closing, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import grpc
from grpc_health.v1 import health_pb2_grpc

from cart_grpc import setting_types
from cart_grpc.rpc.admission import OpenStreams
from cart_grpc.rpc.deadlines import Deadlines
from cart_grpc.rpc.endpoint import Guards
from cart_grpc.rpc.health import SERVICE as HEALTH
from cart_grpc.rpc.health import Health
from cart_grpc.rpc.methods import HEALTH_AND_REFLECTION
from cart_grpc.rpc.permissions import PERMISSIONS
from cart_grpc.rpc.pipeline import Pipeline
from cart_grpc.rpc.receiving import Receiver
from cart_grpc.rpc.reflection import add_reflection
from cart_grpc.simulator.access import OPEN, Access
from cart_grpc.simulator.faults import Faults
from cart_grpc.simulator.grpc_endpoint import RESERVATION_SERVICE, SIMULATOR_SERVICE, add_services
from cart_grpc.simulator.journal import Journal
from cart_grpc.simulator.simulator import Simulator
from cart_grpc.simulator.stock import Stock

if TYPE_CHECKING:
    from aiohttp import web

_OPTIONS: Final[tuple[tuple[str, int], ...]] = (
    # With SO_REUSEPORT, a second simulator on the same port would get half of the calls.
    ("grpc.so_reuseport", 0),
    # With the default of 1,000 pending calls, gRPC cancels the rest under load.
    ("grpc.server.max_pending_requests", 100_000),
    ("grpc.server.max_pending_requests_hard_limit", 200_000),
    ("grpc.max_receive_message_length", 1 << 20),
)

# Of health checks and reflection. The simulator is no public server.
_TIMEOUT_SECONDS: Final = 10
_MAX_STREAMS: Final = 1_000


@dataclass(frozen=True, slots=True)
class SimulatorConfig:
    """The configuration of a simulator.

    `listen` (gRPC) and `http_listen` are HOST:PORT; port 0 is any free port, and None does not listen. `latency_us`, in
    microseconds, replaces the latency of `faults` unless it is None. A sku in `stock` has that many units; every other
    sku has `default_stock` units, or is unknown if that is None. `seed` repeats the faults of an earlier run. `journal`
    is the file that keeps the memory across restarts; None keeps nothing. `access` says who may call.
    """

    listen: str | None = "127.0.0.1:50052"
    http_listen: str | None = None
    latency_us: int | None = None
    faults: Faults = field(default_factory=Faults)
    default_stock: int | None = 1_000_000
    stock: Mapping[str, int] = field(default_factory=dict)
    seed: int | None = None
    journal: Path | None = None
    access: Access = OPEN


@dataclass(frozen=True, slots=True)
class BoundPorts:
    """The ports on which a simulator listens; None if it does not."""

    grpc: int | None
    http: int | None


class SimulatorServer:
    """Serves one simulator over gRPC and HTTP. Call `start` once and `stop` once."""

    def __init__(self, simulator: Simulator, access: Access = OPEN) -> None:
        self._simulator = simulator
        self._access = access
        self._grpc: grpc.aio.Server | None = None
        self._http: web.AppRunner | None = None
        self._streams = OpenStreams(
            max_open=_MAX_STREAMS,
            max_per_service=_MAX_STREAMS,
            max_per_user=_MAX_STREAMS,
            max_per_connection=_MAX_STREAMS,
        )

    async def start(self, grpc_address: str | None, http_address: str | None) -> BoundPorts:
        """Listen on both addresses: HOST:PORT, or None to not listen.

        Raises ValueError for a malformed address, OSError if an address cannot be used, and FileError.
        """
        try:
            return BoundPorts(
                grpc=await self._start_grpc(grpc_address) if grpc_address is not None else None,
                http=await self._start_http(http_address) if http_address is not None else None,
            )
        except BaseException:
            await self.stop(0)
            raise

    async def stop(self, grace: float) -> None:
        """Refuse new calls, wait up to `grace` seconds for calls in flight, and drop the rest without effect."""
        self._streams.drain()
        stops: list[Awaitable[None]] = [self._simulator.stop(grace)]
        if self._grpc is not None:
            stops.append(self._grpc.stop(grace))
        await asyncio.gather(*stops)
        if self._http is not None:
            await self._http.cleanup()

    async def _start_grpc(self, address: str) -> int:
        check_address(address)
        server = grpc.aio.server(options=_OPTIONS)
        add_services(server, self._simulator, self._access.checker())
        self._add_health_and_reflection(server)
        try:
            if self._access.secure:
                port = server.add_secure_port(address, self._access.to_credentials())
            else:
                port = server.add_insecure_port(address)
        except RuntimeError:
            raise OSError(f"cannot listen on {address}") from None
        await server.start()
        self._grpc = server
        return port

    def _add_health_and_reflection(self, server: grpc.aio.Server) -> None:
        beside: Any = Pipeline(
            server,
            HEALTH_AND_REFLECTION,
            PERMISSIONS,
            Guards(Deadlines(_TIMEOUT_SECONDS), Receiver(_MAX_STREAMS), self._streams),
        )
        health = Health("", RESERVATION_SERVICE, SIMULATOR_SERVICE)
        health.set_all(serving=True)
        health_pb2_grpc.add_HealthServicer_to_server(health, beside)
        add_reflection(beside, (RESERVATION_SERVICE, SIMULATOR_SERVICE, HEALTH))

    async def _start_http(self, address: str) -> int:
        # cli.py imports this module for every command, and aiohttp is slow to import.
        from aiohttp import web  # noqa: PLC0415

        from cart_grpc.simulator.http_endpoint import make_app  # noqa: PLC0415

        host, port = check_address(address)
        self._http = web.AppRunner(
            make_app(self._simulator, self._access.checker()), access_log=None, shutdown_timeout=1
        )
        await self._http.setup()
        context = self._access.to_context() if self._access.secure else None
        await web.TCPSite(self._http, host, port, backlog=4096, reuse_port=False, ssl_context=context).start()
        bound: Any = self._http.addresses[0]
        return int(bound[1])


def check_address(address: str) -> tuple[str, int]:
    """Return the host and the port of HOST:PORT. Raises ValueError with the correct form."""
    try:
        host, _, port = setting_types.check_address(address).rpartition(":")
    except ValueError as error:
        raise ValueError(f"the address {error}") from None
    return host.removeprefix("[").removesuffix("]"), int(port)


def make_simulator(
    config: SimulatorConfig,
    journal: Journal | None = None,
    *,
    clock: Callable[[], int] = lambda: time.time_ns() // 1000,
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
) -> Simulator:
    """Return the simulator that `config` describes, with the memory of `journal`. The caller closes `journal`.

    `clock` returns microseconds; `sleep` takes seconds.
    """
    if journal is None:
        stock = Stock(config.stock, default_total=config.default_stock)
    else:
        stock = Stock(config.stock, default_total=config.default_stock, entries=journal.entries, log=journal.write)
    faults = config.faults if config.latency_us is None else replace(config.faults, latency_us=config.latency_us)
    return Simulator(stock, faults=faults, numbers=random.Random(config.seed), clock=clock, sleep=sleep)  # noqa: S311


async def serve_simulator(
    config: SimulatorConfig,
    stopped: asyncio.Event,
    *,
    started: Callable[[BoundPorts], None] = lambda _ports: None,
    grace: float = 1.0,
) -> None:
    """Run the simulator that `config` describes until `stopped` is set. Calls `started` with its ports.

    Raises ValueError for a malformed address or journal, OSError if an address or the journal cannot be used, and
    FileError.
    """
    opened = Journal(config.journal) if config.journal is not None else None
    with closing(opened) if opened is not None else nullcontext():
        server = SimulatorServer(make_simulator(config, opened), config.access)
        started(await server.start(config.listen, config.http_listen))
        try:
            await stopped.wait()
        finally:
            await server.stop(grace)
