"""Real processes: servers and a simulator that are started, killed, and gone at the end whatever happens."""

import asyncio
import itertools
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import grpc
from cartgrpc.simulator.v1 import simulator_pb2, simulator_pb2_grpc
from cartgrpc.v1 import cart_service_pb2_grpc
from google.protobuf.duration_pb2 import Duration

from tests.service.conftest import Replica

START_SECONDS = 60.0
LISTENS = re.compile(r"^cart-grpc listens on (\S+:\d+)$", re.MULTILINE)
SIMULATES = re.compile(r"^the simulator listens on grpc://(\S+:\d+) and http://(\S+:\d+)$", re.MULTILINE)

_numbers = itertools.count()


class Program:
    """`module` with some arguments, in a folder of its own settings; what it prints goes to files there."""

    def __init__(self, module: str, arguments: Sequence[str], folder: Path, settings: Mapping[str, str]) -> None:
        stem = f"{next(_numbers):04}-{arguments[0]}"
        self.arguments = arguments
        self._output, self._errors = folder / f"{stem}.out", folder / f"{stem}.err"
        with self._output.open("wb") as output, self._errors.open("wb") as errors:
            # In a session of its own, so that Ctrl-C reaches the tests first and they end it.
            self._process = subprocess.Popen(
                [sys.executable, "-m", module, *arguments],
                cwd=folder,
                env=_environment(settings),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=errors,
                start_new_session=True,
            )
        # Should these tests themselves be killed, a small process sees its input end and kills the program.
        self._sweeper = subprocess.Popen(
            ["/bin/sh", "-c", 'cat >/dev/null; kill -9 "$0" 2>/dev/null', str(self._process.pid)],
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
    def pid(self) -> int:
        return self._process.pid

    @property
    def is_running(self) -> bool:
        return self._process.poll() is None

    async def says(self, pattern: re.Pattern[str]) -> re.Match[str]:
        """The first match of `pattern` in what it prints. Fails if it ends first, or takes too long."""
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            running = self.is_running
            match = pattern.search(self.output)
            if match:
                return match
            assert running, f"{self.arguments} ended with {self._process.returncode}: {self.errors[-3000:]}"
            await asyncio.sleep(0.01)
        raise AssertionError(f"{self.arguments} did not say {pattern.pattern!r}: {self.output}{self.errors[-3000:]}")

    def send(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    async def ended(self, timeout: float) -> int:
        """Its exit status, negative for a signal. Fails if it goes on for longer than `timeout` seconds."""
        deadline = time.monotonic() + timeout
        while self.is_running:
            assert time.monotonic() < deadline, f"{self.arguments} still runs: {self.errors[-3000:]}"
            await asyncio.sleep(0.005)
        self._dismiss_sweeper()
        return self._process.wait()

    def kill(self) -> None:
        """SIGKILL, and wait until it is gone."""
        self._process.kill()
        self._process.wait()
        self._dismiss_sweeper()

    def _dismiss_sweeper(self) -> None:
        # First: by the time that its input ends, the pid may be somebody else's.
        self._sweeper.kill()
        self._sweeper.communicate()


class Programs:
    """The programs of one test. `module` is the command line, or one that stands in for it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.module = "cart_grpc.cli"
        self.started: list[Program] = []

    def start(self, *arguments: str, **settings: str) -> Program:
        """Start `cart-grpc` with `arguments`; `settings` are CART_*, their names as in `Settings`."""
        environment = {f"CART_{name.upper()}": value for name, value in settings.items()}
        program = Program(self.module, arguments, self.folder, environment)
        self.started.append(program)
        return program

    async def simulate(self, *options: str) -> "Simulated":
        """Start a simulator that remembers what it did."""
        journal = str(self.folder / "journal.jsonl")
        listen = ("--listen", "127.0.0.1:0", "--http-listen", "127.0.0.1:0")
        program = self.start("simulate", *listen, "--journal", journal, *options)
        match = await program.says(SIMULATES)
        return Simulated(program, match[1])

    def complaints(self) -> list[str]:
        """What the programs logged that should never be seen."""
        bad = re.compile(r" (ERROR|CRITICAL) |Traceback|Exception ignored|never (awaited|retrieved)|ALARM")
        return [line for program in self.started for line in program.errors.splitlines() if bad.search(line)]


@contextmanager
def running_programs(folder: Path) -> Iterator[Programs]:
    """Programs that are killed at the end of the block, each by its own pid."""
    programs = Programs(folder)
    try:
        yield programs
    finally:
        for program in programs.started:
            program.kill()


class Simulated:
    """A simulator in another process, and what it really did."""

    def __init__(self, program: Program, address: str) -> None:
        self.program = program
        self.address = address
        self.url = f"grpc://{address}"

    async def effects(self) -> tuple[list[simulator_pb2.Effect], int]:
        """All effects so far, in their order, and how many messages have arrived."""
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

    async def set_faults(self, *, latency: float, slow: float = 0.0, slow_latency: float = 0.0) -> None:
        """Replace the faults in force. Latencies in seconds."""
        faults = simulator_pb2.Faults(latency=_duration(latency), slow=slow, slow_latency=_duration(slow_latency))
        async with grpc.aio.insecure_channel(self.address) as channel:
            stub: simulator_pb2_grpc.SimulatorServiceAsyncStub = simulator_pb2_grpc.SimulatorServiceStub(channel)
            await stub.SetFaults(simulator_pb2.SetFaultsRequest(faults=faults), timeout=10)

    async def until_called(self, count: int) -> None:
        """Return once `count` messages have arrived."""
        deadline = time.monotonic() + 20
        while (await self.effects())[1] < count:
            assert time.monotonic() < deadline, "the Reservation API is not called"
            await asyncio.sleep(0.02)

    async def until_silent(self, seconds: float) -> None:
        """Return once no message has arrived for `seconds`."""
        deadline = time.monotonic() + 60
        before, since = -1, time.monotonic()
        while time.monotonic() - since < seconds:
            assert time.monotonic() < deadline, "the Reservation API is called without end"
            _, count = await self.effects()
            if count != before:
                before, since = count, time.monotonic()
            await asyncio.sleep(0.1)


class Replicas:
    """The servers of one service, some of them running, and where they listen."""

    def __init__(self, programs: Programs, settings: Mapping[str, str], count: int) -> None:
        self._programs = programs
        self._settings = settings
        self.servers: list[Program | None] = [None] * count
        self.addresses: list[str | None] = [None] * count
        self._starts: list[asyncio.Task[None] | None] = [None] * count
        self.kills = 0

    def start(self, index: int) -> "asyncio.Task[None]":
        """Start a server that does not run. The task ends once it listens."""
        program = self._programs.start("serve", **self._settings)
        self.servers[index] = program
        self._starts[index] = task = asyncio.create_task(self._listen(index, program))
        return task

    async def _listen(self, index: int, program: Program) -> None:
        self.addresses[index] = (await program.says(LISTENS))[1]

    async def start_all(self) -> None:
        await asyncio.gather(*(self.start(index) for index in range(len(self.servers))))

    def kill(self, index: int) -> None:
        """SIGKILL, listening or not."""
        server, start = self._take(index)
        if start:
            start.cancel()
        server.kill()
        self.kills += 1

    async def stop(self, index: int, by: signal.Signals = signal.SIGTERM, timeout: float = 20.0) -> int:
        """Ask it to stop; its exit status."""
        server, _ = self._take(index)
        server.send(by)
        return await server.ended(timeout)

    def _take(self, index: int) -> "tuple[Program, asyncio.Task[None] | None]":
        server, start = self.servers[index], self._starts[index]
        assert server is not None
        self.servers[index] = self.addresses[index] = None
        return server, start

    async def address(self, numbers: random.Random, but: str | None = None) -> str:
        """Where one of those that run listens; another one than `but`, where there is any."""
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            known = [address for address in self.addresses if address is not None]
            if known:
                return numbers.choice([address for address in known if address != but] or known)
            await asyncio.sleep(0.01)
        raise AssertionError("no server came up")


def _duration(seconds: float) -> Duration:
    duration = Duration()
    duration.FromMicroseconds(int(seconds * 1_000_000))
    return duration


def _environment(settings: Mapping[str, str]) -> dict[str, str]:
    ours = {name: value for name, value in os.environ.items() if not name.upper().startswith("CART_")}
    return {**ours, **settings}


@asynccontextmanager
async def connected(address: str) -> AsyncIterator[Replica]:
    """A client of the server at `address`, with a connection of its own: by default, channels share them."""
    async with grpc.aio.insecure_channel(address, options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
        stub = cart_service_pb2_grpc.CartServiceStub(channel)
        yield Replica(stub, channel, int(address.rpartition(":")[2]))
