"""A shard that does not answer, as on a node that is away: the work on all other shards goes on."""

import asyncio
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import pytest
from sqlalchemy import text

from cart_grpc.background import set_aside
from cart_grpc.background.sweeper import Retention, Sweeper
from cart_grpc.carts.refusals import DatabaseUnavailable
from cart_grpc.commands.direct import Claim
from cart_grpc.names import CartKey
from cart_grpc.protocol.lanes import HOLD_LANE, LANES
from cart_grpc.protocol.reservation import Reservation
from cart_grpc.settings import Settings
from cart_grpc.store import batch_writer, schema
from cart_grpc.store.change_notifier import ChangeNotifier
from cart_grpc.store.engine import Engine
from cart_grpc.store.read import cart_watches
from cart_grpc.store.read.snapshot import parse_snapshot
from cart_grpc.store.shards import shard_index
from cart_grpc.store.store import Store
from tests.background.rounds import Rounds, running_rounds
from tests.databases import SHARDS
from tests.gate import Gate
from tests.store.conftest import engine, store
from tests.store.test_shards import count_in, of_shard
from tests.store.writes import HOUR, LEASE, add, answered, claim, overwrite, remove, snapshot

__all__ = ["engine", "store"]
# The shard that fails is neither the first nor the last that is looked at.
FAILING = 1
HEALTHY = [number for number in range(SHARDS) if number != FAILING]
KEYS = [key for number in range(SHARDS) for key in of_shard(number)]


@pytest.fixture
def backend() -> str:
    return "postgresql"


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch_writer, "RETRY_SECONDS", 0.1)


async def lose(engine: Engine) -> None:
    """Make every statement about reservations of the failing shard fail."""
    await lose_table(engine.shards[FAILING], "reservations")


async def lose_table(shard: Engine, name: str) -> None:
    rename = f"ALTER TABLE {shard.schema}.{name} RENAME TO lost_{name}"
    await shard.transact(lambda connection: connection.execute(text(rename)))


async def fill(store: Store, keys: Sequence[CartKey] = KEYS) -> None:
    for key in keys:
        await store.mutate(add(key=key))
    store.due_shards.poll(everywhere=True)


def shards_of_claims(claims: Sequence[Reservation]) -> list[int]:
    return sorted(shard_index(each.cart.slice, SHARDS) for each in claims)


async def test_a_claim_returns_those_of_the_others(store: Store, engine: Engine) -> None:
    await fill(store)
    await lose(engine)
    # Nobody would own the claims of the others if this raised.
    assert shards_of_claims(await store.claim(Claim(HOLD_LANE, 100, LEASE))) == HEALTHY
    store.due_shards.poll(everywhere=True)
    with pytest.raises(DatabaseUnavailable):
        await store.claim(Claim(HOLD_LANE, 100, LEASE))


async def test_a_row_at_fault_costs_no_other_shard_its_claims_and_is_set_aside(store: Store, engine: Engine) -> None:
    await fill(store)
    wrong = {"revision": schema.LAST, "observed_revision": schema.LAST}
    await overwrite(engine.shards[FAILING], schema.reservations, **wrong)
    # No shard is looked at again without a hint.
    claims: list[Reservation] = []
    for _ in range(SHARDS):
        claims += await set_aside.claim(store, Claim(HOLD_LANE, 100, LEASE))
    assert shards_of_claims(claims) == HEALTHY
    assert await count_in(engine.shards[FAILING], "reservations WHERE set_aside_reason <> ''") == 1


async def test_the_answers_of_the_others_are_recorded_and_returned(store: Store, engine: Engine) -> None:
    await fill(store)
    claims = await claim(store)
    await lose(engine)
    recorded = await store.record_all([answered(each) for each in claims])
    assert len(recorded) == SHARDS
    for claimed, result in zip(claims, recorded, strict=True):
        is_lost = claimed.cart == KEYS[FAILING]
        assert isinstance(result, DatabaseUnavailable) == is_lost
        if not is_lost:
            assert (await snapshot(store, claimed.cart)).lines[0].reservation.granted_quantity == 1


