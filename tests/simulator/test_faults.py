"""The simulator injects its faults, over gRPC and over HTTP."""

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
from tests.deadlines import growing
from tests.gate import Gate
from tests.intents import SECOND, after, hold
from tests.simulated_api import no_answer

SKU = "espresso-beans"


def held(simulator: Simulator) -> int:
    """The number of held units."""
    return simulator.levels(SKU).held


async def test_a_call_takes_effect_after_its_latency(simulator: Simulator, api: ReservationApi, gate: Gate) -> None:
    simulator.faults = Faults(latency_us=30 * SECOND)
    call = asyncio.ensure_future(api.apply(hold(2), timeout=60))
    await gate.until_waiting(1)
    assert (held(simulator), simulator.call_count, simulator.pending_count) == (0, 1, 1)
    gate.open()
    assert isinstance(await call, Decision)
    assert held(simulator) == 2


async def test_a_call_takes_effect_even_if_its_client_gives_up(
    simulator: Simulator, api: ReservationApi, gate: Gate
) -> None:
    simulator.faults = Faults(slow=1, slow_latency_us=30 * SECOND)
    call = asyncio.ensure_future(api.apply(hold(2), timeout=60))
    await gate.until_waiting(1)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    late = hold(1)
    deadlines = growing(0.05)
    while True:
        seconds = next(deadlines)
        assert (await no_answer(api, late, timeout=seconds)).code == "DEADLINE_EXCEEDED"
        if simulator.call_count > 1:
            break
    gate.open()
    assert await simulator.settle(10)
    assert held(simulator) == 3


async def test_a_call_lost_before_its_effect_changes_nothing(simulator: Simulator, api: ReservationApi) -> None:
    simulator.faults = Faults(lost_before_effect=1)
    assert not (await no_answer(api, hold(2))).reached
    assert (held(simulator), simulator.effects()) == (0, [])


async def test_a_call_lost_after_its_effect_fails_but_holds(simulator: Simulator, api: ReservationApi) -> None:
    simulator.faults = Faults(lost_after_effect=1)
    assert not (await no_answer(api, hold(2))).reached
    assert held(simulator) == 2


async def test_a_duplicated_message_is_decided_once(simulator: Simulator, api: ReservationApi, gate: Gate) -> None:
    simulator.faults = Faults(duplicated=1, duplicate_delay_us=SECOND)
    await api.apply(hold(2), timeout=5)
    gate.open()
    assert await simulator.settle(10)
    assert (simulator.call_count, held(simulator), len(simulator.effects())) == (2, 2, 1)


async def test_the_duplicate_of_a_lost_message_takes_effect(
    simulator: Simulator, api: ReservationApi, gate: Gate
) -> None:
    simulator.faults = Faults(duplicated=1, duplicate_delay_us=SECOND, lost_before_effect=1)
    await no_answer(api, hold(2))
    assert held(simulator) == 0
    gate.open()
    assert await simulator.settle(10)
    assert held(simulator) == 2


async def test_the_duplicate_of_a_hold_after_its_release_takes_nothing(
    simulator: Simulator, api: ReservationApi, gate: Gate
) -> None:
    simulator.faults = Faults(duplicated=1, duplicate_delay_us=SECOND)
    first = hold(2)
    await api.apply(first, timeout=5)
    await api.apply(after(first, Disposition.RELEASE), timeout=5)
    gate.open()
    assert await simulator.settle(10)
    assert (held(simulator), simulator.call_count) == (0, 4)


async def test_a_refused_call_is_a_permanent_failure_without_effect(simulator: Simulator, api: ReservationApi) -> None:
    simulator.faults = Faults(refused=1)
    answer = await api.apply(hold(2), timeout=5)
    assert isinstance(answer, PermanentFailure)
    assert answer.reason == "SIMULATED_REFUSAL"
    assert simulator.effects() == []


async def test_out_of_stock_is_remembered_and_applies_only_to_holds(simulator: Simulator, api: ReservationApi) -> None:
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


async def test_garbage_follows_the_effect_and_the_client_never_believes_it(
    simulator: Simulator, api: ReservationApi
) -> None:
    simulator.faults = Faults(garbage=1)
    errors = set()
    for number in range(30):
        error = await no_answer(api, hold(1, sku=f"sku-{number}"))
        assert error.code == "INVALID_ANSWER"
        errors.add(str(error).split()[1])
    assert len(errors) > 2
    assert sum(effect.quantity_after for effect in simulator.effects()) == 30


async def test_a_throttled_call_has_no_effect_and_a_retry_delay(simulator: Simulator, api: ReservationApi) -> None:
    simulator.faults = Faults(throttled=1)
    error = await no_answer(api, hold(2))
    assert (error.reached, error.retry_after_us) == (True, SECOND)
    assert simulator.effects() == []


async def test_while_down_every_call_fails_without_latency(simulator: Simulator, api: ReservationApi) -> None:
    simulator.faults = Faults(down=True, latency_us=30 * SECOND)
    error = await no_answer(api, hold(2))
    assert (error.reached, simulator.call_count, simulator.effects()) == (False, 1, [])


async def test_stop_fails_the_calls_in_flight_and_drops_their_messages(
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


async def test_a_call_that_stop_drops_fails(simulator: Simulator, gate: Gate) -> None:
    simulator.faults = Faults(latency_us=SECOND)
    call = asyncio.ensure_future(simulator.apply(hold))
    await gate.until_waiting(1)
    await simulator.stop(0)
    with pytest.raises(CallFailed):
        await call


def test_the_same_seed_draws_the_same_faults() -> None:
    faults = Faults(slow=0.5, garbage=0.5, duplicated=0.5, refused=0.3)
    runs = [[draw(faults, numbers) for _ in range(50)] for numbers in (Random(3), Random(3), Random(4))]
    assert runs[0] == runs[1] != runs[2]


@pytest.mark.parametrize("wrong", [{"slow": 1.5}, {"garbage": -0.1}, {"refused": float("nan")}, {"latency_us": -1}])
def test_faults_out_of_range_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong)).removesuffix("_us")):
        Faults(**wrong)


async def test_four_hundred_slow_calls_are_in_flight_together(
    simulator: Simulator, api: ReservationApi, gate: Gate
) -> None:
    simulator.faults = Faults(latency_us=30 * SECOND)
    calls = [asyncio.ensure_future(api.apply(hold(1, sku=f"sku-{n}"), timeout=60)) for n in range(400)]
    await gate.until_waiting(400)
    gate.open()
    answers = await asyncio.gather(*calls)
    assert all(isinstance(answer, Decision) and answer.state is Observed.HELD for answer in answers)
