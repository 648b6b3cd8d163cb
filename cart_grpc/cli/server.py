"""The subcommands that run or inspect the service: serve, reconcile, migrate, config."""

import argparse
import asyncio
import sys

from cart_grpc import app, database_setup, process, workers
from cart_grpc.exposure import health_address
from cart_grpc.logs import events
from cart_grpc.logs.log import Log
from cart_grpc.settings import Settings, variable_of
from cart_grpc.startup import StartupError
from cart_grpc.terminal import say

log = Log(__name__)


def serve(settings: Settings, arguments: argparse.Namespace) -> int:
    """Serve carts until SIGTERM or Ctrl-C, in this process or with workers."""
    reconciles = not arguments.no_reconciler
    if settings.shutdown_grace < settings.call_timeout:
        log(events.SETTING_RISKY, "CART_SHUTDOWN_GRACE is shorter than CART_CALL_TIMEOUT: a stop can cut calls off")
    if settings.is_embedded and not reconciles:
        raise StartupError("--no-reconciler needs PostgreSQL: a SQLite file belongs to one process")
    if arguments.workers == 1:
        return process.run(serve_until_stopped(settings, reconcile=reconciles))
    if settings.is_embedded:
        raise StartupError("--workers needs PostgreSQL: a SQLite file belongs to one process")
    if sys.platform != "linux":
        raise StartupError("--workers needs Linux: other systems do not balance connections between processes")
    return process.run(_serve_with_workers(settings, arguments.workers, reconcile=reconciles))


def reconcile(settings: Settings, _: argparse.Namespace) -> int:
    """Reconcile reservations until SIGTERM or Ctrl-C."""
    if settings.is_embedded:
        raise StartupError("reconcile needs PostgreSQL: with SQLite, `cart-grpc serve` reconciles")
    return process.run(_reconcile_until_stopped(settings))


def migrate(settings: Settings, arguments: argparse.Namespace) -> int:
    """Migrate the database and print its migrations; with --dry-run, only print those that are due."""

    async def work() -> None:
        async with app.open_engine(settings) as engine:
            if arguments.dry_run:
                for script in await database_setup.find_pending(engine):
                    say(f"schema {script.revision}: {script.title} (not run)")
                return
            before, after = await database_setup.upgrade(engine, say)
        change = "is at schema" if before == after else f"was at schema {before or '(none)'} and is now at"
        say(f"the database {change} {after}")

    return process.run(work())


def config(settings: Settings, _: argparse.Namespace) -> int:
    """Print every setting as an environment variable, with its description."""
    shown = settings.shown()
    for name, field in Settings.model_fields.items():
        assignment = f"{variable_of(name)}={shown[variable_of(name)]}"
        say(f"{assignment:<60} # {field.description}")
    return 0


async def serve_until_stopped(
    settings: Settings, *, reconcile: bool, stopped: asyncio.Event | None = None, welcome: str = ""
) -> None:
    """Serve until `stopped` is set, by default by a signal. `welcome` is printed, with the addresses filled in."""
    stopped = stopped or process.stop_signal(stopping(settings))
    async with app.running(settings, serve=True, reconcile=reconcile, stopped=stopped) as ports:
        if not stopped.is_set():
            address, admin_address = _print_addresses(settings, ports)
            if welcome:
                say(*welcome.format(address=address, admin_address=admin_address).split("\n"))
        await stopped.wait()
    log(events.STOPPED, "stopped")


def stopping(settings: Settings) -> str:
    """Return the line that says what the first stop signal starts."""
    served = f"new calls are served for {settings.lame_duck:g} s; then " if settings.lame_duck else ""
    return f"stopping: {served}running calls have {settings.shutdown_grace:g} s to finish"


async def _serve_with_workers(settings: Settings, count: int, *, reconcile: bool) -> None:
    def started(ports: app.Ports) -> None:
        _print_addresses(settings, ports)

    await workers.serve(settings, count, process.stop_signal(stopping(settings)), reconcile=reconcile, started=started)


async def _reconcile_until_stopped(settings: Settings) -> None:
    stopped = process.stop_signal("stopping")
    async with app.running(settings, serve=False, reconcile=True, stopped=stopped) as ports:
        if not stopped.is_set():
            say("cart-grpc reconciles")
            _print_addresses(settings, ports)
        await stopped.wait()
    log(events.STOPPED, "stopped")


def _print_addresses(settings: Settings, ports: app.Ports) -> tuple[str, str]:
    """Print the address of each open port. Return those of callers and of operators."""
    shown = [
        ("listens", settings.listen, ports.port),
        ("listens for operators", settings.admin_listen, ports.admin_port),
        ("listens for services", settings.service_listen, ports.service_port),
        ("answers health checks", health_address(settings), ports.health_port),
        ("shows metrics", settings.metrics_listen, ports.metrics_port),
    ]
    addresses = [f"{configured.rpartition(':')[0]}:{port}" for _, configured, port in shown]
    for (does, _, port), address in zip(shown, addresses, strict=True):
        if port:
            say(f"cart-grpc {does} on {address}")
    return addresses[0], addresses[1]
