"""The subcommands that need the simulator or the probe: simulate, probe, dev."""

import argparse
import asyncio
from pathlib import Path

from pydantic import SecretStr
from sqlalchemy import make_url

from cart_grpc import app, parts, process
from cart_grpc.cli import server
from cart_grpc.exposure import is_local
from cart_grpc.probe import options as probe_options
from cart_grpc.probe import probe as probing
from cart_grpc.probe.findings import Unreachable
from cart_grpc.reservation_api import transports
from cart_grpc.settings import Settings
from cart_grpc.simulator import options as simulator_options
from cart_grpc.simulator.server import BoundPorts, SimulatorConfig, serve_simulator
from cart_grpc.startup import StartupError
from cart_grpc.terminal import say
from cart_grpc.tls.reloaded_files import FileError


def simulate(_: Settings, arguments: argparse.Namespace) -> int:
    """Run the simulator until SIGTERM or Ctrl-C."""
    config = _simulator_config(arguments)

    async def work() -> None:
        await _simulate_until(process.stop_signal(), config)

    return process.run(work())


def probe(settings: Settings, arguments: argparse.Namespace) -> int:
    """Check a Reservation API and print the report. Returns 0 if it keeps every rule, else 1."""
    try:
        config, files = probe_options.to_config(arguments), parts.reservation_files(settings)
        url = transports.check_url(arguments.url or settings.reservation_url.get_secret_value(), files)
    except (FileError, ValueError) as error:
        raise StartupError(f"the probe cannot start: {error}") from None

    def announce() -> None:
        say(f"probing {url}; Ctrl-C ends the probe early and releases its reservations", "")

    async def work() -> int:
        try:
            async with probing.connect(url, config, clock=app.clock, new_id=app.new_id, files=files) as session:
                report = await session.run(process.stop_signal(), on_reachable=announce)
        except FileError as error:
            raise StartupError(f"the probe cannot start: {error}") from None
        except Unreachable as error:
            raise StartupError(f"no Reservation API answers at {url}: {error}") from None
        say(*str(report).split("\n"))
        return 0 if report.passed else 1

    return process.run(work())


def dev(settings: Settings, arguments: argparse.Namespace) -> int:
    """Serve, reconcile and simulate in one process until SIGTERM or Ctrl-C."""
    if arguments.journal is None and settings.is_embedded:
        # The carts survive a restart, so their reservations must survive it too.
        arguments.journal = Path(f"{make_url(settings.database_url.get_secret_value()).database}.simulator.jsonl")
    if "lame_duck" not in settings.model_fields_set:
        # No balancer sends it calls, so Ctrl-C need not wait.
        settings = settings.with_changes(lame_duck=0.0)
    return process.run(_develop(settings, _simulator_config(arguments)))


async def _develop(settings: Settings, config: SimulatorConfig) -> None:
    stopped, served = process.stop_signal(server.stopping(settings)), asyncio.Event()
    address: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    simulating = asyncio.create_task(_simulate_until(served, config, address))
    await asyncio.wait((simulating, address), return_when=asyncio.FIRST_COMPLETED)
    if not simulating.done():
        changed = settings.with_changes(
            reservation_url=SecretStr(f"{'grpcs' if config.access.secure else 'grpc'}://{await address}"),
            admin_listen=settings.admin_listen or _next_port(settings.listen or settings.service_listen),
        )
        try:
            # The examples show no token and no certificate.
            welcome = "" if settings.tls_cert_file or settings.token_keys else _WELCOME
            await server.serve_until_stopped(changed, reconcile=True, stopped=stopped, welcome=welcome)
        finally:
            # The simulator stops last: the reconciler may still be calling it.
            served.set()
            await simulating
    # Raises the simulator's error if it could not start.
    await simulating


def _next_port(address: str) -> str:
    """Return a loopback address with the port after that of `address`, or port 0 if that is its port."""
    host, _, port = address.rpartition(":")
    host = host if is_local(address) else "127.0.0.1"
    return f"{host}:{(int(port) + 1) % 65536 if int(port) else 0}"


async def _simulate_until(
    stopped: asyncio.Event, config: SimulatorConfig, address: "asyncio.Future[str] | None" = None
) -> None:
    """Run the simulator until `stopped`. Resolves `address` to its gRPC address. Raises StartupError."""

    def started(ports: BoundPorts) -> None:
        host = str(config.listen).rpartition(":")[0]
        tls = "s" if config.access.secure else ""
        say(f"the simulator listens on grpc{tls}://{host}:{ports.grpc} and http{tls}://{host}:{ports.http}")
        if address is not None:
            address.set_result(f"{host}:{ports.grpc}")

    try:
        await serve_simulator(config, stopped, started=started)
    except OSError as error:
        reason = f"{error.filename}: {error.strerror}" if error.filename else error.strerror or str(error)
        raise StartupError(f"the simulator cannot start: {reason}") from None
    except (FileError, ValueError) as error:
        raise StartupError(f"the simulator cannot start: {error}") from None


def _simulator_config(arguments: argparse.Namespace) -> SimulatorConfig:
    try:
        return simulator_options.to_config(arguments)
    except ValueError as error:
        raise StartupError(f"the simulator cannot start: {error}") from None


_WELCOME = """
Try it in another terminal:

  . .venv/bin/activate
  export CARTGRPC_ADDRESS={address}
  cart-grpc cart add alice espresso-beans 2 --price 12.50EUR
  cart-grpc cart show alice
  cart-grpc cart watch alice

Or with grpcurl, or with the buf that `make setup` installs:

  grpcurl -plaintext -d '{{"name":"users/alice/carts/default"}}' {address} cartgrpc.v1.CartService/GetCart
  buf curl --protocol grpc --http2-prior-knowledge \\
    -d '{{"name":"users/alice/carts/default"}}' http://{address}/cartgrpc.v1.CartService/GetCart

Show the reservations as an operator sees them:

  cart-grpc reservations stats --address {admin_address}

Ctrl-C stops it."""
