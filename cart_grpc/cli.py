"""The door: `cart-grpc serve | reconcile | migrate | simulate | dev | config | health`."""

import argparse
import asyncio
import logging
import signal
import sys
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, NoReturn

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from sqlalchemy import make_url

from cart_grpc import app, settings
from cart_grpc.app import StartupError
from cart_grpc.durations import to_microseconds
from cart_grpc.reservations.simulator.faults import Faults
from cart_grpc.reservations.simulator.server import BoundPorts, SimulatorConfig, serve_simulator
from cart_grpc.settings import Settings, SettingsError

PROBABILITIES = (
    "slow",
    "lost_before_effect",
    "lost_after_effect",
    "duplicated",
    "refused",
    "out_of_stock",
    "garbage",
    "throttled",
)


def main(arguments: list[str] | None = None) -> int:
    """Run one command. Returns the exit status: 0, 1 (not healthy) or 2 (wrong use, settings or surroundings)."""
    parsed = _parser().parse_args(arguments)
    try:
        configured = settings.load()
        logging.basicConfig(
            level=configured.log_level, stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s %(message)s"
        )
        if configured.log_level != "DEBUG":
            logging.getLogger("alembic").setLevel(logging.WARNING)
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
    add("reconcile", _reconcile, "reconcile reservations only (PostgreSQL)")
    add("migrate", _migrate, "bring the database to the schema of this release")
    _add_simulator_options(add("simulate", _simulate, "run a simulated Reservation API"), "127.0.0.1:50061", "1s")
    dev = add("dev", _dev, "serve, reconcile and simulate in one process, to try things")
    _add_simulator_options(dev, "127.0.0.1:50061", "3s")
    add("config", _config, "show the settings in force, passwords hidden")
    health = add("health", _health, "ask a server whether it is ready; exit 0 if so, 1 if not")
    health.add_argument("address", nargs="?", help="HOST:PORT; CART_LISTEN if left out")
    return parser


def _add_simulator_options(command: argparse.ArgumentParser, listen: str, latency: str) -> None:
    command.add_argument(
        "--simulator-listen" if command.prog.endswith("dev") else "--listen",
        dest="listen",
        default=listen,
        metavar="HOST:PORT",
        help="gRPC (default: %(default)s)",
    )
    command.add_argument("--http-listen", default=None, metavar="HOST:PORT", help="HTTP (default: the next port)")
    command.add_argument("--latency", default=latency, metavar="TIME", help="how long a call takes, as 30s or 200ms")
    command.add_argument("--stock", action="append", default=[], metavar="SKU=N", help="how much there is of a sku")
    command.add_argument("--default-stock", type=int, default=1_000_000, metavar="N", help="and of any other")
    command.add_argument("--seed", type=int, default=None, metavar="N", help="repeat the faults of an earlier run")
    command.add_argument("--journal", type=Path, default=None, metavar="FILE", help="remember across restarts")
    command.add_argument("--down", action="store_true", help="fail every call")
    command.add_argument("--slow-latency", default="30s", metavar="TIME", help="how long a slow call takes")
    command.add_argument("--duplicate-delay", default="1s", metavar="TIME", help="how much later a duplicate arrives")
    for name in PROBABILITIES:
        option = f"--{name.replace('_', '-')}"
        command.add_argument(option, type=float, default=0.0, metavar="P", help="probability of this fault, 0 to 1")


def _serve(configured: Settings, parsed: argparse.Namespace) -> int:
    if parsed.no_reconciler and configured.is_embedded:
        raise StartupError("--no-reconciler needs PostgreSQL: a SQLite file has room for one process")
    return _run(_serving(configured, reconcile=not parsed.no_reconciler))


def _reconcile(configured: Settings, _: argparse.Namespace) -> int:
    if configured.is_embedded:
        raise StartupError("reconcile needs PostgreSQL: on SQLite, `cart-grpc serve` reconciles by itself")
    return _run(_reconciling(configured))


def _migrate(configured: Settings, _: argparse.Namespace) -> int:
    async def work() -> None:
        async with app.open_engine(configured) as engine:
            before, after = await app.migrate_database(engine)
        done = "is at schema" if before == after else f"was at schema {before or '(none)'} and is now at"
        print(f"the database {done} {after}")

    return _run(work())


def _simulate(_: Settings, parsed: argparse.Namespace) -> int:
    async def work() -> None:
        await _simulating(_simulator_config(parsed), _stop_signal())

    return _run(work())


def _dev(configured: Settings, parsed: argparse.Namespace) -> int:
    if parsed.journal is None and configured.is_embedded:
        # The carts outlive the process, so what was reserved for them must, too.
        parsed.journal = Path(f"{make_url(configured.database_url).database}.simulator.jsonl")
    config = _simulator_config(parsed)

    async def work() -> None:
        stopped = _stop_signal()
        simulating = asyncio.create_task(_simulating(config, stopped))
        serving = asyncio.create_task(_serving(developed, reconcile=True, stopped=stopped, welcome=True))
        done, _ = await asyncio.wait((simulating, serving), return_when=asyncio.FIRST_EXCEPTION)
        stopped.set()
        await asyncio.gather(simulating, serving)

    developed = configured.with_changes(reservation_url=f"grpc://{config.listen}")
    return _run(work())


