"""10,000 watchers of WatchCart in one process: memory, CPU while nothing changes and while much does, and latency.

Each watcher has a cart of its own, on 200 connections. The reconciler is paused, so each AddItem is one change.
"""

import asyncio
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

import grpc
from cartgrpc.v1 import cart_pb2, cart_service_pb2_grpc
from cartgrpc.v1 import cart_service_pb2 as pb

from benchmarks.plan import CARTS, IN_FLIGHT, SKUS, Plan
from benchmarks.programs import Json, Product, Testbed, load, measure
from benchmarks.watch_client import Connection, connect

WATCHERS: Final = 10_000
ITEMS: Final = 5
PER_CONNECTION: Final = 50
CHANGES_PER_S: Final = 1_000
# The AddItems of these carts are timed until the watcher has the change. The load does not change them.
PROBES: Final = 100
CHANGING: Final = WATCHERS - PROBES


@dataclass
class Seen:
    """The messages that the watchers have got: their number, and the time of the last one of each cart."""

    carts: int = 0
    heartbeats: int = 0
    quantities: dict[str, tuple[int, float]] = field(default_factory=dict)

    def take(self, name: str, message: pb.WatchCartResponse) -> None:
        if message.WhichOneof("content") == "heartbeat":
            self.heartbeats += 1
            return
        self.carts += 1
        self.quantities[name] = message.cart.total_quantity, time.perf_counter()


def watch(testbed: Testbed, database: str, plan: Plan) -> Json:
    """Measure the watchers of one process, and on PostgreSQL the latency of changes that another process makes."""
    noop = measure(testbed.noop, "noop", duration=plan.seconds, in_flight=IN_FLIGHT, carts=CARTS, skus=SKUS)
    url = testbed.database(database, carts=WATCHERS, items=ITEMS)
    product = testbed.serve(url)
    other = testbed.serve(url) if database == "postgresql" else None
    try:
        found = asyncio.run(_measure(product, other, 10 * plan.seconds))
    finally:
        for served in (product, other):
            if served:
                served.program.stop()
    return {"noop_cpu_us": noop["cpu_us"], **found}


async def _measure(product: Product, other: Product | None, seconds: float) -> Json:
    change_alone = await _cpu_of_changes(product, seconds)
    before, seen = product.program.memory_mib(), Seen()
    opened = time.monotonic()
    connections = await _open(product.address, [_name(number) for number in range(WATCHERS)], seen)
    opening_s = time.monotonic() - opened
    results: Json = {
        "watchers": WATCHERS,
        "opening_s": opening_s,
        "kib_each": (product.program.memory_mib() - before) * 1024 / WATCHERS,
    }
    cpu = product.program.cpu_seconds()
    await asyncio.sleep(seconds)
    results["idle_cpu_share"] = (product.program.cpu_seconds() - cpu) / seconds
    probes = [_name(number) for number in range(CHANGING, WATCHERS)]
    results["latency, idle"] = await _probe(product.address, probes, seen)
    messages = seen.carts
    busy, results["latency, changing"] = await asyncio.gather(
        _cpu_of_changes(product, seconds), _probe(product.address, probes, seen)
    )
    await asyncio.sleep(1)
    results |= {"messages_per_s": (seen.carts - messages) / seconds, "changing_cpu_share": busy["cpu_share"]}
    results |= {"changes_alone_cpu_share": change_alone["cpu_share"], "changes_per_s": busy["per_s"]}
    results["message_cpu_us"] = (
        (busy["cpu_share"] - change_alone["cpu_share"]) * seconds / (seen.carts - messages) * 1e6
    )
    if other:
        results["latency, other process, idle"] = await _probe(other.address, probes, seen)
        _, results["latency, other process, changing"] = await asyncio.gather(
            _cpu_of_changes(other, seconds), _probe(other.address, probes, seen)
        )
    results["kib_each_afterwards"] = (product.program.memory_mib() - before) * 1024 / WATCHERS
    if ended := sum(connection.ended for connection in connections):
        raise RuntimeError(f"{ended} streams have ended")
    for connection in connections:
        connection.close()
    return results


def _name(number: int) -> str:
    return f"users/u{number:07}/carts/default"


async def _open(address: str, names: Sequence[str], seen: Seen) -> list[Connection]:
    """Watch the carts, one connection after the other, and wait for the first message of each."""
    connections = []
    for start in range(0, len(names), PER_CONNECTION):
        part = names[start : start + PER_CONNECTION]
        connections.append(await connect(address, part, seen.take))
        await _until(lambda part=part: all(name in seen.quantities for name in part))  # type: ignore[misc]
    return connections


async def _cpu_of_changes(product: Product, seconds: float) -> Json:
    """Change the watched carts CHANGES_PER_S times a second; return the server's share of a core."""
    cpu = product.program.cpu_seconds()
    found = await asyncio.to_thread(
        load, product.address, calls="add", rate=f"{CHANGES_PER_S}:{seconds}", carts=CHANGING, skus=ITEMS, warmup=0
    )
    if found["not_ok"] or found["unfinished"]:
        raise RuntimeError(f"AddItem: {found}")
    return {"per_s": found["ok"] / seconds, "cpu_share": (product.program.cpu_seconds() - cpu) / seconds}


async def _probe(address: str, names: Sequence[str], seen: Seen) -> Json:
    """Add an item to each cart, one after the other. Return the times until the reply and until the watcher has it."""
    replies, deliveries = [], []
    async with grpc.aio.insecure_channel(address) as channel:
        stub: cart_service_pb2_grpc.CartServiceAsyncStub = cart_service_pb2_grpc.CartServiceStub(channel)
        for name in names:
            await asyncio.sleep(random.uniform(0, 0.05))
            wanted = seen.quantities[name][0] + 1
            began = time.perf_counter()
            await stub.AddItem(pb.AddItemRequest(parent=name, item=cart_pb2.Item(sku="sku-000000")), timeout=20)
            replies.append(time.perf_counter() - began)
            await _until(lambda name=name, wanted=wanted: seen.quantities[name][0] >= wanted)  # type: ignore[misc]
            deliveries.append(seen.quantities[name][1] - began)
    return {
        "reply_p50_us": _percentile(replies, 50),
        "p50_us": _percentile(deliveries, 50),
        "p99_us": _percentile(deliveries, 99),
    }


def _percentile(times: Sequence[float], percent: int) -> float:
    return sorted(times)[min(len(times) * percent // 100, len(times) - 1)] * 1e6


async def _until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not holds():  # noqa: ASYNC110 - the condition is about messages that have arrived
            await asyncio.sleep(0.002)