async def test_every_lane_claims_in_the_others(settings: Settings, simulator_url: str, gate: Gate) -> None:
    async with running_rounds(settings, simulator_url) as rounds:
        store = rounds.store
        await fill(store)
        while await rounds.step():
            pass
        for key in KEYS:
            await store.mutate(remove(key=key))
            await store.mutate(add("tea", key=key))
        gate.close()
        await lose(store._engine)
        # The first lane finds that the shard fails. The claims of the later lanes are made all the same.
        with pytest.raises(DatabaseUnavailable):
            await rounds.start()
        claims = {name: shards_of_claims(list(lane.open.values())) for name, lane in rounds.reconciler._lanes.items()}
        assert claims == {**dict.fromkeys(LANES, HEALTHY), "checkout": []}
        gate.open()
        await rounds.until_in_flight(0)


async def test_the_leases_of_the_others_are_extended(settings: Settings, simulator_url: str, gate: Gate) -> None:
    async with running_rounds(settings, simulator_url) as rounds:
        engine = rounds.store._engine
        await fill(rounds.store, [KEYS[FAILING], *KEYS])
        gate.close()
        await rounds.start()
        await rounds.until_in_flight(SHARDS)
        before = await read_leases(rounds)
        await lose(engine)
        with pytest.raises(DatabaseUnavailable):
            await rounds.reconciler._extend_leases()
        after = await read_leases(rounds)
        assert all(later > earlier for earlier, later in zip(before, after, strict=True))
        gate.open()
        await rounds.until_in_flight(0)


async def read_leases(rounds: Rounds) -> list[Any]:
    """When the claims of the healthy shards end."""
    found = [(await snapshot(rounds.store, KEYS[number])).lines[0].reservation for number in HEALTHY]
    return [each.lease_expire_time for each in found]


@pytest.mark.parametrize("number", range(SHARDS))
async def test_the_process_stays_ready_for_the_others(store: Store, engine: Engine, number: int) -> None:
    for table in ("carts", "pauses", "commit_markers"):
        await lose_table(engine.shards[number], table)
    for _ in range(2 * SHARDS):
        with pytest.raises(DatabaseUnavailable):
            await store.mutate(add(key=KEYS[number]))
        await store.ping()


async def test_the_process_is_not_ready_if_no_shard_answers(store: Store, engine: Engine) -> None:
    for shard in engine.shards:
        await lose_table(shard, "pauses")
    for _ in range(2 * SHARDS):
        with pytest.raises(DatabaseUnavailable):
            await store.ping()


async def test_watchers_of_the_others_see_changes_without_a_hint(
    store: Store, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    # So many carts are asked for at once.
    monkeypatch.setattr(cart_watches, "MAX_CHECKED", 2)
    watches = cart_watches.CartWatches(store.reads, ChangeNotifier(), None, checks=True, check_seconds=0.05)
    await fill(store)
    with ExitStack() as watching:
        seen = [watching.enter_context(watches.watch(key, parse_snapshot)) for key in KEYS]
        for watch in seen:
            await anext(watch)
        await lose_table(engine.shards[FAILING], "carts")
        for number in HEALTHY:
            await store.mutate(add(quantity=2, key=KEYS[number]))
        for number in HEALTHY:
            async with asyncio.timeout(20):
                state = await anext(seen[number])
            assert state is not None
            assert state.cart.total_quantity == 3


async def test_the_others_are_swept(store: Store, engine: Engine) -> None:
    await fill(store)
    for shard in engine.shards:
        await overwrite(shard, schema.carts, ttl_us=0, expire_time=1)
    await lose(engine)
    sweeper = Sweeper(store, Retention(HOUR, HOUR, HOUR), 0)
    for _ in range(SHARDS):
        with pytest.raises(DatabaseUnavailable):
            await sweeper.run_once()
    is_active = [await count_in(shard, "carts WHERE state = 1") for shard in engine.shards]
    assert is_active == [int(number == FAILING) for number in range(SHARDS)]
