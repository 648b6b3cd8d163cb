"""Reservations that are born claimed: the transaction that makes one due claims it for its own process."""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import TypeVar

import pytest
from sqlalchemy import Connection

from cart_grpc import app
from cart_grpc.carts.refusals import OutcomeUnknown
from cart_grpc.commands.direct import Pause, Resume, ReturnClaims
from cart_grpc.names import cart_key, user_key
from cart_grpc.protocol.lanes import HOLD_LANE, RELEASE_LANE
from cart_grpc.protocol.reservation import Reservation
from cart_grpc.store import batch_writer, schema
from cart_grpc.store.engine import Engine
from cart_grpc.store.failures import CommitFailed
from cart_grpc.store.read.cart_json import CartJson
from cart_grpc.store.rows import to_reservation
from cart_grpc.store.store import Store
from tests.simulation.database import unreachable
from tests.store.claimant import FixedRoom
from tests.store.test_ambiguous_commit import Breaking
from tests.store.writes import (
    HOUR,
    KEY,
    LEASE,
    Wrapped,
    add,
    answered,
    broken,
    claim,
    claim_one,
    overwrite,
    refused_by_the_database,
    remove,
    row_of,
    silent,
)

T = TypeVar("T")


@pytest.fixture
def claimant(store: Store) -> FixedRoom:
    """The owner of the claims that are born, with room for many."""
    claimant = FixedRoom()
    store.notifier.claimant = claimant
    return claimant


@pytest.fixture
async def other(engine: Engine) -> AsyncIterator[Store]:
    """Another process on the same database."""
    store = Store(engine, app.new_id, queue_size=10)
    await store.start()
    yield store
    await store.close()


async def stored(engine: Engine, reservation: Reservation) -> Reservation:
    return to_reservation(await row_of(engine, reservation.reservation_id))


async def test_a_new_reservation_is_born_claimed_and_handed_over_as_it_is_stored(
    store: Store, engine: Engine, claimant: FixedRoom
) -> None:
    await store.mutate(add())
    [born] = claimant.taken
    assert (born.lease_epoch, born.attempt_count) == (1, 1)
    assert born.due_time == born.lease_expire_time == born.create_time + LEASE
    assert await stored(engine, born) == born
    assert await claim(store) == []
    assert not store.notifier.due.is_set()


async def test_the_outcome_of_a_born_claim_is_recorded_as_of_any_claim(store: Store, claimant: FixedRoom) -> None:
    await store.mutate(add())
    assert (await store.record(answered(claimant.taken[0]))).reservation.settled
    assert len(claimant.taken) == 1
    assert await claim(store) == []


async def test_without_a_claimant_a_new_reservation_is_due(store: Store) -> None:
    await store.mutate(add())
    assert store.notifier.due.is_set()
    assert await claim_one(store)


async def test_a_batch_claims_the_oldest_as_far_as_there_is_room_and_the_others_are_due(
    store: Store, claimant: FixedRoom
) -> None:
    claimant.room = FixedRoom({HOLD_LANE: 2}).room
    await asyncio.gather(*(store.mutate(add(sku)) for sku in "abc"))
    assert sorted(born.sku for born in claimant.taken) == ["a", "b"]
    assert store.notifier.due.is_set()
    assert [row.sku for row in await claim(store)] == ["c"]


async def test_each_lane_has_its_own_room(store: Store, claimant: FixedRoom) -> None:
    claimant.room = FixedRoom({RELEASE_LANE: 1}).room
    await asyncio.gather(*(store.mutate(add(sku)) for sku in "ab"))
    assert claimant.taken == []
    await store.mutate(remove("a"))
    assert [born.sku for born in claimant.taken] == ["a"]
    assert [row.sku for row in await claim(store, HOLD_LANE)] == ["b"]


async def test_nothing_is_born_claimed_while_claims_are_paused_by_any_process(
    store: Store, other: Store, claimant: FixedRoom
) -> None:
    await other.pause(Pause("maintenance"))
    await store.mutate(add("a"))
    assert claimant.taken == []
    assert store.notifier.due.is_set()
    await other.pause(Resume())
    await store.mutate(add("b"))
    assert [born.sku for born in claimant.taken] == ["b"]


async def test_a_waiting_hold_is_born_claimed_by_the_record_that_ends_its_wait(
    store: Store, claimant: FixedRoom
) -> None:
    await store.mutate(add())
    await store.mutate(remove())
    await store.mutate(add())
    hold, release = claimant.taken
    await store.record(answered(release))
    [_, _, waited] = claimant.taken
    assert waited.reservation_id != hold.reservation_id
    assert waited.lease_epoch == 1


