"""Servers and a simulator in processes of their own, which the tests start, stop and kill by pid."""

import asyncio
import importlib
import itertools
import multiprocessing
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from multiprocessing.context import ForkServerProcess
from pathlib import Path

import grpc
from cartgrpc.simulator.v1 import simulator_pb2, simulator_pb2_grpc
from cartgrpc.v1 import cart_service_pb2_grpc
from google.protobuf.duration_pb2 import Duration

from tests.databases import shards_of
from tests.service.conftest import Replica

START_SECONDS = 60.0
LISTENS = re.compile(r"^cart-grpc listens on (\S+:\d+)$", re.MULTILINE)
SIMULATES = re.compile(r"^the simulator listens on grpc://(\S+:\d+) and http://(\S+:\d+)$", re.MULTILINE)

_numbers = itertools.count()
# Forks processes that have imported the program already. The imports are most of a server's start, and the crash tests
# start fifty servers each.
_PRELOADED = multiprocessing.get_context("forkserver")
_IMPORTED_LATER = ("aiosqlite", "alembic.operations", "alembic.script", "uvloop")
_PRELOADED.set_forkserver_preload(
    [
        __name__,
        "tests.processes.killable",
        "cart_grpc.cli.service_commands",
        "cart_grpc.cli.operator_commands",
        *_IMPORTED_LATER,
    ]
)


