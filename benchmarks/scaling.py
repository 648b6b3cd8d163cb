"""Simulates reserved items a second on a Citus cluster, from the parts that `benchmarks.cluster` has measured.

Run it by hand: `python -m benchmarks.scaling`. It prints the tables of docs/scaling.md, and how far the same model is
off where the whole was measured.

A closed network: a fixed number of calls is in flight. A call takes CPU of a server process, waits in the queue of its
shard, and shares a transaction with what waits there; then the next call begins. Its reservation comes back from the
Reservation API as a record, which takes the same way. A transaction takes CPU of the server process, of the node to
which its connection leads, and of the shard's node, one after the other, and waits for round trips and the commit.

Assumptions: users are spread evenly over shards, and shards over nodes. A server process has a core of its own. The
cost of a batch is a fixed part, and a part for each command; with calls and records it has both fixed parts. The
Reservation API answers at once, and the load generator and it run elsewhere, except where it says that all is on one
machine. Reads, merges and idle queries are left out. CPU does not become slower by sharing caches, and nothing waits
for locks or for PostgreSQL's background work.
"""

import heapq
import itertools
import random
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Final, NamedTuple

Action = Callable[[], None]
# Runs an action after so many milliseconds of something.
Stage = tuple[Callable[[float, Action], None], float]


class Cost(NamedTuple):
    """Milliseconds of CPU: of each batch that has calls or records, and of each of them."""

    add_batch: float = 0.0
    add: float = 0.0
    record_batch: float = 0.0
    record: float = 0.0

    def of(self, adds: int, records: int) -> float:
        """The milliseconds for a batch."""
        batches = (self.add_batch if adds else 0.0) + (self.record_batch if records else 0.0)
        return batches + self.add * adds + self.record * records


@dataclass(frozen=True)
class Parts:
    """Milliseconds of CPU: of a batch in the server process, in the PostgreSQL to which its connection leads, and in
    that of the shard's node. `local` replaces both if they are the same.

    `call`: in the server process, for each item outside its batches. `outside`: in the load generator and the API, if
    they are on the same machine. `wait`: for the round trips of a batch and its commit, without CPU. `connections`: how
    many of a server process write.
    """

    server: Cost
    coordinator: Cost
    node: Cost
    local: Cost
    call: float
    outside: float
    wait: float
    connections: int


@dataclass(frozen=True)
class Setting:
    """The setting of a run. `is_direct`: the server processes connect to the nodes, each to one of them.

    `cores` are those of the coordinator and of each node; with `on_one_machine`, those of everything together.
    """

    shards: int
    in_flight: int
    nodes: int = 1
    replicas: int = 1
    cores: int = 2
    is_direct: bool = False
    on_one_machine: bool = False


class Cores:
    """Cores that run tasks in the order of their arrival, each to its end. `on`: they are some of these cores."""

    def __init__(self, simulation: "Simulation", count: int, on: "Cores | None" = None) -> None:
        self._run = on.run if on else simulation.after
        self._free = count
        self._waiting: deque[tuple[float, Action]] = deque()
        self.busy_ms = 0.0

    def run(self, ms: float, then: Action) -> None:
        """Run a task, and then `then`."""
        self._waiting.append((ms, then))
        self._begin()

    def _begin(self) -> None:
        while self._free and self._waiting:
            ms, then = self._waiting.popleft()
            self._free -= 1
            self.busy_ms += ms
            self._run(ms, partial(self._end, then))

    def _end(self, then: Action) -> None:
        self._free += 1
        self._begin()
        then()


class Simulation:
    """One run of a setting."""

    def __init__(self, parts: Parts, setting: Setting) -> None:
        self.parts, self.setting = parts, setting
        self.now, self.reserved, self.batches = 0.0, 0, 0
        self._random = random.Random(1)
        self._events: list[tuple[float, int, Action]] = []
        self._numbers = itertools.count()
        self.machine = Cores(self, setting.cores) if setting.on_one_machine else None
        self.coordinator = self.machine or Cores(self, setting.cores)
        self.nodes = [self.machine or Cores(self, setting.cores) for _ in range(setting.nodes)]
        self._servers = [Server(self, number) for number in range(setting.replicas)]

    def after(self, ms: float, action: Action) -> None:
        """Run `action` in `ms` milliseconds."""
        heapq.heappush(self._events, (self.now + ms, next(self._numbers), action))

    def run(self, seconds: float = 20.0) -> float:
        """Return the reserved items a second. The first second does not count."""
        for _ in range(self.setting.in_flight):
            self.call()
        first = 0
        while self.now < (1 + seconds) * 1000:
            if self.now < 1000:
                first = self.reserved
            self.now, _, action = heapq.heappop(self._events)
            action()
        return (self.reserved - first) / seconds

    def call(self) -> None:
        """Begin a call."""
        server, shard = self._random.choice(self._servers), self._random.randrange(self.setting.shards)
        self.outside(partial(server.begin, shard))

    def outside(self, then: Action) -> None:
        """Run the load generator for a call, or the API for a record: half of the cost for each."""
        if self.machine:
            self.machine.run(self.parts.outside / 2, then)
        else:
            then()


