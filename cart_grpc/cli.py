"""The door: `cart-grpc serve | reconcile | migrate | simulate | probe | dev | config | health | reservations`."""

import argparse
import asyncio
import logging
import sys
from pathlib import Path
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from sqlalchemy import make_url

from cart_grpc import admin_cli, app, process, settings, workers
from cart_grpc.app import StartupError
from cart_grpc.probe import options as probe_options
from cart_grpc.probe import probe
from cart_grpc.probe.findings import NobodyThere
from cart_grpc.reservation_api import transports
from cart_grpc.settings import Settings, SettingsError
from cart_grpc.simulator import options
from cart_grpc.simulator.server import BoundPorts, SimulatorConfig, serve_simulator

log = logging.getLogger(__name__)


def main(arguments: list[str] | None = None) -> int:
    """Run one command. Returns the exit status: 0, 1 (not healthy, not kept) or 2 (wrong use or surroundings)."""
    parsed = _parser().parse_args(arguments)
    try:
        configured = settings.load()
        process.start_log(configured.log_level)
        status: int = parsed.command(configured, parsed)
    except (SettingsError, StartupError) as error:
        print(f"cart-grpc: {error}", file=sys.stderr)
        return 2
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="cart-grpc",
        description="A shopping cart over gRPC that reserves what is put into it. Settings: see `cart-grpc config`.",
    )
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    def add(name: str, function: Any, description: str) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=description, description=description)
        command.set_defaults(command=function)
        return command

    serve = add("serve", _serve, "serve carts, and reconcile their reservations")
    serve.add_argument("--no-reconciler", action="store_true", help="leave that to `cart-grpc reconcile` (PostgreSQL)")
    serve.add_argument(
        "--workers", type=_count, default=1, metavar="N", help="share the port among N processes (PostgreSQL, Linux)"
    )
    add("reconcile", _reconcile, "reconcile reservations only (PostgreSQL)")
    add("migrate", _migrate, "bring the database to the schema of this release")
    simulate = add("simulate", _simulate, "run a simulated Reservation API")
    options.add_options(simulate, listen_option="--listen", latency="1s")
    probing = add("probe", _probe, "find out which rules a Reservation API keeps; exit 0 if all, 1 if not")
    probing.add_argument(
        "url", nargs="?", help="grpc://HOST:PORT, http://…, basic+http://…; CART_RESERVATION_URL if left out"
    )
    probe_options.add_options(probing)
    dev = add("dev", _dev, "serve, reconcile and simulate in one process, to try things")
    options.add_options(dev, listen_option="--simulator-listen", latency="3s")
    add("config", _config, "show the settings in force, passwords hidden")
    health = add("health", _health, "ask a server whether it is ready; exit 0 if so, 1 if not")
    health.add_argument("address", nargs="?", help="HOST:PORT; CART_LISTEN if left out")
    admin_cli.add_commands(add("reservations", None, "see what is stuck at the Reservation API, and end it"))
    return parser


def _serve(configured: Settings, parsed: argparse.Namespace) -> int:
    if parsed.no_reconciler and configured.is_embedded:
        raise StartupError("--no-reconciler needs PostgreSQL: a SQLite file has room for one process")
    if parsed.workers == 1:
        return process.run(_serving(configured, reconcile=not parsed.no_reconciler))
    if configured.is_embedded:
        raise StartupError("--workers needs PostgreSQL: a SQLite file has room for one process")
    if sys.platform != "linux":
        raise StartupError("--workers needs Linux: elsewhere a port that is shared goes to one of those who share it")
    return process.run(_serving_with_workers(configured, parsed.workers, reconcile=not parsed.no_reconciler))


def _count(text: str) -> int:
    count = int(text)
    if not 1 <= count <= 256:
        raise argparse.ArgumentTypeError("should be 1 to 256")
    return count


def _reconcile(configured: Settings, _: argparse.Namespace) -> int:
    if configured.is_embedded:
        raise StartupError("reconcile needs PostgreSQL: on SQLite, `cart-grpc serve` reconciles by itself")
    return process.run(_reconciling(configured))


