"""OpenAttempt, for the `basic` contract: one open attempt at a time, and none for an overtaken claim."""

import asyncio
from dataclasses import replace

from cart_grpc.commands.direct import ReturnClaims
from cart_grpc.commands.record import OpenAttempt
from cart_grpc.protocol.lanes import RELEASE_LANE
from cart_grpc.protocol.reservation import Reservation
from cart_grpc.store.engine import Engine
from cart_grpc.store.store import Store
from tests.store.writes import SECOND, add, answered, claim, claim_one, remove, row_of, silent, snapshot

WINDOW = 3600 * SECOND
# A lease or a window that has expired when the next statement runs.
NO_TIME = 1


def attempt(claimed: Reservation, window: int = WINDOW) -> OpenAttempt:
    return OpenAttempt(claimed, window)


async def test_an_open_attempt_is_stored_before_the_request_is_sent(store: Store, engine: Engine) -> None:
    await store.mutate(add())
    claimed = await claim_one(store)
    until = await store.open_attempt(attempt(claimed))
    assert until is not None
    assert until >= claimed.create_time + WINDOW
    assert (await row_of(engine, claimed.reservation_id)).uncertain_until == until


async def test_a_claim_after_a_crash_sees_the_open_attempt_and_opens_no_other(store: Store) -> None:
    await store.mutate(add())
    crashed = await claim_one(store, lease=NO_TIME)
    until = await store.open_attempt(attempt(crashed))
    current = await claim_one(store)
    assert current.uncertain_until == until
    assert await store.open_attempt(attempt(current)) is None


async def test_an_overtaken_claim_opens_no_attempt(store: Store, engine: Engine) -> None:
    await store.mutate(add())
    overtaken = await claim_one(store, lease=NO_TIME)
    current = await claim_one(store)
    assert await store.open_attempt(attempt(overtaken)) is None
    assert (await row_of(engine, current.reservation_id)).uncertain_until is None
    assert await store.open_attempt(attempt(current)) is not None


async def test_one_of_many_concurrent_attempts_is_opened(store: Store) -> None:
    await store.mutate(add())
    claimed = await claim_one(store)
    opened = await asyncio.gather(*(store.open_attempt(attempt(claimed)) for _ in range(8)))
    assert sum(until is not None for until in opened) == 1


async def test_another_attempt_can_be_opened_after_the_window(store: Store) -> None:
    await store.mutate(add())
    claimed = await claim_one(store)
    assert await store.open_attempt(attempt(claimed, NO_TIME)) is not None
    assert await store.open_attempt(attempt(claimed)) is not None


async def test_returning_a_claim_leaves_its_attempt_open(store: Store) -> None:
    await store.mutate(add())
    claimed = await claim_one(store)
    until = await store.open_attempt(attempt(claimed))
    await store.update_leases(ReturnClaims([claimed]))
    assert (await claim_one(store)).uncertain_until == until


async def test_a_release_waits_for_the_answer_of_an_open_attempt(store: Store) -> None:
    await store.mutate(add())
    claimed = await claim_one(store)
    until = await store.open_attempt(attempt(claimed))
    await store.mutate(remove())
    releasing = await claim_one(store, RELEASE_LANE)
    assert releasing.uncertain_until == until
    await store.record(silent(releasing))
    assert await claim(store, RELEASE_LANE) == []
    late = answered(claimed, expire_time=None)
    await store.record(replace(late, opened=until, grace_us=WINDOW))
    closed = (await claim_one(store, RELEASE_LANE)).uncertain_until
    assert closed is not None
    assert until is not None
    assert closed < until


async def test_a_released_reservation_is_claimed_again_to_be_checked_and_new_holds_do_not_wait_for_it(
    store: Store, engine: Engine
) -> None:
    await store.mutate(add())
    claimed = await claim_one(store)
    until = await store.open_attempt(attempt(claimed, NO_TIME))
    await store.mutate(remove())
    releasing = await claim_one(store, RELEASE_LANE)
    done = answered(releasing)
    await store.record(replace(done, opened=until, grace_us=NO_TIME))
    watched = await claim_one(store, RELEASE_LANE)
    assert (watched.revision, watched.intent_revision) == (releasing.revision + 1, releasing.intent_revision)
    await store.mutate(add())
    assert not (await snapshot(store)).lines[0].reservation.waiting
    assert (await row_of(engine, watched.reservation_id)).finish_time is None


async def test_a_purged_reservation_opens_no_attempt(store: Store, engine: Engine) -> None:
    await store.mutate(add())
    claimed = await claim_one(store)
    await engine.transact(lambda connection: connection.exec_driver_sql("DELETE FROM reservations"))
    assert await store.open_attempt(attempt(claimed)) is None


async def test_an_attempt_that_lowers_the_reserved_quantity_raises_the_carts_revision(store: Store) -> None:
    await store.mutate(add(quantity=2))
    first = await claim_one(store)
    await store.record(answered(first, expire_time=None))
    await store.mutate(add(quantity=1))
    before = (await snapshot(store)).cart.revision
    assert await store.open_attempt(attempt(await claim_one(store))) is not None
    assert (await snapshot(store)).cart.revision == before + 1