class Server:
    """A server process: one core, and a queue for each shard."""

    def __init__(self, simulation: Simulation, number: int) -> None:
        self._simulation, self._parts = simulation, simulation.parts
        self._node = number % len(simulation.nodes)
        self._core = Cores(simulation, 1, simulation.machine)
        self._connections = self._parts.connections
        # How many calls and records wait, by shard, the one that has waited for longest first.
        self._queues: dict[int, list[int]] = {}

    def begin(self, shard: int) -> None:
        """Take a call."""
        self._core.run(self._parts.call, partial(self._queue, shard, 0))

    def _queue(self, shard: int, kind: int) -> None:
        self._queues.setdefault(shard, [0, 0])[kind] += 1
        self._write()

    def _write(self) -> None:
        while self._connections and self._queues:
            shard = next(iter(self._queues))
            adds, records = self._queues.pop(shard)
            self._connections -= 1
            self._run_batch(shard, adds, records)

    def _run_batch(self, shard: int, adds: int, records: int) -> None:
        parts, setting, nodes = self._parts, self._simulation.setting, self._simulation.nodes
        node = shard % len(nodes)
        half = parts.server.of(adds, records) / 2
        stages: list[Stage] = [(self._core.run, half)]
        self._simulation.batches += 1
        if setting.is_direct and node == self._node:
            stages.append((nodes[node].run, parts.local.of(adds, records)))
        else:
            front = nodes[self._node] if setting.is_direct else self._simulation.coordinator
            stages.append((front.run, parts.coordinator.of(adds, records)))
            stages.append((nodes[node].run, parts.node.of(adds, records)))
        stages.append((self._simulation.after, parts.wait))
        self._next(iter(stages), partial(self._commit, half, partial(self._answer, shard, adds, records)))

    def _next(self, stages: Iterator[Stage], end: Action) -> None:
        for run, ms in stages:
            run(ms, partial(self._next, stages, end))
            return
        end()

    def _commit(self, half: float, answer: Action) -> None:
        self._connections += 1
        self._core.run(half, answer)
        self._write()

    def _answer(self, shard: int, adds: int, records: int) -> None:
        self._simulation.reserved += records
        for _ in range(adds):
            self._simulation.outside(partial(self._queue, shard, 1))
            self._simulation.call()


# Measured by `benchmarks.cluster`, on two cores, 2026-11-30. `call` is the rest of the server's CPU time for a reserved
# item; `wait` is without fsync, on one machine.
PLAIN: Final = Parts(
    server=Cost(1.53, 0.18, 1.14, 0.05),
    coordinator=Cost(),
    node=Cost(0.98, 0.14, 0.71, 0.05),
    local=Cost(),
    call=0.55,
    outside=0.15,
    wait=0.5,
    connections=1,
)
CITUS: Final = Parts(
    server=Cost(2.71, 0.16, 1.52, 0.04),
    coordinator=Cost(5.30, 0.01, 2.32, 0.003),
    node=Cost(5.17, 0.10, 2.09, 0.06),
    local=Cost(6.90, 0.12, 3.32, 0.04),
    call=0.55,
    outside=0.15,
    wait=0.5,
    connections=2,
)
# The rates that were measured on one machine, as ratios of two settings: docs/scaling.md.
MEASURED: Final = (
    ("4 shards beside 1, 64 in flight", PLAIN, Setting(4, 64), PLAIN, Setting(1, 64), 0.79),
    ("32 shards beside 1, 64 in flight", PLAIN, Setting(32, 64), PLAIN, Setting(1, 64), 0.38),
    ("4 shards beside 1, 256 in flight", PLAIN, Setting(4, 256), PLAIN, Setting(1, 256), 0.89),
    ("32 shards beside 1, 256 in flight", PLAIN, Setting(32, 256), PLAIN, Setting(1, 256), 0.57),
    ("4 shards on Citus beside PostgreSQL, 64 in flight", CITUS, Setting(4, 64, 2), PLAIN, Setting(4, 64), 0.58),
    ("4 shards on Citus beside PostgreSQL, 256 in flight", CITUS, Setting(4, 256, 2), PLAIN, Setting(4, 256), 0.91),
)
# Between machines, a batch of 10 statements waits for 2 ms, and for a commit on a disk.
FAR: Final = replace(CITUS, wait=4.0)
NODES: Final = (1, 2, 4, 8, 16)
# For each node, and the calls in flight for each of them.
PROCESSES: Final = 4
IN_FLIGHT: Final = 256
SHARDS: Final = 32
CORES: Final = 8


def check() -> None:
    """Print how far the model is off where the whole was measured."""
    for name, parts, setting, other_parts, other, measured in MEASURED:
        rates = [
            Simulation(of, replace(each, on_one_machine=True)).run()
            for of, each in ((parts, setting), (other_parts, other))
        ]
        print(f"{name}: measured {measured}, simulated {rates[0] / rates[1]:.2f}")


def scale(replicas: int, nodes: int, *, is_direct: bool) -> None:
    """Print the reserved items a second, the size of a batch, and how busy the coordinator and the first node are."""
    simulation = Simulation(FAR, Setting(SHARDS, replicas * IN_FLIGHT, nodes, replicas, CORES, is_direct))
    per_s = simulation.run(5)
    busy = [each.busy_ms / simulation.now / CORES for each in (simulation.coordinator, simulation.nodes[0])]
    print(
        f"{replicas} processes, {nodes} nodes, {'workers' if is_direct else 'coordinator'}: {per_s:,.0f} a second, "
        f"{simulation.reserved / simulation.batches:.1f} in a batch, busy {busy[0]:.0%} and {busy[1]:.0%}"
    )


def main() -> None:
    """Print everything."""
    check()
    for nodes in NODES:
        for is_direct in (False, True):
            scale(PROCESSES * nodes, nodes, is_direct=is_direct)


if __name__ == "__main__":
    main()