def _migrate(configured: Settings, _: argparse.Namespace) -> int:
    async def work() -> None:
        async with app.open_engine(configured) as engine:
            before, after = await app.migrate_database(engine)
        done = "is at schema" if before == after else f"was at schema {before or '(none)'} and is now at"
        print(f"the database {done} {after}")

    return process.run(work())


def _simulate(_: Settings, parsed: argparse.Namespace) -> int:
    async def work() -> None:
        await _simulating(_simulator_config(parsed), process.stop_signal())

    return process.run(work())


def _probe(configured: Settings, parsed: argparse.Namespace) -> int:
    async def work() -> int:
        try:
            config, url = (
                probe_options.to_config(parsed),
                transports.check_url(parsed.url or configured.reservation_url),
            )
        except ValueError as error:
            raise StartupError(f"the probe cannot start: {error}") from None
        greeting = f"probing {url}; Ctrl-C ends it early, and everything is given back\n"
        try:
            async with probe.connect(url, config, clock=app.clock, new_id=app.new_id) as probing:
                report = await probing.run(process.stop_signal(), greeted=lambda: print(greeting, flush=True))
        except NobodyThere as error:
            raise StartupError(f"no Reservation API answers at {url}: {error}") from None
        print(report)
        return 0 if report.kept else 1

    return process.run(work())


def _dev(configured: Settings, parsed: argparse.Namespace) -> int:
    if parsed.journal is None and configured.is_embedded:
        # The carts outlive the process, so what was reserved for them must, too.
        parsed.journal = Path(f"{make_url(configured.database_url).database}.simulator.jsonl")
    config = _simulator_config(parsed)

    async def work() -> None:
        stopped, served = process.stop_signal(), asyncio.Event()
        started: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        simulating = asyncio.create_task(_simulating(config, served, started))
        await asyncio.wait((simulating, started), return_when=asyncio.FIRST_COMPLETED)
        if not simulating.done():
            host, _, port = configured.listen.rpartition(":")
            after = f"{host}:{(int(port) + 1) % 65536 if int(port) else 0}"
            developed = configured.with_changes(
                reservation_url=f"grpc://{await started}", admin_listen=configured.admin_listen or after
            )
            try:
                await _serving(developed, reconcile=True, stopped=stopped, welcome=True)
            finally:
                # Last: what the server still has to say should find somebody.
                served.set()
                await simulating
        await simulating

    return process.run(work())


def _config(configured: Settings, _: argparse.Namespace) -> int:
    for name, value in configured.shown().items():
        field = Settings.model_fields[name.removeprefix(settings.PREFIX).lower()]
        print(f"{f'{name}={value}':<60} # {field.description}")
    return 0


def _health(configured: Settings, parsed: argparse.Namespace) -> int:
    try:
        settings.check_address(parsed.address or configured.listen)
    except ValueError as error:
        raise StartupError(f"{parsed.address!r} {error}") from None
    host, _, port = (parsed.address or configured.listen).rpartition(":")
    # What is listened on everywhere is asked here.
    address = f"{'127.0.0.1' if host in ('0.0.0.0', '[::]') else host}:{port}"  # noqa: S104
    with grpc.insecure_channel(address) as channel:
        request = health_pb2.HealthCheckRequest(service="cartgrpc.v1.CartService")
        try:
            answer = health_pb2_grpc.HealthStub(channel).Check(request, timeout=3)  # type: ignore[attr-defined]
        except grpc.RpcError as error:
            print(f"cart-grpc: {address} does not answer: {error.code().name}", file=sys.stderr)
            return 1
    status = health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status)
    print(status)
    return 0 if status == "SERVING" else 1


