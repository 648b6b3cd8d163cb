"""What the simulator does wrong on purpose, over both transports."""

import asyncio
from random import Random
from typing import Any

import pytest

from cart_grpc.protocol.reservation import Decision, Disposition, Observed
from cart_grpc.reservation_api.api import PermanentFailure, ReservationApi
from cart_grpc.reservation_api.transports import connect
from cart_grpc.simulator.errors import CallFailed
from cart_grpc.simulator.faults import Faults, draw
from cart_grpc.simulator.server import (
    SimulatorServer,
)
from cart_grpc.simulator.simulator import Simulator
from tests.gate import Gate
from tests.intents import SECOND, after, hold
from tests.simulated_api import no_answer

SKU = "espresso-beans"


def held(simulator: Simulator) -> int:
    """Return how many pieces are held."""
    return simulator.levels(SKU).held


async def test_an_answer_waits_for_the_latency_and_is_decided_after_it(
    simulator: Simulator, api: ReservationApi, gate: Gate
) -> None:
    simulator.faults = Faults(latency_us=30 * SECOND)
    call = asyncio.ensure_future(api.apply(hold(2), timeout=60))
    await gate.until_waiting(1)
    assert (held(simulator), simulator.call_count, simulator.pending_count) == (0, 1, 1)
    gate.open()
    assert isinstance(await call, Decision)
    assert held(simulator) == 2


async def test_a_caller_that_gives_up_gets_the_effect_all_the_same(
    simulator: Simulator, api: ReservationApi, gate: Gate
) -> None:
    simulator.faults = Faults(slow=1, slow_latency_us=30 * SECOND)
    call = asyncio.ensure_future(api.apply(hold(2), timeout=60))
    await gate.until_waiting(1)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    assert (await no_answer(api, hold(1), timeout=0.05)).code == "DEADLINE_EXCEEDED"
    await gate.until_waiting(2)
    gate.open()
    assert await simulator.settle(10)
    assert held(simulator) == 3


async def test_lost_before_effect(simulator: Simulator, api: ReservationApi) -> None:
    simulator.faults = Faults(lost_before_effect=1)
    assert not (await no_answer(api, hold(2))).reached
    assert (held(simulator), simulator.effects()) == (0, [])


async def test_lost_after_effect(simulator: Simulator, api: ReservationApi) -> None:
    simulator.faults = Faults(lost_after_effect=1)
    assert not (await no_answer(api, hold(2))).reached
    assert held(simulator) == 2


async def test_a_message_that_arrives_twice_is_decided_once(
    simulator: Simulator, api: ReservationApi, gate: Gate
) -> None:
    simulator.faults = Faults(duplicated=1, duplicate_delay_us=SECOND)
    await api.apply(hold(2), timeout=5)
    gate.open()
    assert await simulator.settle(10)
    assert (simulator.call_count, held(simulator), len(simulator.effects())) == (2, 2, 1)


async def test_a_lost_message_may_arrive_later(simulator: Simulator, api: ReservationApi, gate: Gate) -> None:
    simulator.faults = Faults(duplicated=1, duplicate_delay_us=SECOND, lost_before_effect=1)
    await no_answer(api, hold(2))
    assert held(simulator) == 0
    gate.open()
    assert await simulator.settle(10)
    assert held(simulator) == 2


async def test_a_hold_that_arrives_again_after_its_release_takes_nothing(
    simulator: Simulator, api: ReservationApi, gate: Gate
) -> None:
    simulator.faults = Faults(duplicated=1, duplicate_delay_us=SECOND)
    first = hold(2)
    await api.apply(first, timeout=5)
    await api.apply(after(first, Disposition.RELEASE), timeout=5)
    gate.open()
    assert await simulator.settle(10)
    assert (held(simulator), simulator.call_count) == (0, 4)


async def test_refused(simulator: Simulator, api: ReservationApi) -> None:
    simulator.faults = Faults(refused=1)
    answer = await api.apply(hold(2), timeout=5)
    assert isinstance(answer, PermanentFailure)
    assert answer.reason == "SIMULATED_REFUSAL"
    assert simulator.effects() == []


