"""Each check of the rules about values goes red, over both transports, against an API without its rule."""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest
from aiohttp import web
from cartgrpc.reservation.v1 import reservation_pb2
from google.protobuf.unknown_fields import UnknownFieldSet

from cart_grpc import app
from cart_grpc.probe import decisions, endurance, formats, refusals, sales
from cart_grpc.probe.contract import Check
from cart_grpc.probe.findings import Finding, Verdict
from cart_grpc.probe.probe import connect
from cart_grpc.probe.reservation_v1 import RESERVATION_V1
from cart_grpc.probe.session import ProbeConfig, Session
from cart_grpc.protocol.reservation import Intent
from cart_grpc.simulator import codec
from cart_grpc.simulator.errors import BadRequest
from cart_grpc.simulator.http_endpoint import make_app
from cart_grpc.simulator.server import SimulatorServer
from cart_grpc.simulator.simulator import Simulator
from cart_grpc.simulator.stock import Stock
from tests.probe import broken, broken_values
from tests.probe.probing import EVERYTHING, UNCOUNTED, make


@pytest.fixture(scope="module")
async def served() -> AsyncIterator[tuple[Simulator, Mapping[str, str]]]:
    """A simulator for all tests of this module, whose stock each test replaces, and its URLs by transport."""
    simulator = make()
    server = SimulatorServer(simulator)
    ports = await server.start("127.0.0.1:0", "127.0.0.1:0")
    yield simulator, {"grpc": f"grpc://127.0.0.1:{ports.grpc}", "http": f"http://127.0.0.1:{ports.http}"}
    await server.stop(0)


async def run(check: Check[Session], url: str, config: ProbeConfig = EVERYTHING) -> Finding:
    """Run one check against the API at `url`."""
    async with connect(url, config, clock=app.clock, new_id=app.new_id) as one:
        one._contract = replace(RESERVATION_V1, checks=(check,))
        report = await one.run(asyncio.Event())
    [finding] = report.findings
    return finding


BROKEN_BY: list[tuple[Check[Session], type[Stock]]] = [
    (decisions.another_quantity, broken.IgnoresTheBody),
    (decisions.another_disposition, broken.IgnoresTheBody),
    (decisions.another_sku, broken.ComparesQuantitiesOnly),
    (decisions.another_ttl, broken.ComparesQuantitiesOnly),
    (decisions.another_ignored_field, broken_values.IgnoresUnusedFields),
    (decisions.other_labels, broken.ComparesLabels),
    (refusals.changed_sku, broken_values.ExchangesTheSku),
    (refusals.released_sku, broken_values.ReleasesOneSku),
    (refusals.sku_of_nothing, broken_values.KeepsTheFirstSku),
    (sales.committed_sku, broken_values.SellsAnotherSku),
    (sales.smaller_commit, broken_values.SellsWhatIsHeld),
    (sales.committed_absorbs, broken_values.SellsNoMoreThanIsHeld),
    (sales.larger_commit, broken_values.LosesTheHoldOfARefusedSale),
    (sales.commit_without_a_hold, broken_values.SellsOnlyHolds),
    (endurance.expire_time, broken.RenewalShortens),
    (endurance.shortest_and_longest_ttl, broken_values.HoldsForADay),
    (endurance.shortest_and_longest_ttl, broken_values.RefusesShortHolds),
]


@pytest.mark.parametrize(("check", "stock"), BROKEN_BY, ids=lambda value: getattr(value, "__name__", ""))
async def test_a_check_passes_the_simulator_and_fails_one_without_its_rule(
    served: tuple[Simulator, Mapping[str, str]], transport: str, check: Check[Session], stock: type[Stock]
) -> None:
    simulator, urls = served
    for kind, verdict in ((Stock, Verdict.PASSED), (stock, Verdict.FAILED)):
        simulator._stock = kind({"beans": 10}, default_total=None)
        finding = await run(check, urls[transport])
        assert finding.verdict is verdict, finding.answer


async def test_an_api_that_takes_any_ttl_fails_that_check(
    served: tuple[Simulator, Mapping[str, str]], transport: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    simulator, urls = served
    simulator._stock = Stock({"beans": 10}, default_total=None)
    for bound, value in (("MIN_TTL_US", 1), ("MAX_TTL_US", 10**15)):
        assert (await run(endurance.ttl_out_of_range, urls[transport])).verdict is Verdict.PASSED
        with monkeypatch.context() as patch:
            patch.setattr(codec, bound, value)
            assert (await run(endurance.ttl_out_of_range, urls[transport])).verdict is Verdict.FAILED


async def test_an_api_that_refuses_unknown_fields_over_grpc_fails_that_check(
    served: tuple[Simulator, Mapping[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    simulator, urls = served
    simulator._stock = Stock({"beans": 10}, default_total=None)
    assert (await run(formats.unknown_fields, urls["grpc"])).verdict is Verdict.PASSED
    read = codec.to_intent

    def read_strictly(message: reservation_pb2.Reservation) -> Intent:
        if len(UnknownFieldSet(message)):
            raise BadRequest("MALFORMED", "unknown fields")
        return read(message)

    monkeypatch.setattr(codec, "to_intent", read_strictly)
    assert (await run(formats.unknown_fields, urls["grpc"])).verdict is Verdict.FAILED


@asynccontextmanager
async def picky(is_refused: Callable[[dict[str, Any]], bool]) -> AsyncIterator[str]:
    """Serve a simulator over HTTP that refuses a PUT if `is_refused` is true for its reservation. Yields the URL."""

    @web.middleware
    async def refuse(request: web.Request, handler: Any) -> web.StreamResponse:
        if request.method == "PUT" and is_refused((await request.json())["reservation"]):
            return web.json_response({"error": {"status": "INVALID_ARGUMENT", "reason": "MALFORMED"}}, status=400)
        answer: web.StreamResponse = await handler(request)
        return answer

    application = make_app(make())
    application.middlewares.append(refuse)
    runner = web.AppRunner(application, access_log=None, shutdown_timeout=0)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    await runner.cleanup()


PICKY: dict[str, tuple[Check[Session], Callable[[dict[str, Any]], bool]]] = {
    "unknown fields": (formats.unknown_fields, lambda reservation: "priority" in reservation),
    "numbers": (formats.revision_as_number, lambda reservation: not isinstance(reservation["revision"], str)),
    "strings": (formats.revision_as_number, lambda reservation: isinstance(reservation["revision"], str)),
    "texts": (formats.ttl_with_zeros, lambda reservation: "." in reservation.get("ttl", "")),
}


@pytest.mark.parametrize(("check", "is_refused"), PICKY.values(), ids=PICKY)
async def test_an_api_that_reads_only_its_own_way_of_writing_fails_that_check(
    check: Check[Session], is_refused: Callable[[dict[str, Any]], bool]
) -> None:
    async with picky(lambda _: False) as url:
        assert (await run(check, url, UNCOUNTED)).verdict is Verdict.PASSED
    async with picky(is_refused) as url:
        assert (await run(check, url, UNCOUNTED)).verdict is Verdict.FAILED
