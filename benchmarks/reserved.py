"""The cost of a reserved item: AddItem with its claim, its call to the Reservation API and the record of the answer.

The load generator adds items for a while. The round ends when nothing is reconciling any more. Everything that ships is
switched on, and the simulator answers at once.
"""

import bisect
import functools
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import grpc
import uuid_utils
from cartgrpc.reservation.v1 import reservation_pb2, reservation_pb2_grpc
from cartgrpc.simulator.v1 import simulator_pb2, simulator_pb2_grpc
from cartgrpc.v1 import cart_pb2, cart_service_pb2, cart_service_pb2_grpc
from google.protobuf import duration_pb2

from benchmarks.plan import CARTS, IN_FLIGHT, SKUS, Plan
from benchmarks.programs import Json, Product, Program, Testbed, interleave, load, measure
from benchmarks.wal import WalMeter

ALONE = 150


def reserved(testbed: Testbed, database: str, plan: Plan) -> Json:
    """Measure the reserved item against the no-op: under load, and one at a time."""
    url = testbed.database(database, carts=CARTS, items=SKUS)
    product = testbed.serve(url)
    product.resume()
    product.program.stop()
    empty = functools.partial(measure, testbed.noop, "noop", duration=plan.seconds, carts=CARTS, skus=SKUS)
    item = functools.partial(_reserve_anew, testbed, url, 2 * plan.seconds)
    many = interleave({"noop": lambda: empty(in_flight=IN_FLIGHT), "reserved": item}, 2 * plan.rounds)
    product = testbed.serve(url)
    alone = interleave(
        {
            "noop": lambda: empty(in_flight=1),
            "add": lambda: _add_alone(product, plan.seconds),
            "until_reserved": lambda: _until_reserved(testbed, product),
        },
        plan.rounds,
    )
    wait_until_reserved(product)
    product.program.stop()
    return {"many": many, "alone": alone}


def reserve(testbed: Testbed, product: Product, *, seconds: float, in_flight: int = IN_FLIGHT) -> Json:
    """Add items for `seconds`, wait until nothing is reconciling, and return the cost of an item.

    `api_cpu_us` and `postgres_cpu_us` are the CPU of the simulator and of PostgreSQL. `decided` is the number of
    decisions of the simulator for an AddItem: below 1 if one call reserved what several calls had added. Raises
    RuntimeError if an AddItem failed.
    """
    postgres = testbed.postgres_cpu_seconds if product.is_on_postgresql else lambda: 0.0
    read: list[Callable[[], float]] = [product.program.cpu_seconds, testbed.simulator.cpu_seconds, postgres]
    wal, decided = WalMeter(product), _count_decisions(testbed.simulator)
    before, started = [figure() for figure in read], time.monotonic()
    found = load_items(product, seconds=seconds, in_flight=in_flight)
    wait_until_reserved(product, found["ok_per_s"])
    took = time.monotonic() - started
    items, written = found["answered"], wal.read()
    cpu, of_api, of_postgres = ((figure() - was) / items * 1e6 for figure, was in zip(read, before, strict=True))
    return {
        "per_s": items / took,
        "cpu_us": cpu,
        "add_per_s": found["ok_per_s"],
        "p50_us": found["ok_us"]["p50"],
        "p99_us": found["ok_us"]["p99"],
        "load_share": found["cpu_share"],
        "api_cpu_us": of_api,
        "postgres_cpu_us": of_postgres,
        "wal_bytes": (written.total - written.images) / items,
        "wal_image_bytes": written.images / items,
        "decided": (_count_decisions(testbed.simulator) - decided) / items,
    }


def _reserve_anew(testbed: Testbed, url: str, seconds: float) -> Json:
    """As `reserve`, with a new server process, which gets a short load before.

    Two processes of the same code differ by up to a third, for as long as they run. So each round has its own.
    """
    product = testbed.serve(url)
    reserve(testbed, product, seconds=seconds / 2)
    found = reserve(testbed, product, seconds=seconds)
    product.program.stop()
    return found