async def test_a_change_during_a_call_is_born_claimed_by_the_record_of_the_call(
    store: Store, claimant: FixedRoom
) -> None:
    await store.mutate(add())
    await store.mutate(add())
    [first] = claimant.taken
    await store.record(answered(first))
    [_, second] = claimant.taken
    assert (second.quantity, second.lease_epoch, second.attempt_count) == (2, 2, 1)


async def test_a_call_without_an_answer_is_not_born_claimed_before_its_retry_delay(
    store: Store, claimant: FixedRoom
) -> None:
    await store.mutate(add())
    await store.record(silent(claimant.taken[0], HOUR))
    assert len(claimant.taken) == 1
    assert not store.notifier.due.is_set()


async def test_a_command_that_is_refused_or_fails_leaves_no_claim(store: Store, claimant: FixedRoom) -> None:
    queue = store._write_queue
    answers = [queue.submit(command) for command in (add("a"), broken(ZeroDivisionError("bug")), remove("never"))]
    await asyncio.gather(*answers, return_exceptions=True)
    assert [born.sku for born in claimant.taken] == ["a"]


async def test_a_batch_that_is_split_gives_its_room_back_and_claims_nothing(store: Store, claimant: FixedRoom) -> None:
    bob = cart_key(user_key("bob"), "default")
    queue = store._write_queue
    answers = [queue.submit(command) for command in (add("a"), refused_by_the_database(bob), add("b"))]
    await asyncio.gather(*answers, return_exceptions=True)
    assert (claimant.taken, claimant.reserved) == ([], 0)
    assert sorted(row.sku for row in await claim(store)) == ["a", "b"]


async def test_a_row_that_cannot_be_claimed_does_not_make_its_callers_command_fail(
    store: Store, engine: Engine, claimant: FixedRoom
) -> None:
    held = await decided_by(store, claimant)
    await overwrite(engine, schema.reservations, lease_epoch=schema.LAST)
    await store.mutate(add(quantity=2))
    row = await stored(engine, held)
    assert (row.quantity, row.lease_expire_time) == (3, None)
    assert (row.due_time or 0) <= app.clock()
    assert claimant.reserved == 0


async def decided_by(store: Store, claimant: FixedRoom) -> Reservation:
    """Add an item, and record a grant under the claim with which its reservation was born."""
    await store.mutate(add())
    held = claimant.taken.pop()
    await store.record(answered(held))
    return held


@pytest.mark.parametrize("committed", [True, False], ids=["committed", "not committed"])
async def test_claims_of_a_commit_that_breaks_are_handed_over_once(
    store: Store, engine: Engine, claimant: FixedRoom, committed: bool
) -> None:
    breaking = Breaking(engine, committed=committed)
    await store.mutate(add())
    assert breaking.broken == 1
    [born] = claimant.taken
    assert born.lease_epoch == 1
    assert await stored(engine, born) == born
    assert claimant.reserved == 0


class Cut(Wrapped):
    """An engine whose network fails after the next commit, so that neither its reply nor its marker arrives."""

    is_cut = False

    async def transact(self, work: Callable[[Connection], T]) -> T:
        if self.is_cut:
            raise unreachable()
        result = await super().transact(work)
        self.is_cut = True
        raise CommitFailed(result) from unreachable()


async def test_claims_of_a_batch_with_an_unknown_outcome_expire_with_their_leases(
    store: Store, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch_writer, "RESOLVE_SECONDS", 0)
    cut_off = Store(Cut(engine), app.new_id, queue_size=10)
    claimant = cut_off.notifier.claimant = FixedRoom(lease_us=1)
    with pytest.raises(OutcomeUnknown):
        await cut_off.mutate(add())
    assert (claimant.taken, claimant.reserved) == ([], 0)
    assert (await claim_one(store)).lease_epoch == 2


async def test_a_born_claim_that_is_returned_is_due(store: Store, claimant: FixedRoom) -> None:
    await store.mutate(add())
    await store.update_leases(ReturnClaims(claimant.taken))
    assert (await claim_one(store)).lease_epoch == 2


async def test_a_cart_with_a_born_claim_has_no_validator_and_a_change_invalidates_the_last_one(
    store: Store, claimant: FixedRoom
) -> None:
    await decided_by(store, claimant)
    before = await store.reads.find_json(KEY)
    assert isinstance(before, CartJson)
    assert before.validator
    await store.mutate(add(quantity=2))
    after = await store.reads.find_json(KEY, before.validator)
    assert isinstance(after, CartJson)
    assert after.validator is None
    await store.record(answered(claimant.taken[-1]))
    settled = await store.reads.find_json(KEY, before.validator)
    assert isinstance(settled, CartJson)
    assert settled.validator