class Program:
    """A running `module`, started with `arguments` in `folder`. Its output goes to two files in the folder."""

    def __init__(
        self, module: str, arguments: Sequence[str], folder: Path, settings: Mapping[str, str], *, preloaded: bool
    ) -> None:
        stem = f"{next(_numbers):04}-{arguments[0]}"
        self.arguments = arguments
        self._output, self._errors = folder / f"{stem}.out", folder / f"{stem}.err"
        files = (self._output, self._errors)
        for file in files:
            file.touch()
        start = _fork if preloaded else _execute
        self._process = start(module, arguments, files, _environment(settings))
        self.pid = self._process.pid or 0
        # If the tests themselves are killed, this shell sees the end of its input and kills the program.
        self._sweeper = subprocess.Popen(
            ["/bin/sh", "-c", 'cat >/dev/null; kill -9 "$0" 2>/dev/null', str(self.pid)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    @property
    def output(self) -> str:
        return self._output.read_text(errors="replace")

    @property
    def errors(self) -> str:
        return self._errors.read_text(errors="replace")

    @property
    def exit_status(self) -> int | None:
        """The exit status, -N if signal N ended the program, None while it runs."""
        if isinstance(self._process, subprocess.Popen):
            return self._process.poll()
        return self._process.exitcode

    @property
    def is_running(self) -> bool:
        return self.exit_status is None

    async def says(self, pattern: re.Pattern[str]) -> re.Match[str]:
        """Return the first match of `pattern` in the output. Fail if the program ends first or takes too long."""
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            running = self.is_running
            match = pattern.search(self.output)
            if match:
                return match
            assert running, f"{self.arguments} ended with {self.exit_status}: {self.errors[-3000:]}"
            await asyncio.sleep(0.01)
        raise AssertionError(f"{self.arguments} did not say {pattern.pattern!r}: {self.output}{self.errors[-3000:]}")

    def send(self, number: signal.Signals) -> None:
        """Send a signal. A program that has ended gets none."""
        if self.is_running:
            os.kill(self.pid, number)

    async def ended(self, timeout: float) -> int:
        """Return the exit status. Fail if the program still runs after `timeout` seconds."""
        deadline = time.monotonic() + timeout
        while (status := self.exit_status) is None:
            assert time.monotonic() < deadline, f"{self.arguments} still runs: {self.errors[-3000:]}"
            await asyncio.sleep(0.005)
        self._dismiss_sweeper()
        return status

    def kill(self) -> None:
        """Send SIGKILL and wait for the end."""
        self._process.kill()
        if isinstance(self._process, subprocess.Popen):
            self._process.wait()
        else:
            self._process.join()
        self._dismiss_sweeper()

    def _dismiss_sweeper(self) -> None:
        # Kill it before its input ends: by then the program's pid may belong to another process.
        self._sweeper.kill()
        self._sweeper.communicate()


def _execute(
    module: str, arguments: Sequence[str], files: tuple[Path, Path], environment: dict[str, str]
) -> "subprocess.Popen[bytes]":
    """Start `python -m module`, as a user does."""
    with files[0].open("wb") as output, files[1].open("wb") as errors:
        # In its own session: Ctrl-C reaches the tests only, and they end the program.
        return subprocess.Popen(
            [sys.executable, "-m", module, *arguments],
            cwd=files[0].parent,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=errors,
            start_new_session=True,
        )


def _fork(
    module: str, arguments: Sequence[str], files: tuple[Path, Path], environment: dict[str, str]
) -> ForkServerProcess:
    """Start `module` in a fork of a process that has imported it."""
    process = _PRELOADED.Process(target=_run_module, args=(module, arguments, files, environment))
    process.start()
    return process


def _run_module(module: str, arguments: Sequence[str], files: tuple[Path, Path], environment: dict[str, str]) -> None:
    os.setsid()
    for path, descriptor in zip(files, (1, 2), strict=True):
        with path.open("wb") as file:
            os.dup2(file.fileno(), descriptor)
    os.chdir(files[0].parent)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = [module, *arguments]
    sys.exit(importlib.import_module(module).main())


class Programs:
    """The programs of one test. They run `module`: the command line, or a module that replaces it.

    `preloaded` programs start in a third of the time: they are forks of a process that has imported the program. Tests
    that need the imports or an execve do without.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.module = "cart_grpc.__main__"
        self.preloaded = True
        self.environment: dict[str, str] = {}
        self.started: list[Program] = []

    def start(self, *arguments: str, **settings: str) -> Program:
        """Start `cart-grpc` with `arguments`. `settings` are the CART_* variables, named as in `Settings`."""
        if "database_url" in settings:
            settings = {"database_shards": str(shards_of(settings["database_url"])), **settings}
        environment = self.environment | {f"CART_{name.upper()}": value for name, value in settings.items()}
        program = Program(self.module, arguments, self.folder, environment, preloaded=self.preloaded)
        self.started.append(program)
        return program

    async def simulate(self, *options: str) -> "Simulated":
        """Start a simulator that keeps a journal of its effects."""
        journal = str(self.folder / "journal.jsonl")
        listen = ("--listen", "127.0.0.1:0", "--http-listen", "127.0.0.1:0")
        program = self.start("simulate", *listen, "--journal", journal, *options)
        match = await program.says(SIMULATES)
        return Simulated(program, match[1])

    def complaints(self) -> list[str]:
        """Return the lines that no program may ever log."""
        bad = re.compile(r" (ERROR|CRITICAL) |Traceback|Exception ignored|never (awaited|retrieved)|ALARM")
        return [line for program in self.started for line in program.errors.splitlines() if bad.search(line)]


@contextmanager
def running_programs(folder: Path) -> Iterator[Programs]:
    """Yield a Programs. At the end of the block, each of its programs is killed by its own pid."""
    programs = Programs(folder)
    try:
        yield programs
    finally:
        for program in programs.started:
            program.kill()


class Simulated:
    """A simulator in another process, and access to its effects."""

    def __init__(self, program: Program, address: str) -> None:
        self.program = program
        self.address = address
        self.url = f"grpc://{address}"

    async def effects(self) -> tuple[list[simulator_pb2.Effect], int]:
        """Return all effects so far in order, and the number of messages that have arrived."""
        effects: list[simulator_pb2.Effect] = []
        async with grpc.aio.insecure_channel(self.address) as channel:
            stub: simulator_pb2_grpc.SimulatorServiceAsyncStub = simulator_pb2_grpc.SimulatorServiceStub(channel)
            while True:
                after = effects[-1].sequence if effects else 0
                page = await stub.ListEffects(simulator_pb2.ListEffectsRequest(after_sequence=after), timeout=10)
                if not page.effects:
                    return effects, page.call_count
                effects.extend(page.effects)

    async def stock(self, sku: str) -> simulator_pb2.GetStockResponse:
        async with grpc.aio.insecure_channel(self.address) as channel:
            stub: simulator_pb2_grpc.SimulatorServiceAsyncStub = simulator_pb2_grpc.SimulatorServiceStub(channel)
            return await stub.GetStock(simulator_pb2.GetStockRequest(sku=sku), timeout=10)

    async def set_faults(
        self, *, latency: float = 0.0, slow: float = 0.0, slow_latency: float = 0.0, down: bool = False
    ) -> None:
        """Replace the faults in force. Latencies are in seconds, `slow` is the share of slow calls."""
        faults = simulator_pb2.Faults(
            latency=_duration(latency), slow=slow, slow_latency=_duration(slow_latency), down=down
        )
        async with grpc.aio.insecure_channel(self.address) as channel:
            stub: simulator_pb2_grpc.SimulatorServiceAsyncStub = simulator_pb2_grpc.SimulatorServiceStub(channel)
            await stub.SetFaults(simulator_pb2.SetFaultsRequest(faults=faults), timeout=10)

    async def until_called(self, count: int) -> None:
        """Wait until `count` messages have arrived."""
        deadline = time.monotonic() + 20
        while (await self.effects())[1] < count:
            assert time.monotonic() < deadline, "the Reservation API got too few calls"
            await asyncio.sleep(0.02)

    async def until_silent(self, seconds: float) -> None:
        """Wait until no message has arrived for `seconds`."""
        deadline = time.monotonic() + 60
        before, since = -1, time.monotonic()
        while time.monotonic() - since < seconds:
            assert time.monotonic() < deadline, "the calls of the Reservation API do not end"
            _, count = await self.effects()
            if count != before:
                before, since = count, time.monotonic()
            await asyncio.sleep(0.1)


class Replicas:
    """The servers of one service, running or not, and their addresses. `programs` starts the next one."""

    def __init__(self, programs: Programs, settings: Mapping[str, str], count: int) -> None:
        self.programs = programs
        self._settings = settings
        self.servers: list[Program | None] = [None] * count
        self.addresses: list[str | None] = [None] * count
        self._starts: list[asyncio.Task[None] | None] = [None] * count
        self.kills = 0

    def start(self, index: int, *options: str) -> "asyncio.Task[None]":
        """Start server `index`, which must not be running. The task ends when the server listens."""
        program = self.programs.start("serve", *options, **self._settings)
        self.servers[index] = program
        self._starts[index] = task = asyncio.create_task(self._listen(index, program))
        return task

    async def _listen(self, index: int, program: Program) -> None:
        self.addresses[index] = (await program.says(LISTENS))[1]

    async def start_all(self) -> None:
        await asyncio.gather(*(self.start(index) for index in range(len(self.servers))))

    def kill(self, index: int) -> None:
        """Send SIGKILL to server `index`, whether it listens yet or not."""
        server, start = self._take(index)
        if start:
            start.cancel()
        server.kill()
        self.kills += 1

    async def stop(self, index: int, by: signal.Signals = signal.SIGTERM, timeout: float = 20.0) -> int:
        """Send the signal `by` to server `index` and return its exit status."""
        server, _ = self._take(index)
        server.send(by)
        return await server.ended(timeout)

    def _take(self, index: int) -> "tuple[Program, asyncio.Task[None] | None]":
        server, start = self.servers[index], self._starts[index]
        assert server is not None
        self.servers[index] = self.addresses[index] = None
        return server, start

    async def address(self, numbers: random.Random, but: str | None = None) -> str:
        """Return the address of a running server, if possible not `but`."""
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            known = [address for address in self.addresses if address is not None]
            if known:
                return numbers.choice([address for address in known if address != but] or known)
            await asyncio.sleep(0.01)
        raise AssertionError("no server listens")


def _duration(seconds: float) -> Duration:
    duration = Duration()
    duration.FromMicroseconds(int(seconds * 1_000_000))
    return duration


def _environment(settings: Mapping[str, str]) -> dict[str, str]:
    ours = {name: value for name, value in os.environ.items() if not name.upper().startswith("CART_")}
    # Nobody waits in these tests, except in those of the lame-duck time itself.
    return {**ours, "CART_LAME_DUCK": "0", "CART_LOG_FORMAT": "text", **settings}


@asynccontextmanager
async def connected(address: str) -> AsyncIterator[Replica]:
    """Yield a client of `address` with its own connection. gRPC channels share connections by default."""
    async with grpc.aio.insecure_channel(address, options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
        stub = cart_service_pb2_grpc.CartServiceStub(channel)
        yield Replica(stub, channel, int(address.rpartition(":")[2]))