async def test_out_of_stock_is_remembered_and_spares_commits(simulator: Simulator, api: ReservationApi) -> None:
    sold, refused = hold(2), hold(1)
    await api.apply(sold, timeout=5)
    simulator.faults = Faults(out_of_stock=1)
    assert isinstance(await api.apply(after(sold, Disposition.COMMIT), timeout=5), Decision)
    await api.apply(refused, timeout=5)
    simulator.faults = Faults()
    answer = await api.apply(refused, timeout=5)
    assert isinstance(answer, Decision)
    assert (answer.state, answer.reason) == (Observed.REJECTED, "OUT_OF_STOCK")
    assert simulator.levels(SKU).committed == 2


async def test_garbage_comes_after_the_effect_and_is_never_believed(simulator: Simulator, api: ReservationApi) -> None:
    simulator.faults = Faults(garbage=1)
    told = set()
    for number in range(30):
        error = await no_answer(api, hold(1, sku=f"sku-{number}"))
        assert error.code == "INVALID_ANSWER"
        told.add(str(error).split()[1])
    assert len(told) > 2
    assert sum(effect.quantity_after for effect in simulator.effects()) == 30


async def test_throttled(simulator: Simulator, api: ReservationApi) -> None:
    simulator.faults = Faults(throttled=1)
    error = await no_answer(api, hold(2))
    assert (error.reached, error.retry_after_us) == (True, SECOND)
    assert simulator.effects() == []


async def test_down_fails_at_once_though_the_latency_is_long(simulator: Simulator, api: ReservationApi) -> None:
    simulator.faults = Faults(down=True, latency_us=30 * SECOND)
    error = await no_answer(api, hold(2))
    assert (error.reached, simulator.call_count, simulator.effects()) == (False, 1, [])


async def test_stopping_ends_the_wait_of_callers_and_drops_what_is_pending(
    simulator: Simulator, transport: str, gate: Gate
) -> None:
    simulator.faults = Faults(latency_us=SECOND)
    server = SimulatorServer(simulator)
    ports = await server.start("127.0.0.1:0", "127.0.0.1:0")
    api = connect(f"grpc://127.0.0.1:{ports.grpc}" if transport == "grpc" else f"http://127.0.0.1:{ports.http}")
    call = asyncio.ensure_future(no_answer(api, hold(2), timeout=60))
    await gate.until_waiting(1)
    await server.stop(0)
    assert not (await call).reached
    assert (simulator.pending_count, simulator.effects()) == (0, [])
    await api.close()


async def test_a_call_that_is_dropped_at_the_end_says_so(simulator: Simulator, gate: Gate) -> None:
    simulator.faults = Faults(latency_us=SECOND)
    call = asyncio.ensure_future(simulator.apply(hold))
    await gate.until_waiting(1)
    await simulator.stop(0)
    with pytest.raises(CallFailed):
        await call


def test_a_seed_repeats_a_run() -> None:
    faults = Faults(slow=0.5, garbage=0.5, duplicated=0.5, refused=0.3)
    runs = [[draw(faults, numbers) for _ in range(50)] for numbers in (Random(3), Random(3), Random(4))]
    assert runs[0] == runs[1] != runs[2]


@pytest.mark.parametrize("wrong", [{"slow": 1.5}, {"garbage": -0.1}, {"refused": float("nan")}, {"latency_us": -1}])
def test_wrong_faults_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong)).removesuffix("_us")):
        Faults(**wrong)


async def test_hundreds_of_slow_calls_are_in_flight_at_once(
    simulator: Simulator, api: ReservationApi, gate: Gate
) -> None:
    simulator.faults = Faults(latency_us=30 * SECOND)
    calls = [asyncio.ensure_future(api.apply(hold(1, sku=f"sku-{n}"), timeout=60)) for n in range(400)]
    await gate.until_waiting(400)
    gate.open()
    answers = await asyncio.gather(*calls)
    assert all(isinstance(answer, Decision) and answer.state is Observed.HELD for answer in answers)
