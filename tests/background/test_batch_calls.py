"""Several claims in one call: each entry keeps its own rules, whatever happens to the others."""

import logging
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from pathlib import Path

import pytest

from cart_grpc import app
from cart_grpc.background.batch_support import ASK_AGAIN_AFTER_DENIAL_US, ASK_AGAIN_US, MAX_UNREADABLE
from cart_grpc.protocol.reservation import Observed
from cart_grpc.reservation_api.connections import Connections
from cart_grpc.reservation_api.credentials import CredentialFiles
from cart_grpc.reservation_api.http_client import HttpClient
from cart_grpc.settings import Settings
from cart_grpc.simulator.access import Access
from cart_grpc.simulator.faults import Faults
from cart_grpc.simulator.server import SimulatorServer
from cart_grpc.simulator.simulator import RETRY_AFTER_US, Simulator
from cart_grpc.store import schema
from cart_grpc.tls import reloaded_files
from cart_grpc.units import to_us
from tests.background.rounds import Rounds, running_rounds
from tests.gate import Gate
from tests.pem import PemFolder
from tests.store.writes import add, clear, overwrite, snapshot

ITEMS = 12
SKUS = [f"sku-{number}" for number in range(ITEMS)]
UP = Faults()
SOME_SLOW = Faults(slow=0.5)


