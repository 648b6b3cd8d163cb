"""Overload and fairness, measured with an open loop: it sends calls by a schedule, without waiting for answers."""

import functools
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from benchmarks.plan import CARTS, SKUS, Plan
from benchmarks.programs import Json, Product, Testbed, interleave, load
from benchmarks.reserved import reserve, wait_until_reserved

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
    """Measure goodput, time to refusal and recovery at multiples of the server's capacity, in reserved items.

    The reconciler is at work. Capacity is the highest rate of a closed loop, and goodput is the rate of the calls that
    were answered OK within the deadline: both count the time until nothing is reconciling.
    """
    product = testbed.serve(testbed.database(database, carts=CARTS, items=SKUS))
    product.resume()
    served = product.program
    reserve(testbed, product, seconds=plan.seconds)
    closed = {
        in_flight: reserve(testbed, product, seconds=2 * plan.seconds, in_flight=in_flight)["per_s"]
        for in_flight in (64, 256)
    }
    capacity = max(closed.values())
    results: Json = {"capacity": capacity, "memory_before_mib": served.memory_mib(), "loads": {}}
    for times in (1, 2, 5, 10):
        health, before, peak = HealthWatch(served.address), served.cpu_seconds(), Peak(served.memory_mib)
        with health.running(), peak.running():
            found = _offer(product, rate=f"{capacity * times:.0f}:{6 * plan.seconds}")
        cpu = (served.cpu_seconds() - before) / max(found["answered"], 1) * 1e6
        results["loads"][str(times)] = {**found, "health": health.report(), "peak_mib": peak.highest, "cpu_us": cpu}
    results["recovery_s"] = _recover(product, capacity, plan)
    results["memory_after_mib"] = served.memory_mib()
    served.stop()
    return results


def _offer(product: Product, **options: object) -> Json:
    """Send AddItem by a schedule and wait until nothing is reconciling. `reserved_per_s` counts all of that time."""
    started = time.monotonic()
    found = load(
        product.address, calls="add", carts=CARTS, skus=SKUS, timeout=DEADLINE, warmup=0, drain=DEADLINE + 1, **options
    )
    wait_until_reserved(product, found["ok_per_s"] or 1)
    all_ok = found["ok"] + found.get("flood", {}).get("ok", 0)
    return {**found, "reserved_per_s": all_ok / (time.monotonic() - started)}


def _recover(product: Product, capacity: float, plan: Plan) -> float | None:
    """Offer ten times the capacity between two times of half the capacity. Return how long the server needed after it.

    None if it had not recovered by the end of the run.
    """
    # Tenths of a second.
    before, flood, after = round(20 * plan.seconds), round(20 * plan.seconds), round(60 * plan.seconds)
    phases = ((0.5, before), (10, flood), (0.5, after))
    rate = ",".join(f"{capacity * times:.0f}:{tenths / 10}" for times, tenths in phases)
    found = load(
        product.address, "--timeline", calls="add", carts=CARTS, skus=SKUS, rate=rate, timeout=DEADLINE, warmup=0
    )
    wait_until_reserved(product, capacity)
    timeline = [Window(*window) for window in found["timeline"]]
    return find_recovery(timeline[3:before], timeline[before + flood : before + flood + after], capacity / 2)


class Window(NamedTuple):
    """A tenth of a second: the calls answered and refused, and the longest call that was answered."""

    ok: int
    refused: int
    longest_us: int


def find_recovery(before: Sequence[Window], after: Sequence[Window], rate: float) -> float | None:
    """Return the seconds until the server was as before for half a second: nothing refused, no call longer, same rate.

    A call may take half as long again as the longest one before the flood, and 100 ms in any case. None if the server
    has not recovered.
    """
    longest = max(100_000, 1.5 * max(window.longest_us for window in before))
    good = [window.ok >= rate / 20 and not window.refused and window.longest_us <= longest for window in after]
    return next((start / 10 for start in range(len(good) - 4) if all(good[start : start + 5])), None)


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
    """Measure other users' latency while one user floods the server with twice its capacity, in reserved items.

    "beside a flood": the flood has its own connection, as another service would. "in a flood": all calls share eight
    connections.
    """
    product = testbed.serve(testbed.database(database, carts=CARTS, items=SKUS))
    product.resume()
    reserve(testbed, product, seconds=plan.seconds)
    capacity = reserve(testbed, product, seconds=2 * plan.seconds)["per_s"]
    ask = functools.partial(_offer, product)
    usual, seconds = capacity * 0.3, 3 * plan.seconds
    flood = capacity * 2
    flooded = {"rate": f"{usual + flood:.0f}:{seconds}", "flood_share": f"{flood / (usual + flood):.3f}"}
    contenders: dict[str, Callable[[], Json]] = {
        "alone": lambda: ask(rate=f"{usual:.0f}:{seconds}"),
        "beside a flood": lambda: ask(connections=9, flood_connections=1, **flooded),
        "in a flood": lambda: ask(**flooded),
    }
    results = interleave(contenders, plan.rounds)
    product.program.stop()
    return {"capacity": capacity, "usual_per_s": usual, "flood_per_s": flood, **results}
