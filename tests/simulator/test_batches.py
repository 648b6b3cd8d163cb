"""The simulator's batches: each entry has faults of its own, and results that are ready at once share a message."""

import asyncio
from argparse import ArgumentParser
from collections.abc import AsyncIterator, Sequence
from typing import Any

import grpc
import pytest
from cartgrpc.reservation.v1 import reservation_pb2

from cart_grpc.protocol.reservation import Intent
from cart_grpc.reservation_api import wire
from cart_grpc.simulator import codec, options
from cart_grpc.simulator.errors import BadRequest, CallFailed, Lost, NoBatches, SimulatorError, Throttled
from cart_grpc.simulator.faults import Faults
from cart_grpc.simulator.server import SimulatorServer
from cart_grpc.simulator.simulator import Outcome, SimulatedReply, Simulator
from tests.gate import Gate
from tests.intents import SECOND, hold

SKU = "espresso-beans"


async def messages(simulator: Simulator, intents: Sequence[Intent]) -> list[Sequence[Outcome]]:
    """The outcomes of a batch as the simulator yields them."""
    return [outcomes async for outcomes in simulator.apply_batch([lambda each=each: each for each in intents])]  # type: ignore[misc]


async def test_each_entry_has_faults_of_its_own(simulator: Simulator) -> None:
    simulator.faults = Faults(
        throttled=0.2, refused=0.2, lost_before_effect=0.2, lost_after_effect=0.2, garbage=0.2, out_of_stock=0.2
    )
    intents = [hold(1, sku=f"sku-{number}") for number in range(100)]
    [outcomes] = await messages(simulator, intents)
    assert sorted(position for position, _ in outcomes) == list(range(100))
    kinds = {type(outcome) for _, outcome in outcomes}
    assert kinds == {Throttled, BadRequest, Lost, SimulatedReply}
    replies = [outcome for _, outcome in outcomes if isinstance(outcome, SimulatedReply)]
    assert {reply.garbage is None for reply in replies} == {True, False}
    assert {reply.reservation.reason for reply in replies} == {"", "OUT_OF_STOCK"}
    for position, outcome in outcomes:
        if isinstance(outcome, Throttled | BadRequest):
            assert not simulator.levels(f"sku-{position}").held


async def test_entries_that_take_equally_long_share_a_message_and_are_one_task(
    simulator: Simulator, gate: Gate
) -> None:
    simulator.faults = Faults(latency_us=SECOND, slow=0.5, slow_latency_us=2 * SECOND)
    batch = asyncio.ensure_future(messages(simulator, [hold(1, sku=f"sku-{number}") for number in range(100)]))
    await gate.until_waiting(2)
    assert (simulator.pending_count, simulator.call_count) == (2, 100)
    gate.open()
    assert sum(map(len, await batch)) == 100


async def test_without_latency_a_batch_needs_no_task(simulator: Simulator) -> None:
    async for outcomes in simulator.apply_batch([hold, hold]):
        assert (len(outcomes), simulator.pending_count) == (2, 0)


async def test_every_entry_takes_effect_even_if_the_client_gives_up(simulator: Simulator, gate: Gate) -> None:
    simulator.faults = Faults(latency_us=SECOND)
    batch = asyncio.ensure_future(messages(simulator, [hold(2), hold(3)]))
    await gate.until_waiting(1)
    batch.cancel()
    with pytest.raises(asyncio.CancelledError):
        await batch
    assert simulator.levels(SKU).held == 0
    gate.open()
    assert await simulator.settle(10)
    assert simulator.levels(SKU).held == 5


async def test_an_entry_can_arrive_a_second_time(simulator: Simulator, gate: Gate) -> None:
    simulator.faults = Faults(duplicated=1, duplicate_delay_us=SECOND, lost_before_effect=1)
    [outcomes] = await messages(simulator, [hold(2), hold(3)])
    assert [type(outcome) for _, outcome in outcomes] == [Lost, Lost]
    assert (simulator.pending_count, simulator.levels(SKU).held) == (2, 0)
    gate.open()
    assert await simulator.settle(10)
    assert (simulator.call_count, simulator.levels(SKU).held) == (4, 5)


@pytest.mark.parametrize(
    ("faults", "error", "arrived"),
    [(Faults(down=True), CallFailed, 1), (Faults(no_batches=True), NoBatches, 0)],
)
async def test_a_whole_batch_can_fail(
    simulator: Simulator, faults: Faults, error: type[SimulatorError], arrived: int
) -> None:
    simulator.faults = faults
    with pytest.raises(error):
        await messages(simulator, [hold(2)])
    assert (simulator.effects(), simulator.call_count) == ([], arrived)


async def test_stop_drops_the_entries_in_flight(simulator: Simulator, gate: Gate) -> None:
    simulator.faults = Faults(latency_us=SECOND)
    batch = asyncio.ensure_future(messages(simulator, [hold(2)]))
    await gate.until_waiting(1)
    await simulator.stop(0)
    assert [outcome for outcomes in await batch for outcome in outcomes] == []
    assert simulator.effects() == []


async def test_garbage_that_is_not_a_message_comes_after_the_results_that_are_ready(simulator: Simulator) -> None:
    simulator.faults = Faults(garbage=0.5)
    intents = [hold(1, sku=f"sku-{number}") for number in range(30)]
    [outcomes] = await messages(simulator, intents)
    first, second = codec.to_batch_responses([intent.reservation_id for intent in intents], outcomes)
    assert second is None
    assert first is not None
    assert [result.reservation_id for result in first.results] != []


@pytest.fixture
async def channel(simulator: Simulator) -> AsyncIterator[grpc.aio.Channel]:
    """A connection to the running simulator."""
    server = SimulatorServer(simulator)
    ports = await server.start("127.0.0.1:0", None)
    async with grpc.aio.insecure_channel(f"127.0.0.1:{ports.grpc}") as channel:
        yield channel
    await server.stop(0)


SAME = hold(1)
WRONG = {"empty": [], "too many": [hold(1) for _ in range(101)], "the same id twice": [SAME, SAME]}


@pytest.mark.parametrize("intents", WRONG.values(), ids=WRONG)
async def test_a_wrong_batch_is_refused_without_effect(
    simulator: Simulator, channel: grpc.aio.Channel, intents: list[Intent]
) -> None:
    request = reservation_pb2.BatchApplyReservationsRequest(reservations=map(wire.to_message, intents))
    assert await code_of(channel, request.SerializeToString()) is grpc.StatusCode.INVALID_ARGUMENT
    assert simulator.effects() == []


async def test_a_malformed_batch_is_refused(channel: grpc.aio.Channel) -> None:
    assert await code_of(channel, b"\xff\xff") is grpc.StatusCode.INVALID_ARGUMENT


async def code_of(channel: grpc.aio.Channel, request: bytes) -> grpc.StatusCode:
    """Send a batch, which must fail."""
    call: Any = channel.unary_stream("/cartgrpc.reservation.v1.ReservationService/BatchApplyReservations")
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        [_ async for _ in call(request, timeout=5)]
    code: grpc.StatusCode = caught.value.code()
    return code


@pytest.mark.parametrize("no_batches", [False, True])
def test_an_option_makes_the_simulator_an_api_without_batches(no_batches: bool) -> None:
    parser = ArgumentParser()
    options.add_options(parser, listen_option="--listen", latency="0s")
    parsed = parser.parse_args(["--no-batches"] if no_batches else [])
    assert options.to_config(parsed).faults.no_batches is no_batches