async def _serving(
    configured: Settings, *, reconcile: bool, stopped: asyncio.Event | None = None, welcome: bool = False
) -> None:
    stopped = stopped or process.stop_signal()
    async with app.running(configured, serve=True, reconcile=reconcile) as ports:
        address, admin_address = _tell_addresses(configured, ports)
        if welcome:
            print(_WELCOME.format(address=address, admin_address=admin_address), flush=True)
        await stopped.wait()
        log.info("stopping: calls under way may go on for %g s", configured.shutdown_grace)
    log.info("stopped")


async def _serving_with_workers(configured: Settings, count: int, *, reconcile: bool) -> None:
    def started(ports: app.Ports) -> None:
        _tell_addresses(configured, ports)

    await workers.serve(configured, count, process.stop_signal(), reconcile=reconcile, started=started)


def _tell_addresses(configured: Settings, ports: app.Ports) -> tuple[str, str]:
    address = f"{configured.listen.rpartition(':')[0]}:{ports.port}"
    print(f"cart-grpc listens on {address}", flush=True)
    return address, _tell_admin_address(configured, ports)


def _tell_admin_address(configured: Settings, ports: app.Ports) -> str:
    address = f"{configured.admin_listen.rpartition(':')[0]}:{ports.admin_port}"
    if ports.admin_port:
        print(f"operators are listened to on {address}", flush=True)
    return address


async def _reconciling(configured: Settings) -> None:
    stopped = process.stop_signal()
    async with app.running(configured, serve=False, reconcile=True) as ports:
        print("cart-grpc reconciles", flush=True)
        _tell_admin_address(configured, ports)
        await stopped.wait()


async def _simulating(
    config: SimulatorConfig, stopped: asyncio.Event, listening: "asyncio.Future[str] | None" = None
) -> None:
    """Simulate until `stopped`; `listening` is told the gRPC address."""

    def started(ports: BoundPorts) -> None:
        host = str(config.listen).rpartition(":")[0]
        print(f"the simulator listens on grpc://{host}:{ports.grpc} and http://{host}:{ports.http}", flush=True)
        if listening is not None:
            listening.set_result(f"{host}:{ports.grpc}")

    try:
        await serve_simulator(config, stopped, started=started)
    except OSError as error:
        reason = f"{error.filename}: {error.strerror}" if error.filename else error.strerror or str(error)
        raise StartupError(f"the simulator cannot start: {reason}") from None
    except ValueError as error:
        raise StartupError(f"the simulator cannot start: {error}") from None


def _simulator_config(parsed: argparse.Namespace) -> SimulatorConfig:
    try:
        return options.to_config(parsed)
    except ValueError as error:
        raise StartupError(f"the simulator cannot start: {error}") from None


_WELCOME = """
Try it, in another terminal:

  grpcurl -plaintext -d '{{"parent":"users/alice/carts/default","item":{{"sku":"espresso-beans","quantity":2}}}}' \\
    {address} cartgrpc.v1.CartService/AddItem
  grpcurl -plaintext -d '{{"name":"users/alice/carts/default"}}' {address} cartgrpc.v1.CartService/GetCart
  grpcurl -plaintext -d '{{"parent":"users/alice"}}' {address} cartgrpc.v1.CartService/ListCarts

or, without grpcurl, with the buf that `make setup` has brought:

  .venv/bin/buf curl --protocol grpc --http2-prior-knowledge \\
    -d '{{"parent":"users/alice/carts/default","item":{{"sku":"espresso-beans","quantity":2}}}}' \\
    http://{address}/cartgrpc.v1.CartService/AddItem
  .venv/bin/buf curl --protocol grpc --http2-prior-knowledge \\
    -d '{{"name":"users/alice/carts/default"}}' http://{address}/cartgrpc.v1.CartService/GetCart
  .venv/bin/buf curl --protocol grpc --http2-prior-knowledge \\
    -d '{{"parent":"users/alice"}}' http://{address}/cartgrpc.v1.CartService/ListCarts

What waits for the Reservation API, as its operator sees it:

  .venv/bin/cart-grpc reservations stats --address {admin_address}

Ctrl-C stops it."""


if __name__ == "__main__":
    sys.exit(main())