def _config(configured: Settings, _: argparse.Namespace) -> int:
    for name, value in configured.shown().items():
        field = Settings.model_fields[name.removeprefix(settings.PREFIX).lower()]
        print(f"{f'{name}={value}':<60} # {field.description}")
    return 0


def _health(configured: Settings, parsed: argparse.Namespace) -> int:
    host, _, port = (parsed.address or configured.listen).rpartition(":")
    # What is listened on everywhere is asked here.
    address = f"{'127.0.0.1' if host in ('0.0.0.0', '[::]') else host}:{port}"  # noqa: S104
    with grpc.insecure_channel(address) as channel:
        request = health_pb2.HealthCheckRequest(service="cart.v1.CartService")
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
    stopped = stopped or _stop_signal()
    async with app.running(configured, serve=True, reconcile=reconcile) as server:
        if server is not None:
            host = configured.listen.rpartition(":")[0]
            print(f"cart-grpc listens on {host}:{server.port}", flush=True)
            if welcome:
                print(_WELCOME.format(address=f"{host}:{server.port}"), flush=True)
        await stopped.wait()


async def _reconciling(configured: Settings) -> None:
    stopped = _stop_signal()
    async with app.running(configured, serve=False, reconcile=True):
        print("cart-grpc reconciles", flush=True)
        await stopped.wait()


async def _simulating(config: SimulatorConfig, stopped: asyncio.Event) -> None:
    def started(ports: BoundPorts) -> None:
        host = str(config.listen).rpartition(":")[0]
        print(f"the simulator listens on grpc://{host}:{ports.grpc} and http://{host}:{ports.http}", flush=True)

    try:
        await serve_simulator(config, stopped, started=started)
    except (OSError, ValueError) as error:
        raise StartupError(f"the simulator cannot start: {error}") from None


def _simulator_config(parsed: argparse.Namespace) -> SimulatorConfig:
    try:
        settings.check_address(parsed.listen)
        host, _, port = parsed.listen.rpartition(":")
        http_port = int(port) + 1 if int(port) else 0
        faults = Faults(
            latency=to_microseconds(parsed.latency),
            slow_latency=to_microseconds(parsed.slow_latency),
            duplicate_delay=to_microseconds(parsed.duplicate_delay),
            down=parsed.down,
            **{name: getattr(parsed, name) for name in PROBABILITIES},
        )
        return SimulatorConfig(
            listen=parsed.listen,
            http_listen=parsed.http_listen or f"{host}:{http_port}",
            faults=faults,
            default_stock=parsed.default_stock,
            stock=dict(map(_stock_of, parsed.stock)),
            seed=parsed.seed,
            journal=parsed.journal,
        )
    except ValueError as error:
        raise StartupError(f"the simulator cannot start: {error}") from None


def _stock_of(text: str) -> tuple[str, int]:
    sku, _, quantity = text.rpartition("=")
    if not sku or not quantity.isdigit():
        raise ValueError(f"--stock {text!r} should be SKU=N")
    return sku, int(quantity)


def _stop_signal() -> asyncio.Event:
    """An event that is set by SIGTERM or Ctrl-C; a second one ends the process at once."""
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()

    def stop() -> None:
        stopped.set()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)
            signal.signal(number, signal.SIG_DFL)

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop)
    return stopped


def _run(work: Coroutine[Any, Any, None]) -> int:
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        runner.run(work)
    return 0


def _loop_factory() -> Any:
    try:
        import uvloop  # noqa: PLC0415 - not there on Windows
    except ImportError:
        return None
    return uvloop.new_event_loop


_WELCOME = """
Try it, in another terminal:

  grpcurl -plaintext -d '{{"parent":"users/alice/carts/default","item":{{"sku":"espresso-beans","quantity":2}}}}' \\
    {address} cart.v1.CartService/AddItem
  grpcurl -plaintext -d '{{"name":"users/alice/carts/default"}}' {address} cart.v1.CartService/GetCart
  grpcurl -plaintext -d '{{"parent":"users/alice"}}' {address} cart.v1.CartService/ListCarts

or, without grpcurl, with the buf that `make setup` has brought:

  .venv/bin/buf curl --protocol grpc --http2-prior-knowledge \\
    -d '{{"parent":"users/alice/carts/default","item":{{"sku":"espresso-beans","quantity":2}}}}' \\
    http://{address}/cart.v1.CartService/AddItem
  .venv/bin/buf curl --protocol grpc --http2-prior-knowledge \\
    -d '{{"name":"users/alice/carts/default"}}' http://{address}/cart.v1.CartService/GetCart
  .venv/bin/buf curl --protocol grpc --http2-prior-knowledge \\
    -d '{{"parent":"users/alice"}}' http://{address}/cart.v1.CartService/ListCarts

Ctrl-C stops it."""


def _exit() -> NoReturn:
    sys.exit(main())


if __name__ == "__main__":
    _exit()
