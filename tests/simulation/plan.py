"""What a seed's run is like: how large, how configured, and which faults, each drawn on or off (a swarm)."""

from dataclasses import dataclass, field
from random import Random

from cart_grpc.background.reconciler import ReconcilerConfig
from cart_grpc.background.sweeper import Retention
from cart_grpc.carts.calls import Limits
from tests.simulation.database import DatabaseFaults
from tests.simulation.network import NetworkFaults
from tests.simulation.operations import SCARCE, SKUS

SECOND = 1_000_000


@dataclass(slots=True)
class Plan:
    """All that is drawn before a run begins. Times in seconds; rates are of events a minute."""

    replicas: int
    callers: int
    operations: int
    duration: float
    carts: list[str]
    skus: list[str]
    stock: dict[str, int]
    limits: Limits
    config: ReconcilerConfig
    retention: Retention
    housekeeping_interval: float
    database: DatabaseFaults
    network: NetworkFaults
    clock_rates: list[float]
    rates: dict[str, float] = field(default_factory=dict)
    give_up: float = 0.0

    @property
    def reasons_to_refuse(self) -> set[str]:
        """All that can be the reason why an item is rejected."""
        reasons = {"OUT_OF_STOCK"} if self.network.sold_out or min(self.stock.values()) < 10_000 else set()
        return reasons | ({"SIMULATED"} if self.network.refused else set())

    @property
    def healthy(self) -> bool:
        """Whether nothing goes wrong at all."""
        return self.network == NetworkFaults(latency=self.network.latency) and not self.rates


def draw(numbers: Random) -> Plan:
    """Small worlds, harsh weather; one in twelve has none."""
    healthy = numbers.random() < 1 / 12
    replicas = numbers.choice([1, 2, 2, 3])
    carts = [f"users/{user}/carts/default" for user in ("alice", "bob")][: numbers.choice([1, 1, 2])]
    if numbers.random() < 0.2:
        carts.append("users/alice/carts/other")
    skus = list(SKUS[-numbers.choice([1, 2, 3, 4]) :])
    stock = dict.fromkeys(skus, 10_000)
    stock[SCARCE] = numbers.choice([3, 10, 10_000])
    return Plan(
        replicas=replicas,
        callers=numbers.choice([1, 2, 3]),
        operations=numbers.randint(15, 35),
        duration=numbers.choice([20.0, 60.0, 180.0]),
        carts=carts,
        skus=skus,
        stock=stock,
        limits=Limits(
            hold_ttl_us=numbers.choice([60, 300, 900, 3600]) * SECOND,
            cart_ttl_us=(numbers.choice([60, 120]) if numbers.random() < 0.3 else 604_800) * SECOND,
        ),
        config=_config(numbers),
        retention=Retention(
            replies=604_800 * SECOND,
            reservations=numbers.choice([60, 86_400]) * SECOND,
            carts=604_800 * SECOND,
        ),
        housekeeping_interval=20.0,
        database=DatabaseFaults() if healthy else _database_faults(numbers),
        network=NetworkFaults(latency=numbers.choice([0.05, 1.0])) if healthy else _network_faults(numbers),
        clock_rates=[1.0 if healthy else numbers.choice([0.9, 1.0, 1.0, 1.1]) for _ in range(replicas)],
        rates={} if healthy else _rates(numbers),
        give_up=0.0 if healthy else _maybe(numbers, 0.3),
    )


def _config(numbers: Random) -> ReconcilerConfig:
    return ReconcilerConfig(
        call_timeout=numbers.choice([5.0, 30.0, 120.0]),
        max_in_flight=numbers.choice([2, 100]),
        poll_interval=numbers.choice([1.0, 3.0]),
        lease=15.0,
        backoff_max=numbers.choice([5.0, 20.0, 60.0]),
        breaker_threshold=numbers.choice([2, 5]),
        probe_interval=numbers.choice([1.0, 5.0]),
    )


def _maybe(numbers: Random, most: float) -> float:
    """Off in more than half of all runs, else up to `most`."""
    return numbers.uniform(0, most) if numbers.random() < 0.4 else 0.0


def _database_faults(numbers: Random) -> DatabaseFaults:
    return DatabaseFaults(
        commit_lost=_maybe(numbers, 0.2),
        reply_lost=_maybe(numbers, 0.8),
        slowest=numbers.choice([0.01, 0.5, 3.0]),
        slowest_reply=numbers.choice([0.002, 0.1, 1.0]),
    )


def _network_faults(numbers: Random) -> NetworkFaults:
    return NetworkFaults(
        lost_before=_maybe(numbers, 0.5),
        lost_after=_maybe(numbers, 0.5),
        duplicated=_maybe(numbers, 0.6),
        duplicate_delay=numbers.choice([5.0, 60.0, 600.0]),
        slow=_maybe(numbers, 0.5),
        slowest=numbers.choice([10.0, 60.0, 300.0]),
        latency=numbers.choice([0.05, 1.0, 5.0]),
        refused=_maybe(numbers, 0.2),
        sold_out=_maybe(numbers, 0.2),
        garbage=_maybe(numbers, 0.3),
        throttled=_maybe(numbers, 0.3),
        retry_after=numbers.choice([2.0, 60.0]),
    )


def _rates(numbers: Random) -> dict[str, float]:
    kinds = ("kill", "stop", "pause", "cut api", "cut database", "api down", "jump")
    return {kind: numbers.uniform(0.3, 4.0) for kind in kinds if numbers.random() < 0.35}