def load_items(product: Product, *, seconds: float, in_flight: int = IN_FLIGHT) -> Json:
    """Add items for `seconds` and return the report of the load generator. Raises RuntimeError if a call failed."""
    found = load(product.address, calls="add", in_flight=in_flight, carts=CARTS, skus=SKUS, duration=seconds, warmup=0)
    if found["not_ok"] or found["unfinished"] or found["ok"] == 0:
        raise RuntimeError(f"AddItem: {found}")
    return found


def wait_until_reserved(
    product: Product, per_s: float = 1_000, *, timeout: float = 120, longest_sleep: float = 1
) -> None:
    """Return when nothing is reconciling. Raises TimeoutError after `timeout` seconds.

    It asks seldom, because the server's answers cost CPU, too. At `per_s` items a second, the rest takes some time:
    it sleeps for half of that.
    """
    deadline = time.monotonic() + timeout
    while left := product.count_reconciling():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{left} reservations are still reconciling")
        time.sleep(min(max(left / per_s / 2, 0.01), longest_sleep))


def _add_alone(product: Product, seconds: float) -> Json:
    found = measure(product.program, "add", duration=seconds, carts=CARTS, skus=SKUS, in_flight=1)
    # The next contender should not find the reconciler at work.
    wait_until_reserved(product)
    return found


def _until_reserved(testbed: Testbed, product: Product) -> Json:
    """Measure AddItem until RESERVED, one at a time, beside a plain AddItem and the simulator's own call."""
    with _stub(product.program, cart_service_pb2_grpc.CartServiceStub) as carts:
        plain = _time_each(lambda n: _add(carts, n))
        wait_until_reserved(product)
        waited = _time_each(lambda n: _add(carts, n, wait=True))
    with _stub(testbed.simulator, reservation_pb2_grpc.ReservationServiceStub) as api:
        call = _time_each(lambda _: _hold(api))
    middle, late = len(waited) // 2, len(waited) * 99 // 100
    return {
        "per_s": len(waited) / sum(waited) * 1e6,
        "p50_us": waited[middle],
        "p99_us": waited[late],
        "call_p50_us": call[middle],
        "call_p99_us": call[late],
        "plain_p50_us": plain[middle],
        "beyond_p50_us": waited[middle] - call[middle],
        "beyond_p99_us": waited[late] - call[middle],
    }


def _time_each(call: Callable[[int], object]) -> list[float]:
    """Call with 0, 1, … one at a time. Return how long each call took in µs, the shortest first."""
    took = []
    for number in range(ALONE):
        started = time.perf_counter()
        call(number)
        took.append((time.perf_counter() - started) * 1e6)
    return sorted(took)


def _add(carts: Any, number: int, *, wait: bool = False) -> None:
    request = cart_service_pb2.AddItemRequest(
        parent=f"users/u{number:07}/carts/default", item=cart_pb2.Item(sku="sku-000000", quantity=1)
    )
    if wait:
        request.max_wait.CopyFrom(duration_pb2.Duration(seconds=10))
    item = carts.AddItem(request, timeout=20).item
    if wait and item.reservation.state != cart_pb2.Reservation.STATE_RESERVED:
        raise RuntimeError(f"not reserved: {item}")


def _hold(api: Any) -> None:
    reservation = reservation_pb2.Reservation(
        reservation_id=str(uuid_utils.uuid7()),
        revision=1,
        sku="sku-000000",
        quantity=1,
        disposition=reservation_pb2.Reservation.DISPOSITION_HOLD,
        ttl=duration_pb2.Duration(seconds=900),
    )
    api.ApplyReservation(reservation_pb2.ApplyReservationRequest(reservation=reservation), timeout=10)


@contextmanager
def _stub(program: Program, stub: Callable[[grpc.Channel], Any]) -> Iterator[Any]:
    with grpc.insecure_channel(program.address, options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
        yield stub(channel)


def _count_decisions(simulator: Program) -> int:
    """Return the number of decisions so far: the sequence of the last one, found by halving."""
    with _stub(simulator, simulator_pb2_grpc.SimulatorServiceStub) as control:

        def is_last(sequence: int) -> bool:
            request = simulator_pb2.ListEffectsRequest(after_sequence=sequence, page_size=1)
            return not control.ListEffects(request, timeout=10).effects

        return bisect.bisect_left(range(2**31), x=True, key=is_last)
