"""The processes of a benchmark: starts them, reads their CPU time and memory, and stops them."""

import functools
import json
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import psutil
from cartgrpc.v1 import cart_admin_service_pb2, cart_admin_service_pb2_grpc

from benchmarks.fill import Filling, fill
from tests.postgres import PostgresServer, running_postgres

ROOT = Path(__file__).parent.parent
LOAD = ROOT / "build" / "load"
START_SECONDS = 60.0
LISTENS = re.compile(r"(?:listens|is listening) on (?:\w+://)?(127\.0\.0\.1:\d+)")
SERVICES = re.compile(r"cart-grpc listens for services on (\S+:\d+)")
OPERATORS = re.compile(r"cart-grpc listens for operators on (\S+:\d+)")
DATABASES = ("sqlite", "postgresql")

Json = dict[str, Any]


class Program:
    """A Python module that runs until `stop`. It listens on `address`."""

    def __init__(
        self,
        folder: Path,
        module: str,
        *arguments: str,
        settings: Mapping[str, str] | None = None,
        python: str = sys.executable,
    ) -> None:
        self._output = folder / f"{time.monotonic_ns()}.out"
        with self._output.open("wb") as output:
            self._process = subprocess.Popen(
                [python, "-m", module, *arguments],
                cwd=folder,
                env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", **(settings or {})},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        self._seen = psutil.Process(self._process.pid)
        self.address = ""

    def says(self, pattern: re.Pattern[str]) -> str:
        """Return the first group of `pattern` in the output. Raises RuntimeError if the program ends or is slow."""
        deadline = time.monotonic() + START_SECONDS
        printed = ""
        while time.monotonic() < deadline:
            printed = self._output.read_text(errors="replace")
            if match := pattern.search(printed):
                return match[1]
            if self._process.poll() is not None:
                break
            time.sleep(0.02)
        raise RuntimeError(f"{self._process.args!r} did not say {pattern.pattern!r}: {printed[-2000:]}")

    def cpu_seconds(self) -> float:
        """Return the CPU time since the start, including worker processes."""
        times = [process.cpu_times() for process in (self._seen, *self._seen.children(recursive=True))]
        return float(sum(used.user + used.system for used in times))

    def memory_mib(self) -> float:
        return float(sum(p.memory_info().rss for p in (self._seen, *self._seen.children(recursive=True)))) / 2**20

    def stop(self) -> None:
        self._process.terminate()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            for process in (*self._seen.children(recursive=True), self._seen):
                process.kill()
            self._process.wait()


@dataclass
class Product:
    """A running `cart-grpc serve` with its own database."""

    program: Program
    database_url: str
    admin_address: str

    @property
    def address(self) -> str:
        return self.program.address

    @property
    def is_on_postgresql(self) -> bool:
        return self.database_url.startswith("postgresql")

    def pause(self) -> None:
        """Stop the reconciler's calls until `resume`."""
        self._admin.PauseReservations(cart_admin_service_pb2.PauseReservationsRequest(reason="benchmark"), timeout=30)

    def resume(self) -> None:
        self._admin.ResumeReservations(cart_admin_service_pb2.ResumeReservationsRequest(), timeout=30)

    def stats(self) -> cart_admin_service_pb2.GetReservationStatsResponse:
        request = cart_admin_service_pb2.GetReservationStatsRequest()
        stats: cart_admin_service_pb2.GetReservationStatsResponse = self._admin.GetReservationStats(request, timeout=30)
        return stats

    def count_reconciling(self) -> int:
        """Return how many reservations are not as intended yet."""
        return sum(kind.count for kind in self.stats().backlog)

    @functools.cached_property
    def _admin(self) -> Any:
        channel = grpc.insecure_channel(self.admin_address, options=[("grpc.use_local_subchannel_pool", 1)])
        return cart_admin_service_pb2_grpc.CartAdminServiceStub(channel)


class Testbed:
    """The servers of one run: the no-op reference, a Reservation API that answers at once, and the databases."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._ends = ExitStack()
        self._postgres: PostgresServer | None = None
        self._names = iter(range(1_000_000))
        self.noop = self.start("benchmarks.servers", "noop")
        self.simulator = self.simulate("0s")

    def start(self, module: str, *arguments: str, python: str = sys.executable, **settings: str) -> Program:
        """Start a program that prints its address. It is stopped with the testbed."""
        program = Program(self.folder, module, *arguments, settings=settings, python=python)
        self._ends.callback(program.stop)
        program.address = program.says(LISTENS)
        return program

    def simulate(self, latency: str) -> Program:
        options = ("--listen", "127.0.0.1:0", "--http-listen", "127.0.0.1:0", "--latency", latency)
        return self.start("cart_grpc", "simulate", *options, "--default-stock", "1000000000")

    def database(self, kind: str, *, shard_count: int = 0, **filling: int) -> str:
        """Create a durable `sqlite` or `postgresql` database, migrated, filled and paused. Return its URL.

        With a `shard_count`, it has so many shards, and is empty and not paused.
        """
        name = f"bench{next(self._names)}"
        url = self.postgres().create_database(name) if kind == "postgresql" else f"sqlite:///{self.folder / name}.db"
        migrate = [sys.executable, "-m", "cart_grpc", "migrate"]
        environment = {"CART_DATABASE_URL": url, "PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"}
        environment["CART_DATABASE_SHARDS"] = str(shard_count or 1)
        subprocess.run(migrate, cwd=self.folder, env=environment, check=True, capture_output=True)
        if not shard_count:
            fill(url, Filling(is_paused=True, **filling))
        return url

    def postgres(self) -> PostgresServer:
        if self._postgres is None:
            self._postgres = self._ends.enter_context(running_postgres(durable=True))
        return self._postgres

    def postgres_cpu_seconds(self) -> float:
        """Return the CPU time of PostgreSQL's processes since the start, including those that have ended."""
        postmaster = psutil.Process(self.postgres().pid)
        ended = postmaster.cpu_times()
        times = []
        for process in (postmaster, *postmaster.children()):
            # A worker of autovacuum may end at any time.
            with suppress(psutil.NoSuchProcess):
                times.append(process.cpu_times())
        return float(sum(used.user + used.system for used in times)) + ended.children_user + ended.children_system

    def serve(
        self,
        database_url: str,
        *arguments: str,
        api: Program | None = None,
        module: tuple[str, ...] = ("cart_grpc",),
        python: str = sys.executable,
        **settings: str,
    ) -> Product:
        """Start the product with its default settings, except `settings` and the limits of a user that the load needs.

        `module` and `python`: what runs it.
        """
        program = self.start(
            *module,
            "serve",
            *arguments,
            python=python,
            CART_LISTEN="127.0.0.1:0",
            CART_ADMIN_LISTEN="127.0.0.1:0",
            CART_DATABASE_URL=database_url,
            CART_LAME_DUCK="0",
            # One user has a hot cart, another one floods the server.
            CART_MAX_ITEMS_PER_USER="10000000",
            CART_MAX_UNITS_PER_USER="1000000000",
            CART_RESERVATION_URL=f"grpc://{(api or self.simulator).address}",
            **settings,
        )
        return Product(program, database_url, program.says(OPERATORS))

    def close(self) -> None:
        self._ends.close()


@contextmanager
def testbed(folder: Path) -> Iterator[Testbed]:
    opened = Testbed(folder)
    try:
        yield opened
    finally:
        opened.close()


def load(address: str, *options: str, **more: object) -> Json:
    """Run the load generator with options such as `in_flight=64`. Return its report."""
    arguments = [f"--{name.replace('_', '-')}={value}" for name, value in more.items()]
    command = [str(LOAD), "--target", address, *options, *arguments]
    finished = subprocess.run(command, check=True, capture_output=True, text=True)
    report: Json = json.loads(finished.stdout)
    return report


def measure(program: Program, calls: str, **options: object) -> Json:
    """Measure one round of a closed loop. Raises RuntimeError if a call failed: the figures would mean nothing."""
    before = program.cpu_seconds()
    results = load(program.address, calls=calls, **options)
    cpu = program.cpu_seconds() - before
    if results["not_ok"] or results["unfinished"] or results["ok"] == 0:
        raise RuntimeError(f"{calls} at {options}: {results}")
    return {
        "per_s": results["ok_per_s"],
        "p50_us": results["ok_us"]["p50"],
        "p99_us": results["ok_us"]["p99"],
        "cpu_us": round(cpu / results["answered"] * 1e6, 1),
        "load_share": results["cpu_share"],
    }


def interleave(contenders: Mapping[str, Callable[[], Json]], rounds: int) -> dict[str, list[Json]]:
    """Run every contender once per round, every other round in reverse, so that drift of the machine affects all."""
    results: dict[str, list[Json]] = {name: [] for name in contenders}
    for turn in range(rounds):
        order: Sequence[str] = list(contenders)[:: -1 if turn % 2 else 1]
        for name in order:
            results[name].append(contenders[name]())
    return results
