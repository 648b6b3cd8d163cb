"""The plan of a seed: size, settings and faults. Each fault is drawn on or off per seed (swarm testing).

The order of the draws decides what a seed does: a draw added in the middle changes every seed. The number of the seed
decides about the rare faults, so that a few seeds in a row meet all of them.
"""

from dataclasses import dataclass, field, replace
from random import Random

from cart_grpc.background.config import ReconcilerConfig
from cart_grpc.background.sweeper import Retention
from cart_grpc.carts.calls import Limits
from tests.simulation.database import DatabaseFaults
from tests.simulation.network import NetworkFaults
from tests.simulation.operations import SCARCE, SKUS

SECOND = 1_000_000


@dataclass(slots=True)
class SimulationPlan:
    """All choices made before a run begins. Times are in seconds; rates are events per minute.

    `clock_jumps`: the database's clock jumps by hours, else by at most 1.5 s. `api_follows`: the Reservation API's
    clock jumps with it. `max_batch`: the most entries of a batch call; 1 means no batch calls. `sales`: the probability
    that a caller fills a cart and checks it out before an operation; `merges`: that it merges two carts.
    """

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
    sweep_interval_us: int
    database: DatabaseFaults
    network: NetworkFaults
    clock_rates: list[float]
    rates: dict[str, float] = field(default_factory=dict)
    give_up: float = 0.0
    clock_jumps: bool = False
    api_follows: bool = False
    max_batch: int = 1
    sales: float = 0.2
    shards: int = 1
    merges: float = 0.0

    @property
    def rejection_reasons(self) -> set[str]:
        """The reasons with which the API may reject an item."""
        reasons = {"OUT_OF_STOCK"} if self.network.sold_out or min(self.stock.values()) < 10_000 else set()
        return reasons | ({"SIMULATED"} if self.network.refused else set())

    @property
    def database_answers(self) -> bool:
        """Whether the database answers every transaction soon, so that a process that stops hands its claims back."""
        lossless = (
            not (self.database.commit_lost or self.database.reply_lost or self.database.killed)
            and self.database.slowest < 0.1
        )
        return lossless and not {"cut database", "pause", "kill"} & self.rates.keys()

    @property
    def healthy(self) -> bool:
        """Whether the plan has no faults."""
        return self.network == NetworkFaults(latency=self.network.latency) and not self.rates


def draw(rng: Random, seed: int) -> SimulationPlan:
    """Draw the plan of `seed`: few carts, many faults. One plan in twelve has no faults."""
    plan = _draw(rng)
    if not plan.healthy:
        match seed % 5:
            case 0:
                _add_broken_batches(plan)
            case 1 | 3:
                _add_lost_sales(plan)
    if shards := {2: 2, 3: 4}.get(seed % 4):
        _add_shards(plan, shards)
    return plan


def _add_shards(plan: SimulationPlan, count: int) -> None:
    """Several shards, users of two of them, and merges between these. Processes die at the COMMIT of merges and pauses.

    A process asks each shard at each poll, so it polls less often.
    """
    plan.shards = count
    plan.carts = ["users/alice/carts/default", "users/carol/carts/default", *plan.carts[2:]]
    plan.config = replace(plan.config, poll_interval_us=3 * SECOND)
    plan.merges = 0.15
    if not plan.healthy:
        plan.database = replace(plan.database, killed=0.3)
        plan.rates.setdefault("pause claims", 1.0)


def _add_broken_batches(plan: SimulationPlan) -> None:
    """Batches of several entries, whose streams break, and an API that often has none."""
    plan.max_batch = 100
    plan.config = replace(plan.config, max_in_flight=100)
    plan.network = replace(plan.network, duplicated=0.4, broken=0.3, half=0.3, hanging=0.3, doubled=0.3)
    plan.rates["no batches"] = 4.0


def _add_lost_sales(plan: SimulationPlan) -> None:
    """Many sales that the API refuses. All their holds are granted soon, so that checkouts become ready."""
    plan.sales = 0.6
    plan.stock = dict.fromkeys(plan.stock, 10_000)
    plan.network = replace(
        plan.network, latency=0.05, lost_before=0.0, slow=0.0, refused=0.0, sold_out=0.0, throttled=0.0, lost_holds=0.6
    )


