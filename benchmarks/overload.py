"""Overload and fairness, measured with an open loop: it sends calls by a schedule, without waiting for answers."""

import functools
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from benchmarks.plan import CARTS, IN_FLIGHT, SKUS, Plan
from benchmarks.programs import Json, Testbed, interleave, load, measure

# Seconds that callers wait. A later answer is useless.
DEADLINE = 2


class HealthWatch:
    """Calls Health/Check every 50 ms, as an orchestrator does."""

    def __init__(self, address: str) -> None:
        self._address = address
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self.took_ms: list[float] = []
        self.failed = 0

    def _watch(self) -> None:
        with grpc.insecure_channel(self._address) as channel:
            stub = health_pb2_grpc.HealthStub(channel)
            while not self._ended.wait(0.05):
                started = time.monotonic()
                try:
                    stub.Check(health_pb2.HealthCheckRequest(service="cartgrpc.v1.CartService"), timeout=1)  # type: ignore[attr-defined]
                except grpc.RpcError:
                    self.failed += 1
                self.took_ms.append((time.monotonic() - started) * 1e3)

    @contextmanager
    def running(self) -> Iterator[None]:
        self._thread.start()
        try:
            yield
        finally:
            self._ended.set()
            self._thread.join()

    def report(self) -> Json:
        took = sorted(self.took_ms)
        return {"asked": len(took), "failed": self.failed, "p99_ms": took[len(took) * 99 // 100] if took else None}


def overload(testbed: Testbed, database: str, plan: Plan) -> Json:
    """Measure goodput, time to refusal and recovery at multiples of the server's capacity."""
    product = testbed.serve(testbed.database(database, carts=CARTS, items=SKUS))
    served = product.program
    ask = functools.partial(measure, served, "add", carts=CARTS, skus=SKUS, duration=2 * plan.seconds)
    capacity = max(ask(in_flight=in_flight)["per_s"] for in_flight in (64, 256))
    results: Json = {"capacity": capacity, "memory_before_mib": served.memory_mib(), "loads": {}}
    for times in (1, 2, 5, 10):
        health, before, peak = HealthWatch(served.address), served.cpu_seconds(), Peak(served.memory_mib)
        rate = f"{capacity * times:.0f}:{0.3 + 3 * plan.seconds}"
        with health.running(), peak.running():
            found = load(served.address, calls="add", carts=CARTS, skus=SKUS, rate=rate, timeout=DEADLINE, drain=3)
        cpu = (served.cpu_seconds() - before) / max(found["answered"], 1) * 1e6
        results["loads"][str(times)] = {**found, "health": health.report(), "peak_mib": peak.highest, "cpu_us": cpu}
        time.sleep(plan.seconds)
    # Ten times the capacity, then half of it: how long does recovery take?
    rate = f"{capacity * 10:.0f}:{2 * plan.seconds},{capacity / 2:.0f}:{4 * plan.seconds}"
    found = load(
        served.address, "--timeline", calls="add", carts=CARTS, skus=SKUS, rate=rate, timeout=DEADLINE, warmup=0
    )
    results["recovery_s"] = _recovery(found["timeline"], round(20 * plan.seconds), capacity / 2)
    results["memory_after_mib"] = served.memory_mib()
    served.stop()
    return results


def _recovery(timeline: list[list[int]], since: int, rate: float) -> float | None:
    """Return the seconds after window `since` (100 ms each) in which calls were still refused or slower than 100 ms.

    None if the server had not recovered by the end of the run.
    """
    good = [ok >= rate / 20 and refused == 0 and longest < 100_000 for ok, refused, longest in timeline[since:-3]]
    bad = [number for number, is_good in enumerate(good) if not is_good]
    return (bad[-1] + 1) / 10 if bad and bad[-1] + 1 < len(good) else None if bad else 0.0


class Peak:
    """The highest value that `read` returns, sampled every 50 ms."""

    def __init__(self, read: Callable[[], float]) -> None:
        self._read = read
        self.highest = read()

    @contextmanager
    def running(self) -> Iterator[None]:
        ended = threading.Event()

        def watch() -> None:
            while not ended.wait(0.05):
                self.highest = max(self.highest, self._read())

        thread = threading.Thread(target=watch)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()


def fairness(testbed: Testbed, database: str, plan: Plan) -> Json:
    """Measure other users' latency while one user floods the server with twice its capacity.

    "beside a flood": the flood has its own connection, as another service would. "in a flood": all calls share eight
    connections.
    """
    product = testbed.serve(testbed.database(database, carts=CARTS, items=SKUS))
    served = product.program
    ask = functools.partial(load, served.address, calls="add", carts=CARTS, skus=SKUS, timeout=DEADLINE, drain=3)
    capacity = measure(served, "add", in_flight=IN_FLIGHT, carts=CARTS, skus=SKUS, duration=2 * plan.seconds)["per_s"]
    usual, seconds = capacity * 0.3, 0.3 + 2 * plan.seconds
    flood = capacity * 2
    flooded = {"rate": f"{usual + flood:.0f}:{seconds}", "flood_share": f"{flood / (usual + flood):.3f}"}
    contenders: dict[str, Callable[[], Json]] = {
        "alone": lambda: ask(rate=f"{usual:.0f}:{seconds}"),
        "beside a flood": lambda: ask(connections=9, flood_connections=1, **flooded),
        "in a flood": lambda: ask(**flooded),
    }
    results = interleave(contenders, plan.rounds)
    served.stop()
    return {"capacity": capacity, "usual_per_s": usual, "flood_per_s": flood, **results}