@pytest.fixture(params=["grpc", "http"])
def transport(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
async def rounds(settings: Settings, simulator: Simulator, simulator_url: str) -> AsyncIterator[Rounds]:
    """A reconciler for which twelve items are due, and an API that answers at once."""
    simulator.faults = UP
    async with running_rounds(settings, simulator_url) as rounds:
        for sku in SKUS:
            await rounds.store.mutate(add(sku))
        yield rounds


async def until_all_are_reserved_once(rounds: Rounds, simulator: Simulator) -> None:
    """Settle the items. Each must be held, and its stock taken once."""
    await rounds.settle()
    assert {row.state for row in (await rounds.reservations()).values()} == {Observed.HELD}
    assert [simulator.levels(sku).held for sku in SKUS] == [1] * ITEMS


async def start_until_only_slow_entries_are_open(rounds: Rounds, simulator: Simulator, gate: Gate) -> set[str]:
    """Run a round in which some entries hang at `gate`. Return their skus once all others have ended."""
    gate.close()
    simulator.faults = SOME_SLOW
    await rounds.start()
    await gate.until_waiting(1)
    slow = {sku for sku in SKUS if simulator.levels(sku).held == 0}
    assert 0 < len(slow) < ITEMS
    await rounds.until_in_flight(len(slow))
    return slow


async def test_the_claims_of_a_lane_go_out_in_one_call(rounds: Rounds, simulator: Simulator) -> None:
    assert await rounds.step() == ITEMS
    assert [sorted(batch) for batch in rounds.calls.batches] == [sorted(SKUS)]
    await rounds.store.mutate(clear())
    await rounds.store.mutate(add("another"))
    await rounds.step()
    assert [sorted(batch) for batch in rounds.calls.batches] == [sorted(SKUS), sorted(SKUS)]
    assert rounds.calls.singles == ["another"]
    assert (await rounds.reservations())["another"].state is Observed.HELD
    assert not (await snapshot(rounds.store)).is_releasing(None)
    assert all(simulator.levels(sku).held == 0 for sku in SKUS)


async def test_a_call_has_no_more_claims_than_the_api_takes(rounds: Rounds) -> None:
    rounds.reconciler._attempt_runner._batches._most = 5
    await rounds.step()
    assert [len(batch) for batch in rounds.calls.batches] == [5, 5, 2]
    assert all(row.settled for row in (await rounds.reservations()).values())


async def test_what_is_answered_is_recorded_while_slow_entries_are_open(
    rounds: Rounds, simulator: Simulator, gate: Gate
) -> None:
    slow = await start_until_only_slow_entries_are_open(rounds, simulator, gate)
    before = await rounds.reservations()
    assert {sku for sku, row in before.items() if not row.settled} == slow
    await rounds.reconciler._extend_leases()
    after = await rounds.reservations()
    assert {sku for sku in SKUS if after[sku] != before[sku]} == slow
    assert all((after[sku].lease_expire_time or 0) > (before[sku].lease_expire_time or 0) for sku in slow)
    gate.open()
    await until_all_are_reserved_once(rounds, simulator)
    assert len(rounds.calls.batches) == 1


async def test_room_frees_as_entries_end(
    settings: Settings, simulator: Simulator, simulator_url: str, gate: Gate
) -> None:
    gate.close()
    simulator.faults = SOME_SLOW
    async with running_rounds(settings, simulator_url, max_in_flight=ITEMS) as rounds:
        for sku in SKUS:
            await rounds.store.mutate(add(sku))
        await rounds.start()
        await gate.until_waiting(1)
        slow = sum(simulator.levels(sku).held == 0 for sku in SKUS)
        await rounds.until_in_flight(slow)
        simulator.faults = UP
        for number in range(ITEMS):
            await rounds.store.mutate(add(f"later-{number}"))
        assert await rounds.start() == ITEMS - slow
        gate.open()
        await rounds.settle()


@pytest.mark.parametrize(
    "faults",
    [
        Faults(lost_before_effect=0.5),
        Faults(lost_after_effect=0.5),
        Faults(duplicated=0.5),
        Faults(refused=0.5),
        Faults(garbage=0.5),
    ],
    ids=["lost before its effect", "lost after its effect", "duplicated", "refused", "garbage"],
)
async def test_faults_of_some_entries_neither_lose_nor_double_any(
    rounds: Rounds, simulator: Simulator, faults: Faults
) -> None:
    simulator.faults = faults
    for _ in range(3):
        await rounds.step()
    simulator.faults = UP
    await rounds.settle()
    held = [simulator.levels(sku).held for sku in SKUS]
    rows = await rounds.reservations()
    assert held == [rows[sku].granted_quantity for sku in SKUS]
    assert faults.refused or held == [1] * ITEMS


async def test_entries_without_a_result_are_tried_again_together_and_once(rounds: Rounds, simulator: Simulator) -> None:
    simulator.faults = Faults(lost_before_effect=0.5)
    await rounds.step()
    first, second = rounds.calls.batches
    lost = sorted(second)
    assert 0 < len(lost) < ITEMS
    assert set(lost) < set(first)
    rows = await rounds.reservations()
    unsettled = [row for row in rows.values() if not row.settled]
    assert {row.sku for row in unsettled} <= set(lost)
    assert {(row.attempt_count, row.last_error.partition(":")[0]) for row in unsettled} == {(1, "UNAVAILABLE")}


async def test_throttled_entries_wait_as_long_as_the_api_asks_each_on_its_own(
    rounds: Rounds, simulator: Simulator
) -> None:
    simulator.faults = Faults(throttled=0.5)
    began = (await snapshot(rounds.store)).now
    await rounds.step()
    rows = list((await rounds.reservations()).values())
    throttled = [row for row in rows if not row.settled]
    assert 0 < len(throttled) < ITEMS
    assert all((row.due_time or 0) >= began + RETRY_AFTER_US for row in throttled)
    assert {row.attempt_count for row in throttled} == {1}
    assert len(rounds.calls.batches) == 1
    assert rounds.calls.singles == []
    assert rounds.reconciler.find_breaker_open_us() is None


async def test_a_batch_that_fails_as_a_whole_is_one_failure_and_tried_twice(
    settings: Settings, simulator: Simulator, simulator_url: str
) -> None:
    simulator.faults = Faults(down=True)
    async with running_rounds(settings, simulator_url, breaker_threshold=2, probe_interval_us=to_us(1)) as rounds:
        for sku in SKUS:
            await rounds.store.mutate(add(sku))
        assert await rounds.step() == ITEMS
        assert [len(batch) for batch in rounds.calls.batches] == [ITEMS, ITEMS]
        assert rounds.reconciler.find_breaker_open_us() is None
        while rounds.reconciler.find_breaker_open_us() is None:
            await rounds.step()
        counted = {row.attempt_count for row in (await rounds.reservations()).values()}
        assert counted == {1}
        rounds.calls.singles.clear()
        rounds.clock.now += to_us(1)
        while not await rounds.step():
            pass
        assert len(rounds.calls.singles) == 1
        simulator.faults = UP
        rounds.clock.now += to_us(1)
        await until_all_are_reserved_once(rounds, simulator)


async def test_an_api_without_batches_gets_single_calls_at_once_and_is_asked_again_later(
    rounds: Rounds, simulator: Simulator, caplog: pytest.LogCaptureFixture
) -> None:
    simulator.faults = Faults(no_batches=True)
    with caplog.at_level(logging.INFO):
        assert await rounds.step() == ITEMS
        assert len(rounds.calls.batches) == 1
        assert sorted(rounds.calls.singles) == sorted(SKUS)
        assert {row.attempt_count for row in (await rounds.reservations()).values()} == {1}
        assert simulator.call_count == ITEMS
        await rounds.store.mutate(clear())
        simulator.faults = UP
        rounds.clock.now += ASK_AGAIN_US - 1
        assert await rounds.step() == ITEMS
        assert (len(rounds.calls.batches), len(rounds.calls.singles)) == (1, 2 * ITEMS)
        for sku in SKUS:
            await rounds.store.mutate(add(sku))
        rounds.clock.now += 1
        await until_all_are_reserved_once(rounds, simulator)
    assert (len(rounds.calls.batches), len(rounds.calls.singles)) == (2, 2 * ITEMS)
    assert [line for line in caplog.messages if "batches" in line] == [
        f"the Reservation API takes no batches ({_refusal(caplog)}): asking again every 5m",
        "the Reservation API takes batches now",
    ]


async def test_an_api_that_refuses_our_token_gets_batches_again_soon_after_it_accepts_it(
    settings: Settings, simulator: Simulator, transport: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reloaded_files, "CHECK_SECONDS", 0.0)
    simulator.faults = UP
    files = PemFolder(tmp_path)
    server = SimulatorServer(simulator, Access(tokens=files.write("api-tokens", "later")))
    ports = await server.start("127.0.0.1:0", "127.0.0.1:0")
    url = {"grpc": f"grpc://127.0.0.1:{ports.grpc}", "http": f"http://127.0.0.1:{ports.http}"}[transport]
    async with running_rounds(settings, url, CredentialFiles(token=files.write("token", "later"))) as rounds:
        for sku in SKUS:
            await rounds.store.mutate(add(sku))
        files.write("api-tokens", "another")
        await rounds.step()
        assert {row.state for row in (await rounds.reservations()).values()} == {Observed.NOTHING}
        assert simulator.call_count == 0
        files.write("api-tokens", "later")
        rounds.clock.now += ASK_AGAIN_AFTER_DENIAL_US
        await until_all_are_reserved_once(rounds, simulator)
        assert len(rounds.calls.batches) >= 2
    await server.stop(0)


async def no_result() -> AsyncGenerator[bytes, None]:
    """The answer of a proxy that drops the messages of a stream."""
    return
    yield


async def garbled() -> AsyncGenerator[bytes, None]:
    """The answer of a proxy that rewrites the messages of a stream."""
    yield b"<html>"


@pytest.mark.parametrize("answer", [no_result, garbled])
async def test_an_api_whose_batches_come_back_unreadable_gets_single_calls(
    rounds: Rounds,
    simulator: Simulator,
    monkeypatch: pytest.MonkeyPatch,
    answer: Callable[[], AsyncGenerator[bytes, None]],
) -> None:
    # As if a proxy were between the client and the API.
    for client in (Connections, HttpClient):
        monkeypatch.setattr(client, "stream" if client is Connections else "post_for_lines", lambda *_, **__: answer())
    await until_all_are_reserved_once(rounds, simulator)
    assert sorted(rounds.calls.singles) == sorted(SKUS)
    assert MAX_UNREADABLE <= len(rounds.calls.batches) <= MAX_UNREADABLE + 1


@pytest.mark.parametrize("no_batches", [False, True])
async def test_an_entry_that_no_message_can_hold_fails_alone_and_once(
    rounds: Rounds, simulator: Simulator, *, no_batches: bool
) -> None:
    simulator.faults = Faults(no_batches=no_batches)
    huge = schema.reservations.c.sku == SKUS[0]
    await overwrite(rounds.store._engine, schema.reservations, huge, quantity=1 << 40)
    assert await rounds.step() == ITEMS
    rows = await rounds.reservations()
    assert {sku for sku, row in rows.items() if not row.settled} == {SKUS[0]}
    assert "does not fit" in rows[SKUS[0]].last_error
    assert rounds.calls.singles.count(SKUS[0]) == 0


async def test_a_hold_that_an_api_ahead_of_our_time_grants_ends_at_most_its_ttl_after_its_claim(
    rounds: Rounds, simulator: Simulator
) -> None:
    ahead = to_us(3600)
    simulator._clock = lambda: app.clock() + ahead
    await rounds.step()
    latest = (await snapshot(rounds.store)).now
    rows = (await rounds.reservations()).values()
    assert all(0 < (row.expire_time or 0) <= latest + row.ttl_us for row in rows)


def _refusal(caplog: pytest.LogCaptureFixture) -> str:
    return next(line for line in caplog.messages if "batches (" in line).partition("(")[2].partition("): asking")[0]


async def test_a_stop_records_what_is_answered_and_hands_the_other_entries_back(
    rounds: Rounds, simulator: Simulator, gate: Gate
) -> None:
    slow = await start_until_only_slow_entries_are_open(rounds, simulator, gate)
    await rounds.reconciler.stop(0)
    rows = await rounds.reservations()
    assert {sku for sku, row in rows.items() if row.settled} == set(SKUS) - slow
    assert all(row.lease_expire_time is None for row in rows.values())
    now = (await snapshot(rounds.store)).now
    assert all((rows[sku].due_time or 0) <= now for sku in slow)
    gate.open()


async def test_a_bug_in_the_middle_of_a_batch_costs_only_the_entries_without_an_outcome(
    rounds: Rounds, simulator: Simulator, caplog: pytest.LogCaptureFixture
) -> None:
    rounds.calls.bug = RuntimeError("a bug")
    simulator.faults = Faults(slow=0.5, slow_latency_us=1)
    assert await rounds.step() == ITEMS
    rows = list((await rounds.reservations()).values())
    assert 0 < sum(row.settled for row in rows) < ITEMS
    assert {row.last_error.partition(":")[0] for row in rows if not row.settled} == {"INTERNAL"}
    assert "unexpected error in the call" in caplog.text
    assert (len(rounds.calls.batches), rounds.calls.singles) == (1, [])
    rounds.calls.bug = None
    await until_all_are_reserved_once(rounds, simulator)