def _draw(rng: Random) -> SimulationPlan:
    healthy = rng.random() < 1 / 12
    replicas = rng.choice([1, 2, 2, 3])
    carts = [f"users/{user}/carts/default" for user in ("alice", "bob")][: rng.choice([1, 2, 2])]
    if len(carts) == 1 or rng.random() < 0.2:
        carts.append("users/alice/carts/other")
    skus = list(SKUS[-rng.choice([1, 2, 3, 4]) :])
    stock = dict.fromkeys(skus, 10_000)
    stock[SCARCE] = rng.choice([3, 10, 10_000])
    plan = SimulationPlan(
        replicas=replicas,
        callers=rng.choice([1, 2, 3]),
        operations=rng.randint(15, 35),
        duration=rng.choice([20.0, 60.0, 180.0]),
        carts=carts,
        skus=skus,
        stock=stock,
        limits=Limits(
            hold_ttl_us=rng.choice([60, 300, 900, 3600]) * SECOND,
            cart_ttl_us=(rng.choice([60, 120]) if rng.random() < 0.3 else 604_800) * SECOND,
        ),
        config=_config(rng),
        retention=Retention(
            replies_us=604_800 * SECOND,
            reservations_us=rng.choice([60, 86_400]) * SECOND,
            carts_us=604_800 * SECOND,
        ),
        sweep_interval_us=20 * SECOND,
        database=DatabaseFaults() if healthy else _database_faults(rng),
        network=NetworkFaults(latency=rng.choice([0.05, 1.0])) if healthy else _network_faults(rng),
        clock_rates=[1.0 if healthy else rng.choice([0.9, 1.0, 1.0, 1.1]) for _ in range(replicas)],
        rates={} if healthy else _rates(rng),
        give_up=0.0 if healthy else _maybe(rng, 0.3),
        clock_jumps=not healthy and rng.random() < 0.5,
        api_follows=rng.random() < 0.3,
        max_batch=rng.choice([1, 2, 100, 100]),
    )
    if plan.clock_jumps:
        plan.rates.setdefault("jump", rng.uniform(0.3, 4.0))
        # Holds that end during the run.
        plan.limits = replace(plan.limits, hold_ttl_us=rng.choice([20, 60, 300]) * SECOND)
    return plan


def _config(rng: Random) -> ReconcilerConfig:
    return ReconcilerConfig(
        call_timeout_us=rng.choice([5, 30, 120]) * SECOND,
        max_in_flight=rng.choice([1, 2, 100, 100]),
        poll_interval_us=rng.choice([1, 3]) * SECOND,
        lease_us=15 * SECOND,
        backoff_max_us=rng.choice([5, 20, 60]) * SECOND,
        breaker_threshold=rng.choice([2, 5]),
        probe_interval_us=rng.choice([1, 5]) * SECOND,
    )


def _maybe(rng: Random, most: float) -> float:
    """0 in 60 % of the draws, else a random number up to `most`."""
    return rng.uniform(0, most) if rng.random() < 0.4 else 0.0


def _database_faults(rng: Random) -> DatabaseFaults:
    return DatabaseFaults(
        commit_lost=_maybe(rng, 0.2),
        reply_lost=_maybe(rng, 0.8),
        slowest=rng.choice([0.01, 0.5, 3.0]),
        slowest_reply=rng.choice([0.002, 0.1, 1.0]),
    )


def _network_faults(rng: Random) -> NetworkFaults:
    return NetworkFaults(
        lost_before=_maybe(rng, 0.5),
        lost_after=_maybe(rng, 0.5),
        duplicated=_maybe(rng, 0.6),
        duplicate_delay=rng.choice([5.0, 60.0, 600.0]),
        slow=_maybe(rng, 0.5),
        slowest=rng.choice([10.0, 60.0, 300.0]),
        latency=rng.choice([0.05, 1.0, 5.0]),
        refused=_maybe(rng, 0.2),
        sold_out=_maybe(rng, 0.2),
        garbage=_maybe(rng, 0.3),
        throttled=_maybe(rng, 0.3),
        retry_after=rng.choice([2.0, 60.0]),
        broken=rng.uniform(0, 0.3),
        half=rng.uniform(0, 0.3),
        hanging=rng.uniform(0, 0.2),
        doubled=rng.uniform(0, 0.3),
    )


def _rates(rng: Random) -> dict[str, float]:
    kinds = (
        "kill",
        "stop",
        "pause",
        "cut api",
        "cut database",
        "api down",
        "jump",
        "no batches",
        "pause claims",
        "end checkout",
    )
    return {kind: rng.uniform(0.3, 4.0) for kind in kinds if rng.random() < 0.35}
